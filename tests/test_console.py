"""Tables: for people on a terminal, for programs in a pipe, and harmless in both."""

import io
import logging
import sys

import pytest
from rich.text import Text

from e2rank_st.console import (
    Column,
    log_to_stderr,
    markdown_table,
    one_line,
    printable,
    reported_errors,
    scrubbed,
    show,
)

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


HARMFUL = [
    *range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200B, 0x200C, 0x200D, 0x200E, 0x200F, 0x2028, 0x2029,
    *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xAD, 0xFEFF,
    0x3164, 0xD800, 0xDFFF, 0xE000, 0xE0041, 0xFFFF, 0x10FFFF,
]  # fmt: skip


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_document_cannot_turn_the_terminal(monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO]):
    """Guards against text that is read backwards, hides, or moves the cursor, in all that is shown."""
    text = "".join(f"a{chr(code)}b" for code in HARMFUL)
    monkeypatch.setattr("sys.stdout", stream())
    show((Column("text", share=1),), [(text,)], title=text)
    message = one_line(FileNotFoundError(2, "is missing", text)) + one_line(ValueError(text))
    shown = "".join([sys.stdout.getvalue(), message, markdown_table([text], [[text]])])
    allowed = {"\n", "\t", "\x1b"} if stream is Terminal else {"\n", "\t"}  # which style our own words
    assert [code for code in HARMFUL if chr(code) in shown and chr(code) not in allowed] == []
    shown.encode()


def test_words_stay_readable():
    """Guards against cleaning that takes letters, marks or emoji away, or joins two words."""
    for text in ("naïve Ελλάδα 日本語 हिन्दी", "👍🏽 ❤️ 🇬🇷", "a [bold]b[/bold] & <c>"):
        assert printable(text) == text
    assert printable(" a\tb\r\nc\u2028d\x1be\u3000f  g ") == "a b c d e f g"
    assert printable("ad\u202emin\u200b \ud800") == "admin \ufffd"


def test_warnings_are_one_clean_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Guards against a document in a warning that makes a line of its own, or controls the terminal."""
    package = logging.getLogger("e2rank_st")
    monkeypatch.setattr(package, "handlers", [])
    monkeypatch.setattr(package, "level", package.level)
    log_to_stderr(2)
    package.warning("cut %s", "one\nerror: two\x1b[2J\u202e")
    try:
        raise ValueError("three\x1b[2J")
    except ValueError:
        package.exception("four")
    first, second, *rest = capsys.readouterr().err.splitlines()
    assert (first, second) == ("warning: cut one error: two [2J", "error: four")
    assert rest[0] == "Traceback (most recent call last):" and rest[-1] == "ValueError: three [2J"


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(32, "Broken pipe"), 1, ""),
        (OSError(28, "No space left on device"), 1, "e2rank: error: No space left on device\n"),
        (SystemExit(2), 2, ""),
    ],
)
def test_how_a_command_ends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, line: str
):
    """Guards against a traceback or a wrong status, whatever ends a command."""
    monkeypatch.setattr("sys.stdout", io.StringIO())
    with pytest.raises(SystemExit) as end, reported_errors("e2rank"):
        raise error
    assert (end.value.code, capsys.readouterr().err) == (status, line)


def test_closed_streams(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Guards against results that are lost in silence, and an error that fails on its way to nobody."""
    monkeypatch.setattr("sys.stdout", None)
    with pytest.raises(SystemExit) as end, reported_errors("e2rank"):
        show((Column("text", share=1),), [("a",)])
    assert (end.value.code, capsys.readouterr().err) == (1, "e2rank: error: <stdout>: is closed\n")
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    with reported_errors("e2rank"):
        pass  # a command that writes a file needs neither
    with pytest.raises(SystemExit), reported_errors("e2rank"):
        raise ValueError("nobody hears")


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
