"""What a folder may hold: no code of a stranger runs, and each refusal names its file."""

import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import push_to_hub
from e2rank_st import E2Rank, load_model
from e2rank_st.cli.app import app
from e2rank_st.folders.check import check_folder
from e2rank_st.publishing import Source, build
from tests.folders.hostile import (
    Change,
    both,
    edit,
    in_subfolder,
    mark,
    module,
    put,
    raw,
    remove,
    row,
    save_adapter,
    upload,
    zipped,
)
from tests.hub_server import HubServer

ARGUMENTS = "sentence_bert_config.json"
NO_SAFETENSORS = remove("model.safetensors")
BIN_INDEX = put("pytorch_model.bin.index.json", '{"metadata": {}, "weight_map": {"w": "weights.txt"}}')
SAFE_INDEX = put("model.safetensors.index.json", '{"metadata": {}, "weight_map": {"w": "weights.txt"}}')
UNSAFE = {"weights_only": False, "use_safetensors": False}
PICKLES: dict[str, Change] = {
    "index and arguments": both(zipped("weights.txt"), BIN_INDEX, edit(ARGUMENTS, model_args=UNSAFE)),
    "nothing but pickles": both(zipped("pytorch_model.bin"), NO_SAFETENSORS, edit(ARGUMENTS, model_kwargs=UNSAFE)),
    "no arguments": both(zipped("pytorch_model.bin"), NO_SAFETENSORS),
    "older name of the arguments": both(
        zipped("pytorch_model.bin"), remove(ARGUMENTS), edit("sentence_roberta_config.json", model_args=UNSAFE)
    ),
    "in a subfolder": both(
        in_subfolder, zipped("0_T/pytorch_model.bin"), edit(f"0_T/{ARGUMENTS}", model_args={"weights_only": False})
    ),
    "index of safetensors": both(zipped("weights.txt"), SAFE_INDEX, NO_SAFETENSORS),
    "safetensors by name": raw("model.safetensors"),
    "zip, safetensors by name": zipped("model.safetensors"),
    "tokenizer": raw("tokenizer.json"),
    "vocabulary": zipped("vocab.txt"),
    "words": module("sentence_transformers.models.WordEmbeddings", tokenizer_class="antigravity.Tokenizer"),
    "dense": module("sentence_transformers.models.Dense", in_features=32, out_features=32),
}


@pytest.mark.parametrize("name", PICKLES)
def test_no_pickle_runs(folder: Path, hub: HubServer, tmp_path: Path, name: str):
    """Guards against a stranger's code, run by a look at his model: from a folder, from the Hub, and to publish it."""
    PICKLES[name](folder)
    upload(hub, folder)
    doors = (
        lambda: E2Rank(str(folder), device="cpu"),
        lambda: load_model(str(folder), device="cpu"),
        lambda: E2Rank("org/model", device="cpu", cache_folder=str(tmp_path / "cache")),
        lambda: build(Source(str(folder), "org/name"), tmp_path / "build"),
    )
    for door in doors:
        with pytest.raises(ValueError, match=r"pickle|may set|holds no weights|needs 9_X/model|names|not valid JSON"):
            door()
        assert not mark(folder).exists()


def test_no_pickle_runs_in_a_dry_run(folder: Path):
    """Guards against a stranger's code in ``push_to_hub.py --dry-run``."""
    PICKLES["index and arguments"](folder)
    told = CliRunner().invoke(push_to_hub.app, [str(folder), "--repo-id", "org/name", "--dry-run"])
    assert told.exit_code == 1
    assert not mark(folder).exists()


def test_a_pickle_beside_the_weights_is_not_opened(folder: Path, tiny: E2Rank, facts: list[str]):
    """Guards against a refusal of a checkpoint of training, or of a repository that keeps both forms of its weights."""
    both(zipped("optimizer.pt"), zipped("pytorch_model.bin"))(folder)
    assert (E2Rank(str(folder), device="cpu").encode(facts) == tiny.encode(facts)).all()
    assert not mark(folder).exists()


def test_safetensors_are_forced_for_a_trusted_author(folder: Path):
    """Guards against a pickle that runs since its author's Python may run, but nobody asked for a pickle."""
    both(zipped("pytorch_model.bin"), NO_SAFETENSORS, edit(ARGUMENTS, model_args=UNSAFE))(folder)
    with pytest.raises(OSError, match="safetensors"):
        E2Rank(str(folder), device="cpu", trust_remote_code=True)
    assert not mark(folder).exists()


