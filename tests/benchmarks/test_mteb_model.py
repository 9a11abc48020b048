"""E2Rank inside MTEB: honest stages, results that cannot be mistaken, every task type that an encoder takes."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

mteb = pytest.importorskip("mteb")
datasets = pytest.importorskip("datasets")

from e2rank_st import E2Rank  # noqa: E402
from e2rank_st.benchmarks.instructions import listwise_instruction  # noqa: E402
from e2rank_st.benchmarks.mteb_model import MODES, TAIL_SHIFT, E2RankMTEB  # noqa: E402
from e2rank_st.provenance import counted  # noqa: E402
from tests.beir import write_collection  # noqa: E402

QUIET = {"batch_size": 32, "show_progress_bar": False}
USELESS = "xyzzy"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No bars, and a cache of its own: that of datasets takes folders of one name for the same."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def encoder(model: E2Rank, **options: Any) -> E2RankMTEB:
    return E2RankMTEB(model, name="org/model", revision="1", **{"mode": "two-stage", **options})


def search(
    system: E2RankMTEB,
    documents: dict[str, str],
    queries: dict[str, str],
    *,
    task: str = "NFCorpus",
    top_k: int = 1000,
    top_ranked: dict[str, list[str]] | None = None,
) -> dict[str, dict[str, float]]:
    """Index and search, as MTEB does."""
    place = {"task_metadata": mteb.get_task(task).metadata, "hf_split": "test", "hf_subset": "default"}
    texts = [
        datasets.Dataset.from_dict({"id": list(table), "text": list(table.values())}) for table in (documents, queries)
    ]
    system.index(texts[0], encode_kwargs=QUIET, num_proc=None, **place)
    return system.search(texts[1], top_k=top_k, encode_kwargs=QUIET, top_ranked=top_ranked, num_proc=None, **place)


def numbered(facts: list[str]) -> dict[str, str]:
    return {f"d{number}": text for number, text in enumerate(facts)}


def local_task(folder: Path, name: str = "NFCorpus") -> Any:
    task = mteb.get_task(name)
    task.metadata = task.metadata.model_copy(update={"dataset": {"path": str(folder), "revision": "local"}})
    return task


@pytest.mark.parametrize("mode", MODES)
def test_mock_run(tiny: E2Rank, mode: str):
    """Guards against a task type, a dialogue or an instruction that the object cannot take."""
    results = mteb.mock_run(encoder(tiny, mode=mode))
    assert results.all_passed
    assert sum(result is not None for _, result in results.items()) >= 28


def test_order_of_candidates_does_not_leak(tiny: E2Rank, facts: list[str]):
    """Guards against a prompt that trusts a task's order: with a useless query it would repeat the labels."""
    small = {"candidate_order": "given", "num_prompt_documents": 2}
    trusting = [
        {facts[::step][hit["corpus_id"]]: hit["score"] for hit in tiny.rerank(USELESS, facts[::step], **small)}
        for step in (1, -1)
    ]
    assert trusting[0] != pytest.approx(trusting[1], abs=1e-3), "the order has to matter, or the test shows nothing"
    documents = {**numbered(facts), "twin a": "the same text", "twin b": "the same text"}
    found = []
    for seed in range(3):
        corpus, candidates = list(documents.items()), list(documents)
        random.Random(seed).shuffle(corpus)
        random.Random(seed + 10).shuffle(candidates)
        system = encoder(tiny, num_prompt_documents=2, rerank_depth=4)
        result = search(system, dict(corpus), {"q": USELESS}, top_ranked={"q": candidates})
        found.append(list(result["q"].items()))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == len(documents)


def test_what_stage_1_cannot_tell_apart_is_not_left_in_order(tiny: E2Rank):
    """Guards against ties in the order of the candidates: with one text for all, every document ties."""
    documents = {f"positive-{number}" if number < 5 else f"negative-{number}": "one text" for number in range(40)}
    found = search(encoder(tiny, rerank_depth=10), documents, {"q": USELESS}, top_ranked={"q": list(documents)})["q"]
    assert [id_ for id_ in found if id_.startswith("positive")] != list(documents)[:5]
    assert list(found)[:5] != list(documents)[:5]


def test_tail_is_below_the_head(tiny: E2Rank, facts: list[str]):
    """Guards against a cosine of stage 1 among those of stage 2: they are not comparable."""
    plain = search(encoder(tiny, mode="embedding"), numbered(facts), {"q": "How long do fleas live?"})["q"]
    found = search(encoder(tiny, rerank_depth=4), numbered(facts), {"q": "How long do fleas live?"})["q"]
    ids = list(found)
    assert set(ids[:4]) == set(list(plain)[:4])
    assert ids[4:] == list(plain)[4:]
    assert min(found[id_] for id_ in ids[:4]) >= -1 > max(found[id_] for id_ in ids[4:])
    assert [found[id_] + TAIL_SHIFT for id_ in ids[4:]] == pytest.approx([plain[id_] for id_ in ids[4:]])


