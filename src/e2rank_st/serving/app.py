"""The application: paths, errors and the life of a server. It runs under uvicorn, or as a deployment of Ray Serve."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import anyio.to_thread

from e2rank_st import __version__
from e2rank_st.model import E2Rank
from e2rank_st.search.index import SearchIndex

try:
    from fastapi import FastAPI, HTTPException, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException as AnyHTTPException

    from e2rank_st.serving.limits import Gate, Limits, TooManyError, failure
    from e2rank_st.serving.metrics import Metrics
    from e2rank_st.serving.protocol import (
        EmbeddingRequest,
        Embeddings,
        Failed,
        Listed,
        RankedText,
        RerankBody,
        Reranked,
        Searched,
        SearchRequest,
        TEIRequest,
        Usage,
    )
    from e2rank_st.serving.queue import ForwardQueue, Job, LateError, LeftError, TokenLimitError
    from e2rank_st.serving.service import Service
except ModuleNotFoundError as error:
    raise ImportError(f"A server needs {error.name}: pip install 'e2rank-st[serve]'") from error

__all__ = ["Batching", "Loaded", "create_app"]

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")
Loaded = tuple[E2Rank, SearchIndex | None]

CLIENT_LEFT = 499  # nginx's; nobody reads it
ERRORS: tuple[tuple[type[Exception], int, str], ...] = (  # the first that fits
    (TooManyError, 413, "too_large"),
    (TokenLimitError, 413, "too_large"),
    (LateError, 503, "timeout"),
    (LeftError, CLIENT_LEFT, "client_left"),
    (ValueError, 422, "validation"),
)
DESCRIPTIONS: dict[int | str, dict[str, Any]] = {
    status: {"model": Failed, "description": text}
    for status, text in (
        (400, "The body is not JSON in UTF-8."),
        (401, "The key is missing or wrong."),
        (408, "The request arrives too slowly."),
        (413, "More bytes, documents or tokens than are allowed."),
        (422, "A value is not allowed."),
        (429, "Too many requests wait. Try again after the seconds of Retry-After."),
        (503, "The model is not loaded yet, or the answer takes too long."),
    )
}


@dataclass(frozen=True)
class Batching:
    """How requests share forward passes: see :class:`~e2rank_st.serving.queue.ForwardQueue`.

    Attributes:
        max_tokens: Most tokens at a time.
        wait: Seconds to wait for other requests.
        cache_bytes: Size of the cache of vectors of texts.
        threads: Most requests that run at a time.
    """

    max_tokens: int = 16_384
    wait: float = 0.003
    cache_bytes: int = 0
    threads: int = 64


@dataclass(eq=False)
class _State:
    """What the paths share."""

    load: Callable[[], Loaded]
    limits: Limits
    batching: Batching
    on_failure: Callable[[BaseException], None]
    service: Service | None = None
    waiting: int = 0
    seconds: float = 0.1  # of an answer, as a moving mean
    has_failed: bool = False
    threads: anyio.CapacityLimiter = field(init=False)
    metrics: Metrics = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = Metrics(lambda: self.waiting)

    def start(self) -> None:
        """Load the model, in a thread of its own."""
        try:
            model, index = self.load()
        except BaseException as error:
            self.has_failed = True
            self.on_failure(error)
            raise
        how = self.batching
        queue = ForwardQueue(
            model,
            max_tokens=how.max_tokens,
            wait=how.wait,
            cache_bytes=how.cache_bytes,
            on_batch=self.metrics.computed,
        )
        self.service = Service(queue, index)
        gc.freeze()  # what is loaded stays: else collections while a large request is read walk through all of it
        logger.info("Ready: %s", self.service.name)

    def ready(self) -> Service:
        """The service, or an error that asks to come again."""
        if self.has_failed:
            raise HTTPException(503, "The model cannot be loaded; the server's log tells why.")
        if self.service is None:
            raise HTTPException(503, "The model is being loaded. Try again in some seconds.", {"Retry-After": "2"})
        return self.service

    async def answer(self, request: Request, work: Callable[[], Answer]) -> tuple[Answer, Job]:
        """Compute an answer in a thread; drop what is left of it when the client leaves."""
        service = self.ready()
        if self.waiting >= self.limits.max_queue:
            seconds = max(1, math.ceil(self.seconds * self.waiting / self.batching.threads))
            raise HTTPException(
                429, f"{self.waiting} requests wait already. Try again later.", {"Retry-After": str(seconds)}
            )
        job = Job(self.limits.timeout, self.limits.max_tokens)

        def run() -> Answer:
            with service.queue.running(job):
                return work()

        watch = asyncio.create_task(_watch(request, job))
        self.waiting += 1
        begin = time.perf_counter()
        try:
            return await anyio.to_thread.run_sync(run, limiter=self.threads), job
        finally:
            self.waiting -= 1
            self.seconds += 0.1 * (time.perf_counter() - begin - self.seconds)
            watch.cancel()


async def _watch(request: Request, job: Job) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.leave()


def _log(error: BaseException) -> None:
    logger.error("The model cannot be loaded: %s", error)


def create_app(
    load: Callable[[], Loaded],
    limits: Limits = Limits(),  # noqa: B008  # it cannot be changed
    batching: Batching = Batching(),
    key: str | None = None,
    on_failure: Callable[[BaseException], None] = _log,
) -> Any:
    """Make the application of a server.

    Args:
        load: Loads the model and the index, if there is one. It is called once, when the server starts.
        limits: What requests may cost.
        batching: How they share forward passes.
        key: The key that requests must give; None lets everyone in.
        on_failure: Is told if the model cannot be loaded; by default, the log is.

    Returns:
        An ASGI application.
    """
    state = _State(load, limits, batching, on_failure)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        state.threads = anyio.CapacityLimiter(batching.threads)
        threading.Thread(target=_quietly(state.start), name="load", daemon=True).start()
        yield
        if state.service is not None:
            state.service.queue.close()

    app = FastAPI(
        title="e2rank-st",
        version=__version__,
        description="Embeddings, listwise reranking and search with one model.",
        lifespan=life,
        responses=DESCRIPTIONS,
    )
    _add_status(app, state)
    _add_answers(app, state)
    _add_errors(app)
    app.add_middleware(Gate, limits=limits, key=key)
    app.add_middleware(Counted, metrics=state.metrics)
    return app


def _quietly(work: Callable[[], None]) -> Callable[[], None]:
    """Run without a traceback on stderr: the error has been told already."""

    def run() -> None:
        with suppress(Exception):
            work()

    return run


def _add_status(app: FastAPI, state: _State) -> None:
    """Add the paths that tell how the server is."""

    @app.get("/health", tags=["status"])
    async def health(response: Response) -> dict[str, str]:
        """Tells whether the server is ready: 200, or 503 while it loads."""
        if state.service is None:
            response.status_code = 503
            return {"status": "failed" if state.has_failed else "loading"}
        return {"status": "ready", "model": state.service.name, "version": __version__}

    @app.get("/metrics", tags=["status"], response_class=Response)
    async def metrics() -> Response:
        """Gives the metrics in Prometheus' form."""
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", tags=["status"])
    async def models() -> Listed:
        """Lists the model, and the one with its prompt adapter if it has one."""
        rows = [{"id": name, "object": "model", "owned_by": "e2rank-st"} for name in state.ready().names]
        return Listed(data=rows)


