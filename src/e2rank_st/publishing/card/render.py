"""A trained model's folder and its results → its card: metadata, text, tables and links to figures.

The same input gives the same card, byte for byte. Sentences are in template.md, numbers come from files only. The
placeholder {{repo_id}} stays: publishing puts the repository's Hub id in its place.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from string import Template

from e2rank_st.benchmarks.results import read_entries
from e2rank_st.publishing.card import sections, usage
from e2rank_st.publishing.card.facts import Facts
from e2rank_st.publishing.card.metadata import LICENCE, card_data, own_entries
from e2rank_st.training.losses import CITATION

__all__ = ["check", "render"]

TEMPLATE = Path(__file__).with_name("template.md")


def render(model: Path, results: Sequence[Path], report: Path, output: Path, alone: bool = False) -> str:
    """Make a card.

    Args:
        model: Folder of the trained adapter.
        results: Result files, or folders of them.
        report: Folder with figures made of the results; those that are there are shown.
        output: Where the card is going to be, for links.
        alone: Whether the repository is going to hold a prompt adapter without its base's weights.

    Raises:
        ValueError: Results are missing or partial, or of several states of a model; or data is of unknown licence.
        OSError: A file cannot be read.
    """
    facts, entries = Facts.read(model), read_entries(results)
    own = own_entries(facts.name, entries)
    if alone and not facts.keeps_vectors:
        raise ValueError(f"{model} holds no prompt adapter, so there is no card of one alone. Leave it out.")
    figures = sections.figures(entries, report, output)
    values = {
        "name": facts.name,
        "base": facts.base,
        "max_tokens": str(facts.max_tokens),
        "max_prompt_tokens": str(facts.listwise.max_prompt_tokens),
        "context": str(facts.context),
        "licence": LICENCE,
        "citation": CITATION.strip(),
        "lineage": usage.lineage(facts),
        "without_package": usage.without_package(alone),
        "vectors": usage.vectors(facts),
        "overview": sections.overview(facts),
        "formats": sections.formats(facts),
        "systems": sections.systems(entries),
        "results": "\n\n".join(filter(None, [sections.results(entries, own), figures])),
        "zero_shot": sections.zero_shot(facts, own),
        "where_it_hurts": sections.where_it_hurts(entries, own),
        "training_data": sections.training_data(facts),
        "tuning": sections.tuning(facts),
        "speed": sections.speed(entries),
        "environment": sections.environment(facts, entries),
    }
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values)
    return f"---\n{card_data(facts, own).to_yaml()}\n---\n\n{text}"


def check(text: str, output: Path) -> None:
    """Check that a card is up to date.

    Raises:
        ValueError: It is missing or stale.
    """
    if not output.is_file() or output.read_text(encoding="utf-8") != text:
        state = "is stale: model, results or template have changed" if output.is_file() else "is not there"
        raise ValueError(f"{os.path.relpath(output)} {state}; render it anew, without --check.")
