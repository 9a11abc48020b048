"""The benchmark of speed: what takes part, and what its numbers mean. No test looks at a time."""

import json

import pytest

from e2rank_st.benchmarks import peers, speed
from e2rank_st.benchmarks.figures import draw_speed


@pytest.fixture(scope="module")
def found(with_yes_and_no):
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(peers.SHAPES, "tiny", {**small, "num_key_value_heads": 2, "head_dim": 8})
        patch.setattr(speed, "AT_LEAST", 0.0)
        patch.setattr(speed, "MANY", 3)
        patch.setattr("e2rank_st.benchmarks.meter.SIDE", {"cpu": 64})
        given = {"short": [work._replace(documents=work.documents[:7]) for work in speed.works(None, 1, 3)]}
        types = ["float32", "bfloat16"]
        return speed.measure(["tiny"], given, types, device="cpu", tokenizer=with_yes_and_no)


def test_all_take_part_in_each_type(found):
    """Guards against a comparison that leaves somebody out."""
    lines = [speed.Line(**line) for line in json.loads(json.dumps(found))["lines"]]
    ways = {dtype: [line.way for line in lines if line.dtype == dtype] for dtype in ("float32", "bfloat16")}
    assert ways["float32"] == ways["bfloat16"]
    assert len(ways["float32"]) == len(set(ways["float32"])) == 10 - 1  # K is 20 already
    assert {"rerank", "encode", "recipe of the model card", "CrossEncoder.rank", "generative listwise"} < set(
        ways["float32"]
    )


def test_what_the_numbers_mean(found):
    """Guards against ratios to something else, and tokens that stored vectors do not save."""
    lines = {(line["way"], line["dtype"]): speed.Line(**line) for line in found["lines"]}
    assert lines["CrossEncoder.rank", "float32"].ratio == 1
    stored, cold = lines["rerank, stored vectors, K = 20", "float32"], lines["rerank", "float32"]
    assert 0 < stored.tokens < cold.tokens
    assert stored.floor < cold.floor
    assert lines["rerank, vectors found by text", "float32"].tokens == stored.tokens
    for line in lines.values():
        assert line.least <= line.milliseconds <= line.most
        assert 0 <= line.outside <= 1
        assert line.ratio is not None and line.of_floor > 0
    assert found["environment"]["hardware"]["threads"]
    assert set(found["environment"]["dtype_rates"]) == {"float32", "bfloat16"}


def test_tables_and_figure(found):
    """Guards against a table that lacks a line, and a figure that cannot be drawn."""
    text = speed.tables(found)
    assert text.count("\n| ") == len(found["lines"]) + 1
    assert "`tiny`, short documents" in text
    short = speed.short_table(found)
    assert short.count("\n| ") == 8, "four ways, two types"
    assert "rerank, stored vectors, K = 20" in short
    figure = draw_speed([speed.Line(**line) for line in found["lines"]])
    assert len(figure.axes[0].patches) == len(found["lines"])


def test_documents_of_several_passages(tmp_path):
    """Guards against long documents that are the same text again: they are passages that follow each other."""
    hits = [
        {"content": f"passage {number}", "qid": 1, "docid": number, "rank": number, "score": -number}
        for number in range(6)
    ]
    file = tmp_path / "hits.jsonl"
    file.write_text(json.dumps({"query": "q", "hits": hits}) + "\n")
    short, long = (speed.works(file, size, 2) for size in (1, 3))
    assert len(short) == len(long) == 2
    assert short[0].documents == [f"passage {number}" for number in range(6)]
    assert long[1].documents[0] == "passage 0 passage 1 passage 2"
    assert long[1].documents[-1] == "passage 5 passage 0 passage 1"
    assert all(len(work.documents) == 100 for work in speed.works(None, 1, 5))


def test_passages_that_come_twice(tmp_path):
    """Guards against work that only some ways do twice, and against a query with other passages alone."""
    texts = [["a", "a", "b"], ["b", "c", "d"], []]
    hits = [
        [
            {"content": text, "qid": query, "docid": number, "rank": number, "score": -number}
            for number, text in enumerate(part)
        ]
        for query, part in enumerate(texts)
    ]
    file = tmp_path / "hits.jsonl"
    file.write_text("".join(json.dumps({"query": "q", "hits": part}) + "\n" for part in hits))
    assert [work.documents for work in speed.works(file, 1, 1)] == [["a", "b", "c"]]
    with pytest.raises(ValueError, match="at least one document"):
        speed.works(file, 1, 3)


def test_an_unknown_model():
    """Guards against a traceback: the error names what there is."""
    with pytest.raises(ValueError, match=r"'other'; give one of 'bundled'.*'qwen3-small'"):
        speed.measure(["other"], {}, ["float32"], device="cpu")
