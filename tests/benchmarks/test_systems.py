"""Each system against its closed form, or against what a user would call."""

from pathlib import Path

import numpy as np
import pytest
import torch

from e2rank_st import E2Rank
from e2rank_st.benchmarks.candidates import Case
from e2rank_st.benchmarks.systems import (
    Embedding,
    FirstStage,
    Listwise,
    Pointwise,
    Rocchio,
    best_first,
    feedback,
    parameters,
)
from e2rank_st.provenance import counted
from e2rank_st.search.vectors import Matrix
from tests.labelling.test_teachers import tiny_cross_encoder

QUERY = "how long do fleas live"


@pytest.fixture
def case(facts: list[str]) -> Case:
    """The ten facts as candidates."""
    return Case("q", QUERY, tuple("abcdefghij"), tuple(facts), tuple(float(score) for score in range(10, 0, -1)))


@pytest.fixture
def vectors(tiny: E2Rank, case: Case) -> Matrix:
    """Their vectors."""
    return tiny.encode_document(list(case.documents))


def test_embedding_is_similarity(tiny: E2Rank, case: Case, vectors: Matrix):
    """Guards against another cosine than ``similarity``."""
    expected = tiny.similarity(tiny.encode_query(QUERY), tiny.encode_document(list(case.documents)))[0]
    assert Embedding(tiny).scores(case, vectors) == pytest.approx(expected.tolist(), abs=1e-5)
    assert FirstStage().scores(case, None) == list(case.scores)


def test_feedback_by_hand():
    """Guards against feedback from the farthest documents, a sum for a mean, or a weight of the wrong part."""
    query = torch.tensor([1.0, 0.0])
    documents = torch.tensor([[0.0, 1.0], [0.8, 0.6], [-1.0, 0.0], [0.6, 0.8]])
    # The nearest two are the second (0.8) and the last (0.6): their mean is (0.7, 0.7).
    torch.testing.assert_close(feedback(query, documents, 2, 0.5), torch.tensor([1.35, 0.35]))
    torch.testing.assert_close(feedback(query, documents, 9, 1.0), query + documents.mean(0))
    torch.testing.assert_close(feedback(query, documents, 0, 1.0), query)


def test_rocchio_closed_form(tiny: E2Rank, case: Case, vectors: Matrix):
    """Guards against scores that are no cosine of the moved query; without weight it is the embedding."""
    query = tiny.encode_query(QUERY)
    nearest = np.argsort(-(vectors @ query))[:3]
    moved = query + 0.3 * vectors[nearest].mean(0)
    expected = vectors @ moved / np.linalg.norm(moved)
    assert Rocchio(tiny).scores(case, vectors) == pytest.approx(expected.tolist(), abs=1e-5)
    assert Rocchio(tiny, weight=0.0).scores(case, vectors) == Embedding(tiny).scores(case, vectors)


def by_place(ranking: list[dict]) -> list[float]:
    """Scores in the order of the candidates."""
    return [hit["score"] for hit in sorted(ranking, key=lambda hit: hit["corpus_id"])]


@pytest.mark.parametrize(("count", "order"), [(None, None), (3, "given"), (3, "similarity")])
def test_listwise_is_rerank(tiny: E2Rank, case: Case, vectors: Matrix, count, order):
    """Guards against another reranking than the one that a user calls."""
    options = {"num_prompt_documents": count, "candidate_order": order, "instruction": "Rank these"}
    expected = tiny.rerank(QUERY, list(case.documents), document_embeddings=vectors, **options)
    system = Listwise(tiny, **options)
    assert system.scores(case, vectors) == pytest.approx(by_place(expected), abs=1e-6)


def test_second_pass_shows_the_best_of_the_first(tiny: E2Rank, case: Case, vectors: Matrix):
    """Guards against a second pass that repeats the first, and against scores of other candidates after it."""
    first = Listwise(tiny, 3, "given").scores(case, vectors)
    order = best_first(first)
    documents = [case.documents[place] for place in order]
    expected = tiny.rerank(QUERY, documents, document_embeddings=vectors[order], num_prompt_documents=3)
    second = Listwise(tiny, 3, "given", passes=2).scores(case, vectors)
    assert [second[place] for place in order] == pytest.approx(by_place(expected), abs=1e-6)
    assert second != pytest.approx(first, abs=1e-4), "the premise"


