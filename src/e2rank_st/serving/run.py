"""An application → a process that serves it until it is told to stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    import uvicorn
except ModuleNotFoundError as error:
    raise ImportError("A server needs uvicorn: pip install 'e2rank-st[serve]'") from error

__all__ = ["run"]


def run(make: Callable[[Callable[[BaseException], None]], Any], host: str, port: int, timeout: float) -> None:
    """Serve an application. SIGTERM and Ctrl-C let running requests finish.

    Args:
        make: Makes the application; it is given what to call if the model cannot be loaded.
        host: Address to listen at.
        port: Port to listen at.
        timeout: Seconds that running requests have to finish after a signal.

    Raises:
        BaseException: The one with which loading failed.
        OSError: The port is not free.
    """
    failed: list[BaseException] = []

    def stop(error: BaseException) -> None:
        failed.append(error)
        server.should_exit = True

    config = uvicorn.Config(
        make(stop), host=host, port=port, timeout_graceful_shutdown=int(timeout) + 1, access_log=False, log_config=None
    )
    server = uvicorn.Server(config)
    try:
        server.run()
    except SystemExit as error:  # uvicorn's, after it has logged the reason
        raise OSError(f"Cannot serve at {host}:{port}. Is the port in use?") from error
    if failed:
        raise failed[0]
