"""A model and perhaps an index → the answers of the server, each computed in a thread of its own."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from e2rank_st.backends.module import PROMPT_SUFFIX
from e2rank_st.modeling_e2rank import num_positions
from e2rank_st.search.index import SearchIndex
from e2rank_st.serving.protocol import (
    Embedded,
    EmbeddingRequest,
    Ranked,
    RankedText,
    RerankRequest,
    SearchRequest,
    TEIRequest,
    TitledText,
)
from e2rank_st.serving.queue import PROMPT, TEXT, ForwardQueue, queued

__all__ = ["Service", "relevance"]


@dataclass(eq=False)
class Service:
    """What a server answers with.

    Attributes:
        queue: The queue before the model.
        index: The index that is searched; None if there is none.
    """

    queue: ForwardQueue
    index: SearchIndex | None = None

    def __post_init__(self) -> None:
        """Let the index embed its queries by the queue, too."""
        self.model = queued(self.queue)
        if self.index is not None:
            self.index = SearchIndex(self.index.store, self.index.settings, self.model)

    @property
    def name(self) -> str:
        """The model's name, without the folder that it is in."""
        return self.model.name.rstrip("/").rsplit("/", 1)[-1] if self.model.name.startswith("/") else self.model.name

    @property
    def names(self) -> list[str]:
        """The model's name and, if an adapter embeds its prompts, that of the model with it."""
        return [self.name] + [self.name + PROMPT_SUFFIX] * (self.model.listwise.adapter is not None)

    def rerank(self, request: RerankRequest) -> list[Ranked]:
        """Rank documents.

        Raises:
            ValueError: A value is not allowed.
        """
        documents = [text if isinstance(text, str) else text.model_dump() for text in request.documents]
        if request.max_tokens_per_doc is not None:
            documents = [self._cut(document, request.max_tokens_per_doc) for document in documents]
        hits = self._ranked(
            request.query,
            documents,
            request.top_n,
            document_embeddings=request.document_embeddings,
            instruction=request.instruction,
        )
        return [
            Ranked(
                index=hit["corpus_id"],
                relevance_score=relevance(hit["score"]),
                document=_document(request.documents[hit["corpus_id"]]) if request.return_documents else None,
            )
            for hit in hits
        ]

    def rerank_tei(self, request: TEIRequest) -> list[RankedText]:
        """Rank texts, in TEI's form."""
        return [
            RankedText(
                index=hit["corpus_id"],
                score=hit["score"] if request.raw_scores else relevance(hit["score"]),
                text=request.texts[hit["corpus_id"]] if request.return_text else None,
            )
            for hit in self._ranked(request.query, request.texts, None)
        ]

    def _cut(self, document: Any, most: int) -> str:
        """The first tokens of a document."""
        texts, text = self.model.listwise.texts.own, self.model.listwise.document_text(document)
        text = texts.start(text, most + 1)
        (encoding,) = texts.encodings([text])
        return text[: encoding.offsets[most - 1][1]] if len(encoding.ids) > most else text

    def _ranked(self, query: str, documents: Any, count: int | None, **options: Any) -> list[dict[str, Any]]:
        hits: list[dict[str, Any]] = self.model.rerank(
            query, documents, top_k=count or None, show_progress_bar=False, **options
        )
        return hits

    def embed(self, request: EmbeddingRequest) -> list[Embedded]:
        """Embed texts or token ids.

        Raises:
            ValueError: A value is not allowed.
        """
        inputs: list[Any] = [request.input] if isinstance(request.input, str) else list(request.input)
        if inputs and isinstance(inputs[0], int):
            inputs = [inputs]
        network = PROMPT if (request.model or "").endswith(PROMPT_SUFFIX) and len(self.names) > 1 else TEXT
        size = self.model.get_embedding_dimension() or 0
        if request.dimensions is not None and request.dimensions > size:
            raise ValueError(f"dimensions={request.dimensions} is more than the model's {size}.")
        if not inputs:
            return []
        vectors = self._embedded(inputs, network, request.input_type)[:, : request.dimensions]
        vectors = torch.nn.functional.normalize(vectors, dim=-1)
        if request.encoding_format == "float":
            return [Embedded(index=row, embedding=vector) for row, vector in enumerate(vectors.tolist())]
        rows = vectors.numpy().astype("<f4")
        return [
            Embedded(index=row, embedding=base64.b64encode(part.tobytes()).decode()) for row, part in enumerate(rows)
        ]

    def _embedded(self, inputs: Sequence[Any], network: str, kind: str | None) -> Tensor:
        embedder = self.model.listwise.embedder()
        if isinstance(inputs[0], str):
            if kind is not None:
                return embedder.embed_texts(kind, inputs)
            texts = self.model.listwise.texts.own
            limit = embedder.limit("document")
            sequences = [
                texts.with_special_tokens(ids, limit)
                for ids in texts.ids([texts.start(text, limit) for text in inputs])
            ]
        else:
            sequences = [self._checked(ids) for ids in inputs]
        return embedder.embed(sequences, "prompt" if network == PROMPT else "text")

    def _checked(self, ids: Sequence[int]) -> tuple[int, ...]:
        model = self.queue.model
        most, rows = num_positions(model), len(model.tokenizer)
        if not ids or (most is not None and len(ids) > most) or not all(0 <= id_ < rows for id_ in ids):
            raise ValueError(f"Token ids must be from 0 to {rows - 1}, and from 1 to {most} of them, in each input.")
        return tuple(ids)

    def search(self, request: SearchRequest) -> list[dict[str, Any]]:
        """Search the index.

        Raises:
            ValueError: The filter names a field that is not there.
        """
        assert self.index is not None
        options = request.model_dump(exclude={"query"}, exclude_none=True)
        hits: list[dict[str, Any]] = self.index.search(request.query, **options)
        return hits


def relevance(cosine: float) -> float:
    """Map a cosine to 0..1, as rerank APIs have it: ``(1 + cosine) / 2``, so that the order stays the same."""
    return min(1.0, max(0.0, (1 + cosine) / 2))


def _document(given: str | TitledText) -> TitledText:
    return TitledText(text=given) if isinstance(given, str) else given
