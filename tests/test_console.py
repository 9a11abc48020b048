"""Tables: for people on a terminal, for programs in a pipe, and harmless in both."""

import io

import pytest
from rich.text import Text

from e2rank_st.console import Column, reported_errors, scrubbed, show

COLUMNS = (Column("rank", "d"), Column("score", ".4f", style="green"), Column("text", share=1))
ROWS = [(1, 0.87654321, "[bold]a\tb\nc[/bold]"), (10, -0.5, "\x1b[2Jgone \x9b31m")]


class Terminal(io.StringIO):
    """Standard output that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, width: int = 60, rows: list | None = None) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", stream)
    show(COLUMNS, ROWS if rows is None else rows, title="what [i]is[/i] asked")
    return stream.getvalue()


def test_pipe_gets_tab_separated_lines(monkeypatch: pytest.MonkeyPatch):
    """Guards against tabs and line ends of a document that add cells and rows."""
    expected = "# what [i]is[/i] asked\n1\t0.8765\t[bold]a b c[/bold]\n10\t-0.5000\t[2Jgone 31m\n"
    assert shown(monkeypatch, io.StringIO()) == expected


def test_terminal_gets_a_table(monkeypatch: pytest.MonkeyPatch):
    """Guards against brackets read as markup, and against a document's escape sequences that reach the terminal."""
    output = shown(monkeypatch, Terminal())
    for part in ("what [i]is[/i] asked", "rank", "0.8765", "[bold]a b c[/bold]", "[2Jgone 31m"):
        assert part in output
    assert "\x1b[2J" not in output and "\x9b" not in output


def test_width_of_a_table(monkeypatch: pytest.MonkeyPatch):
    """Guards against a long text that squeezes the scores to nothing, and an empty result that fails on its width."""
    output = shown(monkeypatch, Terminal(), width=30, rows=[(1, 0.25, "long " * 50)])
    assert "0.2500" in output
    assert {len(line) for line in Text.from_ansi(output).plain.splitlines()} == {30}
    assert "score" in shown(monkeypatch, Terminal(), rows=[])


def test_scrubbed():
    """Guards against tokens and paths of the machine in a message, and against URLs that are cut."""
    text = (
        "got '/home/me/data/corpus.parquet' with hf_abcdefghijklmnop from https://huggingface.co/datasets/mteb/nfcorpus"
    )
    assert scrubbed(text) == "got '…/corpus.parquet' with hf_*** from https://huggingface.co/datasets/mteb/nfcorpus"
    assert scrubbed("1/2 of mteb/nfcorpus, and/or none") == "1/2 of mteb/nfcorpus, and/or none"


def test_an_error_never_shows_a_token(capsys: pytest.CaptureFixture[str]):
    """Guards against a token of the Hub in the one line that a command prints."""
    with pytest.raises(SystemExit), reported_errors("e2rank"):
        raise ValueError("401 for hf_abcdefghijklmnop")
    assert capsys.readouterr().err == "e2rank: error: 401 for hf_***\n"
