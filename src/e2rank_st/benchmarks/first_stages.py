"""A task's files, or a model's own retrieval → candidates with judgements.

There are three sources: first-stage results with text, a TREC run over a folder in BEIR's layout, and the model's own
retrieval from such a folder.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from huggingface_hub import hf_hub_download

from e2rank_st.benchmarks.candidates import Candidates, Case, some
from e2rank_st.benchmarks.models import Subject
from e2rank_st.benchmarks.tasks import EXCLUSIONS_REPOSITORY, HUB_REPOSITORY, Task
from e2rank_st.data.beir import JudgedCorpus, TextStore
from e2rank_st.data.files import DataError, Row, id_field, number_field, parse_rows
from e2rank_st.data.formats import read_results
from e2rank_st.data.slates import list_field
from e2rank_st.data.trec import read_qrels, read_run
from e2rank_st.search.index import SearchIndex
from e2rank_st.search.store import Found
from e2rank_st.search.texts import TextVectors
from e2rank_st.search.vectors import Matrix
from e2rank_st.storage import file_sha256, folder_sha256, text_id

__all__ = [
    "Excluded", "Files", "locate", "own_first_stage", "read_excluded", "read_files", "read_index", "read_judged",
    "read_over_collection", "read_over_texts",
]  # fmt: skip

Excluded: TypeAlias = Mapping[str, frozenset[str]]  # documents that are left out, by query
NOTHING: Excluded = {}
SAMPLE_SEED = 0  # of the queries that a task is a sample of: another one is another task


class Files(NamedTuple):
    """First-stage results with text, and judgements in TREC's form; local, if not those of the public data set."""

    results: Path
    qrels: Path
    local: bool = True


def locate(task: Task, first_stage: str, data_dir: Path | None) -> Files:
    """Find a task's files in the folder ``rerank`` of a data folder, or, without one, fetch them from the Hub.

    Raises:
        FileNotFoundError: The folder lacks a file; the message says which, and where it is public.
        ValueError: The files are not on the Hub.
        OSError: The Hub cannot be reached.
    """
    if data_dir is None:
        return _from_hub(task, first_stage)
    folder, stem = data_dir / "rerank", f"{task.name}_{first_stage}_top100.jsonl"
    results = _existing(task, folder, stem, f"{stem}.gz")
    return Files(results, _existing(task, folder, f"{task.name}_qrels.txt"))


def read_excluded(task: Task, data_dir: Path | None) -> Excluded:
    """Read which documents a task leaves out, whatever finds the candidates.

    Raises:
        FileNotFoundError: The folder lacks the file.
        DataError: A row of it is bad.
        OSError: The Hub cannot be reached.
    """
    if task.exclusions is None:
        return NOTHING
    if data_dir is not None:
        return dict(parse_rows(_existing(task, data_dir / "rerank", f"{task.name}_excluded.jsonl"), _exclusion))
    rows = importlib.import_module("datasets").load_dataset(EXCLUSIONS_REPOSITORY, "examples", split=task.exclusions)
    return dict(map(_exclusion, rows))


def _existing(task: Task, folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    public = f"{HUB_REPOSITORY} on the Hub has what {task.name} needs; without --data-dir it is fetched."
    raise FileNotFoundError(
        f"{task.name}: no {' or '.join(names)} in {folder}. {public if task.hub_name else task.note}"
    )


def _from_hub(task: Task, first_stage: str) -> Files:
    if task.hub_name is None or task.hub_qrels is None:
        raise ValueError(f"{task.name} cannot be fetched: {task.note or 'it is not a public task.'} Give --data-dir.")
    names = (f"{first_stage}/{task.hub_name}_top100.jsonl", f"topics_and_qrels/qrels.{task.hub_qrels}.txt")
    results, qrels = (Path(hf_hub_download(HUB_REPOSITORY, name, repo_type="dataset")) for name in names)
    return Files(results, qrels, local=False)


def _exclusion(row: Row) -> tuple[str, frozenset[str]]:
    """A query and the documents to leave out for it; ``N/A`` is BRIGHT's word for none."""
    return id_field(row, "id"), frozenset(map(str, list_field("excluded_ids", row.get("excluded_ids")))) - {"N/A"}


def read_files(files: Files, first_stage: str, top_n: int, excluded: Excluded = NOTHING) -> Candidates:
    """Read first-stage results with text, and their judgements.

    Raises:
        DataError: A row of a file is bad.
        ValueError: A query's candidates are not in the order of their scores, or one comes twice.
        OSError: A file cannot be read.
    """
    slates, rows = read_results(files.results), parse_rows(files.results, _hits)
    cases = [
        Case(query_id, slate.query, ids, slate.documents, scores).limited(top_n, excluded.get(query_id, frozenset()))
        for slate, (query_id, ids, scores) in zip(slates, rows, strict=True)
    ]
    judgements = _whole_grades(read_qrels(files.qrels))
    return Candidates(tuple(cases), judgements, first_stage, files.local, sources=_hashes(files.results, files.qrels))


def _hits(row: Row) -> tuple[str, tuple[str, ...], tuple[float, ...]]:
    """Query id, document ids and scores; the texts are the reader's."""
    hits = list_field("hits", row.get("hits"))
    queries = {id_field(hit, "qid") for hit in hits}
    if len(queries) != 1:
        raise DataError("qid", "not one query", f"the hits name {some(queries)}; give those of one query in a row.")
    return (
        queries.pop(),
        tuple(id_field(hit, "docid") for hit in hits),
        tuple(number_field(hit, "score") for hit in hits),
    )


def _whole_grades(judgements: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, int]]:
    """Grades as trec_eval takes them: whole numbers."""
    for query, grades in judgements.items():
        for document, grade in grades.items():
            if grade != int(grade):
                raise ValueError(f"The grade of {document!r} for {query!r} is {grade}; give whole numbers.")
    return {query: {id_: int(grade) for id_, grade in grades.items()} for query, grades in judgements.items()}


