"""E2Rank for Sentence-Transformers: token embeddings → vectors, and a query with its candidates → a ranking.

One embedding model does two jobs with one score, the cosine. A document is embedded once. A query is embedded alone
for retrieval, or inside a *listwise prompt* (instruction, first K candidates, query) for reranking. With stored
document vectors, reranking therefore costs one forward pass for each query (E2Rank, arXiv 2510.22733).

The files of :data:`SOURCES` are both modules of the package and the remote code of a Hub repository, so they cannot
differ. They import torch, transformers, sentence-transformers and the standard library only.

Axes: B queries, N documents of one query, K documents in the prompt, L tokens, D dimensions.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn
from typing_extensions import Self

from .adapter_e2rank import ADAPTER_CONFIG, ADAPTER_WEIGHTS, LoraAdapter
from .arguments_e2rank import candidate_lists, flag, natural, one_of, one_text, share, stored_vectors, strings
from .embedding_e2rank import Embedder, cosine, interpolate
from .prompts_e2rank import PROMPT_FORMATS, Prompt, PromptBuilder, TextTokenizer, prompt_format_of

__all__ = ["CANDIDATE_ORDERS", "SOURCES", "E2RankPooling", "ListwiseRerank", "num_positions"]

logger = logging.getLogger(__name__)

Made = TypeVar("Made")

SOURCES = (
    "modeling_e2rank.py", "adapter_e2rank.py", "arguments_e2rank.py", "embedding_e2rank.py", "prompts_e2rank.py",
)  # fmt: skip
HUB_ARGUMENTS = ("token", "cache_folder", "revision", "local_files_only")
CANDIDATE_ORDERS = ("given", "similarity")


class E2RankPooling(Pooling):
    """Token embeddings → one L2-normalised float32 vector for each text.

    The stock pooling selects the tokens (left, right and no padding, flattened inputs). This class allows E2Rank's
    modes only. It computes in float32, because bfloat16 cosines tie.

    Args:
        embedding_dimension: D, the size of the token embeddings.
        pooling_mode: ``"lasttoken"``, ``"cls"`` or ``"mean"``.
        include_prompt: Must be ``True``: the tokens of a retrieval prompt count. The stock configuration has this key.

    Raises:
        ValueError: If ``pooling_mode`` is not one of the three, or ``include_prompt`` is false.
    """

    POOLING_MODES = ("lasttoken", "cls", "mean")  # type: ignore[assignment]

    # Every runtime reads these keys of `1_Pooling/config.json`: Sentence-Transformers before and since 6, TEI, vLLM.
    # Some take the first true key, so the modes come before `include_prompt`.
    STOCK_KEYS = (
        ("cls", "pooling_mode_cls_token"),
        ("mean", "pooling_mode_mean_tokens"),
        ("max", "pooling_mode_max_tokens"),
        ("mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens"),
        ("weightedmean", "pooling_mode_weightedmean_tokens"),
        ("lasttoken", "pooling_mode_lasttoken"),
    )

    def __init__(self, embedding_dimension: int, pooling_mode: str = "lasttoken", include_prompt: bool = True) -> None:
        if pooling_mode not in self.POOLING_MODES:
            raise ValueError(f"pooling_mode must be one of {self.POOLING_MODES}, got {pooling_mode!r}.")
        if not include_prompt:
            raise ValueError("include_prompt must be True: E2Rank pools the prompt's tokens, too.")
        super().__init__(embedding_dimension, pooling_mode, include_prompt)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds ``sentence_embedding`` of shape (texts, D) to ``features``.

        Args:
            features: ``token_embeddings`` of shape (texts, L, D) with ``attention_mask`` (texts, L), or of shape
                (1, total L, D) with ``cu_seq_lens_q``.
            **kwargs: Further arguments of the stock pooling.
        """
        token_embeddings = features["token_embeddings"]
        features["token_embeddings"] = token_embeddings.float()
        pooled = super().forward(features, **kwargs)
        pooled["token_embeddings"] = token_embeddings
        pooled["sentence_embedding"] = F.normalize(pooled["sentence_embedding"], dim=-1)
        return pooled

    def get_config_dict(self) -> dict[str, Any]:
        """Returns the configuration under the stock keys."""
        modes = {key: self.pooling_mode == mode for mode, key in self.STOCK_KEYS}
        return {"word_embedding_dimension": self.embedding_dimension, **modes, "include_prompt": self.include_prompt}


