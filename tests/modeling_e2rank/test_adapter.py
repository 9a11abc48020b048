"""The prompt adapter: listwise prompts change, and no other vector does."""

import copy
import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from e2rank_st import E2Rank
from e2rank_st.adapter_e2rank import ADAPTER_CONFIG, ADAPTER_WEIGHTS, LoraAdapter
from tests.modeling_e2rank.rankings import QUERY, assert_same, scores
from tests.toy import with_prompt_adapter, with_trained_adapter

HOME = "2_ListwiseRerank"


@pytest.fixture
def adapted(tiny: E2Rank) -> E2Rank:
    return with_prompt_adapter(tiny)


@pytest.fixture
def folder(adapted: E2Rank, tmp_path: Path) -> Path:
    adapted.save(str(tmp_path / "model"))
    return tmp_path / "model"


def assert_adapted(model: SentenceTransformer, adapted: E2Rank, tiny: E2Rank, facts: list[str]) -> None:
    """Its vectors are the base's bit for bit, and its rankings those of the adapted model."""
    for task in ("encode", "encode_query", "encode_document"):
        assert (getattr(model, task)(facts) == getattr(tiny, task)(facts)).all(), task
    assert_same(model.rerank(QUERY, facts), adapted.rerank(QUERY, facts), 0)


def test_only_prompts_change(adapted: E2Rank, tiny: E2Rank, facts: list[str]) -> None:
    """Guards against an adapter that changes stored vectors, or that does nothing, or whose weights the model lists."""
    assert_adapted(adapted, adapted, tiny, facts)
    ours, plain = scores(adapted.rerank(QUERY, facts)), scores(tiny.rerank(QUERY, facts))
    assert max(abs(ours[index] - plain[index]) for index in ours) > 1e-3, "the premise"
    assert [name for name, _ in adapted.named_parameters()] == [name for name, _ in tiny.named_parameters()]
    assert adapted.state_dict().keys() == tiny.state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_prompts_are_those_of_peft(tiny: E2Rank, adapted: E2Rank, facts: list[str], dtype: torch.dtype) -> None:
    """Guards against a different formula than that of training: PEFT's own forward pass gives the same vectors."""
    peft = with_trained_adapter(tiny).to(dtype).eval()
    model = copy.deepcopy(adapted).to(dtype)
    embedder = model.listwise.embedder()
    ids = [prompt.ids for prompt in embedder.prompts([QUERY], [facts[:3]], model.listwise.instruction)]
    with torch.inference_mode():
        ours = embedder.embed(ids, "prompt")
        theirs = peft({"input_ids": torch.tensor(ids), "attention_mask": torch.ones(1, len(ids[0]), dtype=torch.int64)})
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours, theirs["sentence_embedding"].float(), atol=tolerance, rtol=0)


def test_the_copy_shares_all_but_the_adapted_weights(adapted: E2Rank) -> None:
    """Guards against a second model in memory, and a copy that is made anew for each call."""
    tower = adapted.listwise.prompt_model
    assert adapted.listwise.prompt_model is tower
    own = {id(parameter) for parameter in adapted.parameters()}
    apart = {name for name, parameter in tower.named_parameters() if id(parameter) not in own}
    assert apart
    assert len(apart) == len(adapted.listwise.adapter.keys)
    assert not [name for name in apart if "embed" in name]
    assert tower[0].processor is adapted[0].processor


def test_the_copy_follows_its_base(adapted: E2Rank, tiny: E2Rank, facts: list[str]) -> None:
    """Guards against prompts by weights that are gone: after training, loading weights, or a change of the type."""
    tower = adapted.listwise.prompt_model
    with torch.no_grad():
        adapted.transformers_model.layers[0].mlp.up_proj.weight.mul_(1.1)
    assert adapted.listwise.prompt_model is not tower
    adapted.load_state_dict(tiny.state_dict())
    assert_same(adapted.rerank(QUERY, facts), with_prompt_adapter(tiny).rerank(QUERY, facts), 0)
    adapted.to(torch.bfloat16)
    assert {parameter.dtype for parameter in adapted.listwise.prompt_model.parameters()} == {torch.bfloat16}
    adapted.listwise.adapter = None
    assert adapted.listwise.prompt_model is adapted


@pytest.mark.parametrize("way", ["package", "remote code", "deepcopy", "pickle", "compile", "replace"])
def test_ways_to_another_model(way: str, adapted: E2Rank, folder: Path, tiny: E2Rank, facts: list[str]) -> None:
    """Guards against a copy that lost the adapter, or that shares it with its original in the wrong way."""
    if way == "package":
        model = E2Rank(str(folder), device="cpu")
    elif way == "remote code":
        model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    elif way == "pickle":
        model = pickle.loads(pickle.dumps(adapted))  # our own
    else:
        model = copy.deepcopy(adapted)
    if way == "compile":
        model[0].compile(backend="eager")
    if way == "replace":
        model.replace_listwise(query_weight=0.0)
    assert_adapted(model, adapted, tiny, facts)


