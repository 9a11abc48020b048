"""The command e2rank: its input, output, pipes and errors."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import e2rank_st.data.docstrings as docstrings_module
from e2rank_st import E2Rank, SearchIndex, __version__
from e2rank_st.cli.app import app
from e2rank_st.data.docstrings import QUERIES, Docstring
from e2rank_st.search.maker import PROBES

QUERY, FLEAS = "how long do fleas live", "Fleas live 100 days."
COMMAND = [sys.executable, "-m", "e2rank_st.cli"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Run the command in a folder and with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run_with(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, arguments, input=stdin)

    package = logging.getLogger("e2rank_st")
    level, handlers = package.level, list(package.handlers)
    yield run_with
    package.setLevel(level)
    package.handlers[:] = handlers


@pytest.fixture
def facts_file(facts: list[str], tmp_path: Path) -> str:
    (tmp_path / "facts.txt").write_text("\n".join(facts) + "\n", encoding="utf-8")
    return "facts.txt"


@pytest.fixture(scope="module")
def tiny_folder(tiny: E2Rank, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny.save_pretrained(str(folder))
    return str(folder)


def rows(result: Result) -> list[list[str]]:
    assert result.exit_code == 0, result.stderr
    return [line.split("\t") for line in result.stdout.splitlines()]


def records(result: Result) -> list[dict]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_rerank_prints_what_the_library_says(run, shipped: E2Rank, facts: list[str], facts_file: str):
    """Guards against a command that ranks otherwise than the library, and against anything but rows in a pipe."""
    expected = [
        [str(rank), f"{hit['score']:.4f}", str(hit["corpus_id"]), facts[hit["corpus_id"]]]
        for rank, hit in enumerate(shipped.rerank(QUERY, facts), 1)
    ]
    assert rows(run("rerank", QUERY, facts_file)) == expected
    assert rows(run("rerank", QUERY, "--top-k", "2", stdin="\n\n".join(facts))) == expected[:2]


def test_rerank_options_reach_the_model(run, tiny: E2Rank, tiny_folder: str, facts: list[str], facts_file: str):
    """Guards against an option that is read and forgotten."""
    options = {"instruction": "Find what is about metals", "num_prompt_documents": 3, "candidate_order": "given"}
    arguments = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    result = run("rerank", QUERY, facts_file, "--model", tiny_folder, "--json", *arguments)
    expected = tiny.rerank(QUERY, facts, **options)
    assert [hit["corpus_id"] for hit in records(result)] == [hit["corpus_id"] for hit in expected]
    np.testing.assert_allclose(
        [hit["score"] for hit in records(result)], [hit["score"] for hit in expected], atol=1e-5, rtol=0
    )


def test_the_field_score_is_the_first_stages(run, tiny: E2Rank, tiny_folder: str, facts: list[str]):
    """Guards against scores of a file that reach other documents, or are missing without a word."""
    given = list(range(10, 20))
    lines = "\n".join(json.dumps({"text": text, "score": score}) for text, score in zip(facts, given, strict=True))
    options = ["--model", tiny_folder, "--first-stage-weight", "0.5", "--min-similarity", "-1", "--json"]
    expected = tiny.rerank(QUERY, facts, first_stage_scores=given, first_stage_weight=0.5, min_similarity=-1)
    found = records(run("rerank", QUERY, *options, stdin=lines))
    assert [hit["corpus_id"] for hit in found] == [hit["corpus_id"] for hit in expected]
    for name in ("score", "similarity"):
        assert [hit[name] for hit in found] == pytest.approx([hit[name] for hit in expected], abs=1e-5)
    failed = run("rerank", QUERY, *options, stdin=lines.replace('"score": 11', '"points": 11'))
    assert failed.exit_code == 1
    assert "document 2: score: not a number" in failed.stderr


def test_json_keeps_the_fields_of_the_input(run):
    """Guards against identifiers that are lost on the way, and a first stage's score overwritten by ours."""
    documents = [{"text": "Iron melts.", "score": 9, "meta": {"id": "x"}}, {"text": FLEAS, "id": 7}]
    found = records(run("rerank", QUERY, "--json", stdin="\n".join(map(json.dumps, documents))))
    assert [(hit["rank"], hit["corpus_id"], hit["text"]) for hit in found] == [(1, 1, FLEAS), (2, 0, "Iron melts.")]
    assert found[0]["id"] == 7
    assert (found[1]["input_score"], found[1]["meta"]) == (9, {"id": "x"})
    assert found[0]["score"] > found[1]["score"]