class ListwiseRerank(Module):
    """Last module of an E2Rank model: holds the reranking configuration and gives the model its ``rerank`` method.

    ``forward`` changes nothing. When the model is complete, ``on_model_ready`` binds :meth:`rerank` (alias ``rank``) to
    it. A plain ``SentenceTransformer`` therefore has the method, too.

    Args:
        prompt_format: A name in ``PROMPT_FORMATS``, or the fields of a :class:`PromptFormat`.
        instruction: Default task instruction of the prompt.
        num_prompt_documents: K, the number of candidates in the prompt.
        max_prompt_tokens: Most tokens of a prompt.
        max_query_tokens: Most tokens of the query in a prompt; a longer query is cut with a warning.
        candidate_order: Choice of the K candidates: ``"given"`` takes the caller's first K, ``"similarity"`` the K
            nearest to the retrieval query, nearest first.
        query_weight: Share w of the retrieval query in the final vector, from 0 to 1; the prompt's share is 1 − w, and
            both have unit length. 0 ranks by the prompt alone, as published. A share in between is a safeguard, as in
            Rocchio's pseudo-relevance feedback.

    Raises:
        ValueError: If a value is not allowed.
    """

    config_keys = [  # noqa: RUF012
        "prompt_format",
        "instruction",
        "num_prompt_documents",
        "max_prompt_tokens",
        "max_query_tokens",
        "candidate_order",
        "query_weight",
    ]

    def __init__(
        self,
        prompt_format: str | Mapping[str, Any] = "evaluation",
        instruction: str = "Given a web search query and some relevant documents, "
        "rerank the documents that answer the query",
        num_prompt_documents: int = 20,
        max_prompt_tokens: int = 32_768,
        max_query_tokens: int = 1_024,
        candidate_order: str = "given",
        query_weight: float = 0.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.format = prompt_format_of(prompt_format)
        self.instruction = one_text("instruction", instruction)
        self.num_prompt_documents = natural("num_prompt_documents", num_prompt_documents)
        self.max_prompt_tokens = natural("max_prompt_tokens", max_prompt_tokens, least=1)
        self.max_query_tokens = natural("max_query_tokens", max_query_tokens, least=1)
        self.candidate_order = one_of("candidate_order", candidate_order, CANDIDATE_ORDERS)
        self.query_weight = share("query_weight", query_weight)
        self.adapter: LoraAdapter | None = None
        self._parent: SentenceTransformer
        self._made: dict[str, tuple[Any, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """The state to copy and to pickle, without what is made again on demand."""
        return {**self.__dict__, "_made": {}}

    @property
    def texts(self) -> TextTokenizer:
        """The tokenizer of this model's texts."""
        tokenizer = self._parent.tokenizer  # it is equal to itself only
        return self._kept("texts", (tokenizer, len(tokenizer)), lambda: TextTokenizer(tokenizer))

    @property
    def builder(self) -> PromptBuilder:
        """The builder of this model's prompts."""
        texts, limits = self.texts, (self.max_prompt_tokens, self.max_query_tokens)
        key = (texts, texts.tokenizer.chat_template, self.format, limits)
        return self._kept("builder", key, lambda: PromptBuilder(texts, self.format, *limits))

    @property
    def prompt_model(self) -> nn.Module:
        """The model that embeds prompts: the model itself, or one that has the adapter and shares all else with it."""
        model, adapter = self._parent, self.adapter
        if adapter is None:
            return model
        transformer, backbone = model[0], cast("nn.Module", model.transformers_model)

        def make() -> nn.Module:
            return nn.Sequential(adapter.applied(transformer, backbone), *list(model)[1:])

        return self._kept("prompt_model", (adapter, transformer, adapter.state(backbone)), make)

    def embedder(self, batch_size: int = 32, show_progress_bar: bool = False) -> Embedder:
        """The embedder of one call."""
        return Embedder(self._parent, self.prompt_model, self.builder, batch_size, show_progress_bar)

    def _kept(self, name: str, key: Any, make: Callable[[], Made]) -> Made:
        """A part that is made at first use, and again after a change. If two threads make it, they keep one of both."""
        known, part = self._made.get(name, (None, None))
        if part is None or known != key:
            part = make()
            self._made[name] = key, part
        return cast("Made", part)

    @property
    def prompt_format(self) -> str | dict[str, Any]:
        """The prompt format for configurations: the name of a known format, or else the fields."""
        return self.format.name if PROMPT_FORMATS.get(self.format.name) == self.format else asdict(self.format)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Returns the features unchanged."""
        return features

    def on_model_ready(self, model: SentenceTransformer) -> None:  # type: ignore[override]
        """Binds ``rerank`` and ``rank`` to the complete model.

        Raises:
            ValueError: If the model has fewer positions than tokens of a prompt, or other layers than its adapter.
        """
        positions = num_positions(model)
        if positions is not None and self.max_prompt_tokens > positions:
            raise ValueError(f"max_prompt_tokens={self.max_prompt_tokens} exceeds the model's {positions} positions.")
        if self.adapter is not None:
            list(self.adapter.layers(cast("nn.Module", model.transformers_model)))  # refuses an adapter of others
        # A normal assignment would register the model as a submodule of its own submodule.
        object.__setattr__(self, "_parent", model)
        if any(isinstance(module, E2RankPooling) for module in model):  # else the vectors are those of another model
            model.tokenizer.split_special_tokens = True
        if not hasattr(type(model), "rerank"):
            # Bound methods of this module survive deepcopy, pickling and process pools; those of the model do not.
            model.rerank, model.rank = self.rerank, self.rank  # type: ignore[assignment]

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Writes configuration and adapter, and copies the source files to the model folder as its remote code."""
        self.save_config(output_path)
        if self.adapter is not None:
            self.adapter.write(Path(output_path))
        for name in SOURCES:
            source, target = Path(__file__).parent / name, Path(output_path).parent / name
            if source.resolve() != target.resolve():
                shutil.copyfile(source, target)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> Self:  # type: ignore[override]
        """Reads the configuration, and the adapter if there is one.

        Args:
            model_name_or_path: A folder or a Hub id.
            subfolder: The module's folder in it.
            **kwargs: Arguments of ``Module.load``.

        Raises:
            ValueError: A value is not allowed, or the adapter is damaged.
        """
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        module = cls(**cls.load_config(model_name_or_path, subfolder, **hub))
        config, weights = (
            cls.load_file_path(model_name_or_path, name, subfolder, **hub) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
        )
        if config and weights:
            module.adapter = LoraAdapter.read(Path(config), Path(weights))
        elif config or weights:
            raise ValueError(f"{subfolder} has one of {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}; it needs both, or none.")
        return module

    def rerank(
        self,
        query: str | Sequence[str],
        documents: Sequence[str] | Sequence[Sequence[str]],
        *,
        top_k: int | None = None,
        return_documents: bool = False,
        document_embeddings: Any = None,
        instruction: str | None = None,
        num_prompt_documents: int | None = None,
        candidate_order: str | None = None,
        query_weight: float | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Ranks documents by their cosine to the listwise query, as ``CrossEncoder.rank`` does by its logits.

        The listwise query is the vector of the prompt. With a query weight, it is mixed with the retrieval query's.

        Every candidate is scored, also those outside the prompt. Each distinct text is embedded once in a call.
        Scores are cosines in float32. Compare them within one ranking only, because each query has its own prompt.

        Args:
            query: One query, or B queries.
            documents: The N candidates of the one query. For B queries, one shared list, or B lists.
            top_k: Number of results for each query; by default all.
            return_documents: Whether each result also holds its ``text``.
            document_embeddings: Stored vectors of the candidates, of shape (N, D); for B lists of candidates, B such
                matrices. See :func:`matrix` for their kinds. With them, documents are not embedded.
            instruction: Task instruction of the prompt, instead of the configured one.
            num_prompt_documents: K, instead of the configured one.
            candidate_order: ``"given"`` or ``"similarity"``, instead of the configured one.
            query_weight: Share of the retrieval query, from 0 to 1, instead of the configured one.
            batch_size: Most texts in a forward pass. Long texts go in smaller batches.
            show_progress_bar: Whether to show progress bars; by default if this logger's level is INFO or lower. They
                need the progress bars of transformers to be enabled.

        Returns:
            A list of ``{"corpus_id": int, "score": float}``, best first, ties in the given order; for B queries, a list
            of B such lists.

        Raises:
            ValueError: If an argument does not have the form above; the message names the place and the value.
        """
        single = isinstance(query, str)
        queries = [one_text("query", query)] if single else strings("query", query)
        candidates = candidate_lists(documents, len(queries), single)
        top_k = None if top_k is None else natural("top_k", top_k)
        options = self._options(instruction, num_prompt_documents, candidate_order, query_weight)
        stored = stored_vectors(document_embeddings, candidates, single, self._parent.get_embedding_dimension())
        with_texts = flag("return_documents", return_documents)
        shown = logger.getEffectiveLevel() <= logging.INFO if show_progress_bar is None else show_progress_bar
        batch_size = natural("batch_size", batch_size, least=1)
        embedder = self.embedder(batch_size, flag("show_progress_bar", shown))
        scores = self._scores(embedder, queries, candidates, stored, **options)
        rankings = [
            _ranking(values, texts if with_texts else None, top_k)
            for values, texts in zip(scores, candidates, strict=True)
        ]
        return rankings[0] if single else rankings

    rank = rerank

    def _options(
        self, instruction: str | None, count: int | None, order: str | None, weight: float | None
    ) -> dict[str, Any]:
        """The options of a call, checked; None stands for the configured value."""
        if instruction is not None and "{instruction}" not in self.format.template:
            raise ValueError(f"The prompt format {self.format.name!r} has no place for an instruction; leave it out.")
        count = self.num_prompt_documents if count is None else count
        order = self.candidate_order if order is None else order
        return {
            "instruction": self.instruction if instruction is None else one_text("instruction", instruction),
            "num_prompt_documents": natural("num_prompt_documents", count),
            "candidate_order": one_of("candidate_order", order, CANDIDATE_ORDERS),
            "query_weight": share("query_weight", self.query_weight if weight is None else weight),
        }

    @torch.inference_mode()
    def _scores(
        self,
        embedder: Embedder,
        queries: list[str],
        candidates: list[list[str]],
        stored: list[Tensor] | None,
        *,
        num_prompt_documents: int,
        candidate_order: str,
        query_weight: float,
        instruction: str,
    ) -> list[Tensor]:
        """Returns the cosine of every candidate to its listwise query: B tensors of shape (N,)."""
        asked = [row for row, texts in enumerate(candidates) if texts]
        candidate_vectors = embedder.candidates(candidates) if stored is None else stored.__getitem__
        query_vectors = torch.empty(0)
        if candidate_order == "similarity" or query_weight:
            query_vectors = embedder.embed_texts("query", (queries[row] for row in asked))  # (B, D)
        if candidate_order == "similarity":
            chosen = [
                _best_first(cosine(candidate_vectors(row), vector))[:num_prompt_documents]
                for row, vector in zip(asked, query_vectors, strict=True)
            ]
        else:
            chosen = [list(range(len(candidates[row])))[:num_prompt_documents] for row in asked]
        selected = [[candidates[row][index] for index in indices] for row, indices in zip(asked, chosen, strict=True)]
        prompts = embedder.prompts([queries[row] for row in asked], selected, instruction)
        _log_cuts(prompts, self.max_prompt_tokens)
        vectors = embedder.embed([prompt.ids for prompt in prompts], "prompt")  # (B, D)
        if query_weight:
            vectors = interpolate(query_vectors, vectors, query_weight)
        scores = [torch.empty(0)] * len(queries)
        for row, vector in zip(asked, vectors, strict=True):
            scores[row] = cosine(candidate_vectors(row), vector)
        return scores


def _log_cuts(prompts: Sequence[Prompt], limit: int) -> None:
    cut = [
        share
        for prompt in prompts
        for tokens, share in zip(prompt.document_tokens, prompt.document_shares, strict=True)
        if share < tokens
    ]
    if cut:
        logger.info(
            "Listwise prompts of at most %d tokens: documents shortened: %d, to %d tokens in all.",
            limit, len(cut), sum(cut),
        )  # fmt: skip
    shares = [prompt.query_share for prompt in prompts if prompt.query_share < prompt.query_tokens]
    if shares:
        logger.warning(
            "Cut %d of %d queries in their listwise prompts, to at most %d tokens. "
            "Raise max_query_tokens, or shorten the query.", len(shares), len(prompts), max(shares),
        )  # fmt: skip


def _best_first(scores: Tensor) -> list[int]:
    return torch.argsort(scores, descending=True, stable=True).tolist()


def _ranking(scores: Tensor, texts: Sequence[str] | None, top_k: int | None) -> list[dict[str, Any]]:
    values = scores.tolist()
    ranking = [{"corpus_id": index, "score": values[index]} for index in _best_first(scores)[:top_k]]
    return ranking if texts is None else [{**hit, "text": texts[hit["corpus_id"]]} for hit in ranking]


def num_positions(model: SentenceTransformer) -> int | None:
    """Returns the number of a model's positions for tokens, or ``None`` if its configuration does not say."""
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    for module in model.modules():
        padding = getattr(getattr(module, "position_embeddings", None), "padding_idx", None)
        if positions is not None and padding is not None:
            return positions - int(padding) - 1  # as in RoBERTa, where positions start after the padding's
    return positions
