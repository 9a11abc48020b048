"""E2Rank inside MTEB: an encoder for its embedding tasks, a search system for retrieval and reranking.

    import mteb
    from e2rank_st import E2Rank
    from e2rank_st.benchmarks.mteb_model import E2RankMTEB

    model = E2RankMTEB(E2Rank("org/e2rank"), name="org/e2rank", revision="main", mode="two-stage")
    mteb.evaluate(model, mteb.get_tasks(tasks=["NFCorpus"]))

Stage 1 sorts a corpus, or the candidates that a task gives, by the cosine of stored vectors; it is exact and holds one
chunk of scores at a time. Stage 2 reranks the best of them listwise with the same vectors. The order in which a task
lists its documents and candidates may show its labels, so it has no influence: stage 1 sorts them first, and a hash
orders equal scores.

Axes: B queries, N documents of the corpus, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from transformers.utils.logging import tqdm

from e2rank_st.benchmarks.corpus import Corpus
from e2rank_st.benchmarks.instructions import listwise_instruction
from e2rank_st.checkpoints import instruction_template
from e2rank_st.model import E2Rank
from e2rank_st.search.exact import Neighbours, Rules, nearest
from e2rank_st.search.kept import kept_vectors
from e2rank_st.search.reranking import rerank_rows
from e2rank_st.search.vectors import Matrix, unit_rows

try:
    from mteb._create_dataloaders import create_dataloader
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ScoringFunction
    from mteb.types import PromptType
except ImportError as error:
    raise ImportError("Evaluation by MTEB needs its package: pip install 'e2rank-st[eval]'") from error

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from torch.utils.data import DataLoader

__all__ = ["MODES", "TAIL_SHIFT", "E2RankMTEB", "Mode", "load_e2rank"]

QUERY, DOCUMENT = PromptType("query"), PromptType("document")
Mode: TypeAlias = Literal["embedding", "two-stage"]
MODES: tuple[Mode, ...] = get_args(Mode)
# A cosine of stage 1 is not comparable with one of stage 2. Shifted by this, it is below all of those: in [-4, -2].
TAIL_SHIFT = 3.0
QUERIES_AT_ONCE = 64  # in one call of rerank, between two steps of the progress bar


class E2RankMTEB(AbsEncoder):
    """A model for ``mteb.evaluate``.

    Instructions are those of MTEB's metadata where the model's formats have a place for one: its query prompt is
    ``Instruct: ...`` and ``Query:`` in two lines, its listwise prompt has the field ``{instruction}``. Other models are
    prompted as they are configured.

    Args:
        model: The model.
        name: Its name in results: ``organisation/name``.
        revision: Its state.
        mode: ``"embedding"`` searches by plain embeddings, ``"two-stage"`` reranks the results. Tasks without search
            are the same in both. Results of the modes are told apart by ``experiment_kwargs``, so that a cached one is
            not taken for the other.
        rerank_depth: How many documents of a query to rerank.
        num_prompt_documents: K, instead of the configured one.
        first_stage_weight: Share of stage 1's cosine in the score of stage 2, instead of the configured one.
        keep_vectors: Whether to take the vectors of the last corpus if the same one comes again, as it does for the
            second mode. This is right only as long as the weights do not change.
        vectors: Where vectors of documents are kept, see :func:`~e2rank_st.search.kept.kept_vectors`; None keeps none.

    Raises:
        ValueError: A value is not allowed.
    """

    def __init__(
        self,
        model: E2Rank,
        *,
        name: str,
        revision: str,
        mode: Mode = "embedding",
        rerank_depth: int = 100,
        num_prompt_documents: int | None = None,
        first_stage_weight: float | None = None,
        keep_vectors: bool = False,
        vectors: Path | None = None,
    ) -> None:
        if "/" not in name:
            raise ValueError(f"Got the name {name!r}; MTEB wants organisation/name.")
        if rerank_depth < 1:
            raise ValueError(f"Got rerank_depth={rerank_depth}; give at least 1.")
        self.model = model
        self.name, self.revision = name, revision
        self.rerank_depth = rerank_depth
        configured = model.listwise.num_prompt_documents
        self.num_prompt_documents = configured if num_prompt_documents is None else num_prompt_documents
        share = model.listwise.first_stage_weight if first_stage_weight is None else first_stage_weight
        if not 0 <= share <= 1:
            raise ValueError(f"Got first_stage_weight={share}; give a number from 0 to 1.")
        self.first_stage_weight = share
        self.keep_vectors, self.vectors = keep_vectors, vectors
        self.instruction_template = instruction_template(model.prompts.get("query"))
        self._embedded: tuple[Corpus, Matrix] | None = None
        self.set_mode(mode)

    def set_mode(self, mode: Mode) -> None:
        """Change the mode; the vectors of the last corpus stay."""
        if mode not in MODES:
            raise ValueError(f"Got the mode {mode!r}; give one of {', '.join(MODES)}.")
        self.mode = mode
        experiment: dict[str, Any] = {"mode": self.mode}
        if self.mode == "two-stage":
            experiment |= {"prompt_documents": self.num_prompt_documents, "rerank_depth": self.rerank_depth}
            if self.first_stage_weight:
                experiment["first_stage_weight"] = self.first_stage_weight
        dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        if dtype != "float32":
            experiment["dtype"] = dtype
        self.mteb_model_meta: ModelMeta = ModelMeta.create_empty(
            overwrites={
                "name": self.name,
                "revision": self.revision,
                "n_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
                "max_tokens": self.model.max_seq_length,
                "embed_dim": self.model.get_embedding_dimension(),
                "framework": ["Sentence Transformers", "PyTorch"],
                "similarity_fn_name": ScoringFunction.COSINE,
                "use_instructions": self.instruction_template is not None,
                "experiment_kwargs": experiment,
            }
        )

    def encode(
        self,
        inputs: DataLoader[Any],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> Matrix:
        """Embed the texts of MTEB's batches, of shape (texts, D); ``kwargs`` are those of the model's ``encode``."""
        return self._embed([text for batch in inputs for text in batch["text"]], task_metadata, prompt_type, **kwargs)

    def _embed(
        self, texts: list[str], task_metadata: TaskMetadata, prompt_type: PromptType | None, **options: Any
    ) -> Matrix:
        if prompt_type is DOCUMENT:
            vectors = self.model.encode_document(texts, **options)
        else:
            encode = self.model.encode if prompt_type is None else self.model.encode_query
            vectors = encode(texts, prompt=self._query_prompt(task_metadata, prompt_type), **options)
        return np.asarray(vectors)

    def _query_prompt(self, task_metadata: TaskMetadata, prompt_type: PromptType | None) -> str | None:
        """The text before a query; None for the model's own."""
        instruction = self._instruction(task_metadata, prompt_type)
        if not isinstance(self.instruction_template, str) or not instruction:
            return None
        return self.instruction_template.replace("{instruction}", instruction)

    def _instruction(self, task_metadata: TaskMetadata, prompt_type: PromptType | None) -> str:
        # MTEB hands a dictionary through where a task has prompts for queries and documents only, and neither is asked.
        instruction: Any = self.get_instruction(task_metadata, prompt_type)
        return instruction if isinstance(instruction, str) else ""

    def index(
        self,
        corpus: Any,
        *,
        task_metadata: TaskMetadata,
        encode_kwargs: Any,
        num_proc: int | None = None,
        **_: Any,
    ) -> None:
        """Embed a corpus (``id``, ``text``, perhaps ``title``), each distinct text once, and keep the vectors.

        Raises:
            ValueError: A quantised precision is asked for.
        """
        if encode_kwargs.get("precision", "float32") != "float32":
            raise ValueError(f"Got precision={encode_kwargs['precision']!r}; search compares float32 vectors only.")
        prepared: Any = create_dataloader(
            corpus, task_metadata=task_metadata, prompt_type=DOCUMENT, num_proc=num_proc
        ).dataset
        documents = Corpus.of(list(corpus["id"]), prepared.select_columns("text"))
        if self.keep_vectors and self._embedded and self._embedded[0].fingerprint == documents.fingerprint:
            return
        self._embedded = None  # before another one's vectors take memory
        encode: Any = partial(self._embed, task_metadata=task_metadata, prompt_type=DOCUMENT, **encode_kwargs)
        if self.vectors is not None:
            texts = documents.read(np.arange(len(documents.ids)))
            # Other options change the vectors' lengths or form, and here they are unit vectors in any case.
            options = {
                name: encode_kwargs[name] for name in ("batch_size", "show_progress_bar") if name in encode_kwargs
            }
            encode = kept_vectors(self.model, texts, self.vectors, name=task_metadata.name, **options).vectors
        self._embedded = documents, documents.embed(encode, self.model.get_embedding_dimension() or 0)

    def search(
        self,
        queries: Any,
        *,
        task_metadata: TaskMetadata,
        top_k: int,
        encode_kwargs: Any,
        top_ranked: Any = None,
        **_: Any,
    ) -> dict[str, dict[str, float]]:
        """Search the corpus that was indexed last, or the candidates of each query by their ids.

        Returns:
            For each query, scores of documents: cosines of stage 1, or scores of stage 2 for those that were reranked
            and cosines of stage 1, shifted below all of those, for the others. A query without candidates has no
            document.

        Raises:
            RuntimeError: Nothing was indexed.
            ValueError: A candidate is not in the corpus.
        """
        if self._embedded is None:
            raise RuntimeError("There is no corpus to search; call index first.")
        corpus, stored = self._embedded
        # The loader puts instructions and dialogues into the text.
        prepared: Any = create_dataloader(queries, task_metadata=task_metadata, prompt_type=QUERY).dataset
        texts, ids = list(prepared["text"]), list(queries["id"])
        depth = self.rerank_depth if self.mode == "two-stage" else 0
        vectors = unit_rows(self._embed(texts, task_metadata, QUERY, **encode_kwargs))  # (B, D)
        rules = _rules_of(corpus, ids, top_ranked, leave_out_itself=_leaves_out_itself(task_metadata.name))
        found = nearest(vectors, stored, max(top_k, depth), rules=rules, device=self.model.device)
        results = [
            {corpus.ids[row]: score for row, score in zip(near.rows, near.scores.tolist(), strict=True)}
            for near in found
        ]
        if depth:
            heads = [Neighbours(near.rows[:depth], near.scores[:depth]) for near in found]
            how = self._reranking(task_metadata, encode_kwargs)
            reranked = _rerank(self.model, corpus, stored, texts, heads, **how)
            # The lowest of N standard scores is above -sqrt(N).
            shift = TAIL_SHIFT + depth**0.5 if self.first_stage_weight else TAIL_SHIFT
            results = [  # the reranked documents, then the rest of stage 1, strictly below
                head | {id_: score - shift for id_, score in scores.items() if id_ not in head}
                for head, scores in zip(reranked, results, strict=True)
            ]
        return {id_: dict(islice(scores.items(), top_k)) for id_, scores in zip(ids, results, strict=True)}

    def _reranking(self, task_metadata: TaskMetadata, encode_kwargs: Any) -> dict[str, Any]:
        """Options of stage 2."""
        instruction = None
        if "{instruction}" in self.model.listwise.format.template:
            instruction = listwise_instruction(self._instruction(task_metadata, QUERY))
        return {
            "instruction": instruction,
            "num_prompt_documents": self.num_prompt_documents,
            "first_stage_weight": self.first_stage_weight,
            "batch_size": encode_kwargs.get("batch_size", 32),
            "bar": encode_kwargs.get("show_progress_bar", True),
        }


