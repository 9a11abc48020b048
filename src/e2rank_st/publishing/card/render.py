"""A trained model's folder and its results → its card: metadata, text, tables and links to figures.

    python model_card/render.py --model models/e2rank-minilm-l6 --results eval/results --output model_card/README.md
    python model_card/render.py --check

The same input gives the same card, byte for byte. Sentences are in template.md, numbers come from files only. The
placeholder {{repo_id}} stays: publishing puts the repository's Hub id in its place.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template

from e2rank_st.adapters import bundled_folder
from e2rank_st.benchmarks.results import check_complete, read_rows
from e2rank_st.publishing.card import sections
from e2rank_st.publishing.card.facts import Facts
from e2rank_st.publishing.card.metadata import LICENCE, card_data, own_rows
from e2rank_st.storage import replacing
from e2rank_st.training.losses import CITATION

__all__ = ["render"]

TEMPLATE = Path(__file__).with_name("template.md")


def render(model: Path, results: Sequence[Path], report: Path, output: Path) -> str:
    """Make a card.

    Args:
        model: Folder of the trained adapter.
        results: Result files, or folders of them.
        report: Folder with figures made of the results; those that are there are shown.
        output: Where the card is going to be, for links.

    Raises:
        ValueError: Results are missing, partial, or of several states of the model; or data is of unknown licence.
        OSError: A file cannot be read.
    """
    facts, rows = Facts.read(model), read_rows(results)
    check_complete(rows)
    own = own_rows(facts.name, rows)
    values = {
        "name": facts.name,
        "base": facts.base,
        "max_tokens": str(facts.max_tokens),
        "max_prompt_tokens": str(facts.listwise.max_prompt_tokens),
        "context": str(facts.context),
        "licence": LICENCE,
        "citation": CITATION.strip(),
        "overview": sections.overview(facts),
        "formats": sections.formats(facts),
        "results": "\n\n".join(filter(None, (sections.results(rows, own), sections.figures(rows, report, output)))),
        "zero_shot": sections.zero_shot(facts, own),
        "where_it_hurts": sections.where_it_hurts(rows, own),
        "training_data": sections.training_data(facts),
        "tuning": sections.tuning(facts),
        "speed": sections.speed(rows),
        "environment": sections.environment(facts, rows),
    }
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values)
    return f"---\n{card_data(facts, own).to_yaml()}\n---\n\n{text}"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the card, or check it.

    Returns:
        The exit status: 1 if there is an error, or the card is stale.
    """
    options = _parser().parse_args(argv)
    output = options.output
    try:
        text = render(options.model, options.results, options.report or output.parent / "report", output)
        if options.check:
            return _check(output, text)
        with replacing(output) as fresh:
            fresh.write_text(text, encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"render: error: {error}", file=sys.stderr)
        return 1
    print(os.path.relpath(output))
    return 0


def _check(output: Path, text: str) -> int:
    if output.is_file() and output.read_text(encoding="utf-8") == text:
        return 0
    state = "differs from what the model, the results and the template make" if output.is_file() else "is not there"
    print(f"render: {os.path.relpath(output)} {state}; render it anew, without --check.", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, default=bundled_folder(), help="folder of the trained adapter")
    add("--results", type=Path, nargs="+", default=[Path("eval/results")], help="result files, or folders of them")
    add("--report", type=Path, help="folder with the report's figures, below the card's (default: report)")
    add("--output", type=Path, default=Path("model_card/README.md"), help="the card")
    add("--check", action="store_true", help="write nothing; fail if the card is not up to date")
    return parser


if __name__ == "__main__":
    sys.exit(main())