def _add_answers(app: FastAPI, state: _State) -> None:
    """Add the paths that compute."""

    @app.post("/v1/rerank", tags=["rerank"], response_model_exclude_none=True)
    @app.post("/v2/rerank", tags=["rerank"], response_model_exclude_none=True)
    @app.post("/rerank", tags=["rerank"], response_model_exclude_none=True)
    async def rerank(body: RerankBody, request: Request) -> Reranked | list[RankedText]:
        """Ranks documents for a query, listwise. A body with ``texts`` gets TEI's form."""
        service = state.ready()
        if isinstance(body, TEIRequest):
            return (await state.answer(request, partial(service.rerank_tei, body)))[0]
        results, job = await state.answer(request, partial(service.rerank, body))
        return Reranked(id=_id("rerank"), model=service.name, usage=_usage(job), results=results)

    @app.post("/v1/embeddings", tags=["embeddings"])
    async def embeddings(body: EmbeddingRequest, request: Request) -> Embeddings:
        """Embeds texts or token ids."""
        service = state.ready()
        data, job = await state.answer(request, partial(service.embed, body))
        return Embeddings(model=service.name, usage=_usage(job), data=data)

    @app.post("/v1/search", tags=["search"])
    async def search(body: SearchRequest, request: Request) -> Searched:
        """Searches the index of the server, and reranks what is found."""
        service = state.ready()
        if service.index is None:
            raise HTTPException(404, "This server has no index. Start it with one: e2rank serve INDEX.")
        results, job = await state.answer(request, partial(service.search, body))
        return Searched(id=_id("search"), model=service.name, usage=_usage(job), results=results)


def _id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


def _usage(job: Job) -> Usage:
    return Usage(prompt_tokens=job.tokens, total_tokens=job.tokens)


def _add_errors(app: FastAPI) -> None:
    """Answer errors as JSON that says what to do. No text of a request is repeated."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        parts = error.errors()[:5]
        problems = [f"{'.'.join(map(str, part['loc'][1:])) or 'body'}: {part['msg']}" for part in parts]
        if "json" not in request.headers.get("content-type", ""):
            problems.append("Send the header Content-Type: application/json")
        status = 400 if parts[0]["type"] == "json_invalid" else 422
        return JSONResponse(failure(request.url.path, "; ".join(problems), "validation"), status)

    @app.exception_handler(AnyHTTPException)
    async def refused(request: Request, error: AnyHTTPException) -> Response:
        kinds = {400: "validation", 404: "not_found", 405: "not_found", 429: "overloaded", 503: "unavailable"}
        text = "The body is not JSON in UTF-8." if error.status_code == 400 else str(error.detail)
        body = failure(request.url.path, text, kinds.get(error.status_code, "error"))
        return JSONResponse(body, error.status_code, error.headers)

    async def failed(request: Request, error: Exception) -> Response:
        status, kind = next((status, kind) for cls, status, kind in ERRORS if isinstance(error, cls))
        return JSONResponse(
            failure(request.url.path, str(error), kind), status, {"Retry-After": "5"} if status == 503 else None
        )

    for kind, _, _ in ERRORS:
        app.add_exception_handler(kind, failed)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        text = "The server failed on this request; its log tells more."
        body = failure(request.url.path, text, "internal")
        return JSONResponse(body, 500, {"Connection": "close"})  # uvicorn closes it after any exception


class Counted:
    """ASGI middleware that counts answers and their time."""

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, and count its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 500

        async def noted(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.answered(path, status, time.perf_counter() - begin)