CODE = {"AutoModel": "other/repo--evil.Evil"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("config.json", auto_map=CODE), r"config\.json sets auto_map"),
        (edit("config.json", text_config={"a": [{"auto_map": CODE}]}), r"sets text_config\.a\.0\.auto_map"),
        (both(in_subfolder, edit("0_T/config.json", auto_map=CODE)), r"config\.json sets auto_map"),
        (edit("1_Pooling/config.json", auto_map=CODE), r"1_Pooling/config\.json sets auto_map"),
        (edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}), "sets auto_map"),
        (edit("processor_config.json", auto_map={"AutoProcessor": "evil.Evil"}), r"processor_config\.json sets auto"),
        (edit("config.json", custom_pipelines={"x": {"impl": "evil.Evil"}}), "custom_pipelines"),
        (edit("config.json", attn_implementation="evil/kernel"), "attn_implementation to 'evil/kernel'"),
        (edit(ARGUMENTS, model_kwargs={"attn_implementation": "evil/kernel"}), "evil/kernel"),
        (edit("tokenizer_config.json", fast_tokenizer_files=["tokenizer.4.0.0.json"]), "fast_tokenizer_files"),
        (edit(ARGUMENTS, tokenizer_name_or_path="evil/repo"), "sets 'tokenizer_name_or_path'; a folder may set"),
        (edit(ARGUMENTS, tokenizer_args={"trust_remote_code": True}), "tokenizer_args sets 'trust_remote_code'"),
        (edit(ARGUMENTS, config_args={"revision": "evil"}), "config_args sets 'revision'"),
        (edit(ARGUMENTS, modality_config={"text": {"method": "push_to_hub"}}), "'method' to 'push_to_hub'"),
        (row(1, type="evil.Evil"), r"the class 'evil\.Evil'; allowed are"),
        (row(1, type="sentence_transformers.models.StaticEmbedding"), "StaticEmbedding"),
        (row(1, type="sentence_transformers.models.Router"), "Router"),
        (row(1, type="sentence_transformers.util.misc.import_from_string"), "import_from_string"),
        (
            module("sentence_transformers.models.Dense", in_features=1, out_features=1, activation_function="os.abort"),
            r"the class 'os\.abort'; allowed are those of torch\.nn",
        ),
    ],
)
def test_code_is_refused(folder: Path, change: Change, message: str):
    """Guards against code, kernels and files of another repository that a folder names, at any depth."""
    change(folder)
    with pytest.raises(ValueError, match=message):
        check_folder(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("2_ListwiseRerank/config.json", colour="red"), r"2_ListwiseRerank/config\.json.*'colour'"),
        (edit("2_ListwiseRerank/config.json", instruction=5), "'instruction' to 5; it must be str"),
        (edit("2_ListwiseRerank/config.json", num_prompt_documents="3"), "num_prompt_documents"),
        (edit("2_ListwiseRerank/config.json", prompt_format={"name": 1}), "'name' to 1; it must be str"),
        (edit("2_ListwiseRerank/config.json", prompt_format={"title": "x"}), "'title'"),
        (edit("2_ListwiseRerank/config.json", prompt_format="poem"), "poem"),
        (put("2_ListwiseRerank/config.json", "[1]"), "must hold a JSON object, got list"),
        (put("2_ListwiseRerank/config.json", "{"), "is not valid JSON"),
        (edit("1_Pooling/config.json", word_embedding_dimension="32"), "'word_embedding_dimension' to '32'"),
        (edit("1_Pooling/config.json", colour="red"), r"1_Pooling/config\.json.*'colour'"),
        (put("modules.json", '{"a": 1}'), "must be a list of modules"),
        (put("modules.json", "[]"), "must be a list of modules"),
        (put("modules.json", "null"), "must be a list of modules"),
        (row(1, path=None), r"modules\.json\[1\] lacks 'path'"),
        (row(1, path=7), "'path' to 7; it must be str"),
        (row(2, type=7), "'type' to 7; it must be str"),
        (row(2, type=None), "lacks 'type'"),
        (row(2, kwargs="x"), "'kwargs' to 'x'; it must be list"),
        (edit("config_sentence_transformers.json", prompts=["a"]), "'prompts' to"),
        (edit("config_sentence_transformers.json", prompts={"query": 5}), "prompts sets 'query' to 5"),
        (edit(ARGUMENTS, max_seq_length="long"), "'max_seq_length' to 'long'; it must be int or null"),
        (edit(ARGUMENTS, model_args="x"), "'model_args' to 'x'"),
        (edit("tokenizer_config.json", model_max_length="long"), "'model_max_length' to 'long'"),
        (put("tokenizer.json", '{"model": 5}'), r"tokenizer\.json is not a tokenizer"),
        (edit("config.json", num_hidden_layers=10**7), "10000000, and there are 24 weights"),
        (edit("config.json", num_hidden_layers="many"), "num_hidden_layers"),
        (edit("config.json", text_config={"num_local_experts": 10**7}), "num_local_experts"),
        (put("generation_config.json", '{"seed": %s}' % ("9" * 5000)), r"generation_config\.json is not valid JSON"),
        (put("generation_config.json", '{"seed": NaN}'), r"generation_config\.json is not valid JSON: NaN"),
        (both(in_subfolder, put("0_T/adapter_config.json", "{}")), "0_T holds an adapter"),
        (lambda folder: os.truncate(folder / "model.safetensors", 3), r"model\.safetensors is not a complete"),
        (lambda folder: os.truncate(folder / "model.safetensors", 9000), r"model\.safetensors is not a complete"),
        (both(remove("config.json"), lambda folder: os.mkfifo(folder / "config.json")), r"config\.json is not a file"),
        (lambda folder: os.truncate(folder / "chat_template.jinja", 200 * 2**20), "has 200 MiB"),
        (lambda folder: (folder / "chat_template.jinja").write_bytes(b"\xff\xfe\x00"), "not a text in UTF-8"),
    ],
)
def test_broken_folders(folder: Path, change: Change, message: str):
    """Guards against a traceback that names neither the file nor the key."""
    change(folder)
    with pytest.raises(ValueError, match=message):
        check_folder(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("config.json", hidden_size="wide"), "do not fit each other"),
        (edit("config.json", hidden_size=48), "do not fit each other"),
        (edit("tokenizer_config.json", tokenizer_class="CanineTokenizer"), "do not fit|fast tokenizer"),
    ],
)
def test_files_that_do_not_fit_each_other(folder: Path, change: Change, message: str):
    """Guards against a traceback for files that are sound one by one."""
    change(folder)
    with pytest.raises(ValueError, match=message):
        E2Rank(str(folder), device="cpu")


