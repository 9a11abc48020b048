"""Nodes that a LlamaIndex retriever found → the same ones, reranked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from e2rank_st.integrations.ranking import loaded, ranked
from e2rank_st.model import E2Rank

try:
    from llama_index.core.bridge.pydantic import ConfigDict, Field
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
except ModuleNotFoundError as error:
    raise ImportError("This needs LlamaIndex: pip install 'e2rank-st[llama-index]'") from error

__all__ = ["E2RankPostprocessor", "node_embeddings"]


def node_embeddings(nodes: Sequence[BaseNode]) -> list[list[float] | None]:
    """Return the vectors that the nodes hold themselves."""
    return [node.embedding for node in nodes]


class E2RankPostprocessor(BaseNodePostprocessor):
    """Reranks nodes, by the text that LlamaIndex embeds: that of ``MetadataMode.EMBED``.

    The nodes' scores by the retriever are the first stage's: they count if ``first_stage_weight`` is above 0.

    Args:
        model: A model, or its name: ``"bundled"``, a folder, or a Hub id.
        top_n: Most nodes; by default all.
        embeddings: A function that takes the nodes and returns this model's stored vector, or ``None``, for each. By
            default it is the node's own ``embedding``. Nodes without a vector are embedded. ``None`` embeds all: it is
            right if the vectors in the nodes are of a different model.
        options: Options of :meth:`~e2rank_st.E2Rank.rerank`, such as ``{"query_weight": 0.5}``.

    Raises:
        ValueError: The model or a field is not one of those above.
        OSError: The model cannot be loaded.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: E2Rank = Field(exclude=True, repr=False)
    top_n: int | None = None
    embeddings: Callable[[Sequence[BaseNode]], Sequence[Any]] | None = Field(default=node_embeddings, exclude=True)
    options: dict[str, Any] = Field(default_factory=dict)

    def __init__(self, model: E2Rank | str, **fields: Any) -> None:
        fields["model"] = loaded(model)
        super().__init__(**fields)

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the class, which LlamaIndex writes into what it serialises."""
        return "E2RankPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        """Hook of LlamaIndex. The given nodes keep their scores."""
        if query_bundle is None:
            raise ValueError("Got nodes without a query; call postprocess_nodes(nodes, query_str=...).")
        found = [one.node for one in nodes]
        hits = ranked(
            self.model,
            query_bundle.query_str,
            [node.get_content(MetadataMode.EMBED) for node in found],
            vectors=None if self.embeddings is None else self.embeddings(found),
            scores=[one.score for one in nodes],
            top_k=self.top_n,
            options=self.options,
        )
        return [NodeWithScore(node=found[hit["corpus_id"]], score=hit["score"]) for hit in hits]
