"""E2Rank for Sentence-Transformers: token embeddings → vectors, and a query with its candidates → a ranking.

One embedding model does two jobs with one score, the cosine. A document is embedded once. A query is embedded alone
for retrieval, or inside a *listwise prompt* (instruction, first K candidates, query) for reranking. With stored
document vectors, reranking therefore costs one forward pass for each query (E2Rank, arXiv 2510.22733).

This file is both a module of the package and the remote code of a Hub repository, so they cannot differ. It imports
torch, transformers, sentence-transformers and the standard library only.

Axes: B queries, N documents of one query, K documents in the prompt, L tokens, D dimensions.
"""

from __future__ import annotations

import copy
import logging
import numbers
import operator
import re
import shutil
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor
from transformers import AddedToken, PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

logger = logging.getLogger(__name__)

Made = TypeVar("Made")

CANDIDATE_ORDERS = ("given", "similarity")
RETRIEVAL_PROMPTS = {"query": ("query",), "document": ("document", "passage", "corpus")}  # as ST's encode_* choose them
MAX_BATCH_TOKENS = 16_384  # padded tokens of one forward pass, for every batch size
TOKENIZER_CHUNK = 256  # texts tokenised at a time; it limits the memory of the tokenizer's offsets
LONG_TOKEN = 16  # characters; few texts have longer tokens on average
# A text may be cut before these characters, if a letter or digit is in front. Tokenizers begin a new word there, and
# normalisation does not reach across. The margin is for tokenizers that do not split a text into words.
BOUNDARY = re.compile(r"(?<=[^\W_])[ \n.,;:!?()\u3001\u3002\uff0c]")
LONGEST_WORD = SETTLED = 1_024  # characters


class E2RankPooling(Pooling):
    """Token embeddings → one L2-normalised float32 vector for each text.

    The stock pooling selects the tokens (left, right and no padding, flattened inputs). This class allows E2Rank's
    modes only. It computes in float32, because bfloat16 cosines tie.

    Args:
        embedding_dimension: D, the size of the token embeddings.
        pooling_mode: ``"lasttoken"``, ``"cls"`` or ``"mean"``.
        include_prompt: Must be ``True``: the tokens of a retrieval prompt count. The stock configuration has this key.

    Raises:
        ValueError: If ``pooling_mode`` is not one of the three, or ``include_prompt`` is false.
    """

    POOLING_MODES = ("lasttoken", "cls", "mean")  # type: ignore[assignment]

    # Every runtime reads these keys of `1_Pooling/config.json`: Sentence-Transformers before and since 6, TEI, vLLM.
    # Some take the first true key, so the modes come before `include_prompt`.
    STOCK_KEYS = (
        ("cls", "pooling_mode_cls_token"),
        ("mean", "pooling_mode_mean_tokens"),
        ("max", "pooling_mode_max_tokens"),
        ("mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens"),
        ("weightedmean", "pooling_mode_weightedmean_tokens"),
        ("lasttoken", "pooling_mode_lasttoken"),
    )

    def __init__(self, embedding_dimension: int, pooling_mode: str = "lasttoken", include_prompt: bool = True) -> None:
        if pooling_mode not in self.POOLING_MODES:
            raise ValueError(f"pooling_mode must be one of {self.POOLING_MODES}, got {pooling_mode!r}.")
        if not include_prompt:
            raise ValueError("include_prompt must be True: E2Rank pools the prompt's tokens, too.")
        super().__init__(embedding_dimension, pooling_mode, include_prompt)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds ``sentence_embedding`` of shape (texts, D) to ``features``.

        Args:
            features: ``token_embeddings`` of shape (texts, L, D) with ``attention_mask`` (texts, L), or of shape
                (1, total L, D) with ``cu_seq_lens_q``.
            **kwargs: Further arguments of the stock pooling.
        """
        token_embeddings = features["token_embeddings"]
        features["token_embeddings"] = token_embeddings.float()
        pooled = super().forward(features, **kwargs)
        pooled["token_embeddings"] = token_embeddings
        pooled["sentence_embedding"] = F.normalize(pooled["sentence_embedding"], dim=-1)
        return pooled

    def get_config_dict(self) -> dict[str, Any]:
        """Returns the configuration under the stock keys."""
        modes = {key: self.pooling_mode == mode for mode, key in self.STOCK_KEYS}
        return {"word_embedding_dimension": self.embedding_dimension, **modes, "include_prompt": self.include_prompt}


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

    def encodings(self, texts: Sequence[str]) -> Iterator[Any]:
        """Yields one backend encoding for each text, without special tokens and uncut."""
        for start in range(0, len(texts), TOKENIZER_CHUNK):
            yield from self._backend.encode_batch(texts[start : start + TOKENIZER_CHUNK], add_special_tokens=False)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of each text, without special tokens and uncut."""
        return [encoding.ids for encoding in self.encodings(texts)]

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
        distinct = list(dict.fromkeys(texts))
        needed = None if num_tokens is None else num_tokens + len(prompt)
        kept = [self.start(prompt + text, needed) for text in distinct]
        tokenized = {}
        for text, part, encoding in zip(distinct, kept, self.encodings(kept), strict=True):
            # A token of the text may begin in the prompt, for example with the space before the first word.
            starts = [max(start - len(prompt), 0) for start, end in encoding.offsets if end > len(prompt)]
            tokenized[text] = TokenizedText(part[len(prompt) :], array("i", encoding.ids), array("i", starts))
        return tokenized

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
        if sum(map(len, documents)) <= LONG_TOKEN * self.max_tokens:
            ids = self.encode(instruction, query.head(query_share), documents)
            if len(ids) <= self.max_tokens:
                return Prompt(ids, (), (), len(query.starts), query_share)
        return self._cut(query, query_share, tokens(documents), instruction)

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

        count = bisect_left(range(1, len(lengths) + 1), True, key=lacks_room)
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


