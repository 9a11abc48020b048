"""A query and its candidates → the token ids of a listwise prompt: its format, its tokenizer, and its budget of tokens.

A part of the remote code of a Hub repository: see ``modeling_e2rank.py``.
"""

from __future__ import annotations

import copy
import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from string import Formatter
from typing import Any, NamedTuple

from transformers import AddedToken, PreTrainedTokenizerBase

from .arguments_e2rank import one_of

__all__ = [
    "LONG_TOKEN", "PROMPT_FORMATS", "SETTLED", "Prompt", "PromptBuilder", "PromptFormat", "TextTokenizer",
    "TokenizedText", "control_tokens", "prompt_format_of", "water_fill",
]  # fmt: skip

TOKENIZER_CHUNK = 256  # texts tokenised at a time; it limits the memory of the tokenizer's offsets

USUAL_TOKEN, LONG_TOKEN = 6, 16  # characters; most texts have shorter tokens on average, and few have longer ones
# A text may be cut before these characters, if a letter or digit is in front. Tokenizers begin a new word there, and
# normalisation does not reach across. The margin is for tokenizers that do not split a text into words.
BOUNDARY = re.compile(r"(?<=[^\W_])[ \n.,;:!?()\u3001\u3002\uff0c]")
LONGEST_WORD = SETTLED = 1_024  # characters


@dataclass(frozen=True)
class PromptFormat:
    """The form of a listwise prompt.

    Args:
        name: Its name in configurations.
        template: Text with the fields ``{instruction}``, ``{documents}`` and ``{query}``.
        document: Form of one document, with the fields ``{index}`` (from 1) and ``{document}``.
        separator: Text between two documents.
        chat: Whether the text is one user message of the tokenizer's chat template. Otherwise, it is plain text that
            gets the tokenizer's own special tokens.

    Raises:
        ValueError: If a template lacks a needed field, or has a field that is not allowed.
    """

    name: str
    template: str
    document: str = "[{index}] {document}"
    separator: str = "\n"
    chat: bool = True

    def __post_init__(self) -> None:
        rules = (
            (self.template, {"documents", "query"}, {"instruction", "documents", "query"}),
            (self.document, {"document"}, {"index", "document"}),
        )
        for text, needed, allowed in rules:
            fields = {field for _, field, _, _ in Formatter().parse(text) if field is not None}
            if not needed <= fields <= allowed:
                raise ValueError(f"{text!r} needs the fields {needed}, may have {allowed}, and has {fields or 'none'}.")

    def pieces(self, instruction: str, query: str, documents: Sequence[str]) -> Iterator[tuple[str, bool]]:
        """Yields pieces ``(text, trusted)``. Only trusted pieces, those of the format, may hold control tokens.

        Where a colon follows the instruction, it replaces the instruction's own full stop or colon.
        """
        if "{instruction}:" in self.template:
            instruction = instruction.rstrip(" \t\r\n.:。：．")  # noqa: RUF001  # full stops and colons, also Chinese ones
        values = {"instruction": instruction, "query": query}
        for literal, field, _, _ in Formatter().parse(self.template):
            yield literal, True
            if field == "documents":
                yield from self._document_pieces(documents)
            elif field is not None:
                yield values[field], False

    def _document_pieces(self, documents: Sequence[str]) -> Iterator[tuple[str, bool]]:
        for index, document in enumerate(documents, start=1):
            if index > 1:
                yield self.separator, True
            for literal, field, _, _ in Formatter().parse(self.document):
                yield literal, True
                if field is not None:
                    yield {"index": str(index), "document": document}[field], False

    def render(self, instruction: str, query: str, documents: Sequence[str]) -> str:
        """Returns the prompt as readable text, without the chat template around it."""
        return "".join(text for text, _ in self.pieces(instruction, query, documents))


PROMPT_FORMATS: Mapping[str, PromptFormat] = {
    row.name: row
    for row in (
        # The canonical form, as in the reference evaluation of the released checkpoints.
        PromptFormat("evaluation", "{instruction}:\nDocuments:\n{documents}\nSearch Query: {query}"),
        # The example on the model cards of the released checkpoints, with which their printed scores were made.
        PromptFormat(
            "model_card",
            "{instruction}:\nDocuments:\n{documents}Search Query:{query}",
            document="[{index}] {document}<|endoftext|>",
        ),
        # For bidirectional encoders without a chat template.
        PromptFormat("encoder", "{query}\n{documents}", document="{document}", chat=False),
    )
}


class TokenizedText(NamedTuple):
    """A tokenised text: its token ids without special tokens, and the first character of each token.

    A long text is here only as far as its tokens are needed.
    """

    text: str
    ids: array[int]
    starts: array[int]

    def head(self, num_tokens: int) -> str:
        """Returns the text before token ``num_tokens``, cut between two tokens and never inside a character."""
        return self.text if num_tokens >= len(self.starts) else self.text[: self.starts[num_tokens]].rstrip()


