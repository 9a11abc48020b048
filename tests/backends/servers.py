"""Servers for the tests, each in a thread of its own at a free port of the loopback."""

import copy
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from e2rank_st import E2Rank
from e2rank_st.serving.app import create_app


@contextmanager
def serve(app: Any) -> Iterator[str]:
    """Serve an application; gives its URL."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            until(lambda: server.started)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def own(model: E2Rank, key: str | None = None) -> Iterator[str]:
    """Serve a model as ``e2rank serve`` does."""
    with serve(create_app(lambda: (model, None), key=key)) as url:
        until(lambda: httpx.get(f"{url}/health").status_code == 200)
        yield url


@contextmanager
def closing() -> Iterator[str]:
    """A server that closes each connection."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def until(is_so: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


@dataclass
class Foreign:
    """A server of embeddings with the manners of others.

    Attributes:
        model: Embeds.
        takes_ids: Whether it takes token ids; else it answers 422, as pydantic does.
        names: The models that it lists; None if it lists none.
        known: The models that it knows; all if it is empty.
        most: Tokens at which it cuts a text; None if it does not.
        delay: Seconds before an answer.
        failures: Status and headers of its first answers to embeddings; None stands for a right answer.
        change: Changes an answer.
        requests: Headers and bodies of requests for embeddings.
        peak: Most requests at a time.
    """

    model: E2Rank
    takes_ids: bool = True
    names: tuple[str, ...] | None = ("toy",)
    known: tuple[str, ...] = ()
    most: int | None = None
    delay: float = 0.0
    failures: list[tuple[int, dict[str, str]] | None] = field(default_factory=list)
    change: Callable[[dict[str, Any]], Any] = lambda answer: answer
    requests: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)
    peak: int = 0
    _running: int = 0

    def app(self) -> FastAPI:
        """The application."""
        app = FastAPI()
        tokenizer = copy.deepcopy(self.model.tokenizer.backend_tokenizer)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = False

        @app.get("/v1/models")
        def models() -> Any:
            if self.names is None:
                return JSONResponse({"detail": "Not Found"}, 404)
            return {"object": "list", "data": [{"id": name, "object": "model"} for name in self.names]}

        @app.post("/v1/embeddings")
        async def embeddings(request: Request) -> Any:
            body = await request.json()
            self.requests.append((dict(request.headers), body))
            if self.failures and (failure := self.failures.pop(0)):
                status, headers = failure
                return JSONResponse({"error": {"message": f"no, {request.headers['authorization']}"}}, status, headers)
            if not self.takes_ids and not isinstance(body["input"][0], str):
                return JSONResponse({"detail": [{"msg": "Input should be a valid string"}]}, 422)
            if self.known and body["model"] not in self.known:
                return JSONResponse({"error": {"message": "The model does not exist"}}, 404)
            self._running += 1
            self.peak = max(self.peak, self._running)
            answer = await run_in_threadpool(self._embed, tokenizer, body)
            self._running -= 1
            changed = self.change(answer)
            return changed if isinstance(changed, Response) else JSONResponse(changed)

        return app

    def _embed(self, tokenizer: Any, body: dict[str, Any]) -> dict[str, Any]:
        time.sleep(self.delay)
        ids = [tokenizer.encode(text).ids if isinstance(text, str) else text for text in body["input"]]
        rows = [tuple(row[: self.most]) for row in ids]
        vectors = self.model.listwise.embedder().embed(rows, "prompt" if body["model"].endswith("lora") else "text")
        data = [{"object": "embedding", "index": row, "embedding": one.tolist()} for row, one in enumerate(vectors)]
        return {"object": "list", "data": data, "model": body["model"], "usage": {"prompt_tokens": 0}}
