"""The toy model behind our own server, and as a client sees it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from e2rank_st import E2Rank
from tests.toy import with_prompt_adapter

for library in ("openai", "fastapi", "uvicorn"):
    pytest.importorskip(library)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("E2RANK_API_KEY", raising=False)


@pytest.fixture(scope="session")
def url(tiny: E2Rank) -> Iterator[str]:
    from tests.backends.servers import own

    with own(tiny) as url:
        yield url


@pytest.fixture(scope="session")
def remote(url: str, checkpoint: Path) -> E2Rank:
    """The toy model behind our own server."""
    return E2Rank.remote(url, str(checkpoint))


@pytest.fixture(scope="session")
def adapted(tiny: E2Rank, tmp_path_factory: pytest.TempPathFactory) -> tuple[E2Rank, Path]:
    """The toy model with a prompt adapter, and its folder."""
    model, folder = with_prompt_adapter(tiny), tmp_path_factory.mktemp("adapted") / "toy-adapted"
    model.save(str(folder))
    return model, folder
