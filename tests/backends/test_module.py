"""The first module of a model whose forward pass is somewhere else."""

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from e2rank_st import E2Rank
from e2rank_st.backends.module import Backend, PromptBackend
from e2rank_st.modeling_e2rank import ListwiseRerank

TEXTS = ["fleas live <|im_end|> long ", " iron", "", "bread rises because yeast makes gas"]


class Noted(Backend):
    """Gives sequences to the toy model, and notes them."""

    def __init__(self, model: E2Rank) -> None:
        super().__init__(copy.deepcopy(model.tokenizer), model.get_embedding_dimension(), model.max_seq_length)
        self.seen: list[tuple[list[list[int]], int | None]] = []
        object.__setattr__(self, "_model", model)

    def embed(self, sequences: Sequence[Sequence[int]], prompt_length: int | None = None) -> Tensor:
        """Embeds."""
        self.seen.append(([list(ids) for ids in sequences], prompt_length))
        return self._model.listwise.embedder().embed([tuple(ids) for ids in sequences], "text")


def test_texts_are_tokenised_as_the_model_does(tiny: E2Rank):
    """Guards against padding that is sent, and against ids that the model itself would not see."""
    backend = Noted(tiny)
    features = backend.preprocess(TEXTS, prompt="query: ")
    expected = tiny.preprocess(TEXTS, prompt="query: ")
    assert torch.equal(features["input_ids"], expected["input_ids"])
    assert torch.equal(features["attention_mask"], expected["attention_mask"])
    vectors = backend({**features, "prompt_length": 3})["sentence_embedding"]
    ((sequences, prompt_length),) = backend.seen
    assert [len(ids) for ids in sequences] == expected["attention_mask"].sum(1).tolist()
    assert prompt_length == 3 and vectors.shape == (4, backend.get_embedding_dimension())


def test_long_texts_are_cut(tiny: E2Rank):
    """Guards against a limit that holds for the model and not for its backend."""
    backend = Noted(tiny)
    backend.max_seq_length = 5
    assert backend.preprocess(["fleas live long " * 20])["input_ids"].shape == (1, 5)


def test_prompts_have_a_backend_of_their_own(tiny: E2Rank):
    """Guards against prompts that are embedded without their adapter, and against texts that are embedded with it."""
    texts, prompts = Noted(tiny), Noted(tiny)
    reranker = ListwiseRerank(**tiny.listwise.get_config_dict())
    reranker.adapter = PromptBackend(prompts)
    model = E2Rank(modules=[texts, reranker], prompts=tiny.prompts, device="cpu")
    hits, expected = (one.rerank("fleas", ["about fleas", "about iron"]) for one in (model, tiny))
    assert [hit["corpus_id"] for hit in hits] == [hit["corpus_id"] for hit in expected]
    np.testing.assert_allclose([hit["score"] for hit in hits], [hit["score"] for hit in expected], atol=1e-5)
    assert len(prompts.seen) == 1 and len(prompts.seen[0][0]) == 1
    assert sum(len(sequences) for sequences, _ in texts.seen) == 2


def test_documents_of_all_lengths_are_one_request(tiny: E2Rank):
    """Guards against a request for each length: padding costs nothing where none is sent."""
    backend = Noted(tiny)
    model = E2Rank(modules=[backend, ListwiseRerank(**tiny.listwise.get_config_dict())], device="cpu")
    model.rerank("fleas", ["flea " * number for number in range(1, 31)])
    assert [len(sequences) for sequences, _ in backend.seen] == [30, 1]


def test_it_cannot_be_saved(remote: E2Rank, tmp_path):
    """Guards against a folder without weights, which nobody can load."""
    with pytest.raises(ValueError, match="somewhere else"):
        remote.save(str(tmp_path / "model"))
