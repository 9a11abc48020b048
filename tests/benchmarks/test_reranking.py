"""The whole script on toy sets: every source, every system, what is written, and every way to go wrong."""

import copy
import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from e2rank_st import E2Rank
from e2rank_st.benchmarks.encoders import instructed, load_encoder
from e2rank_st.benchmarks.options import parser
from e2rank_st.benchmarks.reranking import main
from e2rank_st.benchmarks.tasks import HUB_REPOSITORY, TASKS
from e2rank_st.data.trec import read_qrels, read_run, write_run
from e2rank_st.evaluation.metrics import evaluate, mean
from tests import ROOT
from tests.benchmarks.data import write_beir, write_task
from tests.labelling.test_teachers import tiny_cross_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a toy dl21."""
    return write_task(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def written(folder: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run with all systems."""
    output = tmp_path_factory.mktemp("output")
    cross_encoder = output / "my-cross-encoder"
    tiny_cross_encoder(cross_encoder)
    options = ["--baseline", str(checkpoint), "--cross-encoder", str(cross_encoder), "-k", "2", "4"]
    assert run(folder, checkpoint, output, *options, "--embedding-queries", "2", "--seed", "3") == 0
    return output


def run(folder: Path, model: Path, output: Path, *options: str) -> int:
    """Run the script on the toy dl21."""
    data = [] if {"--results", "--beir"} & set(options) else ["--tasks", "dl21", "--data-dir", str(folder)]
    return main([*data, "--model", str(model), "--output-dir", str(output), "--device", "cpu", *options])


def read(path: Path) -> dict[str, Any]:
    """A result file."""
    return json.loads(path.read_text(encoding="utf-8"))


def test_result_file(written: Path, checkpoint: Path):
    """Guards against a result that does not say what was measured on what, and against paths of a machine in it."""
    text = (written / "dl21-bm25.json").read_text(encoding="utf-8")
    result = json.loads(text)
    assert str(checkpoint.parent) not in text
    assert str(written) not in text
    assert (result["task"], result["first_stage"], result["queries"]) == ("dl21", "bm25", 6)
    assert (result["local"], result["partial"]) == (True, False)
    assert result["compare_with"] == "baseline_embedding"
    names = ["embedding", "rocchio", "listwise_k2", "listwise_k4"]
    assert list(result["systems"]) == ["first_stage", *(f"baseline_{name}" for name in names), *names, "cross_encoder"]
    assert result["models"]["model"]["name"] == "local/tiny-qwen3"
    assert result["models"]["cross_encoder"]["name"] == "local/my-cross-encoder"
    assert result["models"]["model"]["revision"] == result["models"]["baseline"]["revision"]
    assert result["settings"]["seed"] == 3
    assert {"torch", "sentence-transformers", "pytrec-eval-terrier"} <= result["environment"]["versions"].keys()
    assert result["environment"]["hardware"]["cpus"]


def test_scores_are_those_of_the_runs(written: Path, folder: Path):
    """Guards against numbers that the run files beside them do not have, and against ranks for scores."""
    result = read(written / "dl21-bm25.json")
    qrels = {
        query: {document: int(grade) for document, grade in grades.items()}
        for query, grades in read_qrels(folder / "rerank" / "dl21_qrels.txt").items()
    }
    for name, system in result["systems"].items():
        found = read_run(written / system["run"])
        assert list(found) == list(qrels)
        expected = evaluate(found, qrels, relevant_from=2)
        for metric, scores in expected.items():
            assert system["scores"][metric] == pytest.approx(mean(scores), abs=1e-6), (name, metric)
        assert system["per_query"]["ndcg@10"] == pytest.approx(expected["ndcg@10"], abs=1e-6)
        low, high = system["interval"]
        assert low <= system["scores"]["ndcg@10"] <= high
    cosines = [
        score
        for scores in read_run(written / "runs" / "dl21-bm25.listwise_k4.trec").values()
        for score in scores.values()
    ]
    assert all(-1 <= score <= 1 and score != round(score) for score in cosines)