def test_stored_vectors_give_the_same_ranking(run, facts_file: str, tmp_path: Path):
    """Guards against vectors in another order than the documents, and against a result that they change."""
    result = run("embed", facts_file, "--output", "deep/vectors.npy")
    assert (result.exit_code, result.stdout) == (0, "")
    assert np.load(tmp_path / "deep" / "vectors.npy").shape == (10, 384)
    stored = run("rerank", QUERY, facts_file, "--embeddings", "deep/vectors.npy")
    assert rows(stored) == rows(run("rerank", QUERY, facts_file))


def test_embed_writes_json_lines(run, tiny: E2Rank, tiny_folder: str):
    """Guards against a query embedded as a document, and against the fields of the input that are lost."""
    stdin = '{"text": "what do fleas eat", "id": 1}\n{"text": "where do fleas live", "id": 2}\n'
    found = records(run("embed", "--task", "query", "--model", tiny_folder, stdin=stdin))
    assert [(row["id"], row["text"]) for row in found] == [(1, "what do fleas eat"), (2, "where do fleas live")]
    vectors, texts = [row["embedding"] for row in found], [row["text"] for row in found]
    np.testing.assert_allclose(vectors, tiny.encode_query(texts), atol=1e-6)
    assert np.abs(tiny.encode_document(texts) - vectors).max() > 1e-3, "the premise: queries have a prompt"