def _hashes(*paths: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in paths}


def read_over_collection(folder: Path, split: str, run: Path, top_n: int, excluded: Excluded = NOTHING) -> Candidates:
    """Read a TREC run whose texts and judgements are those of a split of a folder in BEIR's layout.

    Raises:
        ValueError: The run has a query or a document that is not in the folder.
        DataError: A row of a file is bad.
        OSError: A file cannot be read.
    """
    judged = JudgedCorpus.load(folder, split)
    cases = _cases(run, judged.queries, judged.corpus, folder.name, top_n, excluded)
    sources = _folder_state(folder) | _hashes(run)
    return Candidates(cases, _whole_grades(judged.judgements), run.stem, sources=sources)


def read_over_texts(run: Path, corpus: Path, queries: Path, qrels: Path, top_n: int) -> Candidates:
    """Read a TREC run, judgements in TREC's form, and the texts of both from two files with ``_id`` and ``text``.

    Raises:
        ValueError: The run has a query or a document without a text.
        DataError: A row of a file is bad.
        OSError: A file cannot be read.
    """
    cases = _cases(run, TextStore.load(queries), TextStore.load(corpus), f"{queries.name} or {corpus.name}", top_n)
    sources = _hashes(run, corpus, queries, qrels)
    return Candidates(cases, _whole_grades(read_qrels(qrels)), run.stem, sources=sources)


def _cases(
    run: Path,
    queries: Mapping[str, str],
    corpus: Mapping[str, str],
    place: str,
    top_n: int,
    excluded: Excluded = NOTHING,
) -> tuple[Case, ...]:
    """The queries of a run with the texts of their best documents; ``place`` is where these should be."""
    cases = []
    for query_id, scores in read_run(run).items():
        if query_id not in queries:
            raise ValueError(f"{run.name} has the query {query_id!r}, which has no text in {place}.")
        left_out = excluded.get(query_id, frozenset())
        best = dict(islice(((id_, score) for id_, score in scores.items() if id_ not in left_out), top_n))
        missing = [id_ for id_ in best if id_ not in corpus]
        if missing:
            raise ValueError(
                f"{run.name}: {len(missing)} candidates of query {query_id!r} have no text in {place}, "
                f"for example {missing[0]!r}. Give the corpus that the run was made from."
            )
        texts = tuple(corpus[id_] for id_ in best)
        cases.append(Case(query_id, queries[query_id], tuple(best), texts, tuple(best.values())))
    return tuple(cases)


