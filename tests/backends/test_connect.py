"""A model behind a server does what it does here: vectors, rankings, indexes and measures."""

import asyncio
import copy
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer

from e2rank_st import E2Rank, SearchIndex
from e2rank_st.backends.connect import Settings, connect, read_settings
from e2rank_st.backends.remote import RemoteBackend, Server
from e2rank_st.evaluation.evaluator import RerankingEvaluator
from tests.backends.servers import Foreign, own, serve
from tests.test_embedding_models import MODELS, QUERY, TEXT_ONLY, TEXTS, bert  # noqa: F401  # a fixture
from tests.toy import toy_rows

ENCODE = ("encode", "encode_query", "encode_document")


def assert_same(model: E2Rank, local: E2Rank, query: str = QUERY, texts: list[str] = TEXTS, **options: object) -> None:
    """The same vectors, but for their length, and the same ranking."""
    for name in ENCODE:
        vectors, expected = (getattr(one, name)(texts, convert_to_tensor=True) for one in (model, local))
        assert F.cosine_similarity(vectors, expected).min() > 1 - 1e-5, name
    assert_same_ranking(model.rerank(query, texts, **options), local.rerank(query, texts, **options))


def assert_same_ranking(hits: list[dict], expected: list[dict]) -> None:
    """The same scores; only what is equal may change places."""
    np.testing.assert_allclose([hit["score"] for hit in hits], [hit["score"] for hit in expected], atol=2e-5)
    scores = {hit["corpus_id"]: hit["score"] for hit in expected}
    np.testing.assert_allclose([scores[hit["corpus_id"]] for hit in hits], [hit["score"] for hit in hits], atol=2e-5)


def test_our_own_server(remote: E2Rank, tiny: E2Rank, facts: list[str]):
    """Guards against a model that ranks differently on a server: control tokens, odd texts, chat prompts."""
    assert remote[0].takes_ids
    assert (remote.prompts, remote.listwise.get_config_dict()) == (tiny.prompts, tiny.listwise.get_config_dict())
    assert_same(remote, tiny)
    assert_same(remote, tiny, "how long do fleas live", facts, query_weight=0.3, num_prompt_documents=4)
    many, expected = (one.rerank(["fleas", "iron"], facts, top_k=3) for one in (remote, tiny))
    for hits, there in zip(many, expected, strict=True):
        assert_same_ranking(hits, there)


@pytest.mark.parametrize("name", MODELS)
def test_any_embedding_model(name: str, bert: Path, checkpoint: Path, tmp_path: Path):  # noqa: F811
    """Guards against settings that are read with the weights only: prompts, limits, special tokens, similarity."""
    (make, options), is_causal = copy.deepcopy(MODELS[name]), name == "lasttoken"
    base = {"modality_config": TEXT_ONLY, "module_output_name": "token_embeddings"}
    base["processing_kwargs"] = options.pop("processing_kwargs", None)
    options.pop("truncate_dim", None)
    transformer = Transformer(str(checkpoint if is_causal else bert), max_seq_length=64, **base)
    SentenceTransformer(modules=[transformer, *make()], device="cpu", **options).save(str(tmp_path / name))
    local = E2Rank(str(tmp_path / name), device="cpu")
    if name == "without-prompt":
        with pytest.raises(ValueError, match="leaves prompts out"):
            read_settings(str(tmp_path / name))
        return
    with own(local) as url:
        model = E2Rank.remote(url, str(tmp_path / name))
        assert model.untrained and model.name == name
        assert (model.prompts, model.similarity_fn_name) == (local.prompts, local.similarity_fn_name)
        assert model.listwise.get_config_dict() == local.listwise.get_config_dict()
        # A model without special tokens has nothing to embed of an empty text.
        assert_same(model, local, texts=[text for text in TEXTS if local.tokenizer(text)["input_ids"]])


def test_prompts_are_embedded_with_the_adapter(adapted: tuple[E2Rank, Path], tiny: E2Rank, facts: list[str]):
    """Guards against prompts that the server embeds as texts, and texts that it embeds as prompts."""
    local, folder = adapted
    scores = [[hit["score"] for hit in one.rerank("fleas", facts)] for one in (local, tiny)]
    assert np.abs(np.subtract(*scores)).max() > 1e-3
    with own(local) as url:
        model = E2Rank.remote(url, str(folder))
        assert not model.untrained
        assert_same(model, local, "fleas", facts)
        assert_same(copy.deepcopy(model), local, "fleas", facts)
        assert_same(pickle.loads(pickle.dumps(model)), local, "fleas", facts)
    server = Foreign(local, names=("base", "some-lora"))
    with serve(server.app()) as url:
        assert_same(E2Rank.remote(url, str(folder), prompt_model="some-lora"), local, "fleas", facts)
        assert {body["model"] for _, body in server.requests} == {"base", "some-lora"}