def test_demo_searches_and_keeps_the_index(run, facts: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Guards against a second run that embeds again, and against rows that do not belong together."""
    library = [Docstring(f"module.f{number}", f"{fact}\nMore on that.") for number, fact in enumerate(facts)]
    monkeypatch.setattr(docstrings_module, "collect", lambda: library)
    first = run("demo", QUERY, "melting metal", "--top-k", "3")
    header, *hits = rows(first)[:4]
    assert header == [f"# {QUERY}"]
    assert [hit[0] for hit in hits] == ["1", "2", "3"]
    assert all(library[int(hit[4].removeprefix("module.f"))].summary == hit[5] for hit in hits)
    assert rows(first)[4] == ["# melting metal"]
    assert "index of 10 texts" in first.stderr
    embedded: list[str] = []
    encode = E2Rank.encode_document
    spy = lambda self, texts, **options: embedded.extend(texts) or encode(self, texts, **options)  # noqa: E731
    monkeypatch.setattr(E2Rank, "encode_document", spy)
    assert rows(run("demo", QUERY, "melting metal", "--top-k", "3")) == rows(first)
    assert set(embedded) <= set(PROBES)


def test_demo_shows_a_page(run, facts: list[str], tiny_folder: str, monkeypatch: pytest.MonkeyPatch):
    """Guards against a page of a different index or model, and one whose vectors do not fit each other."""
    for library in ("gradio", "lancedb"):
        pytest.importorskip(library)
    shown: list = []
    monkeypatch.setattr("e2rank_st.cli.demo.show_page", lambda *values: shown.append(values))
    monkeypatch.setattr(docstrings_module, "collect", lambda: [Docstring("module.f", "Does what one asks.")])
    SearchIndex.create("notes.lance", E2Rank(tiny_folder, device="cpu"), facts)
    for arguments in ([], ["fleas"], ["--index", "notes.lance", "--top-k", "3"]):
        assert run("demo", "--web", "--no-cache", *arguments).exit_code == 0
    found = [(len(index), index.model.name, *rest) for index, *rest in shown]
    assert found == [
        (1, "bundled", None, QUERIES, 10), (1, "bundled", None, ["fleas"], 10), (10, tiny_folder, "notes.lance", (), 3),
    ]  # fmt: skip
    for arguments, status, message in (
        (["--web", "--index", "nothing.lance"], 1, "nothing.lance"),
        (["--web", "--index", "notes.lance", "--model", "bundled"], 1, "does not give the vectors of this index"),
        (["--index", "notes.lance"], 2, "got --index without --web"),
    ):
        result = run("demo", *arguments)
        assert (result.exit_code, result.stdout) == (status, "") and message in result.stderr
    assert len(shown) == 3


def test_demo_without_cache_leaves_no_trace(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Guards against --no-cache that still writes, and against no query, which means the given ones."""
    monkeypatch.setattr(docstrings_module, "collect", lambda: [Docstring("module.f", "Does what one asks.")])
    assert [row[0] for row in rows(run("demo", "--no-cache"))].count("1") == 3
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rerank", QUERY, "nothing.txt"], "nothing.txt: No such file"),
        (["rerank", QUERY], "<stdin> holds no documents"),
        (["rerank", QUERY, "bad.jsonl"], "bad.jsonl:2: line: not JSON"),
        (["rerank", QUERY, "facts.txt", "--embeddings", "nothing.npy"], "nothing.npy: No such file"),
        (["rerank", QUERY, "facts.txt", "--embeddings", "facts.txt"], "facts.txt is not a matrix"),
        (["rerank", QUERY, "facts.txt", "--embeddings", "short.npy"], "(10, 384)"),
        (["rerank", QUERY, "facts.txt", "--embeddings", "huge.npy"], "huge.npy is not a matrix"),
        (["rerank", QUERY, "facts.txt", "--embeddings", "endless.npy"], "endless.npy is not a matrix"),
        (["rerank", QUERY, "facts.txt", "--embeddings", "code.npy"], "code.npy is not a matrix"),
        (["rerank", QUERY, "facts.txt", "--embeddings", "several.npy"], "several.npy is not a matrix"),
        (["rerank", QUERY, "facts.txt", "--device", "abacus"], "the device abacus"),
        (["rerank", QUERY, "facts.txt", "--model", "./nothing"], "the model './nothing'"),
        (["embed", "facts.txt", "--output", "."], "Is a directory"),
        (["demo", " "], "QUERY: empty"),
        (["rerank", " ", "facts.txt"], "QUERY: empty"),
        (["rerank", "\udcff", "facts.txt"], "QUERY: half a character"),
    ],
)
def test_errors_are_one_line(run, facts_file: str, tmp_path: Path, arguments: list[str], message: str):
    """Guards against a traceback for a user's mistake, a status of 0, and words on standard output."""
    (tmp_path / "bad.jsonl").write_text('{"text": "one"}\n{"text"\n')
    np.save(tmp_path / "short.npy", np.ones((9, 384), np.float32))
    header = (tmp_path / "short.npy").read_bytes()[:128]  # of a file that claims terabytes, and of one without an end
    (tmp_path / "huge.npy").write_bytes(header.replace(b"(9, 384), ", b"(9" + b"0" * 9 + b", 384),")[:128] + b"0" * 99)
    (tmp_path / "endless.npy").write_bytes(header.replace(b"}", b"[") + b"0" * 99)
    np.save(tmp_path / "code.npy", np.array([[print]]), allow_pickle=True)
    with (tmp_path / "several.npy").open("wb") as file:
        np.savez(file, np.ones((10, 384)))
    result = run(*arguments)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("warning: ")]
    assert (result.exit_code, result.stdout, len(lines)) == (1, "", 1)
    assert lines[0].startswith("e2rank: error: ")
    assert message in lines[0]


