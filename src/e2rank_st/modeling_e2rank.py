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

import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn
from typing_extensions import Self

from .adapter_e2rank import ADAPTER_CONFIG, ADAPTER_WEIGHTS, LoraAdapter
from .arguments_e2rank import (
    candidate_lists,
    document_text,
    flag,
    natural,
    one_of,
    one_text,
    query_vectors,
    score_lists,
    share,
    stored_vectors,
    strings,
)  # fmt: skip
from .documents_e2rank import DOCUMENT_TEMPLATE, Document, check_template
from .embedding_e2rank import Embedder, first_position, fuse
from .passages_e2rank import LONG_DOCUMENTS, passages
from .prompts_e2rank import PROMPT_FORMATS, PromptBuilder, TextTokenizer, prompt_format_of
from .ranking_e2rank import CANDIDATE_ORDERS, Options, Results, listwise_scores

__all__ = ["SOURCES", "E2RankPooling", "ListwiseRerank", "num_positions"]

logger = logging.getLogger(__name__)

Made = TypeVar("Made")

SOURCES = (
    "modeling_e2rank.py", "adapter_e2rank.py", "arguments_e2rank.py", "documents_e2rank.py", "embedding_e2rank.py",
    "passages_e2rank.py", "prompts_e2rank.py", "ranking_e2rank.py",
)  # fmt: skip
HUB_ARGUMENTS = ("token", "cache_folder", "revision", "local_files_only")


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
        first_stage_weight: Share λ of the first stage's scores in the final score, from 0 to 1, where a call gives
            them; see :func:`fuse`. A call without them ranks by the listwise score alone.
        document_template: Form of a document that has a title and a text, with the fields ``{title}`` and ``{text}``.
        long_documents: What becomes of a document that has more tokens than the model embeds: ``"cut"`` reads its
            start, ``"passages"`` scores its best passage, and shows that one in the prompt.

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
        "first_stage_weight",
        "document_template",
        "long_documents",
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
        first_stage_weight: float = 0.0,
        document_template: str = DOCUMENT_TEMPLATE,
        long_documents: str = "cut",
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.format = prompt_format_of(prompt_format)
        self.instruction = one_text("instruction", instruction)
        self.num_prompt_documents = natural("num_prompt_documents", num_prompt_documents)
        self.max_prompt_tokens = natural("max_prompt_tokens", max_prompt_tokens, least=1)
        self.max_query_tokens = natural("max_query_tokens", max_query_tokens, least=1)
        self.candidate_order = one_of("candidate_order", candidate_order, CANDIDATE_ORDERS)
        self.query_weight = share("query_weight", query_weight)
        self.document_template = check_template(one_text("document_template", document_template))
        self.long_documents = one_of("long_documents", long_documents, LONG_DOCUMENTS)
        self.adapter: LoraAdapter | None = None
        self.first_stage_weight = share("first_stage_weight", first_stage_weight)
        self._parent: SentenceTransformer
        self._made: dict[str, tuple[Any, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """The state to copy and to pickle, without what is made again on demand."""
        return {**self.__dict__, "_made": {}}

    @property
    def texts(self) -> TextTokenizer:
        """The tokenizer of this model's texts."""
        tokenizer = self._parent.tokenizer  # it is equal to itself only
        key = (tokenizer, len(tokenizer), tokenizer.split_special_tokens)
        return self._kept("texts", key, lambda: TextTokenizer(tokenizer))

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

    def embedder(self, batch_size: int = 32, show_progress_bar: bool | None = False) -> Embedder:
        """An embedder of one call, with the arguments of the call."""
        shown = logger.getEffectiveLevel() <= logging.INFO if show_progress_bar is None else show_progress_bar
        batch_size = natural("batch_size", batch_size, least=1)
        return Embedder(self._parent, self.prompt_model, self.builder, batch_size, flag("show_progress_bar", shown))

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

    def document_text(self, document: Document) -> str:
        """Returns the text of a document as ``rerank`` embeds it: a string, or a mapping with ``text`` and ``title``.

        Raises:
            ValueError: If it is something else.
        """
        return document_text("document", document, self.document_template)

    def passages(self, document: Document) -> list[str]:
        """Returns the passages of a document as ``rerank`` embeds them with ``long_documents="passages"``.

        They overlap by a quarter. A document that the model embeds whole is one passage. To store the passages'
        vectors, call ``encode_document`` with them.

        Raises:
            ValueError: If the document is neither a string nor a mapping with ``text``.
        """
        text = self.document_text(document)
        return passages(self.embedder(), [text])[text]

    def rerank(
        self,
        query: str | Sequence[str],
        documents: Sequence[Document] | Sequence[Sequence[Document]],
        *,
        top_k: int | None = None,
        return_documents: bool = False,
        query_embeddings: Any = None,
        document_embeddings: Any = None,
        first_stage_scores: Any = None,
        min_similarity: float | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        **options: Any,
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Ranks documents by their cosine to the listwise query, as ``CrossEncoder.rank`` does by its logits.

        The listwise query is the vector of the prompt, mixed with the retrieval query's by the query weight. Every
        candidate is scored, also those outside the prompt. Each distinct text is embedded once in a call. Scores are
        cosines in float32, or their mix with the first stage's. Compare them within one ranking only.

        Args:
            query: One query, or B queries.
            documents: The N candidates of the one query. For B queries, one shared list, or B lists. A candidate is a
                string, or a mapping with ``text`` and perhaps ``title``, which the document template joins.
            top_k: Number of results for each query; by default all.
            return_documents: Whether each result also holds its ``text``, or the given mapping as its ``document``.
            query_embeddings: Vectors of the B queries, (B, D), so that they are not embedded again.
            document_embeddings: Stored vectors of the candidates, (N, D), of any kind that :func:`matrix` reads; for B
                lists, B such matrices. With passages also N matrices (P, D): a vector for each of :meth:`passages`.
            first_stage_scores: N scores of the candidates, greater is better; for B queries B rows, also with one list.
            min_similarity: Least ``similarity`` of a result, from -1 to 1. ``top_k`` counts the results that are left.
            batch_size: Most texts in a forward pass. Long texts go in smaller batches.
            show_progress_bar: Whether to show progress bars; by default if this logger's level is INFO or lower.
            **options: ``instruction``, ``num_prompt_documents``, ``candidate_order``, ``query_weight``,
                ``first_stage_weight`` and ``long_documents``, instead of the configured ones: see the class.

        Returns:
            A list of ``{"corpus_id": int, "score": float}``, best first, ties in the given order; for B queries, a list
            of B such lists. Where the query's vector is known (given, or needed for a query weight, ``"similarity"``
            order or ``min_similarity``), a result has its cosine as ``similarity``, comparable between queries.

        Raises:
            ValueError: If an argument does not have the form above; the message names the place and the value.
        """
        chosen, single = self._options(options, first_stage_scores), isinstance(query, str)
        queries = [one_text("query", query)] if isinstance(query, str) else strings("query", query)
        given, texts = candidate_lists(documents, len(queries), single, self.document_template)
        passages, dimension = chosen.long_documents == "passages", self._parent.get_embedding_dimension()
        asked = query_vectors(query_embeddings, len(queries), single, dimension)
        stored = stored_vectors(document_embeddings, texts, single, dimension, passages)
        first_stage = score_lists("first_stage_scores", first_stage_scores, texts, single)
        results = Results.of(top_k, return_documents, min_similarity)
        embedder = self.embedder(batch_size, show_progress_bar)
        scores, similar = listwise_scores(embedder, queries, asked, texts, stored, chosen, min_similarity is not None)
        if first_stage is not None:
            scores = [fuse(*both, chosen.first_stage_weight) for both in zip(scores, first_stage, strict=True)]
        rankings = [results.ranking(*row) for row in zip(scores, similar, given, texts, strict=True)]
        return rankings[0] if single else rankings

    rank = rerank

    def _options(self, given: Mapping[str, Any], first_stage_scores: Any) -> Options:
        """The options of a call, checked; None stands for the configured value."""
        if unknown := sorted(given.keys() - set(Options._fields)):
            raise TypeError(f"rerank() got an unexpected argument {unknown[0]!r}; options are {Options._fields}.")
        given = {name: value for name, value in given.items() if value is not None}
        if "instruction" in given and "{instruction}" not in self.format.template:
            raise ValueError(f"The prompt format {self.format.name!r} has no place for an instruction; leave it out.")
        chosen = {name: getattr(self, name) for name in Options._fields} | given
        weight = share("first_stage_weight", chosen["first_stage_weight"])
        if first_stage_scores is None and weight and "first_stage_weight" in given:
            raise ValueError(
                f"first_stage_weight={weight} needs first_stage_scores; give both, or leave the weight out."
            )
        return Options(
            instruction=one_text("instruction", chosen["instruction"]),
            num_prompt_documents=natural("num_prompt_documents", chosen["num_prompt_documents"]),
            candidate_order=one_of("candidate_order", chosen["candidate_order"], CANDIDATE_ORDERS),
            query_weight=share("query_weight", chosen["query_weight"]),
            first_stage_weight=weight,
            long_documents=one_of("long_documents", chosen["long_documents"], LONG_DOCUMENTS),
        )


def num_positions(model: SentenceTransformer) -> int | None:
    """Returns the number of a model's positions for tokens, or ``None`` if its configuration does not say."""
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    return None if positions is None else positions - first_position(model)
