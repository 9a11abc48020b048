"""An index → a page in the browser that shows what reranking changes, for a query and documents that one types.

The text of a document is data: all of it is escaped, and none of it can become a part of the page.
"""

from __future__ import annotations

import html
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

from e2rank_st.console import one_line, printable
from e2rank_st.search.index import SearchIndex
from e2rank_st.search.maker import listwise_of
from e2rank_st.serving.comparison import SPLITS, Comparison, Place, compare, index_of, split

try:
    import gradio as gr
except ModuleNotFoundError as error:
    raise ImportError(f"The page needs {error.name}: pip install 'e2rank-st[web]'") from error

__all__ = ["Answer", "Answers", "create_page", "run"]

logger = logging.getLogger(__name__)

PASTED = "Your own texts"
SHOWN = 400  # characters of a document
MOST_IN_PROMPT = 20  # on the slider
AT_ONCE, WAITING = 4, 64  # searches
KEPT = 8  # collections of pasted texts
# Gradio's page takes what is between such marks for code of its own.
MARKS = str.maketrans({mark: f"&#{ord(mark)};" for mark in "${}`"})
CSS = """
.e2rank { font-size: var(--text-md); color: var(--body-text-color); line-height: 1.4; }
.e2rank table { width: 100%; border-collapse: collapse; table-layout: fixed; }
.e2rank caption { text-align: left; font-weight: 600; padding-bottom: .4em; }
.e2rank th, .e2rank td { padding: .4em; text-align: right; vertical-align: top; overflow-wrap: anywhere;
  border-top: 1px solid var(--border-color-primary); }
.e2rank th { font-weight: 400; }
.e2rank th:nth-child(1) { width: 2.4em; }
.e2rank th:is(:nth-child(2), :nth-child(4)) { width: 4em; }
.e2rank :is(th, td):nth-child(3) { text-align: left; }
.e2rank .text { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; overflow: hidden; }
.e2rank .held { font-size: .8em; border: 1px solid; border-radius: 1em; padding: 0 .5em; white-space: nowrap; }
.asked:focus-within { outline: 2px solid var(--color-accent); }
.e2rank .problem { font-weight: 600; border-left: .3em solid #c33; padding: .3em .7em; }
"""


class Answer(NamedTuple):
    """What the page shows: three pieces of HTML, and the prompt as text."""

    summary: str
    retrieved: str = ""
    reranked: str = ""
    prompt: str = ""


@dataclass(eq=False)
class Answers:
    """A collection → answers. Any number of threads may ask at once.

    Attributes:
        index: The index, with its model.
        name: What to call the collection.
        top_k: Rows of a table.
    """

    index: SearchIndex
    name: str
    top_k: int = 10

    def __post_init__(self) -> None:
        # So a change of K or w embeds nothing again.
        self._pasted = lru_cache(KEPT)(lambda *texts: index_of(self.index.model, texts))

    def answer(self, query: str, collection: str, texts: str, by: str, count: int, weight: float) -> Answer:
        """Answer a query; a mistake is an answer, too.

        Args:
            query: The query.
            collection: The collection's name, or :data:`PASTED`.
            texts: Pasted texts.
            by: What separates them, a name in ``SPLITS``.
            count: K, the number of documents in the prompt.
            weight: w, the share of the first stage's scores.
        """
        try:
            index = self._pasted(*split(texts or "", by)) if collection == PASTED else self.index
            found = compare(index, query or "", count, weight)
        except (ValueError, OSError) as error:
            logger.debug("refused", exc_info=True)
            return Answer(f'<p class="problem" role="alert">{_safe(one_line(error))}</p>')
        return Answer(
            _summary(found),
            _table("Retrieved", found.retrieved[: self.top_k], found.prompt.cuts, is_reranked=False),
            _table("Reranked", found.reranked[: self.top_k], found.prompt.cuts, is_reranked=True),
            found.prompt.text,
        )


def _safe(text: str) -> str:
    return html.escape(text).translate(MARKS)


