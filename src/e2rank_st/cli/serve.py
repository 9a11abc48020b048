"""A model and perhaps an index → a server, in this process."""

from __future__ import annotations

import ipaddress
import logging
import os
from typing import TYPE_CHECKING, Annotated

import typer

from e2rank_st.cli.models import BUNDLED, IndexModel, load_encoder, name_of_maker
from e2rank_st.cli.options import Device, Dtype, Verbose, examples

if TYPE_CHECKING:
    from e2rank_st.model import E2Rank
    from e2rank_st.search.index import SearchIndex

__all__ = ["SERVE_EXAMPLES", "serve"]

logger = logging.getLogger(__name__)

SERVE_EXAMPLES = examples(
    "serve",
    "serve notes.lance --port 9000",
    "serve --model org/name --host 0.0.0.0 --cache-mb 500",
)


def serve(
    index: Annotated[str | None, typer.Argument(metavar="INDEX", help="An index to search, see e2rank index.")] = None,
    model: IndexModel = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="0.0.0.0 is every network of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, metavar="N", help="Port to listen at.")] = 8000,
    max_documents: Annotated[int, typer.Option(min=1, metavar="N", help="Most documents of a request.")] = 2_000,
    max_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Most tokens of a request.")] = 1_000_000,
    max_body_mb: Annotated[float, typer.Option(min=0.001, metavar="MB", help="Largest request.")] = 16,
    max_queue: Annotated[int, typer.Option(min=1, metavar="N", help="Most requests that run or wait.")] = 256,
    timeout: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Longest time of a request.")] = 60,
    batch_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Most tokens that share a batch.")] = 16_384,
    batch_wait_ms: Annotated[float, typer.Option(min=0, metavar="MS", help="Longest wait for other requests.")] = 3,
    cache_mb: Annotated[int, typer.Option(min=0, metavar="MB", help="Cache of vectors of texts; 0 keeps none.")] = 0,
    device: Device = None,
    dtype: Dtype = "auto",
    verbose: Verbose = 0,
) -> None:
    """Serve rerank (Jina, Cohere v2, vLLM, TEI), embeddings (OpenAI) and search at a URL.

    The page /docs shows all paths. If the environment variable E2RANK_API_KEY is set, requests must give it as
    'Authorization: Bearer KEY'.
    """
    from e2rank_st.backends.module import KEY
    from e2rank_st.serving.app import Batching, create_app
    from e2rank_st.serving.limits import Limits
    from e2rank_st.serving.run import run

    def load() -> tuple[E2Rank, SearchIndex | None]:
        from e2rank_st.search.index import SearchIndex

        encoder = load_encoder(model or (name_of_maker(index) if index else None) or BUNDLED, device, dtype)
        return encoder, SearchIndex.open(index, encoder) if index else None

    key = os.environ.get(KEY) or None
    if key is None and not _is_loopback(host):
        logger.warning("Anyone who reaches %s may use this server. Set %s to ask for a key.", host, KEY)
    limits = Limits(int(max_body_mb * 1e6), max_documents, max_tokens, max_queue, timeout)
    batching = Batching(batch_tokens, batch_wait_ms / 1000, cache_mb * 1_000_000)
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"serving at http://{shown}:{port}, all paths at /docs; Ctrl-C ends it", err=True)
    run(lambda on_failure: create_app(load, limits, batching, key, on_failure), host, port, timeout)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
