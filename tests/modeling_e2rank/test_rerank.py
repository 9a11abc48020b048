"""rerank: its results, and their independence of batch and call."""

import copy
import math

import numpy as np
import pytest
import torch
from sentence_transformers.util import cos_sim

from e2rank_st import E2Rank
from tests.modeling_e2rank.rankings import QUERY, assert_same, scores


@pytest.mark.parametrize("order", ["given", "similarity"])
def test_scores_are_the_cosines_of_the_method(tiny: E2Rank, facts, order):
    """Guards against another method: cosine of the embedded prompt, made by hand here, to the embedded documents."""
    vectors = tiny.encode_document(facts, convert_to_tensor=True)
    chosen = list(range(4))
    if order == "similarity":
        chosen = cos_sim(tiny.encode_query(QUERY), vectors)[0].argsort(descending=True, stable=True)[:4].tolist()
    documents = "\n".join(f"[{place}] {facts[index]}" for place, index in enumerate(chosen, start=1))
    text = (
        f"<|im_start|>user\n{tiny.listwise.instruction}:\nDocuments:\n{documents}\nSearch Query: {QUERY}"
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    ids = tiny.tokenizer(text, add_special_tokens=False, split_special_tokens=False, return_tensors="pt")
    with torch.inference_mode():
        hidden = tiny.transformers_model(**ids).last_hidden_state
    expected = cos_sim(hidden[:, -1], vectors)[0]
    got = tiny.rerank(QUERY, facts, num_prompt_documents=4, candidate_order=order)
    assert [hit["corpus_id"] for hit in got] == expected.argsort(descending=True).tolist()
    assert all(math.isclose(hit["score"], expected[hit["corpus_id"]], abs_tol=1e-5) for hit in got)


def test_the_real_model_finds_the_answers(bundled: E2Rank, facts):
    """Guards against wiring that runs and ranks nonsense: the four sentences on fleas come first."""
    top = bundled.rerank(QUERY, facts, top_k=3, return_documents=True)
    assert {hit["corpus_id"] for hit in top} == {0, 4, 7}
    assert all(hit["text"] == facts[hit["corpus_id"]] for hit in top)
    assert [hit["score"] for hit in top] == sorted((hit["score"] for hit in top), reverse=True)
    assert all(type(hit["corpus_id"]) is int and type(hit["score"]) is float for hit in top), "ready for JSON"


@pytest.mark.parametrize("order", ["given", "similarity"])
def test_a_query_weight_mixes_two_directions(tiny: E2Rank, facts, order):
    """Guards against a mix of other vectors or of other lengths, and against a configured weight that does nothing."""
    query, documents = (torch.from_numpy(part) for part in (tiny.encode_query(QUERY), tiny.encode_document(facts)))

    def cosines(model: E2Rank, **options) -> torch.Tensor:
        found = scores(model.rerank(QUERY, facts, num_prompt_documents=3, candidate_order=order, **options))
        return torch.tensor([found[index] for index in range(len(facts))])

    plain = torch.cosine_similarity(documents, query[None])
    listwise, mixed = cosines(tiny), cosines(tiny, query_weight=0.3)
    torch.testing.assert_close(cosines(tiny, query_weight=1), plain, atol=1e-5, rtol=0)
    # A cosine to the mix is the mix of the cosines over its length, the same for all documents, and below 1.
    lengths = (0.7 * listwise + 0.3 * plain) / mixed
    torch.testing.assert_close(lengths, lengths[:1].expand_as(lengths), atol=0, rtol=1e-4)
    assert 0.4 < lengths[0] < 1
    configured = copy.deepcopy(tiny)
    configured.listwise.query_weight = 0.3
    assert torch.equal(cosines(configured), mixed)
    torch.testing.assert_close(cosines(configured, document_embeddings=documents), mixed, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["tiny", "bundled"])
def test_batches_do_not_matter(request, name, facts):
    """Guards against scores that depend on padding: any batch size, alone or among other queries, up to 1e-5."""
    model = request.getfixturevalue(name)
    queries = [QUERY, "capital", "what is gravity, and what does it do to the planets of the solar system?"]
    together = model.rerank(queries, facts, batch_size=64)
    for batch_size in (1, 2, 7):
        for one, other in zip(model.rerank(queries, facts, batch_size=batch_size), together, strict=True):
            assert_same(one, other)
    for query, ranking in zip(queries, together, strict=True):
        assert_same(model.rerank(query, facts), ranking)
    assert_same(model.rerank([QUERY, "x"], [facts, ["y " * 400]])[0], together[0])


def test_shared_list_equals_a_list_for_each(tiny: E2Rank, facts):
    """Guards against mixing up whose candidates they are."""
    queries = [QUERY, "capital"]
    shared = tiny.rerank(queries, facts)
    assert shared == tiny.rerank(queries, [facts, list(facts)])
    vectors = tiny.encode_document(facts)
    for embeddings in (vectors, [vectors, vectors], np.stack([vectors, vectors])):
        for one, other in zip(tiny.rerank(queries, facts, document_embeddings=embeddings), shared, strict=True):
            assert_same(one, other)


def test_candidates_beyond_the_prompt_are_scored(tiny: E2Rank, facts):
    """Guards against losing the tail: all documents have a score, and those outside the prompt do not change it."""
    short = tiny.rerank(QUERY, facts[:5], num_prompt_documents=2)
    long = tiny.rerank(QUERY, facts, num_prompt_documents=2)
    assert len(long) == len(facts)
    assert all(math.isclose(scores(long)[index], scores(short)[index], abs_tol=1e-6) for index in range(5))
    assert scores(long) != scores(tiny.rerank(QUERY, facts, num_prompt_documents=3)), "but those inside do"


def test_ties_keep_the_given_order(tiny: E2Rank, facts):
    """Guards against an unstable sort: equal documents have equal scores and stay in order, each with its own id."""
    documents = [facts[1], facts[0]] * 40
    vectors = np.tile(tiny.encode_document(documents[:2]), (40, 1))
    for stored in (None, vectors):
        ranking = tiny.rerank(QUERY, documents, document_embeddings=stored)
        ids = [hit["corpus_id"] for hit in ranking]
        assert sorted(ids) == list(range(80))
        assert ids[:40] == sorted(ids[:40])
        assert ids[40:] == sorted(ids[40:])
        assert len({hit["score"] for hit in ranking}) == 2


def assert_same_hits(found: list[dict], expected: list[dict]) -> None:
    """The same scores and similarities; these are in all results, since the query's vector is known."""
    assert_same(found, expected, 1e-6)
    similar = {hit["corpus_id"]: hit["similarity"] for hit in found}
    assert all(abs(similar[hit["corpus_id"]] - hit.get("similarity", 2)) < 1e-6 for hit in expected if len(hit) > 2)


@pytest.mark.parametrize("order", ["given", "similarity"])
@pytest.mark.parametrize("weight", [0, 0.5, 1])
def test_given_query_vectors_change_nothing(tiny: E2Rank, facts, order, weight):
    """Guards against vectors of another query, of another length, or that count for a part of the result only."""
    queries = [QUERY, "capital", "metal"]
    vectors = tiny.encode_query(queries)
    options = {"candidate_order": order, "query_weight": weight, "num_prompt_documents": 3}
    for more in ({}, {"min_similarity": -1.0}, {"top_k": 4}, {"document_embeddings": tiny.encode_document(facts)}):
        expected = tiny.rerank(queries, facts, **options, **more)
        for scale in (1, 3, 1e-20):
            found = tiny.rerank(queries, facts, query_embeddings=vectors * scale, **options, **more)
            for one, other in zip(found, expected, strict=True):
                assert_same_hits(one, other)
        lists = [facts, [], facts[:4]]
        found = tiny.rerank(queries, lists, query_embeddings=vectors, **options)
        for one, other in zip(found, tiny.rerank(queries, lists, **options), strict=True):
            assert_same_hits(one, other) if other else None
    cosines = tiny.encode_document(facts) @ vectors[0]
    for hit in tiny.rerank(QUERY, facts, query_embeddings=vectors[0], **options):
        assert hit["similarity"] == pytest.approx(cosines[hit["corpus_id"]], abs=1e-6)


def test_a_given_query_vector_has_its_effect(tiny: E2Rank, facts):
    """Guards against a vector that is taken and not used, where it should decide: order, weight and threshold."""
    vectors = tiny.encode_query([QUERY, "capital"])
    stored = tiny.encode_document(facts)
    for options in ({"candidate_order": "similarity", "num_prompt_documents": 2}, {"query_weight": 0.5}):
        own, other = (tiny.rerank(QUERY, facts, query_embeddings=row, **options) for row in vectors)
        assert scores(own) != scores(other)
    least = float(np.sort(stored @ vectors[1])[-4]) - 1e-4
    found = tiny.rerank(QUERY, facts, query_embeddings=vectors[1], min_similarity=least)
    assert {hit["corpus_id"] for hit in found} == set(np.argsort(-(stored @ vectors[1]))[:4].tolist())


def test_a_query_whose_vector_is_given_is_not_embedded(tiny: E2Rank, facts, spy):
    """Guards against a forward pass that the caller has paid for: with stored vectors, prompts alone are left."""
    queries = [QUERY, "capital"]
    vectors, stored = tiny.encode_query(queries), tiny.encode_document(facts)
    for options in ({}, {"candidate_order": "similarity"}, {"query_weight": 0.5}, {"min_similarity": -1.0}):
        spy.shapes.clear()
        tiny.rerank(queries, facts, query_embeddings=vectors, document_embeddings=stored, **options)
        assert [rows for rows, _ in spy.shapes] == [2]
        spy.shapes.clear()
        tiny.rerank(QUERY, facts, query_embeddings=vectors[0], document_embeddings=stored, **options)
        assert [rows for rows, _ in spy.shapes] == [1]
    spy.shapes.clear()
    tiny.rerank(queries, facts, document_embeddings=stored, query_weight=0.5)
    assert [rows for rows, _ in spy.shapes] == [2, 2], "the premise"


def test_top_k(tiny: E2Rank, facts):
    """Guards against off-by-one and against an error for a list that is shorter than asked for."""
    whole = tiny.rerank(QUERY, facts)
    assert tiny.rerank(QUERY, facts, top_k=0) == []
    assert tiny.rerank(QUERY, facts, top_k=3) == whole[:3]
    assert tiny.rerank(QUERY, facts, top_k=99) == whole
    assert tiny.rank(QUERY, facts, top_k=3) == whole[:3], "rank is another name of rerank"


def test_truncated_dimensions(tiny: E2Rank, facts):
    """Guards against comparing vectors of different lengths where the model truncates its embeddings."""
    with tiny.truncate_embeddings(16):
        vectors = tiny.encode_document(facts)
        assert vectors.shape == (10, 16)
        assert_same(tiny.rerank(QUERY, facts), tiny.rerank(QUERY, facts, document_embeddings=vectors))


def test_bfloat16_keeps_the_ranking(bundled: E2Rank, facts):
    """Guards against a fast option that ranks otherwise: cosines to float32 within 0.01, clear gaps in order."""
    half = copy.deepcopy(bundled).bfloat16()
    # In the given order: nearly equal documents may change places in a prompt that is ordered by similarity.
    exact, fast = (scores(model.rerank(QUERY, facts, candidate_order="given")) for model in (bundled, half))
    assert max(abs(exact[index] - fast[index]) for index in exact) < 0.01
    clear = [(a, b) for a in exact for b in exact if exact[a] > exact[b] + 0.02]
    assert len(clear) > 30
    assert all(fast[a] > fast[b] for a, b in clear)


def test_progress_bar(tiny: E2Rank, facts, capsys):
    """Guards against a bar that cannot be switched, and against one on stdout, where results go."""
    tiny.rerank(QUERY, facts, show_progress_bar=False)
    assert capsys.readouterr().err == ""
    tiny.rerank(QUERY, facts, show_progress_bar=True)
    shown = capsys.readouterr()
    assert "document" in shown.err
    assert shown.out == ""


def test_a_model_in_training_reranks_without_dropout(tiny: E2Rank, facts):
    """Guards against random scores in the middle of a training."""
    model = copy.deepcopy(tiny)
    for layer in model.transformers_model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    assert model.rerank(QUERY, facts) == model.train().rerank(QUERY, facts)
