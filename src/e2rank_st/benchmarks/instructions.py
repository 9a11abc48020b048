"""A task's instruction → where a model's formats have a place for it: before a query, and in a listwise prompt."""

from __future__ import annotations

import re

__all__ = ["instruction_template", "listwise_instruction"]

INSTRUCTED = re.compile(r"(Instruct: ).*?(\n ?Query: ?)", re.DOTALL)
RETRIEVAL_TASK = re.compile(r"(Given .+?), retrieve .*?\bthat (.+)", re.DOTALL)


def instruction_template(prompt: str | None) -> str | None:
    """The model's query prompt with the field ``{instruction}``, if it has an instruction that a task may replace."""
    match = INSTRUCTED.fullmatch(prompt or "")
    return f"{match[1]}{{instruction}}{match[2]}" if match else None


def listwise_instruction(retrieval: str) -> str | None:
    """The instruction of a retrieval task as one of a reranking task.

    Args:
        retrieval: Such as ``Given a question, retrieve passages that answer it``.

    Returns:
        ``Given a question and some relevant documents, rerank the documents that answer it``; None, for the one that
        the model is configured with, where the instruction is not of that form.
    """
    match = RETRIEVAL_TASK.fullmatch(retrieval)
    return f"{match[1]} and some relevant documents, rerank the documents that {match[2]}" if match else None