class TextTokenizer:
    """Texts → token ids. No part of a text becomes a control token.

    A tokenizer sets padding and truncation anew at every call, so two threads that share one corrupt each other. This
    class works on a private copy, whose settings never change. Any number of threads may use it.

    Args:
        tokenizer: A fast tokenizer, because cutting a text needs token offsets.
        sealed: Whether every control token in a text is split into ordinary characters. Otherwise, the tokenizer
            decides (``split_special_tokens``), as it does in ``encode``.

    Attributes:
        own: The tokenizer of texts that are embedded, whose vectors must be those of ``encode``. It is not sealed.

    Raises:
        ValueError: If the tokenizer is not fast, or does not keep a text whole between its special tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, sealed: bool = True) -> None:
        if not tokenizer.is_fast:
            raise ValueError(f"E2Rank needs a fast tokenizer, got {type(tokenizer).__name__}. Convert it to one.")
        self.tokenizer = tokenizer
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self._backend.no_padding()
        self._backend.no_truncation()
        unsealed = control_tokens(tokenizer)
        is_sealed = tokenizer.split_special_tokens and not unsealed
        if sealed:
            self._backend.add_special_tokens(unsealed)
        self._backend.encode_special_tokens = sealed or tokenizer.split_special_tokens
        self.own = self if is_sealed or not sealed else TextTokenizer(tokenizer, sealed=False)
        # A control token that takes all spaces before it reaches back as far as they go.
        added = () if sealed or is_sealed else tokenizer.added_tokens_decoder.values()
        self._reaching_back = [token.content for token in added if token.lstrip]
        bare, full = self.ids(["a"])[0], self._backend.encode("a").ids
        start = next((n for n in range(len(full)) if full[n : n + len(bare)] == bare), None)
        if start is None:
            raise ValueError(
                f"{type(tokenizer).__name__} changes a text when it adds special tokens. Use a different one."
            )
        self.prefix, self.suffix = full[:start], full[start + len(bare) :]

    def encodings(self, texts: Sequence[str], *, offsets: bool = True) -> Iterator[Any]:
        """Yields one backend encoding for each text, without special tokens and uncut; sooner without offsets."""
        encode = self._backend.encode_batch if offsets else self._backend.encode_batch_fast
        for start in range(0, len(texts), TOKENIZER_CHUNK):
            yield from encode(texts[start : start + TOKENIZER_CHUNK], add_special_tokens=False)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of each text, without special tokens and uncut."""
        return [encoding.ids for encoding in self.encodings(texts, offsets=False)]

    def rendered_ids(self, text: str, add_special_tokens: bool) -> list[int]:
        """Returns the token ids of a whole prompt as a string, whose control tokens count as such."""
        backend = copy.deepcopy(self._backend)
        backend.encode_special_tokens = False
        ids: list[int] = backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def start(self, text: str, num_tokens: int | None) -> str:
        """Returns a start of the text that has the same first ``num_tokens`` tokens; None keeps the whole text.

        The memory of a tokenizer is a hundred times that of its text, and most of a very long text is cut anyway. A
        bound in characters could be too short, because a token may stand for any number of them. So the start grows
        until it has enough tokens, to the whole text if there is no end of a word.
        """
        if num_tokens is None or self.tokenizer.truncation_side == "left":
            return text
        if any(token in text for token in self._reaching_back):
            return text
        size = LONG_TOKEN * num_tokens + SETTLED
        while size < len(text):
            ends = [match.start() for match in BOUNDARY.finditer(text, size - LONGEST_WORD, size)]
            if ends:
                offsets = self._backend.encode(text[: ends[-1]], add_special_tokens=False).offsets
                if sum(end <= ends[-1] - SETTLED for _, end in offsets) >= num_tokens:
                    return text[: ends[-1]]
            size *= 4
        return text

    def texts(self, texts: Iterable[str], prompt: str = "", num_tokens: int | None = None) -> dict[str, TokenizedText]:
        """Maps each distinct text to its tokens. The ids belong to ``prompt + text``, the starts to the text alone.

        Args:
            texts: The texts.
            prompt: A text before each.
            num_tokens: Number of tokens that are needed; later ones of a very long text may be missing.
        """
        kept, tokenized = self._prompted(texts, prompt, num_tokens), {}
        for (text, part), encoding in zip(kept.items(), self.encodings(list(kept.values())), strict=True):
            # A token of the text may begin in the prompt, for example with the space before the first word.
            starts = [max(start - len(prompt), 0) for start, end in encoding.offsets if end > len(prompt)]
            tokenized[text] = TokenizedText(part[len(prompt) :], array("i", encoding.ids), array("i", starts))
        return tokenized

    def text_ids(self, texts: Iterable[str], prompt: str = "", num_tokens: int | None = None) -> dict[str, array[int]]:
        """Maps each distinct text to the token ids of ``prompt + text``, as :meth:`texts` does, without its starts."""
        kept = self._prompted(texts, prompt, num_tokens)
        return {text: array("i", ids) for text, ids in zip(kept, self.ids(list(kept.values())), strict=True)}

    def _prompted(self, texts: Iterable[str], prompt: str, num_tokens: int | None) -> dict[str, str]:
        """Maps each distinct text to as much of ``prompt + text`` as is needed."""
        needed = None if num_tokens is None else num_tokens + len(prompt)
        return {text: self.start(prompt + text, needed) for text in dict.fromkeys(texts)}

    def with_special_tokens(self, ids: Sequence[int], max_length: int | None = None) -> tuple[int, ...]:
        """Puts the ids between the tokenizer's own special tokens, cut to ``max_length`` tokens in total."""
        if (
            max_length is not None
            and (excess := len(ids) - max(max_length - len(self.prefix) - len(self.suffix), 0)) > 0
        ):
            ids = ids[excess:] if self.tokenizer.truncation_side == "left" else ids[:-excess]
        return (*self.prefix, *ids, *self.suffix)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[AddedToken]:
    """Returns the added tokens of a tokenizer that are not special, as special ones: only those can be split."""
    flags = ("single_word", "lstrip", "rstrip")
    return [
        AddedToken(token.content, special=True, normalized=False, **{name: getattr(token, name) for name in flags})
        for token in tokenizer.added_tokens_decoder.values()
        if not token.special
    ]


