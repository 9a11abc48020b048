"""What a user could take instead of reranking with stored vectors, on the same backbone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from sentence_transformers import CrossEncoder
from torch import nn
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from e2rank_st.model import E2Rank

__all__ = [
    "SHAPES",
    "Generative",
    "cross_encoder",
    "plain_recipe",
    "quiet",
    "recipe_fits",
    "write_random_decoder",
]

# Qwen3-0.6B's, and one of its kind that a CPU can run. Weights that are drawn take as long as trained ones.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128,
    },
    "qwen3-small": {
        "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 64,
    },
}  # fmt: skip
POSITIONS = 32_768
WINDOW, STEP = 20, 10  # of a generative reranker, as in RankGPT (Sun et al. 2023)
IDENTIFIERS = 64  # that it can write: one for each document of a window, as in FIRST (Reddy et al. 2024), and some more
MOST_PADDED = 400_000  # tokens of the plain recipe's one batch: some GB
# A pair for the cross-encoder of a decoder: the templates of chats have no place for one.
PAIR = "\n".join(
    f'{{{{ messages | selectattr("role", "eq", "{role}") | map(attribute="content") | first }}}}'
    for role in ("query", "document")
)
RANK = "Rank the {number} passages above by their relevance to the query: {query}. Answer with their identifiers."


@contextmanager
def quiet() -> Iterator[None]:
    """Load models without bars and without warnings of heads and weights that are drawn on purpose."""
    logs = [logging.getLogger(name) for name in ("transformers", "sentence_transformers", "e2rank_st")]
    levels = [log.level for log in logs]
    disable_progress_bar()
    try:
        for log in logs:
            log.setLevel(logging.ERROR)
        yield
    finally:
        enable_progress_bar()
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def write_random_decoder(shape: str, tokenizer: str, folder: Path, seed: int = 0) -> Path:
    """Write a decoder with weights that are drawn, and a real tokenizer, in the form of a released checkpoint.

    Args:
        shape: A name of :data:`SHAPES`.
        tokenizer: Folder or Hub id of the tokenizer.
        folder: Where to.
        seed: Of the weights.

    Returns:
        The folder.
    """
    chosen = AutoTokenizer.from_pretrained(tokenizer)
    torch.manual_seed(seed)
    vocabulary = -(-len(chosen) // 64) * 64
    config = Qwen3Config(vocab_size=vocabulary, max_position_embeddings=POSITIONS, **SHAPES[shape])
    Qwen3ForCausalLM(config).save_pretrained(folder)
    chosen.save_pretrained(folder)
    return folder


def cross_encoder(backbone: str, model: E2Rank, dtype: torch.dtype) -> CrossEncoder:
    """Make a cross-encoder of a backbone, with a head that is drawn and the model's limit of tokens."""
    made: Any = CrossEncoder(
        backbone,
        num_labels=1,
        device=str(model.device),
        model_kwargs={"dtype": dtype},
        processor_kwargs={"chat_template": PAIR} if model.tokenizer.chat_template else {},
    )
    made.max_seq_length = model.max_seq_length
    if made.tokenizer.pad_token_id is not None:
        made.model.config.pad_token_id = made.tokenizer.pad_token_id
    return made  # type: ignore[no-any-return]


def _plain_batch(model: E2Rank, query: str, documents: Sequence[str]) -> Any:
    """The listwise prompt and all documents, padded together: the one batch of :func:`plain_recipe`."""
    listwise = model.listwise
    prompt = listwise.format.render(listwise.instruction, query, documents[: listwise.num_prompt_documents])
    options: dict[str, Any] = {"padding": True, "truncation": True, "return_tensors": "pt"}
    return model.tokenizer([prompt, *documents], max_length=listwise.max_prompt_tokens, **options)


def recipe_fits(model: E2Rank, query: str, documents: Sequence[str]) -> bool:
    """Whether the one batch of :func:`plain_recipe` has at most ``MOST_PADDED`` tokens."""
    padded: int = _plain_batch(model, query, documents)["input_ids"].numel()
    return padded <= MOST_PADDED


def plain_recipe(model: E2Rank, query: str, documents: Sequence[str]) -> list[int]:
    """Rank as the public model card does: all in one batch, then compared.

    Returns:
        Places of the documents, the best first.
    """
    batch, backbone = _plain_batch(model, query, documents), cast("Any", model.transformers_model)
    with torch.inference_mode():
        hidden = backbone(**batch.to(model.device)).last_hidden_state  # (1 + N, L, D)
        mask = batch["attention_mask"].unsqueeze(-1)
        vectors = normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)  # (1 + N, D)
    order: list[int] = (vectors[1:] @ vectors[0]).argsort(descending=True).tolist()
    return order


class Generative:
    """A generative listwise reranker: it reads windows from the last candidates to the first, and writes their order.

    It writes one token for each document: the least that names all. Its output layer knows these tokens only, so that
    the price is that of the backbone, not that of a large vocabulary.

    Args:
        folder: The decoder.
        device: Where it computes.
        dtype: Type of its weights.
        max_document_tokens: Most tokens that it reads of a document; None reads all.
    """

    def __init__(self, folder: str, device: torch.device, dtype: torch.dtype, max_document_tokens: int | None) -> None:
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        loaded.lm_head = nn.Linear(loaded.config.hidden_size, IDENTIFIERS, bias=False, dtype=dtype)
        loaded.generation_config.eos_token_id = None  # the number of tokens is known
        self.model = loaded.to(device).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.max_document_tokens = max_document_tokens

    def rank(self, query: str, documents: Sequence[str]) -> None:
        """Read and write all windows of a query. The order that weights of chance would give is of no use."""
        most = self.max_document_tokens
        options: dict[str, Any] = {"truncation": most is not None, "max_length": most}
        texts = self.tokenizer.batch_decode(self.tokenizer(list(documents), **options)["input_ids"])
        for start in reversed(range(0, max(1, len(texts) - WINDOW + STEP), STEP)):
            shown = texts[start : start + WINDOW]
            passages = "\n".join(f"[{number}] {text}" for number, text in enumerate(shown, 1))
            message = [{"role": "user", "content": f"{passages}\n{RANK.format(number=len(shown), query=query)}"}]
            batch = self.tokenizer.apply_chat_template(
                message, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            exactly = {"min_new_tokens": len(shown), "max_new_tokens": len(shown)}
            with torch.inference_mode():
                self.model.generate(
                    **batch.to(self.model.device), **exactly, do_sample=False, pad_token_id=self.tokenizer.pad_token_id
                )
