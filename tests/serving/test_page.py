"""The page: text that stays text, a running application, and the page in a real browser."""

import html
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("gradio")

from gradio_client import Client

from e2rank_st import E2Rank, SearchIndex
from e2rank_st.serving.comparison import index_of
from e2rank_st.serving.page import CSS, PASTED, Answers, create_page

QUERY = "how long do fleas live"
HOSTILE = [
    "<script>document.title = 'owned'</script> fleas",
    "<img src=x onerror=\"document.title = 'owned'\"> fleas",
    "${document.title = 'owned'} {{7*7}} `fleas`",
    "**fleas** [link](javascript:alert(1)) </td></table><h1>fleas</h1>",
    "fleas \u202eevil\u202c \x1b[31m",
]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def answers(tiny: E2Rank, facts: list[str]) -> Answers:
    documents = [{"id": f"<i>{number}</i>", "text": text} for number, text in enumerate(facts + HOSTILE)]
    return Answers(SearchIndex.create(None, tiny, documents), "<b>facts</b>", top_k=15)


@contextmanager
def shown(answers: Answers) -> Iterator[str]:
    """The page on a real socket; gives its address."""
    page = create_page(answers, [QUERY, "fleas"])
    _, url, _ = page.launch(share=False, quiet=True, prevent_thread_lock=True, css=CSS, ssr_mode=False)
    try:
        yield url
    finally:
        page.close(verbose=False)


def ask(answers: Answers, query: str = QUERY, collection: str | None = None, texts: str = "", by: str = "lines"):
    return answers.answer(query, collection or answers.name, texts, by, 3, 0.0)


def rows(table: str) -> list[list[str]]:
    found = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", table)
    return [[html.unescape(re.sub("<.*?>", " ", cell)) for cell in row] for row in found]


def test_text_is_data(answers: Answers):
    """Guards against a document that becomes a part of the page, or code of Gradio's template."""
    found = ask(answers)
    page = "".join(found[:3])
    assert set(re.findall(r"<(\w+)", page)) == {
        "p", "table", "caption", "thead", "tr", "th", "tbody", "td", "b", "span"
    }  # fmt: skip
    assert not re.search(r"[${}`\u202e\x1b]", page)
    assert all(any(text in cell for _, _, cell, _ in rows(found.reranked)) for text in HOSTILE[:4])


def test_rows_tell_ranks_and_movement(answers: Answers):
    """Guards against an arrow that points the wrong way, and a mark at a document that was not in the prompt."""
    found = ask(answers)
    before, after = rows(found.retrieved), rows(found.reranked)
    assert [row[0] for row in before] == [row[0] for row in after] == [str(rank) for rank in range(1, 16)]
    names = [row[2].split()[0] for row in before]
    for rank, (_, moved, document, _) in enumerate(after):
        places = names.index(document.split()[0]) - rank
        assert moved == (f"▲ {places}" if places > 0 else f"▼ {-places}" if places else "=")
    assert [("in the prompt" in row[2]) for row in before] == [True] * 3 + [False] * 12
    assert "The prompt held 3 documents, in " in found.summary and "15 of 15 documents" in found.summary


def test_long_texts_are_shortened(tiny: E2Rank):
    """Guards against a page of megabytes."""
    found = ask(Answers(index_of(tiny, ["fleas " * 10_000]), "x"))
    assert len(found.reranked) < 2_000 and "…" in found.reranked


def test_pasted_texts_are_kept(answers: Answers, monkeypatch: pytest.MonkeyPatch):
    """Guards against texts that are embedded again for every move of a slider."""
    first = ask(answers, texts="Fleas jump.\nBread rises.", collection=PASTED)
    assert [row[2] for row in rows(first.retrieved)] != [] and "2 of 2 documents" in first.summary
    monkeypatch.setattr(E2Rank, "encode_document", None)
    assert ask(answers, texts="Fleas jump.\n\nBread rises.", collection=PASTED)[1:] == first[1:]


@pytest.mark.parametrize(
    ("query", "texts", "message"),
    [
        ("", "Fleas.", "The query is empty."),
        (None, None, "There are no documents."),
        (QUERY, " ", "There are no documents."),
        (QUERY, "a\n" * 501, "501 documents; the most is 500."),
        (QUERY, "\ud800", "half a character"),
    ],
)
def test_mistakes_are_answers(answers: Answers, query: str, texts: str, message: str):
    """Guards against a stack trace, and old rows beside a new message."""
    found = ask(answers, query, PASTED, texts)
    assert message in found.summary and 'role="alert"' in found.summary
    assert found[1:] == ("", "", "")


def test_an_index_that_is_gone(tiny: E2Rank, facts: list[str], tmp_path):
    """Guards against a page that dies with its index, and against a message that is markup."""
    pytest.importorskip("lancedb")
    folder = tmp_path / "<b>notes"
    answers = Answers(SearchIndex.create(folder, tiny, facts), "notes")
    assert len(rows(ask(answers).reranked)) == 10
    shutil.rmtree(folder)
    found = ask(answers)
    assert 'role="alert"' in found.summary and "<b>" not in found.summary


def test_a_running_page(answers: Answers):
    """Guards against a page that only a test can ask: inputs, bounds, and settings of the server."""
    with shown(answers) as url:
        assert url.startswith("http://127.0.0.1:")
        client = Client(url, verbose=False, analytics_enabled=False)
        inputs = [QUERY, answers.name, "", "lines"]
        found = client.predict(*inputs, 3, 0, api_name="/compare")
        assert list(found[1:]) == list(ask(answers)[1:])
        assert [row[1] for row in rows(client.predict(*inputs, 3, 1, api_name="/compare")[2])] == ["="] * 15
        for mistake in ([*inputs, 10**9, 0], [*inputs, 3, -1], [QUERY, "/etc", "", "lines", 3, 0]):
            with pytest.raises(ValueError):
                client.predict(*mistake, api_name="/compare")
        assert list(client.predict(*inputs, 3, 0, api_name="/compare")[1:]) == list(found[1:])


def test_nothing_is_told_to_others(answers: Answers):
    """Guards against telemetry of Gradio, which is on by default."""
    assert create_page(answers).analytics_enabled is False


def test_a_missing_extra_names_its_install_line(monkeypatch: pytest.MonkeyPatch):
    """Guards against a bare ModuleNotFoundError."""
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "e2rank_st.serving.page")
    with pytest.raises(ImportError, match=r"pip install 'e2rank-st\[web\]'"):
        import e2rank_st.serving.page  # noqa: F401


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_in_a_browser(answers: Answers):
    """Guards against a page that needs the network or a mouse, runs what a document holds, or is too wide."""
    playwright = pytest.importorskip("playwright.sync_api")
    with shown(answers) as url, playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 390, "height": 844})
        asked: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(url)
        tab.get_by_label("Query").wait_for()
        tab.get_by_label("Query").focus()
        tab.keyboard.press("Enter")
        tab.locator("table").nth(1).wait_for()
        assert tab.locator("table").first.locator("tbody tr").count() == 15
        assert HOSTILE[2] in tab.locator("table").first.inner_text()
        assert tab.title() == "e2rank"
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert all(address.startswith(url) for address in asked)
        tab.get_by_label("Query").fill(" ")
        tab.keyboard.press("Enter")
        tab.get_by_role("alert").wait_for()
        assert tab.locator("table").count() == 0
        browser.close()
