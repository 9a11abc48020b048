"""A document with a title and a text → one text, the same for stored vectors, for prompts and for training data.

A part of the remote code of a Hub repository: see ``modeling_e2rank.py``. It imports the standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter
from typing import Any, TypeAlias

__all__ = ["DOCUMENT_TEMPLATE", "Document", "check_template", "join_fields"]

Document: TypeAlias = (
    "str | Mapping[str, Any]"  # a mapping has "text" and perhaps "title"; further keys are the caller's
)

DOCUMENT_TEMPLATE = "{title}\n{text}"


def check_template(template: str) -> str:
    """Returns the template of a document.

    Raises:
        ValueError: If it lacks ``{text}``, or has more than the fields ``{title}`` and ``{text}``.
    """
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"document_template {template!r:.200} is not one: {error}.") from error
    fields = {field for _, field, _, _ in parts if field is not None}
    if not {"text"} <= fields <= {"title", "text"} or any(form or conversion for _, _, form, conversion in parts):
        raise ValueError(
            f"document_template needs the field {{text}} and may have {{title}}, got {template!r:.200}. "
            "Write other braces twice."
        )
    return template


def join_fields(title: str, text: str, template: str = DOCUMENT_TEMPLATE) -> str:
    """Joins title and text by a template. If one of them is blank, the other stands alone."""
    if not title.strip() or not text.strip():
        return text if text.strip() else title or text
    values = {"title": title, "text": text}
    return "".join(
        literal + (values[field] if field is not None else "") for literal, field, _, _ in Formatter().parse(template)
    )