def test_same_model_as_baseline_ties(written: Path):
    """Guards against systems that are given each other's scores or vectors."""
    systems = read(written / "dl21-bm25.json")["systems"]
    for name in ("embedding", "rocchio", "listwise_k2"):
        assert systems[name]["per_query"] == systems[f"baseline_{name}"]["per_query"]
    comparison = systems["embedding"]["comparison"]
    assert (comparison["against"], comparison["difference"], comparison["p"]) == ("baseline_embedding", 0.0, 1.0)
    assert (comparison["wins"], comparison["ties"], comparison["losses"]) == (0, 6, 0)
    assert "comparison" not in systems["baseline_embedding"]


def test_latency_and_tokens(written: Path):
    """Guards against times that leave out what a system costs, or count what it does not."""
    systems = read(written / "dl21-bm25.json")["systems"]
    assert systems["first_stage"]["latency"] == {"stored": None, "fresh": None}
    assert systems["first_stage"]["tokens"] is None
    assert systems["cross_encoder"]["latency"]["stored"] is None
    assert systems["cross_encoder"]["latency"]["fresh"]["queries"] == 6
    for name in ("embedding", "listwise_k2"):
        latency = systems[name]["latency"]
        assert (latency["stored"]["queries"], latency["fresh"]["queries"]) == (6, 2)
        assert 0 < latency["stored"]["median"] <= latency["stored"]["p95"]
    assert systems["embedding"]["tokens"]["median"] < systems["listwise_k2"]["tokens"]["median"]
    assert systems["listwise_k2"]["tokens"]["median"] < systems["listwise_k4"]["tokens"]["median"]


def test_instructions_of_the_task(written: Path, folder: Path, checkpoint: Path, tmp_path: Path, tiny: E2Rank):
    """Guards against a task's instructions that never reach the model, and against ones that stay behind."""
    result = read(written / "dl21-bm25.json")
    assert TASKS["dl21"].retrieval_instruction in result["query_prompts"]["model"]
    assert result["systems"]["listwise_k2"]["settings"]["instruction"] == TASKS["dl21"].listwise_instruction
    before = tiny.prompts["query"]
    with instructed(tiny, "Find it") as prompt:
        assert prompt == tiny.prompts["query"] == "Instruct: Find it\nQuery:"
    assert tiny.prompts["query"] == before
    assert run(folder, checkpoint, tmp_path, "--instructions", "model", "--systems", "listwise") == 0
    assert read(tmp_path / "dl21-bm25.json")["systems"]["listwise"]["settings"]["instruction"] is None


def test_limit_is_partial_and_seeds_decide(folder: Path, checkpoint: Path, tmp_path: Path, capsys):
    """Guards against a smoke run that passes for a result, and against intervals that change from run to run."""
    results = []
    for name in ("one", "two"):
        assert run(folder, checkpoint, tmp_path / name, "--limit", "4") == 0
        results.append(read(tmp_path / name / "dl21-bm25.json"))
    assert "DL21, bm25 top" in (printed := capsys.readouterr().out)
    assert "· local · partial" in printed
    assert results[0]["partial"]
    assert results[0]["queries"] == 4
    assert results[0]["compare_with"] == "embedding"
    for name, system in results[0]["systems"].items():
        for part in ("scores", "interval", "comparison", "per_query"):
            assert system.get(part) == results[1]["systems"][name].get(part)
    runs = [[path.read_bytes() for path in sorted((tmp_path / name / "runs").iterdir())] for name in ("one", "two")]
    assert runs[0] == runs[1]
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")], "scratch files are left"