def _summary(found: Comparison) -> str:
    count, prompt, held = len(found.reranked), found.prompt, len(found.prompt.cuts)
    cut = f", {sum(prompt.cuts)} of them cut" if any(prompt.cuts) else ""
    parts = (
        f"{count:,} of {found.num_documents:,} documents were retrieved and reranked.",
        f"Retrieving took {found.retrieval_seconds * 1000:,.0f} ms, with reranking {found.seconds * 1000:,.0f} ms.",
        f"The prompt held {held} document{'s' * (held != 1)}{cut}, in {prompt.num_tokens:,} tokens.",
    )
    return f'<p role="status">{" ".join(parts)}</p>'


def _table(title: str, places: Sequence[Place], cuts: Sequence[bool], *, is_reranked: bool) -> str:
    heads = ("#", "moved", "document", "score" if is_reranked else "cosine")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    rows = "".join(_row(place, cuts, is_reranked) for place in places)
    return f"<table><caption>{title}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _row(place: Place, cuts: Sequence[bool], is_reranked: bool) -> str:
    held = ""
    if place.retrieval_rank <= len(cuts):
        held = f' <span class="held">in the prompt{", cut" if cuts[place.retrieval_rank - 1] else ""}</span>'
    text = printable(place.text[: 4 * SHOWN])
    text = text if len(text) <= SHOWN else text[:SHOWN] + "…"
    rank, score = (place.rank, place.score) if is_reranked else (place.retrieval_rank, place.similarity)
    document = f'<b>{_safe(printable(place.name))}</b>{held}<span class="text">{_safe(text)}</span>'
    return f"<tr><td>{rank}</td><td>{_movement(place.moved)}</td><td>{document}</td><td>{score:.3f}</td></tr>"


def _movement(places: int) -> str:
    return f"▲ {places}" if places > 0 else f"▼ {-places}" if places else "="


def create_page(answers: Answers, queries: Sequence[str] = ()) -> gr.Blocks:
    """Make the page.

    Args:
        answers: What answers.
        queries: Examples; the first one is there at the start.
    """
    listwise = listwise_of(answers.index.model)
    page = gr.Blocks(title="e2rank", analytics_enabled=False)
    with page:
        gr.Markdown("# One embedding model retrieves and reranks")
        start = queries[0] if queries else ""
        query = gr.Textbox(start, label="Query", max_lines=1, autofocus=True, submit_btn="Search", elem_classes="asked")
        if len(queries) > 1:
            gr.Examples([[one] for one in queries], [query], label="Examples", cache_examples=False)
        collection = gr.Radio([answers.name, PASTED], value=answers.name, label="Collection")
        with gr.Group(visible=False) as own:
            texts = gr.Textbox(label="Documents", lines=6, max_lines=12)
            by = gr.Radio([(f"separate {name}", name) for name in SPLITS], value="lines", label="Documents are")
        with gr.Row():
            count = gr.Slider(
                0, max(MOST_IN_PROMPT, listwise.num_prompt_documents), listwise.num_prompt_documents,
                step=1, precision=0, label="K, documents in the prompt",
            )  # fmt: skip
            weight = gr.Slider(
                0, 1, listwise.first_stage_weight, step=0.05, label="w, share of the first stage in the score"
            )
        panel = partial(gr.HTML, elem_classes="e2rank", apply_default_css=False)
        summary, tables = panel(), []
        with gr.Row():
            for _ in range(2):
                with gr.Column(min_width=320):  # below twice that, one stands under the other
                    tables.append(panel())
        prompt = gr.Textbox(label="What the prompt held", lines=4, max_lines=40, interactive=False, buttons=["copy"])
        collection.change(lambda name: gr.update(visible=name == PASTED), collection, own, api_visibility="private")
        gr.on(
            [query.submit, count.change, weight.change],
            answers.answer,
            [query, collection, texts, by, count, weight],
            [summary, *tables, prompt],
            api_name="compare",
            trigger_mode="always_last",  # a slider that is dragged asks for its last place only
            show_progress="minimal",
            concurrency_limit=AT_ONCE,
        )
    page.queue(max_size=WAITING)
    return page


def run(page: gr.Blocks, on_start: Callable[[str], Any]) -> None:
    """Show a page until the process is interrupted; Gradio's ``GRADIO_SERVER_NAME`` and ``..._PORT`` place it.

    Args:
        page: The page.
        on_start: Is called with the page's address.

    Raises:
        OSError: There is no free port.
    """
    _, url, _ = page.launch(
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        css=CSS,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        max_file_size=1,  # byte: the page takes no files
    )
    on_start(url)
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)