def test_process_pool(adapted: E2Rank, tiny: E2Rank, facts: list[str]) -> None:
    """Guards against a model that another process cannot receive after it has reranked."""
    adapted.rerank(QUERY, facts)
    pool = adapted.start_multi_process_pool(["cpu", "cpu"])
    try:
        vectors = adapted.encode_document(facts, pool=pool, chunk_size=5)
    finally:
        adapted.stop_multi_process_pool(pool)
    torch.testing.assert_close(vectors, tiny.encode_document(facts), atol=1e-6, rtol=0)


def test_files_are_pefts(adapted: E2Rank, folder: Path, tiny: E2Rank, facts: list[str], tmp_path: Path) -> None:
    """Guards against a format of our own: PEFT loads the two files, and they stay the same through save and load."""
    peft_model = pytest.importorskip("peft").PeftModel.from_pretrained(
        copy.deepcopy(tiny.transformers_model), folder / HOME
    )
    ids = tiny.tokenizer(facts[0], return_tensors="pt")
    with torch.inference_mode():
        theirs = peft_model(**ids).last_hidden_state
        ours = adapted.listwise.prompt_model[0](dict(ids))["token_embeddings"]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    E2Rank(str(folder), device="cpu").save(str(tmp_path / "again"))
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        assert (tmp_path / "again" / HOME / name).read_bytes() == (folder / HOME / name).read_bytes()


def test_encode_while_a_prompt_is_embedded(adapted: E2Rank, tiny: E2Rank, facts: list[str]) -> None:
    """Guards against an adapter that is switched on for everybody: one thread encodes while another is in a prompt."""
    inside, goes_on = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        inside.set()
        assert goes_on.wait(60)

    expected = adapted.rerank(QUERY, facts)
    handle = adapted.listwise.prompt_model[0].register_forward_pre_hook(hold)
    with ThreadPoolExecutor(1) as threads:
        ranking = threads.submit(adapted.rerank, QUERY, facts)
        assert inside.wait(60)
        assert (adapted.encode(facts) == tiny.encode(facts)).all()
        goes_on.set()
        assert ranking.result() == expected
    handle.remove()


def test_many_threads_at_first_use(adapted: E2Rank, facts: list[str]) -> None:
    """Guards against a half-made copy: 16 threads rerank with a model that nobody has used."""
    expected = copy.deepcopy(adapted).rerank(QUERY, facts)
    with ThreadPoolExecutor(16) as threads:
        assert all(one == expected for one in threads.map(lambda _: adapted.rerank(QUERY, facts), range(32)))


def test_what_is_refused(folder: Path, adapted: E2Rank, bundled: E2Rank) -> None:
    """Guards against an adapter of a different base, half an adapter, and weights by a different formula."""
    home = folder / HOME
    foreign = copy.deepcopy(bundled)
    foreign.listwise.adapter = adapted.listwise.adapter
    with pytest.raises(ValueError, match="no such layer"):
        foreign.rerank(QUERY, ["a"])
    with pytest.raises(ValueError, match="no such layer"):
        foreign.listwise.on_model_ready(foreign)
    config, tensors = json.loads((home / ADAPTER_CONFIG).read_text()), load_file(home / ADAPTER_WEIGHTS)
    for change, message in (({"use_rslora": True}, "use_rslora"), ({"r": 0}, "'r' to 0"), ({"r": 5}, "r=5")):
        with pytest.raises(ValueError, match=message):
            list(LoraAdapter(config | change, tensors).layers(adapted.transformers_model))
    (home / ADAPTER_CONFIG).write_text(json.dumps(config | {"use_dora": True}))
    for load in (E2Rank, lambda name: SentenceTransformer(name, trust_remote_code=True)):
        with pytest.raises(ValueError, match="use_dora"):
            load(str(folder))
    (home / ADAPTER_CONFIG).write_text(json.dumps(config))
    tensors.popitem()
    save_file(tensors, home / ADAPTER_WEIGHTS)
    with pytest.raises(ValueError, match="pairs of lora_A"):
        E2Rank(str(folder))
    (home / ADAPTER_WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(ValueError, match="safetensors"):
        E2Rank(str(folder))
    (home / ADAPTER_WEIGHTS).unlink()
    with pytest.raises(ValueError, match=ADAPTER_WEIGHTS):
        E2Rank(str(folder))