class Embedder:
    """Texts and prompts of one call → vectors, each distinct one once, in batches of similar length and bounded tokens.

    Args:
        model: The complete model.
        builder: Builds the model's prompts.
        batch_size: Most sequences in a forward pass.
        show_progress_bar: Whether to show a progress bar for each kind of sequence.
    """

    def __init__(
        self, model: SentenceTransformer, builder: PromptBuilder, batch_size: int, show_progress_bar: bool
    ) -> None:
        self.model = model
        self.builder = builder
        self.texts = builder.texts
        self.batch_size = batch_size
        self.show_progress_bar = show_progress_bar
        self._tokens: dict[tuple[str, TextTokenizer], dict[str, TokenizedText]] = {}

    def tokens(self, task: str, texts: Iterable[str], *, embedded: bool = False) -> list[TokenizedText]:
        """Returns the tokens of each text after the model's retrieval prompt for the task; each is tokenised once.

        Args:
            task: ``"query"`` or ``"document"``.
            texts: The texts.
            embedded: Whether they are embedded, and not shown in a listwise prompt. A model whose tokenizer keeps
                control tokens embeds them as such; in a prompt they are ordinary characters.
        """
        tokenizer = self.texts.own if embedded else self.texts
        texts, known = list(texts), self._tokens.setdefault((task, tokenizer), {})
        prompt, limit = self._prompt(task), self._limit(task)
        in_prompt = self.builder.max_query_tokens if task == "query" else self.builder.max_tokens
        needed = None if limit is None else max(limit, in_prompt) + 1  # one more tells that a text is cut
        known |= tokenizer.texts((text for text in texts if text not in known), prompt, needed)
        return [known[text] for text in texts]

    def _prompt(self, task: str) -> str:
        """The retrieval prompt that ``encode_query`` or ``encode_document`` chooses."""
        prompts = self.model.prompts
        name = next((name for name in RETRIEVAL_PROMPTS[task] if name in prompts), self.model.default_prompt_name)
        return prompts.get(name or "") or ""

    def _prompt_length(self, task: str) -> int | None:
        """The tokens of the retrieval prompt, if the pooling leaves them out; counted as Sentence-Transformers does."""
        prompt = self._prompt(task)
        if not prompt or all(getattr(module, "include_prompt", True) for module in self.model):
            return None
        (text,) = self.texts.own.ids([prompt])
        ids = self.texts.own.with_special_tokens(text, self.model.max_seq_length)
        return len(ids) - (bool(ids) and ids[-1] in self.texts.tokenizer.all_special_ids)

    def _limit(self, task: str) -> int | None:
        text = (getattr(self.model[0], "processing_kwargs", None) or {}).get("text") or {}
        if text.get("truncation", True) in (False, "do_not_truncate"):
            return None
        by_task = getattr(self.model[0], f"{task}_length", None)
        limit: int | None = text.get("max_length") or by_task or self.model.max_seq_length
        return limit

    def prompts(self, queries: Sequence[str], documents: Sequence[Sequence[str]], instruction: str) -> list[Prompt]:
        """Builds one listwise prompt for each query from its chosen documents."""
        tokens = partial(self.tokens, "document")
        return [
            self.builder.build(query, texts, instruction, tokens)
            for query, texts in zip(self.tokens("query", queries), documents, strict=True)
        ]

    def embed_texts(self, task: str, texts: Iterable[str]) -> Tensor:
        """Returns the vectors of ``encode_query`` or ``encode_document``, of shape (texts, D)."""
        limit = self._limit(task)
        tokens = self.tokens(task, texts, embedded=True)
        sequences = [self.texts.with_special_tokens(text.ids, limit) for text in tokens]
        cut = sum(
            len(self.texts.with_special_tokens(text.ids)) > len(ids)
            for text, ids in zip(tokens, sequences, strict=True)
        )
        if cut:
            logger.info("Embedding at most %d tokens of a %s: cut %d of %d.", limit, task, cut, len(tokens))
        return self.embed(sequences, task, self._prompt_length(task))

    def candidates(self, lists: Sequence[Sequence[str]]) -> Callable[[int], Tensor]:
        """Embeds the candidates of all queries. The result maps a query's row to its (N, D) vectors."""
        rows = {text: row for row, text in enumerate(dict.fromkeys(text for texts in lists for text in texts))}
        vectors = self.embed_texts("document", rows)
        last: list[Any] = [None, None]  # queries that share one list also share its gathered vectors

        def gather(index: int) -> Tensor:
            if last[0] is not lists[index]:
                last[:] = lists[index], vectors[[rows[text] for text in lists[index]]]
            gathered: Tensor = last[1]
            return gathered

        return gather

    def embed(self, sequences: Sequence[tuple[int, ...]], kind: str, prompt_length: int | None = None) -> Tensor:
        """Embeds token ids; returns float32 vectors of shape (sequences, D), in the order of the sequences.

        Args:
            sequences: The token ids.
            kind: A name for the progress bar.
            prompt_length: The number of first tokens that the pooling leaves out, if it leaves out any.
        """
        shared = {} if prompt_length is None else {"prompt_length": prompt_length}
        rows = {ids: row for row, ids in enumerate(dict.fromkeys(sequences))}
        distinct = list(rows)
        vectors = torch.empty(len(distinct), self.model.get_embedding_dimension() or 0, device=self.model.device)
        self.model.eval()
        with tqdm(total=len(distinct), desc=kind, unit=kind, disable=not self.show_progress_bar) as progress:
            for batch in token_batches([len(ids) for ids in distinct], self.batch_size):
                features: dict[str, Any] = {**self._features([distinct[row] for row in batch]), **shared}
                vectors[batch] = self.model(features)["sentence_embedding"][:, : vectors.shape[1]].float()
                progress.update(len(batch))
        return vectors[[rows[ids] for ids in sequences]]

    def _features(self, sequences: Sequence[tuple[int, ...]]) -> dict[str, Tensor]:
        width = max(map(len, sequences))
        input_ids = torch.full((len(sequences), width), self.texts.tokenizer.pad_token_id or 0)
        attention_mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(sequences):
            # Padding on the right: absolute positions count from the left, and the pooling finds the last token.
            input_ids[row, : len(ids)] = torch.tensor(ids)
            attention_mask[row, : len(ids)] = 1
        device = self.model.device
        return {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}


