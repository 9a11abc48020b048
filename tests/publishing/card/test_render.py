"""The card: whole and the same each time, honest about where its numbers come from, and with code that runs."""

import copy
import importlib.util
import json
import os
import re
import shutil
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from typer.testing import CliRunner

from e2rank_st import E2Rank
from e2rank_st.benchmarks.results import Result
from e2rank_st.bundled import BUNDLED, Bundled
from e2rank_st.publishing.card import render
from tests import ROOT
from tests.benchmarks.toy_results import (
    BASE,
    ENVIRONMENT,
    REVISION,
    of_another,
    official,
    reranking,
    write_results,
)
from tests.publishing.card.data import toy_results, write_model, write_prompt_adapter

GOLDEN = ROOT / "tests/golden/card.md"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
NFCORPUS = "ec0fa4fe99da2ff19ca1214b7966684033a58814"


def card(folder: Path, *results: Result, **changes: Any) -> str:
    """The card of a toy model with a figure."""
    (folder / "report").mkdir(exist_ok=True)
    (folder / "report/reranking-scores.png").write_bytes(b"a picture")
    shutil.rmtree(folder / "results", ignore_errors=True)
    model, paths = write_model(folder, **changes), [write_results(folder / "results", *results)]
    return render.render(model, paths, folder / "report", folder / "README.md")