def test_interpolation_orders_as_the_interpolated_vector_does(tiny: E2Rank, case: Case, vectors: Matrix):
    """Guards against a mix that is no interpolation of the two query vectors."""
    listwise = torch.tensor(Listwise(tiny, 3).scores(case, vectors))
    query = torch.tensor(Embedding(tiny).scores(case, vectors))
    mixed = Listwise(tiny, 3, query_weight=0.4).scores(case, vectors)
    # A cosine to the mix is the mix of the cosines over its length, which is the same for all documents.
    shares = torch.tensor(mixed) / (0.6 * listwise + 0.4 * query)
    assert shares.tolist() == pytest.approx([shares[0].item()] * len(mixed), abs=1e-4)
    # With as many vectors as dimensions, the scores determine the vector that they are cosines to.
    solved = np.linalg.lstsq(vectors, np.asarray(mixed), rcond=None)[0]
    assert best_first((vectors @ solved).tolist()) == best_first(mixed)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"passes": 0}, "0 passes"), ({"query_weight": 1.5}, "query weight 1.5"), ({"candidate_order": "x"}, "order 'x'")],
)
def test_options_without_meaning_are_refused(tiny: E2Rank, options: dict, message: str):
    """Guards against a listwise system that is none."""
    with pytest.raises(ValueError, match=message):
        Listwise(tiny, **options)


def test_cross_encoder(case: Case, tmp_path: Path):
    """Guards against scores in another order than the candidates, and after a sigmoid, which ties."""
    model = tiny_cross_encoder(tmp_path / "model")
    found = Pointwise(model, 3).scores(case, None)
    one = model.predict([(QUERY, case.documents[4])], activation_fn=torch.nn.Identity())[0]
    assert found[4] == pytest.approx(float(one), abs=1e-5)
    with counted(model) as cost:
        Pointwise(model).scores(case, None)
    pairs = [model.tokenizer(QUERY, text, truncation=True)["input_ids"] for text in case.documents]
    assert cost.tokens == sum(map(len, pairs))


def test_a_query_costs_itself_and_one_prompt(tiny: E2Rank, case: Case, vectors: Matrix):
    """Guards against tokens of another query, or of documents whose vectors are stored."""
    length = len(tiny.tokenizer(tiny.prompts["query"] + QUERY)["input_ids"])
    costs = []
    for system in (Embedding(tiny), Listwise(tiny, 2, "given"), Listwise(tiny, 2, "similarity")):
        with counted(tiny) as cost:
            system.scores(case, vectors)
        costs.append(cost)
    assert (costs[0].texts, costs[0].tokens) == (1, length)
    assert [cost.texts for cost in costs[1:]] == [1, 2]
    assert costs[2].tokens > length + 20
    rendered = tiny.listwise.format.render(tiny.listwise.instruction, QUERY, list(case.documents[:2]))
    assert costs[1].tokens > len(tiny.tokenizer(rendered, add_special_tokens=False)["input_ids"])


def test_vectors_are_asked_for(tiny: E2Rank, case: Case):
    """Guards against a failure inside torch where vectors were forgotten."""
    with pytest.raises(ValueError, match="embed the candidates first"):
        Embedding(tiny).scores(case, None)


def test_parameters_say_what_a_model_decided(tiny: E2Rank, bundled: E2Rank):
    """Guards against results that do not tell which K they were made with."""
    assert parameters(Rocchio(tiny)) == {"num_documents": 3, "weight": 0.3}
    found = parameters(Listwise(bundled, passes=2))
    assert found["num_prompt_documents"] == bundled.listwise.num_prompt_documents
    assert found["candidate_order"] == "similarity"
    assert found["passes"] == 2
    assert parameters(Listwise(tiny, 5))["num_prompt_documents"] == 5