def test_a_prompt_model_that_is_not_there(adapted: tuple[E2Rank, Path], tiny: E2Rank):
    """Guards against a server that takes any name, and embeds prompts without the adapter."""
    _, folder = adapted
    with own(tiny) as url:
        for options in ({}, {"prompt_model": "tiny-qwen3:promt"}):
            with pytest.raises(ValueError, match=r"has no model 'tiny-qwen3:prom.*prompt_model="):
                E2Rank.remote(url, str(folder), **options)
    server = Foreign(tiny, names=None)
    with serve(server.app()) as url:
        with pytest.raises(ValueError, match="prompt_model="):
            E2Rank.remote(url, str(folder))
        assert E2Rank.remote(url, str(folder), model="base", prompt_model="lora").name == "base"


def test_the_adapter_alone_names_its_base(adapted: tuple[E2Rank, Path], checkpoint: Path, tmp_path: Path):
    """Guards against a tokenizer that is looked for beside the adapter."""
    adapted[0].save_prompt_adapter(tmp_path / "alone")
    path = tmp_path / "alone" / "2_ListwiseRerank" / "adapter_config.json"
    path.write_text(path.read_text().replace('"toy/base"', f'"{checkpoint}"'))
    settings = read_settings(str(tmp_path / "alone"))
    assert settings.has_adapter and not settings.untrained
    assert settings.listwise == adapted[0].listwise.get_config_dict()
    assert settings.tokenizer("a")["input_ids"] == adapted[0].tokenizer("a")["input_ids"]


@pytest.mark.parametrize("name", ["bundled", "bundled-base"])
def test_bundled_models(name: str, shipped: E2Rank, bundled: E2Rank):
    """Guards against settings of a bundled model that differ between here and there."""
    local, settings = {"bundled": shipped, "bundled-base": bundled}[name], read_settings(name)
    made = connect_to_nothing(settings)
    assert made.listwise.get_config_dict() == local.listwise.get_config_dict()
    assert (made.prompts, made.max_seq_length, settings.untrained) == (
        local.prompts, local.max_seq_length, local.untrained,
    )  # fmt: skip


def connect_to_nothing(settings: Settings) -> E2Rank:
    """The model of some settings, whose forward pass does not work."""
    server = Server("http://127.0.0.1:9")
    server.models = lambda: ["x", "x:prompt"]
    # Vectors that all texts get, so that ids and texts agree, and long texts differ by their length.
    server.embed = lambda model, inputs: torch.tensor(
        [[1.0, 8.0 * (len(inputs[0]) > 99 and row)] for row in range(len(inputs))]
    )
    return E2Rank(modules=connect(server, settings, "x"), device="cpu", **settings.options)


def test_the_model_of_several(tiny: E2Rank, checkpoint: Path):
    """Guards against vectors of a model that nobody named."""
    server = Foreign(tiny, names=("one", "two", "one:prompt"), known=("one", "two", str(checkpoint)))
    with serve(server.app()) as url:
        with pytest.raises(ValueError, match=r"has 2 models; .*model=.*'one', 'two'"):
            E2Rank.remote(url, str(checkpoint))
        assert E2Rank.remote(url, str(checkpoint), model="two").name == "two"
        with pytest.raises(OSError, match=r"none of this model \(404\): The model does not exist"):
            E2Rank.remote(url, str(checkpoint), model="three")
        server.names = (str(checkpoint), "two")  # as vLLM names a model by its folder
        assert E2Rank.remote(url, str(checkpoint)).name == str(checkpoint)
        server.names = None
        assert E2Rank.remote(url, str(checkpoint)).name == str(checkpoint)


def test_a_wrong_tokenizer_is_refused(url: str, tiny: E2Rank, bert: Path, checkpoint: Path):  # noqa: F811
    """Guards against token ids that mean something else on the server, or nothing."""
    with pytest.raises(ValueError, match=r"Give the tokenizer of this model"):
        connect(Server(url), Settings(read_settings("bundled").tokenizer, 64, {}, {}), "tiny-qwen3")
    other = copy.deepcopy(read_settings(str(checkpoint)))
    other.tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(ValueError, match=r"other vectors than their text \(cosine 0\.\d+\).*special tokens"):
        connect(Server(url), other, "tiny-qwen3")


def test_a_server_that_cuts_prompts_is_refused(tiny: E2Rank, checkpoint: Path, facts: list[str]):
    """Guards against prompts of which the server reads the start only, as Infinity does at a document's limit."""
    server = Foreign(tiny, most=1024)
    with serve(server.app()) as url:
        with pytest.raises(ValueError, match=r"about 1024 tokens .* prompt may have 32768.*max_prompt_tokens=1024"):
            E2Rank.remote(url, str(checkpoint))
        assert_same(E2Rank.remote(url, str(checkpoint), max_prompt_tokens=1024), tiny, "fleas", facts)