@pytest.mark.parametrize("depth", [1, 2, 4, 10])
def test_stage_1_counts_in_stage_2(tiny: E2Rank, facts: list[str], depth: int):
    """Guards against a weight without effect, and a tail that a standard score of the head falls below."""
    query = {"q": "How long do fleas live?"}
    plain = search(encoder(tiny, mode="embedding"), numbered(facts), query)["q"]
    system = encoder(tiny, rerank_depth=depth, first_stage_weight=1.0)
    found = search(system, numbered(facts), query)["q"]
    assert list(found) == list(plain), "with all weight it is stage 1"
    assert sorted(found.values(), reverse=True) == list(found.values())
    assert len(found) == depth or found[list(found)[depth - 1]] > found[list(found)[depth]]
    assert system.mteb_model_meta.experiment_kwargs["first_stage_weight"] == 1.0
    assert "first_stage_weight" not in encoder(tiny).mteb_model_meta.experiment_kwargs
    with pytest.raises(ValueError, match=r"first_stage_weight=1\.5; give a number from 0 to 1"):
        encoder(tiny, first_stage_weight=1.5)


def test_stages_are_those_of_the_model(tiny: E2Rank, facts: list[str]):
    """Guards against other scores than the model's own: cosines, and rerank with its stored vectors."""
    query = "How long do fleas live?"
    system = encoder(tiny)
    found = search(system, numbered(facts), {"q": query})["q"]
    metadata = mteb.get_task("NFCorpus").metadata
    prompt = system.instruction_template.replace("{instruction}", metadata.prompt["query"])
    cosines = tiny.encode_document(facts) @ tiny.encode_query(query, prompt=prompt)
    order = np.argsort(-cosines)
    expected = tiny.rerank(
        query,
        [facts[row] for row in order],
        candidate_order="given",
        instruction=listwise_instruction(metadata.prompt["query"]),
    )
    assert list(found) == [f"d{order[hit['corpus_id']]}" for hit in expected]
    assert list(found.values()) == pytest.approx([hit["score"] for hit in expected], abs=1e-5)
    plain = search(encoder(tiny, mode="embedding"), numbered(facts), {"q": query})["q"]
    assert plain == pytest.approx({f"d{row}": cosines[row] for row in order}, abs=1e-6)


def test_search_as_mteb_does(bundled: E2Rank, tmp_path: Path):
    """Guards against another embedding score than MTEB's own wrapper gives the same model."""
    folder = write_collection(tmp_path / "nfcorpus", number=12)
    ours = mteb.evaluate(encoder(bundled, mode="embedding"), local_task(folder), cache=None, encode_kwargs=dict(QUIET))
    theirs = mteb.evaluate(bundled, local_task(folder), cache=None, encode_kwargs=dict(QUIET))
    scores = [result.task_results[0].scores["test"][0] for result in (ours, theirs)]
    names = [name for name in scores[0] if name.startswith(("ndcg", "map", "recall", "mrr"))]
    assert [scores[0][name] for name in names] == pytest.approx([scores[1][name] for name in names], abs=1e-4)


def test_vectors_are_never_made_again(tiny: E2Rank, facts: list[str]):
    """Guards against documents that are embedded for reranking: a query costs itself and one prompt."""
    system, queries = encoder(tiny, keep_vectors=True), {"a": "fleas", "b": "rivers"}
    repeated = {**numbered(facts), "again": facts[0]}

    def texts(documents: dict[str, str]) -> int:
        with counted(tiny) as cost:
            search(system, documents, queries)
        return cost.texts

    assert texts(repeated) == 10 + 2 + 2  # distinct documents, queries, prompts
    system.set_mode("embedding")
    assert texts(repeated) == 2
    assert texts(numbered(facts)) == 10 + 2, "another corpus"
    assert encoder(tiny).keep_vectors is False


def test_queries_with_few_or_no_candidates(tiny: E2Rank, facts: list[str]):
    """Guards against a query that is dropped, which would raise the mean, and against a lost row."""
    candidates = {"one": ["d3", "d3"], "none": []}
    found = search(encoder(tiny), numbered(facts), {"none": "a", "one": "b", "missing": "c"}, top_ranked=candidates)
    assert {query: list(scores) for query, scores in found.items()} == {"none": [], "one": ["d3"], "missing": []}
    with pytest.raises(ValueError, match="'one' has 1 candidates that the corpus lacks, as 'd99'"):
        search(encoder(tiny), numbered(facts), {"one": "b"}, top_ranked={"one": ["d99"]})


def test_top_k(tiny: E2Rank, facts: list[str]):
    """Guards against a rerank depth that top_k cuts first: the best of the reranked are wanted."""
    whole = search(encoder(tiny), numbered(facts), {"q": "fleas"})["q"]
    few = search(encoder(tiny), numbered(facts), {"q": "fleas"}, top_k=3)["q"]
    assert list(few.items()) == list(whole.items())[:3]