def read_index(index: SearchIndex, queries: Path, qrels: Path, top_n: int) -> tuple[Candidates, TextVectors]:
    """Retrieve the candidates of each judged query from an index.

    Args:
        index: Documents with vectors, and their model.
        queries: A file with ``_id`` and ``text``.
        qrels: Judgements in TREC's form, of documents by their ids in the index.
        top_n: Number of candidates.

    Returns:
        The candidates, and their vectors.

    Raises:
        ValueError: A judged query has no text, or documents of the index have several vectors.
        DataError: A row of a file is bad.
        OSError: A file cannot be read.
    """
    if index.settings["long_documents"] != "cut":
        raise ValueError("An index of passages cannot be tuned on. Make one with long_documents='cut'.")
    texts, judgements = TextStore.load(queries), _whole_grades(read_qrels(qrels))
    if missing := judgements.keys() - texts.keys():
        raise ValueError(f"{len(missing)} judged queries have no text in {queries.name}: {some(missing)}.")
    if not len(index):
        raise ValueError("The index is empty. Add documents first.")
    vectors: dict[str, Matrix] = {}
    cases = []
    for case, found in _retrieved(index, {query: texts[query] for query in judgements}, top_n):
        vectors |= {text: part.entry.vectors[0] for text, part in zip(case.documents, found, strict=True)}
        cases.append(case)
    stored = TextVectors(list(vectors), np.stack(list(vectors.values())))
    return Candidates(tuple(cases), judgements, "own", sources=_hashes(queries, qrels)), stored


def _retrieved(index: SearchIndex, queries: Mapping[str, str], top_n: int) -> Iterator[tuple[Case, list[Found]]]:
    """The queries with their nearest documents."""
    for (id_, query), found in zip(queries.items(), index.retrieve(list(queries.values()), top_n), strict=True):
        documents = tuple(index.text(part.entry.record) for part in found)
        scores = tuple(part.score for part in found)
        yield Case(id_, query, tuple(part.entry.record.id for part in found), documents, scores), found


def _folder_state(folder: Path) -> dict[str, str]:
    return {folder.resolve().name: f"sha256-{folder_sha256(folder)[:12]}"}


def own_first_stage(
    subject: Subject,
    task: Task,
    folder: Path,
    top_n: int,
    excluded: Excluded = NOTHING,
    *,
    batch_size: int = 32,
    show_progress_bar: bool = False,
) -> tuple[Candidates, TextVectors]:
    """Retrieve the candidates of each judged query from a folder in BEIR's layout by the model itself.

    The task says which split, how many of its queries, and which part of the corpus. Equally near documents come in
    the order of a hash: that of a corpus may show which ones are relevant.

    Returns:
        The candidates, and the vectors of the whole corpus.

    Raises:
        DataError: A row of a file is bad.
        ValueError: A grade is not a whole number, or there are fewer queries than the sample has.
        OSError: A file cannot be read.
    """
    judged = read_judged(task, folder)
    embedded = subject.embed(list(judged.corpus.values()), batch_size, show_progress_bar)
    documents = ({"id": id_, "text": text} for id_, text in judged.corpus.items())
    index = SearchIndex.from_vectors(subject.model, documents, embedded.embeddings)
    left_out = {query: excluded.get(query, frozenset()) for query in judged.queries}
    deep_enough = top_n + max(map(len, left_out.values()), default=0)
    cases = [case.limited(top_n, left_out[case.query_id]) for case, _ in _retrieved(index, judged.queries, deep_enough)]
    judgements = _whole_grades(judged.judgements)
    return Candidates(tuple(cases), judgements, "own", sources=_folder_state(folder)), embedded


def read_judged(task: Task, folder: Path) -> JudgedCorpus:
    """Read the part of a folder in BEIR's layout that is a task: its queries, and its corpus in the order of a hash.

    Raises:
        DataError: A row of a file is bad.
        ValueError: A grade is not a whole number, or there are fewer queries than the sample has.
        OSError: A file cannot be read.
    """
    judged = JudgedCorpus.load(folder, task.split)
    judgements = _sampled(_whole_grades(judged.judgements), task.sample)
    corpus = _judged_groups(judged) if task.judged_groups else judged.corpus
    ids = sorted(corpus, key=text_id)
    queries = {query: judged.queries[query] for query in judgements}
    return JudgedCorpus({id_: corpus[id_] for id_ in ids}, queries, judgements)


def _judged_groups(judged: JudgedCorpus) -> dict[str, str]:
    """The documents of the groups, the id before ``#``, in which one is judged for some query."""
    groups = {_group(id_) for grades in judged.judgements.values() for id_ in grades}
    return {id_: text for id_, text in judged.corpus.items() if _group(id_) in groups}


def _group(id_: str) -> str:
    return id_.partition("#")[0]


def _sampled(judgements: dict[str, dict[str, int]], sample: int | None) -> dict[str, dict[str, int]]:
    """The judgements of some queries, the same ones whatever the order in the file."""
    if sample is None:
        return judgements
    if sample > len(judgements):
        raise ValueError(f"The task is a sample of {sample} queries, and only {len(judgements)} are judged.")
    drawn = set(random.Random(SAMPLE_SEED).sample(sorted(judgements), sample))
    return {query: grades for query, grades in judgements.items() if query in drawn}
