"""The command ``e2rank bench``: options, table, files."""

import json

import pytest
from typer.testing import CliRunner

from e2rank_st.benchmarks import peers, speed
from e2rank_st.cli.app import app


def test_a_table_and_files(with_yes_and_no, tmp_path, monkeypatch):
    """Guards against a command that measures, but writes nothing down."""
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    monkeypatch.setitem(peers.SHAPES, "tiny", {**small, "num_key_value_heads": 2, "head_dim": 8})
    monkeypatch.setattr(peers, "MOST_PADDED", 0)
    monkeypatch.setattr(speed, "AT_LEAST", 0.0)
    monkeypatch.setattr(speed, "NUM_CANDIDATES", 4)
    monkeypatch.setattr(speed, "MANY", 2)
    monkeypatch.setattr("e2rank_st.benchmarks.meter.SIDE", {"cpu": 64})
    output, figure = tmp_path / "speed.json", tmp_path / "speed.svg"
    chosen = ["--model", "tiny", "--tokenizer", with_yes_and_no, "--device", "cpu", "--work", "short", "--turns", "1"]
    files = ["--output", str(output), "--figure", str(figure), "--dtypes", "float32"]
    done = CliRunner().invoke(app, ["bench", *chosen, *files])
    assert done.exit_code == 0, done.output
    assert "CrossEncoder.rank" in done.stdout
    assert str(tmp_path) not in done.stderr and "newly initialized" not in done.stderr
    lines = json.loads(output.read_text())["lines"]
    assert len(lines) == 8 and not any("recipe" in line["way"] for line in lines), "one batch would be too large"
    assert "<svg" in figure.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--work", "huge"], "got the work 'huge'; give one of short, medium, long"),
        (["--dtypes", "int3"], "got the type 'int3'"),
        (["--model", "other"], "Got the model 'other'; give one of"),
        (["--model", "bundled,other"], "Got the model 'other'; give one of"),
        (["--figure", "speed.txt"], "its name must end in one of .png, .pdf, .svg"),
    ],
)
def test_bad_options(options, message):
    """Guards against a traceback, and against work before the error."""
    done = CliRunner().invoke(app, ["bench", "--device", "cpu", *options])
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", "").split())
