"""The table of known checkpoints: its rows are complete and true, and a checkpoint finds its row."""

from pathlib import Path

import pytest

from e2rank_st import E2Rank, SearchIndex
from e2rank_st.checkpoints import CHECKPOINTS, find_checkpoint, instruction_template
from e2rank_st.modeling_e2rank import E2RankPooling, ListwiseRerank
from tests.conftest import GOLDEN


@pytest.mark.parametrize("row", CHECKPOINTS, ids=lambda row: row.preset)
def test_rows_are_valid(row):
    """Guards against a row that fails only when somebody loads it, and against texts lost to a missing comma."""
    E2RankPooling(8, row.pooling_mode)
    reranker = ListwiseRerank(**row.listwise)
    assert len(reranker.instruction) > 20
    assert reranker.max_query_tokens < reranker.max_prompt_tokens
    assert row.query_prompt == "" or len(row.query_prompt) > 20
    assert isinstance(row.repositories, tuple)
    assert all("/" in name for name in row.repositories)
    assert isinstance(row.architectures, tuple)


def test_presets_and_repositories_are_unique():
    """Guards against a second row that is never found."""
    names = [name for row in CHECKPOINTS for name in (row.preset, *row.repositories)]
    assert len(set(names)) == len(names)


def test_released_texts():
    """Guards against instructions other than those that the released checkpoints were evaluated with."""
    row = find_checkpoint("e2rank")
    query = next(golden for golden in GOLDEN if golden["format"] == "query")
    assert row.query_prompt + query["query"] + row.eos_token == query["rendered"]
    listwise = next(golden for golden in GOLDEN if golden["format"] == "evaluation")
    assert ListwiseRerank(**row.listwise).instruction == listwise["instruction"]


@pytest.mark.parametrize(
    ("question", "preset"),
    [
        ({"repository": "Alibaba-NLP/E2Rank-0.6B"}, "e2rank"),
        ({"repository": "Alibaba-NLP/E2Rank-4B-Embedding-Only", "architectures": ["Qwen3Model"]}, "e2rank-embedding"),
        ({"repository": "somewhere", "architectures": ["Qwen3ForCausalLM"]}, "e2rank"),
        ({"repository": "somewhere", "architectures": ["BertModel"]}, "minilm"),
        ({"repository": "sentence-transformers/all-MiniLM-L6-v2", "architectures": ["Qwen3Model"]}, "minilm"),
        ({"preset": "e2rank", "repository": "sentence-transformers/all-MiniLM-L6-v2"}, "e2rank"),
    ],
)
def test_find(question, preset):
    """Guards against the wrong precedence: a preset wins over the name, the name over the architecture."""
    assert find_checkpoint(**question).preset == preset


def test_embedding_only_checkpoints_embed_and_warn(checkpoint: Path, tiny: E2Rank, facts, caplog):
    """Guards against scores of a checkpoint that was not trained to rerank, without a word; embedding is silent."""
    names = [f"Alibaba-NLP/E2Rank-{size}-Embedding-Only" for size in ("0.6B", "4B", "8B")]
    assert find_checkpoint("e2rank-embedding").repositories == tuple(names)
    model = E2Rank(str(checkpoint), preset="e2rank-embedding", device="cpu")
    with caplog.at_level("WARNING", "e2rank_st"):
        assert (model.encode_document(facts) == tiny.encode_document(facts)).all()
        assert (model.encode_query(facts) == tiny.encode_query(facts)).all()
        assert not [record for record in caplog.records if record.name.startswith("e2rank_st")]
        SearchIndex.create(None, model, facts, show_progress_bar=False).search("fleas")
        assert model.rank("fleas", facts) == model.rerank("fleas", facts) == tiny.rerank("fleas", facts)
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("e2rank_st")]
    assert "trained to embed only" in said, "and the released model says nothing"


def test_unknown():
    """Guards against a guess: an unknown name is an error that lists the presets."""
    with pytest.raises(ValueError, match=r"Unknown preset 'x'.*'e2rank', 'e2rank-embedding', 'minilm'"):
        find_checkpoint("x")
    with pytest.raises(ValueError, match=r"'y'.*\['T5Model'\].*'e2rank', 'e2rank-embedding', 'minilm'"):
        find_checkpoint(repository="y", architectures=["T5Model"])


def test_instruction_template():
    """Guards against a template made of a prompt that has no instruction."""
    assert instruction_template("Instruct: Do this\nQuery:") == "Instruct: {instruction}\nQuery:"
    assert instruction_template("query: ") is instruction_template("") is instruction_template(None) is None
