"""An application on a real socket of this machine, in a thread of its own."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn

from e2rank_st.serving.app import create_app


@contextmanager
def served(load, *, ready: bool = True, **options) -> Iterator[httpx.Client]:
    """Serve ``create_app(load, **options)``; gives a client, once the model is ready."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        place.listen(100)  # connections wait until the server takes them
        config = uvicorn.Config(create_app(load, **options), log_config=None, access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
        thread.start()
        try:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
            url = f"http://127.0.0.1:{place.getsockname()[1]}"
            with httpx.Client(base_url=url, timeout=60, limits=limits, trust_env=False) as client:
                while ready and client.get("/health").status_code != 200:
                    threading.Event().wait(0.01)
                yield client
        finally:
            server.should_exit = True
            thread.join()