def test_own_files(tmp_path: Path, folder: Path, checkpoint: Path):
    """Guards against sources that the table does not know."""
    rerank = folder / "rerank"
    files = ["--results", str(rerank / "dl21_bm25_top100.jsonl"), "--qrels", str(rerank / "dl21_qrels.txt")]
    assert run(folder, checkpoint, tmp_path, *files) == 0
    assert read(tmp_path / "dl21_bm25_top100-given.json")["settings"]["qrels"] == "dl21_qrels.txt"
    beir = write_beir(tmp_path / "toys")
    write_run(
        tmp_path / "mine.trec", {f"q{query}": {f"d{query}-1": 2.0, f"d{query}-0": 1.0} for query in range(5)}, "s"
    )
    assert run(folder, checkpoint, tmp_path, "--beir", str(beir), "--run", str(tmp_path / "mine.trec")) == 0
    assert read(tmp_path / "toys-mine.json")["systems"]["first_stage"]["scores"]["mrr@10"] == 0.5
    assert run(folder, checkpoint, tmp_path, "--beir", str(beir), "--own-first-stage", "--top-n", "7") == 0
    own = read(tmp_path / "toys-own.json")
    assert own["candidates"] == 7
    assert own["first_stage"] == "own" and "first_stage" not in own["settings"]
    assert own["systems"]["first_stage"]["per_query"] == own["systems"]["embedding"]["per_query"]
    assert own["sources"]["toys"].startswith("sha256-"), "the texts are part of what was measured"


def test_each_model_reranks_what_it_retrieved(tmp_path: Path, checkpoint: Path, tiny: E2Rank):
    """Guards against a baseline that is judged on the candidates of the model that is to beat it."""
    other = copy.deepcopy(tiny)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    other.save(str(tmp_path / "other"))
    beir = str(write_beir(tmp_path / "toys"))
    options = ["--beir", beir, "--own-first-stage", "--top-n", "9", "--systems", "embedding", "listwise"]
    assert run(tmp_path, checkpoint, tmp_path / "both", *options, "--baseline", str(tmp_path / "other")) == 0
    assert run(tmp_path, tmp_path / "other", tmp_path / "alone", *options) == 0
    runs = {
        name: read_run(tmp_path / "both" / "runs" / f"toys-own.{name}.trec")
        for name in ("listwise", "baseline_listwise")
    }
    alone = read_run(tmp_path / "alone" / "runs" / "toys-own.listwise.trec")
    assert runs["baseline_listwise"] == alone
    assert any(runs["listwise"][query].keys() != alone[query].keys() for query in alone), "the models have to differ"


def test_another_split_is_another_task(tmp_path: Path, checkpoint: Path):
    """Guards against scores of dev queries under the name of the test set."""
    beir = write_beir(tmp_path / "nfcorpus")
    (beir / "qrels" / "test.tsv").rename(beir / "qrels" / "dev.tsv")
    options = ["--model", str(checkpoint), "--own-first-stage", "--systems", "embedding", "--device", "cpu"]
    options += ["--data-dir", str(tmp_path), "--output-dir", str(tmp_path / "out")]
    assert main(["--tasks", "nfc", "--split", "dev", *options]) == 0
    assert main(["--tasks", "nfcorpus-dev", *options]) == 0
    own, given = (read(tmp_path / "out" / f"{name}-own.json") for name in ("nfcorpus-dev", "nfc-dev"))
    assert (own["title"], given["title"]) == ("NFCorpus dev", "NFCorpus dev")
    assert own["systems"]["embedding"]["scores"] == given["systems"]["embedding"]["scores"]


def test_failed_task_fails_the_run_and_the_others_still_run(tmp_path: Path, folder: Path, checkpoint: Path, capsys):
    """Guards against errors that are swallowed, and against a night's results that one bad file costs."""
    options = ["--data-dir", str(folder), "--model", str(checkpoint), "--output-dir", str(tmp_path), "--limit", "2"]
    assert main(["--tasks", "dl19", "dl21", *options]) == 1
    error = capsys.readouterr().err
    assert "dl19: error: dl19: no dl19_bm25_top100.jsonl" in error
    assert "1 of 2 tasks failed." in error
    assert [path.name for path in tmp_path.glob("*.json")] == ["dl21-bm25.json"]