@pytest.fixture(scope="module")
def toy_card(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The card of all toy results; many tests look at it."""
    return card(tmp_path_factory.mktemp("toy"), *toy_results())


def index(text: str) -> list[dict[str, Any]]:
    """What model-index says."""
    return yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"]


def test_whole_card(toy_card: str):
    """Guards against any change of a card that nobody looked at; E2RANK_UPDATE_GOLDEN=1 takes the new one over."""
    if os.environ.get("E2RANK_UPDATE_GOLDEN"):
        GOLDEN.write_text(toy_card, encoding="utf-8")
    assert toy_card == GOLDEN.read_text(encoding="utf-8")


def test_metadata_is_what_the_hub_reads(toy_card: str):
    """Guards against metadata that the Hub's own client reads otherwise, or refuses."""
    data = ModelCard(toy_card).data
    assert (data.library_name, data.pipeline_tag, data.license) == (
        "sentence-transformers",
        "text-ranking",
        "apache-2.0",
    )
    assert (data.base_model, data.base_model_relation) == ("sentence-transformers/all-MiniLM-L6-v2", "finetune")
    assert data.datasets == ["rajpurkar/squad"]  # dl22 has no data set of its authors there
    values = {(result.dataset_name, result.metric_name): result.metric_value for result in data.eval_results}
    assert len(values) == len(data.eval_results) == 8  # two systems on four sets, none of the baseline's
    assert values["DL21 bm25 (local copy)", "ndcg@10, listwise"] == 0.62
    assert values["NFCorpus (local copy)", "ndcg@10, two-stage"] == 0.33


def test_the_script_writes_and_checks(toy_card: str, tmp_path: Path):
    """Guards against results that pile up in the card, and against a check that passes or fails for no reason."""
    spec = importlib.util.spec_from_file_location("script", ROOT / "model_card/render.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    app = typer.Typer()
    app.command()(script.main)
    model, results = write_model(tmp_path), write_results(tmp_path / "results", *toy_results())
    output = tmp_path / "card/README.md"
    arguments = [str(results), "--model", str(model), "--output", str(output), "--report", str(tmp_path)]
    done = [CliRunner().invoke(app, [*arguments, *extra]) for extra in (["--check"], [], ["--check"], [], ["--check"])]
    assert [step.exit_code for step in done] == [1, 0, 0, 0, 0]
    assert "README.md is not there; render it anew, without --check." in str(done[0].exception)
    assert output.read_text(encoding="utf-8").splitlines()[:3] == toy_card.splitlines()[:3]
    with pytest.raises(ValueError, match="is stale: model, results or template have changed"):
        render.check(card(tmp_path, *toy_results()[::-1]), output)  # the same files by other names


def test_local_results_are_no_official_ones(toy_card: str):
    """Guards against a score on a local copy under the name, or beside a revision, of the public data."""
    for entry in index(toy_card):
        assert entry["dataset"]["name"].endswith("(local copy)")
        assert set(entry["dataset"]) == {"name", "type"}
        assert "/" not in entry["dataset"]["type"]
        assert "source" not in entry
    assert "| NFCorpus † |" in toy_card and "| NFCorpus |" not in toy_card
    assert toy_card.count("† on local copies of the data, not an official result.") >= 4


def test_official_results_are_told_as_mteb_tells_them(tmp_path: Path):
    """Guards against an official result that leaderboards cannot read, and against modes that look alike."""
    pytest.importorskip("mteb")
    results = [official("NFCorpus", mode, level, NFCORPUS) for mode, level in (("embedding", 0.3), ("two-stage", 0.4))]
    text = card(tmp_path, *results)
    (entry,) = index(text)
    assert entry["dataset"] == {
        "name": "NFCorpus (default)",
        "type": "mteb/nfcorpus",
        "config": "default",
        "split": "test",
        "revision": NFCORPUS,
    }
    assert [(metric["name"], metric["value"]) for metric in entry["metrics"]] == [
        ("ndcg_at_10", 0.3),
        ("ndcg_at_10, two-stage", 0.4),
    ]
    assert entry["source"]["name"] == "MTEB"
    assert "†" not in text


def test_a_run_of_our_own_on_public_data(tmp_path: Path):
    """Guards against the paper's setting taken for a leaderboard's."""
    levels = {"first_stage": 0.4, "embedding": 0.5, "baseline_embedding": 0.5}
    text = card(tmp_path, reranking(levels, local=False))
    assert [entry["dataset"] for entry in index(text)] == [{"name": "DL21 bm25 (own run)", "type": "dl21-bm25-own-run"}]


def test_partial_results_are_refused(tmp_path: Path):
    """Guards against a smoke run on a card."""
    for place, message in ((-1, r"SciFact \(two-stage\)"), (2, r"NFCorpus \(embedding\)")):  # the base's, too
        results = toy_results()
        results[place] = replace(results[place], partial=True)
        with pytest.raises(ValueError, match=rf"no results on a part of the queries: {message}\. Run them in full"):
            card(tmp_path, *results)


def test_results_of_other_weights_are_refused(tmp_path: Path):
    """Guards against old scores beside new ones after training."""
    results = toy_results()
    stale = [*results[:-1], of_another(results[-1], "weights-of-yesterday")]
    with pytest.raises(ValueError, match=f"several states of it: {REVISION}, weights-of-yesterday"):
        card(tmp_path, *stale)
    stale = [*results[:2], of_another(results[2], "weights-of-another-base"), *results[3:]]
    with pytest.raises(ValueError, match=f"{BASE} are of several states of it: weights-ba9876543210, weights-of-an"):
        card(tmp_path, *stale)
    base_alone = [result for result in results if [model["name"] for model in result.models.values()] == [BASE]]
    with pytest.raises(ValueError, match=f"No results of e2rank-toy, but of {BASE}; evaluate it first"):
        card(tmp_path, *base_alone)


def test_earlier_stages_are_told(toy_card: str, tmp_path: Path):
    """Guards against a card that passes over the first stage: its steps, its loss, its data."""
    slates = {"path": "build/slates/wikiqa.parquet", "slates": 873, "documents": 9000}
    scores = {"before": {"dl21_embedding_ndcg@10": 0.5}, "after": {"dl21_embedding_ndcg@10": 0.5125}, "p_values": {}}
    earlier = scores | {
        "settings": {"per_device_train_batch_size": 32},
        "loss": {"contrastive_weight": 1.0, "query_weight": 0.5},
        "data": {"train": [slates], "dev": [{"path": "dl21.jsonl", "slates": 40, "documents": 4000}]},
        "environment": ENVIRONMENT | {"hardware": {"device": "a GPU", "threads": 1}},
        "best_step": None,
        "steps": 70,
    }
    text = card(tmp_path, *toy_results(), earlier=earlier)
    assert (
        "Training stage 1: 70 steps of 32 slates; weights of the loss: contrastive 1; all vectors trained. On" in text
    )
    assert "| dl21 | 40 | embedding | 50.00 | 51.25 |" in text
    assert text.index("stage 1: 70") < text.index("stage 2: 600 steps of 16 slates, of which")
    assert "| 873 | 9,000 |" in text
    assert "| training | a GPU, 1 threads |" in text
    assert "Training stage" not in toy_card


def test_data_of_unknown_licence_is_refused(tmp_path: Path):
    """Guards against training data that the card passes over."""
    data = {"train": [{"path": "build/slates/webcrawl.parquet", "slates": 1, "documents": 2}], "dev": []}
    with pytest.raises(ValueError, match="training data webcrawl, whose licence nobody wrote down; add rows"):
        card(tmp_path, *toy_results(), data=data)


def test_what_the_model_has_seen(tmp_path: Path):
    """Guards against a trained-on or chosen-by task that passes for zero-shot."""
    seen = render.Facts.read(write_model(tmp_path)).data.seen
    assert seen("SciFact") == seen("FiQA2018") == "yes"
    assert seen("dl22") == "no: trained on it"
    assert seen("dl21").endswith("these very queries: a dev score")
    assert seen("nfc") == seen("NFCorpus") == "yes; settings were chosen by its dev queries, not by these"
    assert seen("nfcorpus-dev") == seen("dl21")
    assert seen("squad-dev") == "no: trained on the train split, chosen by this one: a dev score"
    assert seen("healthver-dev") == "yes"
    assert seen("MSMARCO") == seen("NQ") == "no: the base was trained on it"


@pytest.fixture(scope="module")
def published(tiny: E2Rank, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the card's code loads → local folders: the model as it is saved, and its weights with stock modules only."""
    folder = tmp_path_factory.mktemp("published")
    model = copy.deepcopy(tiny)
    model.replace_listwise(candidate_order="similarity")  # as the shipped one: else a ranking depends on who retrieved
    model.save(str(folder / "main"))
    stock = SentenceTransformer(
        modules=[model[0], Pooling(model.get_embedding_dimension(), model[1].pooling_mode), Normalize()],
        prompts=model.prompts,
        device="cpu",
    )
    stock.save(str(folder / "embedding"))
    return {
        '"{{repo_id}}", revision="embedding"': repr(str(folder / "embedding")),
        '"{{repo_id}}"': repr(str(folder / "main")),
    }


def test_cards_of_a_prompt_adapter(toy_card: str, tmp_path: Path):
    """Guards against a card that has people embed again, or load what a repository does not hold."""
    model, results = write_prompt_adapter(tmp_path), [write_results(tmp_path / "results", *toy_results())]
    whole, alone = (render.render(model, results, tmp_path, tmp_path / "README.md", one) for one in (False, True))
    for text in (whole, alone):
        assert "base_model_relation: adapter" in text
        assert f"documents are those of {BASE}, bit for bit: keep the ones that you have stored" in text
        assert "| trained | LoRA of rank 2, 1,536 parameters, for listwise prompts only |" in text
        assert "only prompts trained, all other vectors stayed as they were" in text
        assert "merged" not in text and 'revision="embedding"' not in text
        assert "The base reads at most 512 tokens at a time" in text
        assert 'E2Rank("{{repo_id}}")' in text
        assert "`tokenizer(text, split_special_tokens=True)` makes the tokens of the prompt" in text
    assert ("trust_remote_code" in whole, "trust_remote_code" in alone) == (True, False)
    assert whole.partition("### Zero-shot")[2] == toy_card.partition("### Zero-shot")[2].replace(
        "document vectors stayed", "only prompts trained, all other vectors stayed"
    )
    with pytest.raises(ValueError, match="holds no prompt adapter, so there is no card of one alone"):
        render.render(write_model(tmp_path / "lora"), results, tmp_path, tmp_path / "README.md", alone=True)
    record = json.loads((model / "training.json").read_text())
    del record["model"]
    (model / "training.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"does not describe the model\. Train"):
        render.render(model, results, tmp_path, tmp_path / "README.md")


def test_every_code_block_runs(toy_card: str, published: dict[str, str]):
    """Guards against code on the card that does not run as it stands there, each block alone, but for the Hub id."""
    blocks = BLOCK.findall(toy_card)
    assert len(blocks) == 3
    printed = []
    for code in blocks:
        assert "{{repo_id}}" in code
        for placeholder, folder in published.items():
            code = code.replace(placeholder, folder)
        with redirect_stdout(StringIO()) as output:
            exec(compile(code, "card", "exec"), {})
        printed.append(output.getvalue())
    assert printed[0] == printed[1]  # the same ranking by remote code and by the package
    assert len(printed[0].splitlines()) == 2
    assert printed[2].startswith("tensor([[")


@pytest.mark.parametrize("bundled", BUNDLED.values(), ids=BUNDLED)
def test_a_committed_card_is_up_to_date(bundled: Bundled):
    """Guards against a card that is older than the model, its results or the template."""
    output = ROOT / "model_card" / bundled.name / "README.md"
    results = ROOT / "eval" / "results" / bundled.name
    render.check(render.render(bundled.folder, [results], output.parent / "report", output), output)