def load_e2rank(
    name: str,
    revision: str | None = None,
    *,
    device: str | None = None,
    mode: Mode = "embedding",
    prompt_documents: int | None = None,
    rerank_depth: int = 100,
    first_stage_weight: float | None = None,
    dtype: str = "float32",
    prompts: dict[str, str] | None = None,
) -> E2RankMTEB:
    """Load a model from the Hub as MTEB's registry does: the ``experiment_kwargs`` of a result are arguments here.

    Raises:
        ValueError: A value is not allowed.
        OSError: The model cannot be loaded.
    """
    model = E2Rank(name, revision=revision, device=device, prompts=prompts, dtype=dtype)
    options: Any = {"rerank_depth": rerank_depth, "num_prompt_documents": prompt_documents}
    options["first_stage_weight"] = first_stage_weight
    return E2RankMTEB(model, name=name, revision=revision or "main", mode=mode, **options)


def _leaves_out_itself(task: str) -> bool:
    """Whether MTEB drops a result with the query's own id. Too late for a prompt, which would hold the query twice."""
    classes: list[type] = [AbsTaskRetrieval]
    while classes:
        cls = classes.pop()
        classes += cls.__subclasses__()
        if getattr(getattr(cls, "metadata", None), "name", None) == task:
            return bool(cls.ignore_identical_ids)  # type: ignore[attr-defined]
    return False