@pytest.mark.parametrize("place", ["vocabulary", "end of a text"])
def test_an_id_beyond_the_table(folder: Path, place: str):
    """Guards against an index error in the middle of a run: a token that the table of embeddings lacks."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    if place == "vocabulary":
        tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": 9999, "content": "<new>"})
    else:
        kinds = [part for part in tokenizer["post_processor"]["processors"] if part["type"] == "TemplateProcessing"]
        next(iter(kinds[0]["special_tokens"].values()))["ids"] = [9999]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"has the id \d+, and the table of embeddings only \d+ rows"):
        E2Rank(str(folder), device="cpu")


def test_adapters(adapter: Path, sound: Path, checkpoint: Path, tmp_path: Path):
    """Guards against a base or an adapter that comes in by another door, and a traceback for a damaged one."""
    assert check_folder(adapter) == "adapter"
    evil = shutil.copytree(checkpoint, tmp_path / "evil")
    both(zipped("pytorch_model.bin"), NO_SAFETENSORS)(evil)
    cases = [
        ({"base_model_name_or_path": str(evil)}, "holds no weights"),
        ({"base_model_name_or_path": "no/such/base"}, "no/such/base not found"),
        ({"base_model_name_or_path": None}, "does not name its base_model_name_or_path"),
        ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "megatron_config"),
        ({"auto_mapping": {"parent_library": "antigravity"}}, "the library 'antigravity'"),
        ({"r": "2"}, "'r' to '2'"),
        ({"r": 0}, "at least 1"),
        ({"r": 3}, "r=3"),
    ]
    for number, (values, message) in enumerate(cases):
        folder = save_adapter(sound, tmp_path / str(number), str(checkpoint), **values)
        with pytest.raises((ValueError, OSError), match=message):
            E2Rank.from_adapter(folder, device="cpu")
    whole = save_adapter(sound, tmp_path / "whole", str(checkpoint))
    shutil.copyfile(checkpoint / "config.json", whole / "config.json")
    with pytest.raises(ValueError, match="holds no weights"):  # transformers takes the folder itself for the base
        E2Rank(str(whole), device="cpu")
    folder = save_adapter(sound, tmp_path / "peft", str(evil))
    with pytest.raises(ValueError, match="holds no weights"):
        E2Rank(str(folder), device="cpu")
    os.truncate(adapter / "adapter_model.safetensors", 40)
    for door in (E2Rank.from_adapter, lambda folder, **options: E2Rank(str(folder), **options)):
        with pytest.raises(ValueError, match=r"adapter_model\.safetensors is not a complete"):
            door(adapter, device="cpu")


def test_older_folders(folder: Path, tiny: E2Rank, facts: list[str]):
    """Guards against a refusal of sound folders of earlier versions: their names of classes and of arguments."""
    put(ARGUMENTS, '{"max_seq_length": 1024, "do_lower_case": false, "model_args": {"torch_dtype": "float32"}}')(folder)
    row(0, type="sentence_transformers.models.Transformer")(folder)
    assert (E2Rank(str(folder), device="cpu").encode(facts) == tiny.encode(facts)).all()
    in_subfolder(folder)
    assert (E2Rank(str(folder), device="cpu").encode(facts) == tiny.encode(facts)).all()


def test_one_line_on_the_command_line(folder: Path):
    """Guards against a traceback of ``e2rank`` for a damaged file, or a device that cannot compute."""
    command = ["rerank", "fleas", "-", "--model", str(folder), "--device"]
    for device in ("meta", "cuda:99", "nonsense"):
        told = CliRunner().invoke(app, [*command, device], input="a\nb\n")
        assert told.exit_code == 1
        assert told.stderr.startswith(f"e2rank: error: Got the device {device}, which does not work here")
    os.truncate(folder / "model.safetensors", 9000)
    told = CliRunner().invoke(app, [*command, "cpu"], input="a\nb\n")
    assert told.exit_code == 1
    assert "error: model.safetensors is not a complete safetensors file" in told.stderr
    assert "Traceback" not in told.stderr
