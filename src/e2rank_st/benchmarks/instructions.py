"""A task's instruction → the places that a model's formats have for it: before a query, and in a listwise prompt."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from e2rank_st.checkpoints import instruction_template
from e2rank_st.model import E2Rank

__all__ = ["instructed", "listwise_instruction"]

RETRIEVAL_TASK = re.compile(r"(Given .+?), retrieve .*?\bthat (.+)", re.DOTALL)


def listwise_instruction(retrieval: str) -> str | None:
    """The instruction of a retrieval task as one of a reranking task.

    Args:
        retrieval: Such as ``Given a question, retrieve passages that answer it``.

    Returns:
        ``Given a question and some relevant documents, rerank the documents that answer it``. None if the instruction
        does not have that form; the model's own is then used.
    """
    match = RETRIEVAL_TASK.fullmatch(retrieval)
    return f"{match[1]} and some relevant documents, rerank the documents that {match[2]}" if match else None


@contextmanager
def instructed(model: E2Rank, instruction: str | None) -> Iterator[None]:
    """Put a task's retrieval instruction into the query prompt of a model, if the prompt has a place for one."""
    before = model.prompts.get("query") or ""
    template = instruction_template(before)
    if instruction is not None and template is not None:
        model.prompts["query"] = template.replace("{instruction}", instruction)
    try:
        yield
    finally:
        if before:
            model.prompts["query"] = before