def test_mismatch_is_an_error_and_nothing_is_written(tmp_path: Path, checkpoint: Path, capsys):
    """Guards against a silent zero."""
    data = write_task(tmp_path / "data")
    (data / "rerank" / "dl21_qrels.txt").write_text("1 0 a 1\n", encoding="utf-8")
    assert run(data, checkpoint, tmp_path / "out") == 1
    assert "None of 6 queries is judged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "covd"], "did you mean 'covid'"),
        ([], "nothing to evaluate on"),
        (["--results", "a.jsonl"], "--results and --qrels belong together"),
        (["--results", "a", "--qrels", "b", "--beir", "c"], "one source of candidates"),
        (["--run", "a"], "--run needs the texts of --beir"),
        (["--beir", "a"], "give a --run, or --own-first-stage"),
        (["--tasks", "dl19", "--own-first-stage"], "needs a corpus"),
        (["--tasks", "dl", "--beir", "a", "--run", "b"], "files of one test set for 5 tasks"),
        (["--tasks", "dl19", "--model", "nowhere"], "no folder here and no Hub id"),
        (["--tasks", "dl19", "--limit", "0"], "give a whole number of at least 1"),
        (["--tasks", "dl19", "-k", "3", "0"], "give a whole number of at least 1"),
        (["--tasks", "dl19", "--embedding-queries", "-1"], "give a whole number of at least 0"),
    ],
)
def test_bad_command_lines_are_refused(options: list[str], message: str, capsys):
    """Guards against a run that starts without knowing on what."""
    with pytest.raises(SystemExit) as stop:
        main(options)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_unknown_system_to_compare_with(folder: Path, checkpoint: Path, tmp_path: Path, capsys):
    """Guards against a comparison with nothing."""
    assert run(folder, checkpoint, tmp_path, "--compare-with", "bm25") == 1
    assert "--compare-with bm25, which is none of first_stage, embedding" in capsys.readouterr().err


def test_models_are_named_and_not_located(tiny: E2Rank, checkpoint: Path):
    """Guards against a folder of somebody's machine in a published result, and against another revision each time."""
    (model, found), (_, again) = (load_encoder(str(checkpoint), "cpu") for _ in range(2))
    assert found == again
    assert found["name"] == "local/tiny-qwen3"
    assert found["revision"].startswith("state-")
    assert (found["dtype"], found["parameters"]) == ("float32", sum(part.numel() for part in tiny.parameters()))
    assert isinstance(model, E2Rank)


def test_help_has_examples_that_parse():
    """Guards against a help text that shows what does not work."""
    lines = [line for line in parser(None).format_help().splitlines() if line.startswith("  python eval/")]
    assert len(lines) >= 5
    for line in lines:
        parser(None).parse_args(line.split()[2:])


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub that a file of a data set comes from."""

    files: dict[str, bytes] = {}  # noqa: RUF012

    def do_HEAD(self) -> None:
        """Size and revision."""
        self._answer()

    def do_GET(self) -> None:
        """The file."""
        self.wfile.write(self._answer())

    def _answer(self) -> bytes:
        content = self.files.get(self.path.partition("/resolve/main/")[2])
        known = content is not None and self.path.startswith(f"/datasets/{HUB_REPOSITORY}/")
        self.send_response(200 if known else 404)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{len(content or b"")}"')
        self.send_header("Content-Length", str(len(content or b"")))
        if not known:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        return content or b""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def test_files_from_the_hub(folder: Path, checkpoint: Path, tmp_path: Path):
    """Guards against names that the public data set has not, against a server that speaks HTTP as the Hub does."""
    rerank = folder / "rerank"
    Hub.files = {
        "bm25/dl19_top100.jsonl": (rerank / "dl21_bm25_top100.jsonl").read_bytes(),
        "topics_and_qrels/qrels.dl19-passage.txt": (rerank / "dl21_qrels.txt").read_bytes(),
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    hub = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "eval/run_reranking.py", "--tasks", "dl19", "--model", str(checkpoint)]
    command += ["--output-dir", str(tmp_path / "out"), "--systems", "embedding", "--device", "cpu"]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment(hub), capture_output=True, text=True, check=False)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    result = read(tmp_path / "out" / "dl19-bm25.json")
    assert (result["local"], result["partial"], result["queries"]) == (False, False, 6)


def environment(extra: dict[str, str]) -> dict[str, str]:
    """This process' environment, its package among the paths, without proxies between it and the loopback."""
    import os

    import e2rank_st

    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return {**kept, **extra, "PYTHONPATH": str(Path(e2rank_st.__file__).parents[1])}
