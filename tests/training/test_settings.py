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
    """Guards against a number that YAML reads as a text (5e-6), a file that wins over a flag, and lost values."""
    assert parse_settings([str(file)]).arguments.learning_rate == 5e-6
    flags = ["--listwise_weight", "3", "--num_prompt_documents", "5", "--documents_per_slate", "7", "--seed=7"]
    parsed = parse_settings([str(file), "--learning-rate", "1e-3", "--dev", "a.parquet", "b.parquet", *flags])
    arguments = parsed.arguments
    assert (arguments.learning_rate, arguments.warmup_steps, arguments.bf16) == (1e-3, 0.03, False)
    assert (arguments.lr_scheduler_kwargs, arguments.documents_per_slate, arguments.seed) == ({"power": 2}, 7, 7)
    assert parsed.settings.model == "some/model"
    assert parsed.settings.train == ["pairs.jsonl", '{"path": "slates.parquet", "limit": 100}']
    assert parsed.settings.dev == ["a.parquet", "b.parquet"]
    assert (parsed.loss.mini_batch_size, parsed.loss.listwise_weight) == (None, 3.0)
    assert parsed.listwise.changes() == {"num_prompt_documents": 5}
    names = [item.name for kind in KINDS for item in fields(kind)]
    assert len(names) == len(set(names)), "four dataclasses share the names"


def test_defaults_of_the_script(file: Path) -> None:
    """Guards against an evaluation without data, and a best checkpoint that nobody asked to be loaded."""
    for flags, strategy in (([], "no"), (["--dev", "a"], "steps")):
        parsed = parse_settings([str(file), *flags])
        assert parsed.arguments.eval_strategy.value == strategy
        assert parsed.arguments.load_best_model_at_end == bool(flags)
    assert {"model", "train", "dev", "learning_rate", "eval_steps"} <= parsed.told.keys()
    assert "weight_decay" not in parsed.told, "what is the default is not recorded"
    steps = ["--eval_steps", "50", "--save_steps", "50"]
    assert parse_settings([str(file), "--dev", "a", *steps]).arguments.eval_steps == 50


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learnin_rate", "1"], "Unknown setting 'learnin_rate'; did you mean 'learning_rate'?"),
        (["--learning", "1"], "Unknown setting 'learning'; did you mean"),
        (["--learning_rate", "fast"], "learning_rate.*invalid float value: 'fast'"),
        (["--candidate_order", "best"], "candidate_order.*'best'.*'given', 'similarity'"),
        (["--temperature", "0"], "temperature must be a finite number above 0, got 0"),
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
    with pytest.raises(FileNotFoundError):
        parse_settings([str(tmp_path / "none.yaml")])


@pytest.mark.parametrize("name", ["stage1.yaml", "stage2.yaml"])
def test_settings_of_the_paper(name: str, tmp_path: Path) -> None:
    """Guards against a recipe with misspelt names."""
    recipe = ROOT / "recipes" / "paper" / name
    parsed = parse_settings([str(recipe), "--train", "slates.parquet", "--output_dir", str(tmp_path)])
    assert parsed.loss.listwise_weight == (0.0 if name == "stage1.yaml" else 2.0)
    assert parsed.arguments.bf16


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "bundled").glob("*.yaml")), ids=lambda path: path.name)
def test_settings_of_the_bundled_models(path: Path, tmp_path: Path) -> None:
    """Guards against a recipe with misspelt fields of its data, and against one that trains on what it is chosen by."""
    settings = parse_settings([str(path), "--output_dir", str(tmp_path)]).settings
    assert settings.prompt_adapter
    train, dev = (
        {Path(DataEntry.parse(entry).path).name.split(".")[0] for entry in part}
        for part in (settings.train, settings.dev)
    )
    assert {"squad", "dl22", "evidence"} <= train
    assert {"dl21_bm25_top100", "squad_dev", "healthver_dev"} <= dev
    assert not train & dev


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
