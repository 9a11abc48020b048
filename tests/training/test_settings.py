"""A YAML file and flags → settings: flags win, every setting has a help text, and nothing unknown passes."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from e2rank_st.training.datasets import DataEntry
from e2rank_st.training.settings import KINDS, help_text, parse_settings
from tests import ROOT

pytest.importorskip("yaml")
pytest.importorskip("accelerate")

FILE = """
model: some/model
output_dir: {folder}
train: [pairs.jsonl, {{path: slates.parquet, limit: 100}}]
learning_rate: 5e-6
bf16: false
warmup_steps: 0.03
mini_batch_size: null
lr_scheduler_kwargs: {{power: 2}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(FILE.format(folder=tmp_path / "run"), encoding="utf-8")
    return path


def test_file_and_flags(file: Path) -> None:
    """Guards against a number that YAML reads as a text (5e-6 is one), and a file that wins over a flag."""
    parsed = parse_settings([str(file), "--learning-rate", "1e-3", "--dev", "a.parquet", "b.parquet", "--seed=7"])
    assert parsed.arguments.learning_rate == 1e-3
    assert parse_settings([str(file)]).arguments.learning_rate == 5e-6
    assert parsed.settings.model == "some/model"
    assert parsed.settings.train == ["pairs.jsonl", '{"path": "slates.parquet", "limit": 100}']
    assert parsed.settings.dev == ["a.parquet", "b.parquet"]
    assert parsed.arguments.warmup_steps == 0.03
    assert parsed.arguments.bf16 is False
    assert parsed.loss.mini_batch_size is None
    assert parsed.arguments.lr_scheduler_kwargs == {"power": 2}


def test_each_value_goes_where_it_belongs(file: Path) -> None:
    """Guards against a flag that is read and forgotten, since four dataclasses share the names."""
    flags = ["--listwise_weight", "3", "--num_prompt_documents", "5", "--documents_per_slate", "7"]
    parsed = parse_settings([str(file), *flags])
    assert parsed.loss.listwise_weight == 3.0
    assert parsed.listwise.changes() == {"num_prompt_documents": 5}
    assert parsed.arguments.documents_per_slate == 7
    names = [item.name for kind in KINDS for item in fields(kind)]
    assert len(names) == len(set(names))


def test_defaults_of_the_script(file: Path) -> None:
    """Guards against an evaluation without data, and a best checkpoint that nobody asked to be loaded."""
    without, with_dev = parse_settings([str(file)]), parse_settings([str(file), "--dev", "a"])
    assert without.arguments.eval_strategy.value == "no"
    assert not without.arguments.load_best_model_at_end
    assert with_dev.arguments.eval_strategy.value == "steps"
    assert with_dev.arguments.load_best_model_at_end
    assert (
        parse_settings([str(file), "--dev", "a", "--eval_steps", "50", "--save_steps", "50"]).arguments.eval_steps == 50
    )
    assert with_dev.told["model"] == "some/model"
    assert {"train", "dev", "learning_rate", "eval_steps"} <= with_dev.told.keys()
    assert "weight_decay" not in with_dev.told, "what is the default is not recorded"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learnin_rate", "1"], "Unknown setting 'learnin_rate'; did you mean 'learning_rate'?"),
        (["--learning", "1"], "Unknown setting 'learning'; did you mean"),
        (["--learning_rate", "fast"], "learning_rate.*invalid float value: 'fast'"),
        (["--candidate_order", "best"], "candidate_order.*'best'.*'given', 'similarity'"),
        (["--temperature", "0"], "temperature must be above 0, got 0"),
        (["--lora_rank", "-1"], "lora_rank must be at least 0, got -1"),
        (["stray"], "Got 'stray' where a setting was expected"),
        (["--learning_rate"], "learning_rate.*expected one argument"),
    ],
)
def test_wrong_flags_are_refused(file: Path, flags: list[str], message: str) -> None:
    """Guards against a misspelt setting that trains something else for hours."""
    with pytest.raises(ValueError, match=message):
        parse_settings([str(file), *flags])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learnin_rate: 1", r"{file}: Unknown setting 'learnin_rate'; did you mean 'learning_rate'\?"),
        ("learning_rate: fast", "{file}: .*invalid float value: 'fast'"),
        ("learning_rate: [1, 2]", "{file}: Got '2' where a setting was expected"),
        ("- model", "{file} holds list; write a line 'name: value'"),
        ("", "{file} holds NoneType"),
        ("1: 2", "{file} holds dict"),
        ("model: [", "{file} is not YAML"),
        ("model: a", "no output folder"),
        ("output_dir: a", "no training data"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    """Guards against the same from a file; the message says which."""
    path = tmp_path / "wrong.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message.format(file=path)):
        parse_settings([str(path)])


@pytest.mark.parametrize("folder", ["paper", "e2rank-minilm-l6"])
@pytest.mark.parametrize("name", ["stage1.yaml", "stage2.yaml"])
def test_files_that_come_along(folder: str, name: str, tmp_path: Path) -> None:
    """Guards against an example, or the bundled model's recipe, whose names nobody keeps up to date."""
    path = ROOT / "recipes" / folder / name
    parsed = parse_settings([str(path), "--train", "slates.parquet", "--output_dir", str(tmp_path)])
    assert parsed.loss.listwise_weight == (0.0 if name == "stage1.yaml" else 2.0)
    assert parsed.arguments.bf16


@pytest.mark.parametrize("name", ["stage1.yaml", "stage2.yaml"])
def test_data_of_the_recipe(name: str, tmp_path: Path) -> None:
    """Guards against a misspelt field of a data set in the recipe of the bundled model."""
    path = ROOT / "recipes" / "e2rank-minilm-l6" / name
    settings = parse_settings([str(path), "--output_dir", str(tmp_path)]).settings
    entries = [DataEntry.parse(entry) for entry in (*settings.train, *settings.dev)]
    assert {Path(entry.path).name.split(".")[0] for entry in entries} >= {"squad", "medquad", "dl22", "nfcorpus_dev"}


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """Guards against defaults instead of the settings that were meant."""
    with pytest.raises(FileNotFoundError):
        parse_settings([str(tmp_path / "none.yaml")])


def test_every_setting_has_a_help_text() -> None:
    """Guards against a setting that only its source explains, and a help text that nobody reads to the end."""
    own: list[Any] = [item for kind in KINDS[:3] for item in fields(kind)]
    items: list[Any] = [*own, *(item for item in fields(KINDS[3]) if item.init)]
    text = help_text(everything=True)
    for item in items:
        assert item.metadata["help"].strip()
        assert f"--{item.name}" in text
    usual = help_text()
    assert len(usual.splitlines()) < 120 < len(text.splitlines())
    assert all(f"--{item.name}" in usual for item in own)
    assert max(map(len, text.splitlines())) <= 120
