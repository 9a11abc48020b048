"""Servers on real sockets, models of several kinds, and forward passes that wait for a test."""

import copy
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from transformers import BertConfig, BertModel

for library in ("fastapi", "uvicorn", "prometheus_client", "cachetools"):
    pytest.importorskip(library)

from e2rank_st import E2Rank  # noqa: E402
from e2rank_st.serving.queue import ForwardQueue  # noqa: E402
from tests.test_embedding_models import MODELS, TEXT_ONLY, wordpiece  # noqa: E402
from tests.toy import with_prompt_adapter  # noqa: E402

KINDS = ("tiny", "prompt-adapter", "without-prompt", "dense", "default-prompt")


class Held:
    """The forward passes of a model: each waits until the test lets all go on.

    Attributes:
        rows: Texts of each pass.
        goes_on: Is set to let them go on.
    """

    def __init__(self, model: E2Rank) -> None:
        self.rows: list[int] = []
        self.goes_on = threading.Event()
        self._begun = threading.Semaphore(0)
        self._handle = model[0].register_forward_pre_hook(self._hold)

    def _hold(self, _, args) -> None:
        self.rows.append(len(args[0]["input_ids"]))
        self._begun.release()
        assert self.goes_on.wait(60)

    def wait(self) -> None:
        """Wait until a pass has begun."""
        assert self._begun.acquire(timeout=60)

    def close(self) -> None:
        """Let all go on, from now on."""
        self.goes_on.set()
        self._handle.remove()


@pytest.fixture
def held(tiny: E2Rank) -> Iterator[Held]:
    """Forward passes of the tiny model, which wait."""
    held = Held(tiny)
    yield held
    held.close()


@pytest.fixture
def make_queue(tiny: E2Rank, held: Held) -> Iterator[Callable[..., ForwardQueue]]:
    """Make queues before the tiny model; they are closed at the end."""
    made: list[ForwardQueue] = []

    def make(**options) -> ForwardQueue:
        made.append(ForwardQueue(tiny, **options))
        return made[-1]

    yield make
    held.goes_on.set()
    for queue in made:
        queue.close()


@pytest.fixture(scope="session", params=KINDS)
def kind(request, tiny: E2Rank, tmp_path_factory: pytest.TempPathFactory) -> E2Rank:
    """Models with and without a prompt adapter, with prompts that the pooling leaves out, and with cut vectors."""
    if request.param == "tiny":
        return tiny
    if request.param == "prompt-adapter":
        return with_prompt_adapter(tiny)
    folder: Path = tmp_path_factory.mktemp("kind")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(wordpiece()), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder / "bert")
    wordpiece().save_pretrained(folder / "bert")
    make, options = copy.deepcopy(MODELS[request.param])
    transformer = Transformer(
        str(folder / "bert"), max_seq_length=64, modality_config=TEXT_ONLY, module_output_name="token_embeddings"
    )
    SentenceTransformer(modules=[transformer, *make()], device="cpu", **options).save_pretrained(str(folder / "model"))
    model = E2Rank(str(folder / "model"), device="cpu", truncate_dim=options.get("truncate_dim"))
    model.untrained = False  # its warning is not of interest here
    return model
