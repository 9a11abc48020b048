"""Each system against its closed form, or against what a user would call."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from e2rank_st import E2Rank
from e2rank_st.benchmarks.candidates import Case
from e2rank_st.benchmarks.systems import (
    Embedding,
    FirstStage,
    Fused,
    Listwise,
    Pointwise,
    Rocchio,
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


@pytest.mark.parametrize("count", [None, 3])
def test_listwise_is_rerank(tiny: E2Rank, case: Case, vectors: Matrix, count: int | None):
    """Guards against another reranking than the one that a user calls."""
    options = {"num_prompt_documents": count, "instruction": "Rank these"}
    options |= {} if count is None else {"candidate_order": "similarity", "query_weight": 0.3}
    expected = tiny.rerank(QUERY, list(case.documents), document_embeddings=vectors, **options)
    scores = {hit["corpus_id"]: hit["score"] for hit in expected}
    assert Listwise(tiny, **options).scores(case, vectors) == [scores[place] for place in range(len(scores))]


def test_fused_is_rerank_with_the_first_stages_scores(tiny: E2Rank, case: Case, vectors: Matrix):
    """Guards against a mix that a user cannot have, and against a system that is listwise under another name."""
    options = {"num_prompt_documents": 3, "instruction": "Rank these"}
    mix = {"first_stage_scores": case.scores, "first_stage_weight": 0.4}
    expected = tiny.rerank(QUERY, list(case.documents), document_embeddings=vectors, **options, **mix)
    scores = {hit["corpus_id"]: hit["score"] for hit in expected}
    fused = Fused(tiny, **options, first_stage_weight=0.4)
    assert fused.scores(case, vectors) == [scores[place] for place in range(len(scores))]
    assert parameters(fused)["first_stage_weight"] == 0.4
    configured = copy.deepcopy(tiny)
    configured.replace_listwise(first_stage_weight=0.4)
    assert parameters(Fused(configured)) == parameters(Fused(tiny, first_stage_weight=0.4))
    assert "first_stage_weight" not in parameters(Listwise(configured))
    for weight in (None, 0.0):
        with pytest.raises(ValueError, match=r"weight of the system fused is 0.*--first-stage-weight"):
            Fused(tiny, first_stage_weight=weight)


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
    similar = copy.deepcopy(tiny)
    similar.replace_listwise(candidate_order="similarity")
    for model, system in ((tiny, Embedding(tiny)), (tiny, Listwise(tiny, 2)), (similar, Listwise(similar, 2))):
        with counted(model) as cost:
            system.scores(case, vectors)
        costs.append(cost)
    assert (costs[0].texts, costs[0].tokens) == (1, length)
    assert [cost.texts for cost in costs[1:]] == [1, 2]
    assert costs[2].tokens > length + 20
    rendered = tiny.listwise.format.render(tiny.listwise.instruction, QUERY, list(case.documents[:2]))
    assert costs[1].tokens > len(tiny.tokenizer(rendered, add_special_tokens=False)["input_ids"])


def test_parameters_say_what_a_model_decided(tiny: E2Rank, bundled: E2Rank):
    """Guards against results that do not tell which K they were made with."""
    assert parameters(Rocchio(tiny)) == {"num_documents": 3, "weight": 0.3}
    found = parameters(Listwise(bundled))
    assert found["num_prompt_documents"] == bundled.listwise.num_prompt_documents
    assert found["candidate_order"] == "similarity"
    assert parameters(Listwise(tiny, 5))["num_prompt_documents"] == 5