def water_fill(lengths: Sequence[int], budget: int) -> list[int]:
    """Shares a budget equally; the rest that short texts leave goes to longer ones.

    Args:
        lengths: Largest useful share of each text.
        budget: Budget for all.

    Returns:
        The shares. A share is never above its length, and their sum is ``min(budget, sum(lengths))``. A share below its
        length is at most one below the largest share.
    """
    shares = [0] * len(lengths)
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    for position, index in enumerate(order):
        # Shortest first: its rest and the remainder of the division stay in the budget for longer texts.
        shares[index] = min(lengths[index], max(budget, 0) // (len(order) - position))
        budget -= shares[index]
    return shares


class Prompt(NamedTuple):
    """A listwise prompt, with the numbers of tokens of its documents and query before and after cutting.

    ``document_tokens`` and ``document_shares`` are empty if no document was cut.
    """

    ids: tuple[int, ...]
    document_tokens: tuple[int, ...]
    document_shares: tuple[int, ...]
    query_tokens: int
    query_share: int


class PromptBuilder:
    """Query and candidates → token ids of a listwise prompt that never exceeds its limit.

    Args:
        texts: The model's tokenizer.
        prompt_format: Form of the prompt.
        max_tokens: Most tokens of a prompt, special tokens included.
        max_query_tokens: Most tokens of the query in a prompt.
    """

    def __init__(
        self, texts: TextTokenizer, prompt_format: PromptFormat, max_tokens: int, max_query_tokens: int
    ) -> None:
        self.texts = texts
        self.format = prompt_format
        self.max_tokens = max_tokens
        self.max_query_tokens = max_query_tokens
        added = texts.tokenizer.get_added_vocab()
        self._added = added
        longest_first = sorted(map(re.escape, added), key=len, reverse=True)
        self._control = re.compile("(" + "|".join(longest_first) + ")" if added else "(?!)()")
        self._head, self._tail = self._chat_frame() if prompt_format.chat else ("", "")
        self._check_runs()

    def _check_runs(self) -> None:
        """Refuses a tokenizer whose control tokens change the text beside them (``rstrip`` and SentencePiece may)."""
        values = ("do", "why?", ["one", "two"])
        whole = self._head + self.format.render(*values) + self._tail
        if not self._control.search(whole):
            return
        if self.encode(*values) != tuple(self.texts.rendered_ids(whole, not self.format.chat)):
            raise ValueError(
                f"{type(self.texts.tokenizer).__name__} tokenises text beside a control token differently than alone, "
                f"so it cannot build the prompt format {self.format.name!r}. Use a format without control tokens."
            )

    def _chat_frame(self) -> tuple[str, str]:
        tokenizer = self.texts.tokenizer
        if not tokenizer.chat_template:
            raise ValueError(
                f"The prompt format {self.format.name!r} needs a chat template, which the tokenizer lacks. "
                "Use a format with chat=False, such as 'encoder'."
            )
        mark = "E2Rank's message"
        message = [{"role": "user", "content": mark}]
        rendered = str(
            tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        )
        if rendered.count(mark) != 1:
            raise ValueError(
                f"The chat template must render a user's message once and unchanged; it made {rendered!r:.200}."
            )
        head, _, tail = rendered.partition(mark)
        return head, tail

    def encode(self, instruction: str, query: str, documents: Sequence[str]) -> tuple[int, ...]:
        """Returns the token ids of the whole prompt, uncut. They equal the string's if no text holds a control token.

        Ordinary text between two control tokens is tokenised whole, because a text may merge with its surroundings.
        """
        runs, controls = [""], []
        pieces = [(self._head, True), *self.format.pieces(instruction, query, documents), (self._tail, True)]
        for text, trusted in pieces:
            parts = self._control.split(text) if trusted else [text]
            runs[-1] += parts[0]
            for control, run in zip(parts[1::2], parts[2::2], strict=True):
                controls.append([self._added[control]])
                runs.append(run)
        encoded = self.texts.ids(runs)
        ids = [token for pair in zip(encoded, [*controls, []], strict=True) for part in pair for token in part]
        return tuple(ids) if self.format.chat else self.texts.with_special_tokens(ids)

    def build(
        self,
        query: TokenizedText,
        documents: Sequence[str],
        instruction: str,
        tokens: Callable[[Sequence[str]], Sequence[TokenizedText]],
    ) -> Prompt:
        """Builds one prompt. Documents share the tokens that template and query leave, by water-filling.

        Documents that would not get a token are left out. The query is cut only if it is longer than
        ``max_query_tokens``, or than a prompt without documents allows.

        Args:
            query: The query.
            documents: The documents.
            instruction: The instruction.
            tokens: Tokenises documents alone; it is called only if they may have to be cut.

        Raises:
            ValueError: If the template alone leaves no tokens for a query.
        """
        query_share = min(len(query.starts), self.max_query_tokens)
        size, found = sum(map(len, documents)), list[TokenizedText]()
        fits = size <= LONG_TOKEN * self.max_tokens
        if fits and size > USUAL_TOKEN * self.max_tokens:  # probably too many tokens: count them first
            found = [*tokens(documents)]
            fits = sum(len(document.starts) for document in found) <= 2 * self.max_tokens
        if fits:
            ids = self.encode(instruction, query.head(query_share), documents)
            if len(ids) <= self.max_tokens:
                return Prompt(ids, (), (), len(query.starts), query_share)
        return self._cut(query, query_share, found or tokens(documents), instruction)

    def _cut(
        self, query: TokenizedText, query_share: int, documents: Sequence[TokenizedText], instruction: str
    ) -> Prompt:
        lengths, slack = [len(document.starts) for document in documents], 0

        @cache
        def fixed_size(count: int) -> int:
            return len(self.encode(instruction, "", [""] * count))

        def free(count: int) -> int:
            return self.max_tokens - fixed_size(count) - query_share - slack

        def lacks_room(count: int) -> bool:
            return free(count) < sum(map(bool, lengths[:count]))

        count = len(lengths)
        if lacks_room(count):
            count = bisect_left(range(1, count + 1), True, key=lacks_room)
        while True:
            if count and lacks_room(count):
                count, slack = count - 1, 0
                continue
            room = free(count)
            query_share += min(room, 0)
            if query_share < min(len(query.starts), 1):
                raise ValueError(
                    f"max_prompt_tokens={self.max_tokens} cannot hold a query: the template of the prompt format "
                    f"{self.format.name!r} takes {fixed_size(0)} tokens. Raise it, or cut the instruction."
                )
            shares = water_fill(lengths[:count], room)
            texts = [document.head(share) for document, share in zip(documents, shares, strict=False)]
            ids = self.encode(instruction, query.head(query_share), texts)
            if len(ids) <= self.max_tokens:
                shares += [0] * (len(lengths) - count)
                return Prompt(ids, tuple(lengths), tuple(shares), len(query.starts), query_share)
            # The parts were counted alone, but tokens may split between them: only the whole prompt counts.
            slack += len(ids) - self.max_tokens


def prompt_format_of(value: str | Mapping[str, Any]) -> PromptFormat:
    """Returns a known format by its name, or one of the given fields.

    Raises:
        ValueError: If there is none of this name, or the fields do not make one.
    """
    if isinstance(value, Mapping):
        try:
            return PromptFormat(**value)
        except (TypeError, AttributeError) as error:  # a key too many or too few; a template that is not a string
            raise ValueError(f"prompt_format {dict(value)!r:.200} is not one: {error}.") from error
    return PROMPT_FORMATS[one_of("prompt_format", value, tuple(PROMPT_FORMATS))]