def token_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yields batches of similar lengths: at most ``batch_size`` sequences and ``MAX_BATCH_TOKENS`` padded tokens each.

    The longest come first, because the peak of memory then comes at once. A sequence above the limit goes alone.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) == batch_size or (len(batch) + 1) * lengths[batch[0]] > MAX_BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def cosine(vectors: Tensor, vector: Tensor) -> Tensor:
    """Returns cosines in float32 of (N, D) vectors to one (D,) vector, of shape (N,).

    In a matrix product, a row's result may depend on the other rows. Here it does not, so equal vectors tie exactly.
    """
    vectors = vectors.to(vector.device, torch.float32).contiguous()
    return (F.normalize(vectors, dim=-1) * F.normalize(vector.float(), dim=-1)).sum(-1)


def interpolate(queries: Tensor, prompts: Tensor, query_weight: float) -> Tensor:
    """Mixes the directions of retrieval queries and listwise prompts, both (B, D). The result is not normalised."""
    return query_weight * F.normalize(queries, dim=-1) + (1 - query_weight) * F.normalize(prompts, dim=-1)


class ListwiseRerank(Module):
    """Last module of an E2Rank model: holds the reranking configuration and gives the model its ``rerank`` method.

    ``forward`` changes nothing. When the model is complete, ``on_model_ready`` binds :meth:`rerank` (alias ``rank``) to
    it. A plain ``SentenceTransformer`` therefore has the method, too.

    Args:
        prompt_format: A name in ``PROMPT_FORMATS``, or the fields of a :class:`PromptFormat`.
        instruction: Default task instruction of the prompt.
        num_prompt_documents: K, the number of candidates in the prompt.
        max_prompt_tokens: Most tokens of a prompt.
        max_query_tokens: Most tokens of the query in a prompt; a longer query is cut with a warning.
        candidate_order: Choice of the K candidates: ``"given"`` takes the caller's first K, ``"similarity"`` the K
            nearest to the retrieval query, nearest first.
        query_weight: Share w of the retrieval query in the final vector, from 0 to 1; the prompt's share is 1 − w, and
            both have unit length. 0 ranks by the prompt alone, as published. A share in between is a safeguard, as in
            Rocchio's pseudo-relevance feedback.

    Raises:
        ValueError: If a value is not allowed.
    """

    config_keys = [  # noqa: RUF012
        "prompt_format",
        "instruction",
        "num_prompt_documents",
        "max_prompt_tokens",
        "max_query_tokens",
        "candidate_order",
        "query_weight",
    ]

    def __init__(
        self,
        prompt_format: str | Mapping[str, Any] = "evaluation",
        instruction: str = "Given a web search query and some relevant documents, "
        "rerank the documents that answer the query",
        num_prompt_documents: int = 20,
        max_prompt_tokens: int = 32_768,
        max_query_tokens: int = 1_024,
        candidate_order: str = "given",
        query_weight: float = 0.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.format = _prompt_format(prompt_format)
        self.instruction = _text("instruction", instruction)
        self.num_prompt_documents = natural("num_prompt_documents", num_prompt_documents)
        self.max_prompt_tokens = natural("max_prompt_tokens", max_prompt_tokens, least=1)
        self.max_query_tokens = natural("max_query_tokens", max_query_tokens, least=1)
        self.candidate_order = _one_of("candidate_order", candidate_order, CANDIDATE_ORDERS)
        self.query_weight = _share("query_weight", query_weight)
        self._parent: SentenceTransformer
        self._made: dict[str, tuple[Any, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """The state to copy and to pickle, without what is made again on demand."""
        return {**self.__dict__, "_made": {}}

    @property
    def texts(self) -> TextTokenizer:
        """The tokenizer of this model's texts."""
        tokenizer = self._parent.tokenizer  # it is equal to itself only
        key = (tokenizer, len(tokenizer), tokenizer.split_special_tokens)
        return self._kept("texts", key, lambda: TextTokenizer(tokenizer))

    @property
    def builder(self) -> PromptBuilder:
        """The builder of this model's prompts."""
        texts, limits = self.texts, (self.max_prompt_tokens, self.max_query_tokens)
        key = (texts, texts.tokenizer.chat_template, self.format, limits)
        return self._kept("builder", key, lambda: PromptBuilder(texts, self.format, *limits))

    def _kept(self, name: str, key: Any, make: Callable[[], Made]) -> Made:
        """A part that is made at first use, and again after a change. If two threads make it, they keep one of both."""
        known, part = self._made.get(name, (None, None))
        if part is None or known != key:
            part = make()
            self._made[name] = key, part
        return cast("Made", part)

    @property
    def prompt_format(self) -> str | dict[str, Any]:
        """The prompt format for configurations: the name of a known format, or else the fields."""
        return self.format.name if PROMPT_FORMATS.get(self.format.name) == self.format else asdict(self.format)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Returns the features unchanged."""
        return features

    def on_model_ready(self, model: SentenceTransformer) -> None:  # type: ignore[override]
        """Binds ``rerank`` and ``rank`` to the complete model.

        Raises:
            ValueError: If the model has fewer positions than a prompt may have tokens.
        """
        positions = num_positions(model)
        if positions is not None and self.max_prompt_tokens > positions:
            raise ValueError(f"max_prompt_tokens={self.max_prompt_tokens} exceeds the model's {positions} positions.")
        # A normal assignment would register the model as a submodule of its own submodule.
        object.__setattr__(self, "_parent", model)
        if not hasattr(type(model), "rerank"):
            # Bound methods of this module survive deepcopy, pickling and process pools; those of the model do not.
            model.rerank, model.rank = self.rerank, self.rank  # type: ignore[assignment]

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Writes the configuration, and copies this source file to the model folder as its remote code."""
        self.save_config(output_path)
        source = Path(__file__)
        target = Path(output_path).parent / "modeling_e2rank.py"
        if source.resolve() != target.resolve():
            shutil.copyfile(source, target)

    def rerank(
        self,
        query: str | Sequence[str],
        documents: Sequence[str] | Sequence[Sequence[str]],
        *,
        top_k: int | None = None,
        return_documents: bool = False,
        document_embeddings: Any = None,
        instruction: str | None = None,
        num_prompt_documents: int | None = None,
        candidate_order: str | None = None,
        query_weight: float | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Ranks documents by their cosine to the listwise query, as ``CrossEncoder.rank`` does by its logits.

        The listwise query is the vector of the prompt. With a query weight, it is mixed with the retrieval query's.

        Every candidate is scored, also those outside the prompt. Each distinct text is embedded once in a call.
        Scores are cosines in float32. Compare them within one ranking only, because each query has its own prompt.

        Args:
            query: One query, or B queries.
            documents: The N candidates of the one query. For B queries, one shared list, or B lists.
            top_k: Number of results for each query; by default all.
            return_documents: Whether each result also holds its ``text``.
            document_embeddings: Stored vectors of the candidates, of shape (N, D); for B lists of candidates, B such
                matrices. See :func:`matrix` for their kinds. With them, documents are not embedded.
            instruction: Task instruction of the prompt, instead of the configured one.
            num_prompt_documents: K, instead of the configured one.
            candidate_order: ``"given"`` or ``"similarity"``, instead of the configured one.
            query_weight: Share of the retrieval query, from 0 to 1, instead of the configured one.
            batch_size: Most texts in a forward pass. Long texts go in smaller batches.
            show_progress_bar: Whether to show progress bars; by default if this logger's level is INFO or lower. They
                need the progress bars of transformers to be enabled.

        Returns:
            A list of ``{"corpus_id": int, "score": float}``, best first, ties in the given order; for B queries, a list
            of B such lists.

        Raises:
            ValueError: If an argument does not have the form above; the message names the place and the value.
        """
        single = isinstance(query, str)
        queries = [_text("query", query)] if single else strings("query", query)
        candidates = _candidates(documents, len(queries), single)
        top_k = None if top_k is None else natural("top_k", top_k)
        options = self._options(instruction, num_prompt_documents, candidate_order, query_weight)
        stored = _stored_vectors(document_embeddings, candidates, single, self._parent.get_embedding_dimension())
        with_texts = _flag("return_documents", return_documents)
        shown = logger.getEffectiveLevel() <= logging.INFO if show_progress_bar is None else show_progress_bar
        batch_size = natural("batch_size", batch_size, least=1)
        embedder = Embedder(self._parent, self.builder, batch_size, _flag("show_progress_bar", shown))
        scores = self._scores(embedder, queries, candidates, stored, **options)
        rankings = [
            _ranking(values, texts if with_texts else None, top_k)
            for values, texts in zip(scores, candidates, strict=True)
        ]
        return rankings[0] if single else rankings

    rank = rerank

    def _options(
        self, instruction: str | None, count: int | None, order: str | None, weight: float | None
    ) -> dict[str, Any]:
        """The options of a call, checked; None stands for the configured value."""
        if instruction is not None and "{instruction}" not in self.format.template:
            raise ValueError(f"The prompt format {self.format.name!r} has no place for an instruction; leave it out.")
        count = self.num_prompt_documents if count is None else count
        order = self.candidate_order if order is None else order
        return {
            "instruction": self.instruction if instruction is None else _text("instruction", instruction),
            "num_prompt_documents": natural("num_prompt_documents", count),
            "candidate_order": _one_of("candidate_order", order, CANDIDATE_ORDERS),
            "query_weight": _share("query_weight", self.query_weight if weight is None else weight),
        }

    @torch.inference_mode()
    def _scores(
        self,
        embedder: Embedder,
        queries: list[str],
        candidates: list[list[str]],
        stored: list[Tensor] | None,
        *,
        num_prompt_documents: int,
        candidate_order: str,
        query_weight: float,
        instruction: str,
    ) -> list[Tensor]:
        """Returns the cosine of every candidate to its listwise query: B tensors of shape (N,)."""
        asked = [row for row, texts in enumerate(candidates) if texts]
        candidate_vectors = embedder.candidates(candidates) if stored is None else stored.__getitem__
        query_vectors = torch.empty(0)
        if candidate_order == "similarity" or query_weight:
            query_vectors = embedder.embed_texts("query", (queries[row] for row in asked))  # (B, D)
        if candidate_order == "similarity":
            chosen = [
                _best_first(cosine(candidate_vectors(row), vector))[:num_prompt_documents]
                for row, vector in zip(asked, query_vectors, strict=True)
            ]
        else:
            chosen = [list(range(len(candidates[row])))[:num_prompt_documents] for row in asked]
        selected = [[candidates[row][index] for index in indices] for row, indices in zip(asked, chosen, strict=True)]
        prompts = embedder.prompts([queries[row] for row in asked], selected, instruction)
        _log_cuts(prompts, self.max_prompt_tokens)
        vectors = embedder.embed([prompt.ids for prompt in prompts], "prompt")  # (B, D)
        if query_weight:
            vectors = interpolate(query_vectors, vectors, query_weight)
        scores = [torch.empty(0)] * len(queries)
        for row, vector in zip(asked, vectors, strict=True):
            scores[row] = cosine(candidate_vectors(row), vector)
        return scores


def _log_cuts(prompts: Sequence[Prompt], limit: int) -> None:
    cut = [
        share
        for prompt in prompts
        for tokens, share in zip(prompt.document_tokens, prompt.document_shares, strict=True)
        if share < tokens
    ]
    if cut:
        logger.info(
            "Listwise prompts of at most %d tokens: documents shortened: %d, to %d tokens in all.",
            limit, len(cut), sum(cut),
        )  # fmt: skip
    shares = [prompt.query_share for prompt in prompts if prompt.query_share < prompt.query_tokens]
    if shares:
        logger.warning(
            "Cut %d of %d queries in their listwise prompts, to at most %d tokens. "
            "Raise max_query_tokens, or shorten the query.", len(shares), len(prompts), max(shares),
        )  # fmt: skip


def _best_first(scores: Tensor) -> list[int]:
    return torch.argsort(scores, descending=True, stable=True).tolist()


def _ranking(scores: Tensor, texts: Sequence[str] | None, top_k: int | None) -> list[dict[str, Any]]:
    values = scores.tolist()
    ranking = [{"corpus_id": index, "score": values[index]} for index in _best_first(scores)[:top_k]]
    return ranking if texts is None else [{**hit, "text": texts[hit["corpus_id"]]} for hit in ranking]


def _prompt_format(value: str | Mapping[str, Any]) -> PromptFormat:
    if isinstance(value, Mapping):
        try:
            return PromptFormat(**value)
        except (TypeError, AttributeError) as error:  # a key too many or too few; a template that is not a string
            raise ValueError(f"prompt_format {dict(value)!r:.200} is not one: {error}.") from error
    return PROMPT_FORMATS[_one_of("prompt_format", value, tuple(PROMPT_FORMATS))]


def num_positions(model: SentenceTransformer) -> int | None:
    """Returns the number of a model's positions for tokens, or ``None`` if its configuration does not say."""
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    for module in model.modules():
        padding = getattr(getattr(module, "position_embeddings", None), "padding_idx", None)
        if positions is not None and padding is not None:
            return positions - int(padding) - 1  # as in RoBERTa, where positions start after the padding's
    return positions


def natural(name: str, value: Any, least: int = 0) -> int:
    """Returns a whole number, of Python's, NumPy's or torch's own kind.

    Raises:
        ValueError: If it is not one, or smaller than ``least``.
    """
    is_one = hasattr(value, "__index__") and not isinstance(value, bool) and "bool" not in str(_dtype(value))
    try:
        number = operator.index(value) if is_one and not getattr(value, "ndim", 0) else None
    except (TypeError, RuntimeError):  # an array of floats; a tensor without values
        number = None
    if number is None or number < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {_shown(value)}.")
    return number


def _share(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value <= 1:  # type: ignore[operator]
        raise ValueError(f"{name} must be a number from 0 to 1, got {_shown(value)}.")
    return float(value)


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {_shown(value)}.")
    return value


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, bool) or (str(_dtype(value)) == "bool" and not getattr(value, "ndim", 1)):
        return bool(value)
    raise ValueError(f"{name} must be True or False, got {_shown(value)}.")


def _dtype(value: Any) -> Any:
    return getattr(value, "dtype", None)


def _shown(value: Any) -> str:
    """A value of any type, for a message."""
    shape = None if getattr(value, "is_nested", False) else getattr(value, "shape", None)
    return f"{value!r:.80}" if not shape else f"{type(value).__name__} of the shape {tuple(shape)}"


def strings(name: str, values: Any) -> list[str]:
    """Returns the texts of a list, a generator, an array, or a column of pandas, Arrow or ``datasets``.

    Raises:
        ValueError: If it is something else, or an entry is not a text; the message names the place.
    """
    texts: list[str] = []
    for index, value in enumerate(_entries(name, values, "strings")):
        texts.append(_text(f"{name}[{index}]", value))
    return texts


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, got {type(value).__name__}: {_shown(value)}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} holds half of a surrogate pair, which is not text: {value!r:.80}.") from error
    return str(value)  # NumPy's strings are of a kind of their own


def _entries(name: str, values: Any, kind: str) -> Iterator[Any]:
    """The entries of anything that is a list in spirit. A table is not: iteration gives the names of its columns."""
    if hasattr(values, "columns"):
        raise ValueError(f"{name} must be a list of {kind}, got the table {type(values).__name__}. Give one column.")
    if hasattr(values, "to_pylist"):  # Arrow's own scalars are neither strings nor numbers
        return iter(values.to_pylist())
    if not isinstance(values, (str, bytes, Mapping, Set)):
        with suppress(TypeError):  # an array without dimensions says only here that it has no entries
            return iter(values)
    raise ValueError(f"{name} must be a list of {kind}, got {type(values).__name__}.")


def _candidates(documents: Any, num_queries: int, single: bool) -> list[list[str]]:
    """Returns the candidates of each query: one list for one query, a shared list, or a list for each."""
    if single:
        return [strings("documents", documents)]
    documents = list(_entries("documents", documents, "strings or of lists"))
    if not documents or isinstance(documents[0], str):
        return [strings("documents", documents)] * num_queries
    if len(documents) != num_queries:
        raise ValueError(f"documents must hold one list for each query: got {len(documents)} for {num_queries}.")
    return [strings(f"documents[{index}]", texts) for index, texts in enumerate(documents)]


def _stored_vectors(
    given: Any, candidates: list[list[str]], single: bool, dimension: int | None
) -> list[Tensor] | None:
    """Returns one checked (N, D) matrix for each query, or ``None`` if documents must be embedded."""
    if given is None or not candidates:
        return None
    name = "document_embeddings"
    given = _plain(name, given)
    if single or (all(texts is candidates[0] for texts in candidates) and _depth(name, given) < 3):
        return [_fitting(name, given, len(candidates[0]), dimension)] * len(candidates)
    given = list(_entries(name, given, "matrices, one for each query"))
    if len(given) != len(candidates):
        raise ValueError(f"{name} must hold one matrix for each query: got {len(given)} for {len(candidates)}.")
    rows = enumerate(zip(given, candidates, strict=True))
    return [_fitting(f"{name}[{index}]", part, len(texts), dimension) for index, (part, texts) in rows]


def _fitting(name: str, value: Any, count: int, dimension: int | None) -> Tensor:
    vectors, shape = matrix(name, value), (count, dimension)
    if tuple(vectors.shape) != shape and (count or len(vectors)):
        raise ValueError(f"{name} must have the shape {shape}, a vector for each document, got {tuple(vectors.shape)}.")
    return vectors


def matrix(name: str, value: Any) -> Tensor:
    """Returns stored vectors as a float32 matrix (N, D), for cosines only: unusually long or short rows are scaled.

    Args:
        name: A name for messages.
        value: A matrix of NumPy or torch, a table of pandas, or N vectors as databases return them: lists, arrays, or
            a column of lists of pandas or Arrow.

    Raises:
        ValueError: If it is something else, is masked or sparse, has vectors of different lengths, or values that are
            not finite floating-point numbers.
    """
    value = _plain(name, value)
    if isinstance(value, list):
        rows = [_vector(f"{name}[{index}]", row) for index, row in enumerate(value)]
        odd = next((index for index, row in enumerate(rows) if len(row) != len(rows[0])), None)
        if odd is not None:
            raise ValueError(f"{name}[{odd}] has {len(rows[odd])} values, and {name}[0] has {len(rows[0])}.")
        vectors = torch.stack(rows) if rows else torch.empty(0, 0)
    else:
        vectors = _floats(name, value, 2)
    infinite = ~vectors.isfinite().all(1)
    if infinite.any():
        raise ValueError(f"{name} has NaN or infinite values in row {int(infinite.nonzero()[0])}.")
    if vectors.numel():
        largest = vectors.abs().amax(1, keepdim=True)  # (N, 1)
        # Squares of such values leave the range of float32. The other rows stay the same bit for bit.
        unusual = ((largest < 1e-6) | (largest > 1e6)) & (largest > 0)
        if unusual.any():
            vectors = torch.where(unusual, vectors.double() / largest.double(), vectors.double())
    return vectors.float()


def _vector(name: str, value: Any) -> Tensor:
    value = _plain(name, value)
    if isinstance(value, list):
        if value and isinstance(value[0], bool):
            raise ValueError(f"{name} must be a list of numbers, got bool. Convert them as they were made.")
        try:
            value = torch.tensor(value, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(f"{name} must be a list of numbers: {error}.") from error
    return _floats(name, value, 1).double()


def _floats(name: str, value: Any, dimensions: int) -> Tensor:
    """An array or tensor as a tensor of float32, or of float64 if it has that precision."""
    if value.ndim != dimensions:
        kind = "vector" if dimensions == 1 else "matrix, a vector for each document"
        raise ValueError(f"{name} must be a {kind}, got the shape {tuple(value.shape)}.")
    if isinstance(value, Tensor):
        is_float = value.is_floating_point()
    else:  # NumPy knows bfloat16 by an extension only
        is_float = (value.dtype.kind == "f" and value.dtype.itemsize <= 8) or value.dtype.name == "bfloat16"
    if not is_float:
        raise ValueError(f"{name} must be floating-point vectors, got {value.dtype}. Convert them as they were made.")
    if isinstance(value, Tensor):
        return value.detach() if value.dtype == torch.float64 else value.detach().float()
    return torch.from_numpy(value.astype("float64" if value.dtype.itemsize > 4 else "float32"))


def _plain(name: str, value: Any) -> Any:
    """Vectors of any kind as a tensor, a NumPy array of numbers, or a list."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_nested:
            kind = "meta" if value.is_meta else "quantized" if value.is_quantized else "sparse or nested"
            raise ValueError(f"{name} must be a dense tensor with values, got a {kind} one.")
        return value
    if hasattr(value, "mask") and hasattr(value, "filled"):
        raise ValueError(f"{name} must be complete, got a masked array. Fill its gaps, or leave these documents out.")
    if hasattr(value, "tocsr"):
        raise ValueError(f"{name} must be dense, got a sparse matrix. Convert it with toarray().")
    if not hasattr(value, "__array__"):
        return list(_entries(name, value.tolist() if isinstance(value, memoryview) else value, "vectors"))
    array = value.__array__()  # a table or column, too
    if array.dtype.kind != "O":
        return array
    rows = list(_entries(name, array, "vectors"))  # for objects NumPy cannot see more than this
    return [row[0] for row in rows] if array.ndim == 2 and array.shape[1] == 1 else rows


def _depth(name: str, value: Any) -> int:
    """How deep lists of numbers are nested: 2 for a matrix."""
    if isinstance(value, (str, bytes, Mapping, numbers.Number, type(None))):
        return 0
    value = _plain(name, value)
    return 1 + (_depth(name, value[0]) if value else 0) if isinstance(value, list) else int(value.ndim)