def _rules_of(corpus: Corpus, queries: Sequence[str], top_ranked: Any, *, leave_out_itself: bool) -> Rules | None:
    """Find the documents that stage 1 may return for each query, or the ones that it may not; None for no rule.

    Raises:
        ValueError: A candidate is not in the corpus.
    """
    if top_ranked is None and not leave_out_itself:
        return None
    listed = []
    for query in queries:
        itself = {query} & corpus.row_of.keys() if leave_out_itself else set()
        ids = itself if top_ranked is None else set(top_ranked.get(query) or ()) - itself
        if missing := sorted(ids - corpus.row_of.keys()):
            raise ValueError(f"Query {query!r} has {len(missing)} candidates that the corpus lacks, as {missing[0]!r}.")
        listed.append(np.sort(np.fromiter(map(corpus.row_of.__getitem__, ids), np.int64, len(ids))))
    return Rules(listed, only=top_ranked is not None)


def _rerank(
    model: E2Rank,
    corpus: Corpus,
    vectors: Matrix,
    queries: Sequence[str],
    heads: Sequence[Neighbours],
    *,
    bar: bool,
    **options: Any,
) -> list[dict[str, float]]:
    """Rerank the rows of each query's head, in the order of stage 1, with stored vectors; scores by id, best first.

    There is one progress bar for all calls, since each is short.
    """
    results: list[dict[str, float]] = []
    options |= {"candidate_order": "given", "show_progress_bar": False}
    with tqdm(total=len(queries), desc="rerank", disable=not bar) as progress:
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            part = slice(start, start + QUERIES_AT_ONCE)
            rows, scores = [head.rows for head in heads[part]], [head.scores for head in heads[part]]
            documents = corpus.read(np.concatenate(rows))
            texts = [documents[first:last] for first, last in pairwise(accumulate(map(len, rows), initial=0))]
            how = {**options, "first_stage_scores": scores}
            for ranking in rerank_rows(model, queries[part], rows, texts, [vectors[head] for head in rows], **how):
                results.append({corpus.ids[hit["corpus_id"]]: hit["score"] for hit in ranking})
            progress.update(len(rows))
    return results
