"""Requests and answers, as the clients of Cohere, Jina, vLLM, TEI and OpenAI know them.

Fields that are not here are ignored: each client sends some of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag

from e2rank_st.serving.limits import check_number

__all__ = [
    "Embedded", "EmbeddingRequest", "Embeddings", "Failed", "Listed", "RankedText", "RerankBody", "RerankRequest",
    "Reranked", "SearchRequest", "Searched", "TEIRequest", "Usage",
]  # fmt: skip

LONGEST = 1_000_000  # characters of a text; no model reads more, and a tokenizer takes 400 bytes for each
Text: TypeAlias = Annotated[str, Field(max_length=LONGEST, examples=["An adult flea lives from two to three months."])]
Query: TypeAlias = Annotated[str, Field(max_length=LONGEST, examples=["how long do fleas live"])]
Model: TypeAlias = Annotated[
    str | None, Field(description="Any name is accepted, since one server has one model.", examples=["bundled"])
]
Vector: TypeAlias = Annotated[list[float], Field(fail_fast=True)]
Tokens: TypeAlias = Annotated[list[int], Field(fail_fast=True)]
Value: TypeAlias = bool | int | float | str  # of a field


def _few(what: str) -> Callable[[Any], Any]:
    """Check the number of entries before their kinds: a million wrong ones would be a million errors."""

    def check(value: Any) -> Any:
        if isinstance(value, list):
            check_number(len(value), what)
        return value

    return check


def _few_inputs(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], int):
        value = [value]
    if isinstance(value, list):
        check_number(len(value), "inputs")
        check_number(sum(len(ids) for ids in value if isinstance(ids, list)), "token ids", "max_tokens")
    return value


class TitledText(BaseModel):
    """A document with a title."""

    text: Text
    title: str | None = None


class RerankRequest(BaseModel):
    """As Cohere v2, Jina and vLLM have it, with stored vectors as an addition."""

    model: Model = None
    query: Query
    documents: Annotated[list[Text | TitledText], BeforeValidator(_few("documents"))]
    top_n: Annotated[int | None, Field(ge=0, description="Number of results; all, if it is 0 or left out.")] = None
    return_documents: bool = False
    max_tokens_per_doc: Annotated[int | None, Field(ge=1, description="A document is cut to that many.")] = None
    instruction: Annotated[
        str | None, Field(max_length=LONGEST, description="The task; by default the model's own.")
    ] = None
    document_embeddings: Annotated[
        list[Vector] | None,
        BeforeValidator(_few("document_embeddings")),
        Field(description="Stored vectors of all documents, which are then not embedded."),
    ] = None


class TEIRequest(BaseModel):
    """As TEI has it."""

    query: Query
    texts: Annotated[list[Text], BeforeValidator(_few("texts"))]
    raw_scores: Annotated[bool, Field(description="Cosines instead of values from 0 to 1.")] = False
    return_text: bool = False
    truncate: Annotated[bool, Field(description="Accepted; the model always cuts what is too long.")] = False


def _form(body: Any) -> str:
    names = body if isinstance(body, dict) else vars(body) if isinstance(body, BaseModel) else ()
    return "tei" if "texts" in names else "rerank"


RerankBody: TypeAlias = Annotated[
    Annotated[RerankRequest, Tag("rerank")] | Annotated[TEIRequest, Tag("tei")],
    Discriminator(_form),
]


class Usage(BaseModel):
    """Tokens of the texts and prompts that were read."""

    prompt_tokens: int
    total_tokens: int


class Ranked(BaseModel):
    """One document of a ranking."""

    index: Annotated[int, Field(description="Its place in the request.")]
    relevance_score: Annotated[float, Field(ge=0, le=1, description="(1 + cosine) / 2; compare within a ranking.")]
    document: TitledText | None = None


class Reranked(BaseModel):
    """A ranking, best first."""

    id: str
    model: str
    usage: Usage
    results: list[Ranked]


class RankedText(BaseModel):
    """One text of a ranking in TEI's form."""

    index: int
    score: float
    text: str | None = None


class EmbeddingRequest(BaseModel):
    """As OpenAI has it, with the kind of text as an addition."""

    model: Model = None
    input: Annotated[
        Text | list[Text] | Tokens | Annotated[list[Tokens], Field(fail_fast=True)],
        BeforeValidator(_few_inputs),
        Field(description="Texts, or token ids, which are taken as they are.", examples=["how long do fleas live"]),
    ]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int | None, Field(ge=1, description="Keeps the first values of each vector.")] = None
    input_type: Annotated[
        Literal["query", "document"] | None, Field(description="Puts the model's prompt before texts, if it has one.")
    ] = None


class Embedded(BaseModel):
    """One vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Embeddings(BaseModel):
    """The vectors, in the order of the inputs."""

    object: Literal["list"] = "list"
    model: str
    usage: Usage
    data: list[Embedded]


class SearchRequest(BaseModel):
    """A search of the index that the server has."""

    query: Query
    top_k: Annotated[int, Field(ge=1, le=1000)] = 10
    num_candidates: Annotated[int, Field(ge=1, le=1000)] = 100
    first_stage: Literal["vector", "text", "hybrid"] = "vector"
    where: Annotated[
        dict[str, Value | list[Value]] | None,
        Field(description="Values that fields must have.", examples=[{"year": [2020, 2021]}]),
    ] = None
    rerank: bool = True
    first_stage_weight: Annotated[float | None, Field(ge=0, le=1)] = None
    min_similarity: Annotated[float | None, Field(ge=-1, le=1)] = None


class Searched(BaseModel):
    """The hits, best first."""

    id: str
    model: str
    usage: Usage
    results: list[dict[str, Any]]


class Listed(BaseModel):
    """The names that a request may give."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]


class Problem(BaseModel):
    """What was wrong, and what to do."""

    message: str
    type: str
    param: None = None
    code: None = None


class Failed(BaseModel):
    """An error: OpenAI's form below /v1, and else TEI's."""

    error: Problem | str
    error_type: str | None = None
