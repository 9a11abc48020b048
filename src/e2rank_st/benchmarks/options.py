"""The command line of run_reranking.py: what is measured, on what, and where results go."""

from __future__ import annotations

import argparse
from pathlib import Path

from e2rank_st.benchmarks.loading import BASE, BUNDLED
from e2rank_st.modeling_e2rank import CANDIDATE_ORDERS

__all__ = ["VECTOR_SYSTEMS", "parser"]

VECTOR_SYSTEMS = ("embedding", "rocchio", "listwise")
EXAMPLES = """
examples:
  # a task of the table: its files come from the Hub, or from a folder
  python eval/run_reranking.py --tasks dl19 dl20
  python eval/run_reranking.py --tasks dl21 --first-stage splade --data-dir data --output-dir results
  # each model's own retrieval from a folder in BEIR's layout, then reranked
  python eval/run_reranking.py --tasks scifact dev --own-first-stage --data-dir data --baseline bundled-base
  # files of your own: results with text, or a TREC run over a folder in BEIR's layout
  python eval/run_reranking.py --results hits.jsonl.gz --qrels qrels.txt --model my-model --baseline bundled-base
  python eval/run_reranking.py --beir my-corpus --run bm25.trec --cross-encoder cross-encoder/ms-marco-MiniLM-L6-v2
  # how much the number of documents in the prompt matters
  python eval/run_reranking.py --tasks dl21 --data-dir data --num-prompt-documents 1 3 6 10 20
"""


def parser(description: str | None) -> argparse.ArgumentParser:
    """The command line.

    Args:
        description: What its help says first.
    """
    found = argparse.ArgumentParser(
        description=description, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_data_options(found.add_argument_group("data"))
    _add_model_options(found.add_argument_group("models"))
    _add_system_options(found.add_argument_group("systems"))
    output = found.add_argument_group("output")
    output.add_argument("--output-dir", type=Path, default=Path("results"), metavar="DIR", help="(default: results)")
    output.add_argument(
        "--compare-with", metavar="SYSTEM", help="whom the others are compared with (default: the baseline's embedding)"
    )
    output.add_argument(
        "--embedding-queries", type=_whole, default=10, metavar="N", help="queries to time without stored vectors"
    )
    output.add_argument("--seed", type=int, default=0, metavar="N", help="of bootstrap and randomisation test")
    return found


def _add_data_options(data: argparse._ArgumentGroup) -> None:
    data.add_argument("--tasks", nargs="+", default=[], metavar="NAME", help="tasks, or dl, beir, bright, dev")
    data.add_argument("--first-stage", default="bm25", metavar="NAME", help="whose candidates (default: bm25)")
    data.add_argument("--data-dir", type=Path, metavar="DIR", help="folder with rerank/; by default the Hub is asked")
    data.add_argument("--results", type=Path, metavar="FILE", help="first-stage results with text, JSON lines")
    data.add_argument("--qrels", type=Path, metavar="FILE", help="their judgements in TREC's form")
    data.add_argument("--beir", type=Path, metavar="DIR", help="corpus, queries and judgements in BEIR's layout")
    data.add_argument("--split", metavar="NAME", help="whose judgements there (default: the task's, else test)")
    data.add_argument("--run", type=Path, metavar="FILE", help="TREC run over --beir")
    data.add_argument("--own-first-stage", action="store_true", help="each model retrieves its own candidates")
    data.add_argument("--top-n", type=_natural, default=100, metavar="N", help="candidates a query (default: 100)")
    data.add_argument("--limit", type=_natural, metavar="N", help="first N queries only; marks the result partial")
    data.add_argument("--judged-only", action="store_true", help="leave out queries without judgements")


def _add_model_options(models: argparse._ArgumentGroup) -> None:
    models.add_argument(
        "--model",
        default=BUNDLED,
        metavar="NAME",
        help=f"folder, Hub id, {BUNDLED} (default), or {BASE}: what that one was trained from",
    )
    models.add_argument("--baseline", metavar="NAME", help="a second model, side by side")
    models.add_argument("--cross-encoder", metavar="NAME", help="a Sentence-Transformers cross-encoder, side by side")
    models.add_argument("--device", metavar="NAME", help="cpu, cuda, ...; by default the best there is")
    models.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default: float32)")
    models.add_argument("--batch-size", type=_natural, default=32, metavar="N", help="texts in a forward pass")


def _add_system_options(systems: argparse._ArgumentGroup) -> None:
    systems.add_argument(
        "--systems", nargs="+", choices=VECTOR_SYSTEMS, default=list(VECTOR_SYSTEMS), help="(default: all)"
    )
    systems.add_argument(
        "--num-prompt-documents", "-k", type=_natural, nargs="+", metavar="K", help="one listwise system for each K"
    )
    systems.add_argument("--candidate-order", choices=CANDIDATE_ORDERS, help="by default the model's")
    systems.add_argument("--passes", type=_natural, default=1, metavar="N", help="listwise passes (default: 1)")
    systems.add_argument(
        "--query-weight",
        type=float,
        metavar="W",
        help="share of the query's own vector in listwise; by default the model's",
    )
    systems.add_argument("--rocchio-documents", type=_natural, default=3, metavar="N", help="(default: 3)")
    systems.add_argument("--rocchio-weight", type=float, default=0.3, metavar="W", help="(default: 0.3)")
    systems.add_argument(
        "--instructions",
        choices=("task", "model"),
        default="task",
        help="the task's (default) or the model's own, as published scores were taken",
    )


def _natural(value: str) -> int:
    return _at_least(1, value)


def _whole(value: str) -> int:
    return _at_least(0, value)


def _at_least(least: int, value: str) -> int:
    if not value.isdecimal() or int(value) < least:
        raise argparse.ArgumentTypeError(f"got {value}; give a whole number of at least {least}")
    return int(value)