@pytest.mark.parametrize(
    "arguments", [["rerank"], ["rerank", QUERY, "--top-k", "-1"], ["embed", "--task", "poem"], ["sing"]]
)
def test_usage_errors(run, arguments: list[str]):
    """Guards against a mistyped option that is ignored."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error: " in result.stderr


def test_help_has_examples_and_needs_no_torch(run):
    """Guards against help that leaves the first command to guesswork, or takes seconds of imports."""
    for command in ([], ["demo"], ["index"], ["search"], ["rerank"], ["embed"], ["tune"]):
        result = run(*command, "--help")
        assert result.exit_code == 0
        assert "Examples:\n    e2rank " in result.stdout
        assert "e2rank echo" not in result.stdout  # in a pipe the program does not come first
    assert run("--version").stdout == f"e2rank {__version__}\n"
    code = "import sys, e2rank_st.cli.app; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_reader_that_goes_away(facts: list[str]):
    """Guards against a traceback behind ``| head``."""
    process = subprocess.Popen(
        [*COMMAND, "embed"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    process.stdin.write("\n".join(facts * 20))
    process.stdin.close()
    errors = process.stderr.read()
    assert process.wait(timeout=120) == 1
    assert "Error" not in errors and "Exception" not in errors


def test_interrupt_ends_quietly(tmp_path: Path):
    """Guards against a traceback on Ctrl-C, and against a status that says all went well."""
    os.mkfifo(tmp_path / "pipe")
    process = subprocess.Popen([*COMMAND, "embed", str(tmp_path / "pipe")], stderr=subprocess.PIPE, text=True)
    with (tmp_path / "pipe").open("w"):  # opens when the command opens the other end, which then waits for text
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors.strip()) == (130, "")


def test_a_table_is_read_as_one(run, tmp_path: Path):
    """Guards against a header that is ranked, and columns that are lost."""
    (tmp_path / "facts.csv").write_text(f'id,text\n7,Iron melts.\n8,"{FLEAS}"\n', encoding="utf-8")
    found = records(run("rerank", QUERY, "facts.csv", "--json"))
    assert [(hit["corpus_id"], hit["id"], hit["text"]) for hit in found] == [(1, "8", FLEAS), (0, "7", "Iron melts.")]
    piped = "id\ttext\n7\tIron melts.\n"
    assert rows(run("rerank", QUERY, "--format", "csv", stdin=piped))[0][2:] == ["0", "Iron melts."]
    result = run("rerank", QUERY, stdin=piped)
    assert result.exit_code == 1 and "<stdin>:1: line: unclear; " in result.stderr


def test_output_is_json_or_an_error(run, monkeypatch: pytest.MonkeyPatch):
    """Guards against NaN in a JSON line, from the input or from the model, and a field that takes another's place."""
    result = run("rerank", QUERY, "--json", stdin='{"text": "a", "score": NaN}\n')
    assert (result.exit_code, result.stdout) == (1, "") and "<stdin>:1: score: not a number" in result.stderr
    lines = '{"text": "a\\u202e", "rank": 9, "input_rank": 8, "input_input_rank": 7}\n'
    (hit,) = records(run("rerank", QUERY, "--json", stdin=lines))
    assert (hit["rank"], hit["input_rank"], hit["input_input_rank"], hit["input_input_input_rank"]) == (1, 8, 7, 9)
    monkeypatch.setattr(E2Rank, "encode_document", lambda *args, **kwargs: np.full((1, 4), np.nan))
    result = run("embed", stdin="a\n")
    assert (result.exit_code, result.stdout) == (1, "") and "not finite for 'a'" in result.stderr


@pytest.mark.parametrize(
    ("command", "status", "line"),
    [
        ("rerank q - <&-", 1, "e2rank: error: Standard input is closed; name a FILE, or pipe documents"),
        ("--help >/dev/full", 1, "e2rank: error: No space left on device"),
        ("--version >&-", 1, "e2rank: error: <stdout>: is closed"),
        ("embed facts.txt -o vectors.npy >&- <&- 2>&-", 0, ""),
        ("rerank q nothing.txt >&- 2>&-", 1, ""),
        ("rerank q \"$(printf '\\377\\033[2J')\"", 1, "e2rank: error: \N{REPLACEMENT CHARACTER} [2J: No such file"),
    ],
)
def test_streams_of_a_real_process(tmp_path: Path, facts_file: str, command: str, status: int, line: str):
    """Guards against tracebacks and lost results where a stream is closed or full, which no runner can imitate."""
    program = f"'{sys.executable}' -m e2rank_st.cli {command}"
    done = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (status, "")
    lines = done.stderr.splitlines()
    assert len(lines) == bool(line) and done.stderr.startswith(line)