def test_the_query_itself_is_left_out_where_mteb_does(tiny: E2Rank, facts: list[str]):
    """Guards against a prompt that shows the query as a document: ArguAna's queries are in its corpus."""
    documents, queries = numbered(facts), {"d1": facts[1]}
    assert "d1" in search(encoder(tiny), documents, queries)["d1"]
    assert "d1" not in search(encoder(tiny), documents, queries, task="ArguAna")["d1"]
    ranked = {"d1": list(documents)}
    assert "d1" not in search(encoder(tiny), documents, queries, task="ArguAna", top_ranked=ranked)["d1"]


def test_modes_do_not_share_a_cached_result(tiny: E2Rank, tmp_path: Path):
    """Guards against MTEB's cache, which takes the result of one mode for the other if only name and revision count."""
    folder = write_collection(tmp_path / "nfcorpus")
    options = {"encode_kwargs": QUIET, "show_progress_bar": False}

    def run(system: E2RankMTEB, cache: Path) -> dict[str, float]:
        results = mteb.evaluate(system, local_task(folder), cache=mteb.ResultCache(cache), **options)
        scores = results.task_results[0].scores["test"][0]
        return {name: scores[name] for name in ("ndcg_at_10", "map_at_10", "ndcg_at_100")}

    fresh = {mode: run(encoder(tiny, mode=mode), tmp_path / mode) for mode in MODES}
    assert fresh["embedding"] != fresh["two-stage"], "the modes have to differ, or the test shows nothing"
    shared = tmp_path / "shared"
    assert [run(encoder(tiny, mode=mode), shared) for mode in MODES] == list(fresh.values())
    assert len(list(shared.rglob("NFCorpus.json"))) == 2
    assert run(encoder(tiny, rerank_depth=3), shared) != fresh["two-stage"]
    collided = []
    for mode in MODES:
        system = encoder(tiny, mode=mode)
        system.mteb_model_meta = system.mteb_model_meta.model_copy(update={"experiment_kwargs": None})
        collided.append(run(system, tmp_path / "collided"))
    assert collided[0] == collided[1], "MTEB does not share results any more: the experiment's name may go"


def test_instructions_come_from_the_task(tiny: E2Rank):
    """Guards against the model's default instruction for every task, and against one where the model takes none."""
    task = mteb.get_task("SciFact").metadata
    system = encoder(tiny)
    query, document = (mteb.types.PromptType(name) for name in ("query", "document"))
    assert system._query_prompt(task, query) == (
        "Instruct: Given a scientific claim, retrieve documents that support or refute the claim\nQuery:"
    )
    place = {"task_metadata": task, "hf_split": "test", "hf_subset": "default"}
    batches = [{"text": ["vitamins"]}]
    prompted = tiny.encode_query(["vitamins"], prompt=system._query_prompt(task, query))
    assert system.encode(batches, prompt_type=query, **place) == pytest.approx(prompted)
    assert system.encode(batches, prompt_type=document, **place) == pytest.approx(tiny.encode_document(["vitamins"]))


def test_models_without_instructions_get_none(bundled: E2Rank, facts: list[str]):
    """Guards against an instruction before the queries, or in the prompt, of a model that was trained without."""
    system = encoder(bundled)
    assert system.instruction_template is None
    task = mteb.get_task("SciFact").metadata
    assert system._query_prompt(task, mteb.types.PromptType("query")) is None
    found = search(system, numbered(facts), {"q": "How long do fleas live?"}, task="SciFact")["q"]
    expected = bundled.rerank("How long do fleas live?", facts, candidate_order="similarity")
    assert list(found) == [f"d{hit['corpus_id']}" for hit in expected]


def test_refuses_what_it_cannot_do(tiny: E2Rank):
    """Guards against settings that fail after hours, quantised vectors in a search by cosine, a search of nothing."""
    for options in ({"mode": "both"}, {"rerank_depth": 0}, {"name": "model"}):
        with pytest.raises(ValueError, match="Got"):
            E2RankMTEB(tiny, **{"name": "org/model", "revision": "1", **options})
    place = {"task_metadata": mteb.get_task("NFCorpus").metadata, "hf_split": "test", "hf_subset": "default"}
    with pytest.raises(ValueError, match="precision='int8'"):
        encoder(tiny).index([], encode_kwargs={"precision": "int8"}, num_proc=None, **place)
    with pytest.raises(RuntimeError, match="call index first"):
        encoder(tiny).search([], top_k=1, encode_kwargs=QUIET, num_proc=None, **place)


def test_kept_vectors(tiny: E2Rank, facts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards against a corpus whose kept vectors are those of other rows, and against one that is embedded again."""
    documents, queries = numbered([*facts, facts[0]]), {"q": facts[1]}
    right = search(encoder(tiny, mode="embedding"), documents, queries)["q"]
    for _ in range(2):
        found = search(encoder(tiny, mode="embedding", vectors=tmp_path), documents, queries)["q"]
        assert found == pytest.approx(right, abs=1e-5)
        monkeypatch.setattr(E2Rank, "encode_document", lambda *_, **__: pytest.fail("embedded again"))