def ending_in_nothing(tiny: E2Rank, folder: Path) -> E2Rank:
    """The toy model, saved with a tokenizer that puts nothing around a text."""
    model = copy.deepcopy(tiny)
    model.tokenizer.backend_tokenizer.post_processor = None
    model.save(str(folder))
    return E2Rank(str(folder), device="cpu")


def test_chat_prompts_as_text(tiny: E2Rank, facts: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Guards against control tokens of a chat that become letters on the way, and lose their place."""
    local = ending_in_nothing(tiny, tmp_path / "toy")
    assert local.listwise.format.chat
    server = Foreign(local, takes_ids=False)
    with serve(server.app()) as url:
        model = E2Rank.remote(url, str(tmp_path / "toy"))
        assert not model[0].takes_ids
        with caplog.at_level(logging.WARNING, "e2rank_st"):
            assert_same(model, local, "fleas", facts)
            assert not caplog.records
        prompts = [text for _, body in server.requests for text in body["input"] if "<|im_start|>" in text]
        assert prompts and prompts[0].count("<|im_start|>") == 2 and facts[0] in prompts[0]
        model.encode_document(["a stranger's <|im_end|> is read as a control token", "as is <|im_end|> here"])
        model.encode_document(["and <|im_end|> here"])
        (record,) = caplog.records
        assert "2 of 2 texts change" in record.getMessage()


def test_plain_prompts_as_text(tiny: E2Rank, checkpoint: Path, facts: list[str], caplog: pytest.LogCaptureFixture):
    """Guards against special tokens that are sent as text, so that the server has them twice."""
    local = copy.deepcopy(tiny)
    local.replace_listwise(prompt_format="encoder")
    server = Foreign(tiny, takes_ids=False)
    with serve(server.app()) as url:
        with caplog.at_level(logging.WARNING, "e2rank_st"):
            assert_same(E2Rank.remote(url, str(checkpoint), prompt_format="encoder"), local, "fleas", facts)
        assert not caplog.records
        sent = [text for _, body in server.requests for text in body["input"] if isinstance(text, str)]
        assert any(facts[0] in text for text in sent) and not any("<|im_end|>" in text for text in sent)
        # The server would end the prompt by a token that it must not have.
        with pytest.raises(ValueError, match=r"takes texts only.*vLLM"):
            E2Rank.remote(url, str(checkpoint))


def test_an_index_is_the_same_here_and_there(remote: E2Rank, tiny: E2Rank, facts: list[str], tmp_path: Path):
    """Guards against an index that only its maker opens, and a fingerprint that forgets the server's model."""
    pytest.importorskip("lancedb")
    expected = SearchIndex.create(None, tiny, facts).search("how long do fleas live", top_k=4)
    for maker, name in ((remote, "index.lance"), (tiny, "local.lance")):
        SearchIndex.create(tmp_path / name, maker, facts)
        for model in (tiny, remote):
            hits = SearchIndex.open(tmp_path / name, model).search("how long do fleas live", top_k=4)
            assert [hit["text"] for hit in hits] == [hit["text"] for hit in expected]
    changed = copy.deepcopy(tiny)
    changed.max_seq_length = 4
    with pytest.raises(ValueError, match="max_seq_length"):
        SearchIndex.open(tmp_path / "index.lance", changed)


def test_evaluation_measures_the_same(remote: E2Rank, tiny: E2Rank):
    """Guards against an evaluator that needs the weights."""
    rows = toy_rows(6, seed=4)
    evaluator = RerankingEvaluator(*([row[name] for row in rows] for name in ("query", "documents", "labels")))
    scores, expected = evaluator.scores(remote), evaluator.scores(tiny)
    for system in expected:
        assert scores[system] == pytest.approx(expected[system])


def test_many_at_once(remote: E2Rank, tiny: E2Rank, facts: list[str]):
    """Guards against answers that are mixed up between coroutines, and between threads."""
    queries = [f"how long do {name} live" for name in ("fleas", "cats", "dogs", "rivers", "moons", "breads")]
    expected = [tiny.rerank(query, facts) for query in queries]

    async def together() -> list:
        return await asyncio.gather(*(remote.arerank(query, facts) for query in queries))

    with ThreadPoolExecutor(6) as pool:
        by_threads = list(pool.map(lambda query: remote.rerank(query, facts), queries))
    for found in (asyncio.run(together()), by_threads):
        for hits, there in zip(found, expected, strict=True):
            assert_same_ranking(hits, there)


def test_copies(remote: E2Rank, tiny: E2Rank, facts: list[str]):
    """Guards against copies that share a limit or a tokenizer, and pickles that hold a connection."""
    for found in (copy.deepcopy(remote), pickle.loads(pickle.dumps(remote))):
        assert_same(found, tiny, "fleas", facts)
        found.max_seq_length = 3
        assert remote.max_seq_length == tiny.max_seq_length
        assert found.tokenizer is not remote.tokenizer
        assert isinstance(found[0], RemoteBackend) and found[0] is not remote[0]
