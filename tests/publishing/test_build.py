"""Build: the same input gives the same bytes, in two revisions that say nothing of this machine."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from e2rank_st import E2Rank, modeling_e2rank
from e2rank_st.publishing.build import Source, build
from e2rank_st.publishing.card.page import read_card
from e2rank_st.publishing.contents import check_contents

BASE = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture
def source(saved: Path, card: Path) -> Source:
    return Source(str(saved), "org/e2rank", card)


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_model_folder(source: Source, saved: Path, checkpoint: Path, tiny: E2Rank, facts, tmp_path: Path):
    """Guards against other bytes in a second build, a changed code file, and a build that depends on the way there."""
    built, _ = build(source, tmp_path / "one")
    again, _ = build(replace(source, model=str(checkpoint), license=saved / "LICENSE"), tmp_path / "two")
    assert built.files == again.files, "from the folder, and from the checkpoint that it was saved from"
    main, embedding = built.folders.values()
    for name in modeling_e2rank.SOURCES:
        assert (main / name).read_bytes() == Path(modeling_e2rank.__file__).with_name(name).read_bytes()
    config = read(main / "config_sentence_transformers.json")
    assert config["requirements"] == {"sentence-transformers": ">=6.1"}
    assert config["prompts"]["query"] == tiny.prompts["query"]
    assert not {"is_local", "token"} & set(read(main / "tokenizer_config.json"))
    assert (main / "figures" / "curves.png").is_file()
    assert "{{" not in (main / "README.md").read_text()
    assert all(row["type"].startswith("sentence_transformers.") for row in read(embedding / "modules.json"))
    assert not list(embedding.rglob("*.py"))
    stock = SentenceTransformer(str(embedding), device="cpu")
    np.testing.assert_allclose(stock.encode_query(facts), tiny.encode_query(facts), atol=1e-6, rtol=0)


def test_shards(source: Source, tiny: E2Rank, facts, tmp_path: Path, monkeypatch):
    """Guards against a file of weights that is too large for the Hub."""
    monkeypatch.setattr(sys.modules[build.__module__], "SHARD_SIZE", "60KB")
    built, _ = build(source, tmp_path / "build")
    names = [file.name for file in built.files["main"] if file.name.endswith(".safetensors")]
    assert len(names) > 1
    assert names[0].startswith("model-00001-of-")
    assert (E2Rank(str(built.folders["main"]), device="cpu").encode(facts) == tiny.encode(facts)).all()


def test_adapter_merged_and_kept(adapter: Path, bundled: E2Rank, facts, tmp_path: Path):
    """Guards against a merged model that is the base, and an adapter that comes with merged weights as well."""
    merged, model = build(Source(str(adapter), "org/e2rank"), tmp_path / "merged")
    assert abs(model.encode(facts) - bundled.encode(facts)).max() > 1e-3
    assert "adapter_config.json" not in {file.name for file in merged.files["main"]}
    kept, _ = build(Source(str(adapter), "org/e2rank", keeps_adapter=True), tmp_path / "kept")
    main = kept.folders["main"]
    assert {path.name for path in main.glob("*.safetensors")} == {"adapter_model.safetensors"}
    assert read(main / "adapter_config.json")["base_model_name_or_path"] == BASE
    assert kept.base.repo_id == BASE
    assert (kept.base.folder / "config.json").is_file()
    assert "peft" in read(main / "config_sentence_transformers.json")["requirements"]
    assert kept.files["embedding"] == merged.files["embedding"], "whole: no branch of its base is called so"


def test_the_base_of_an_adapter(adapter: Path, tmp_path: Path):
    """Guards against a base that no other machine has, is not the card's, or could do harm when it is loaded."""
    folder, base = tmp_path / "adapter", tmp_path / "base"
    shutil.copytree(adapter, folder)
    base.mkdir()
    (base / "pytorch_model.bin").write_bytes(b"x")
    for named, hub_id, message in (
        (str(base), None, r"not a Hub id .*--base-model"),
        (str(base), "org/other", r"base is org/other, the card's base_model"),
        (str(base), BASE, r"pytorch_model\.bin is a pickle"),
        (None, BASE, r"does not name its base_model_name_or_path"),
    ):
        config = read(folder / "adapter_config.json") | {"base_model_name_or_path": named}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=message):
            build(Source(str(folder), "org/e2rank", base_model=hub_id), tmp_path / "build")
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repo_id": "e2rank"}, "looks like org/name"),
        ({"keeps_adapter": True}, "is a model, not an adapter"),
        ({"model": "nothing/here/at/all"}, "neither a folder here nor a Hub id"),
        ({"model": "models/nothing"}, "neither a folder here nor a Hub id"),
        ({"card": Path("nothing.md")}, "no card at nothing.md"),
        ({"license": Path("nothing.txt")}, "no licence at nothing.txt"),
    ],
)
def test_what_is_asked_wrongly(source: Source, tmp_path: Path, monkeypatch, options, message):
    """Guards against an error that comes after minutes, or from deep inside."""
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError), match=message):
        build(replace(source, **options), tmp_path / "build")


@pytest.mark.parametrize(
    ("card_text", "message"),
    [
        ({"license": None}, "lacks license"),
        ({"tags": "e2rank"}, "lacks tags"),
        ({"library_name": "transformers"}, "must be sentence-transformers"),
        ({"base_model": "/home/me/base"}, "must be a Hub id"),
        ({"base_model": ["org/one", "two"]}, "must be a Hub id"),
        ("![x](../x.png)", "not a file beside or below"),
        ("![x](x.png)", "not a file beside or below"),
        ("![x](card.md)", "a figure is one of"),
        ("# No metadata\n", "has no metadata"),
        ("---\na: [\n---\n", "not valid YAML"),
        ("---\n- a\n---\n", "has no metadata"),
        ("x" * 11 * 2**20, "has 11 MiB; allowed are 10"),
    ],
)
def test_broken_cards(card: Path, tmp_path: Path, card_text, message):
    """Guards against a card that the Hub refuses or does not find, and figures from elsewhere or missing."""
    path, change = tmp_path / "card.md", card_text if isinstance(card_text, dict) else {}
    head = f"---\n{yaml.safe_dump(read_card(card, 'org/x').metadata | change)}---\n"
    text = "# A model\n" if change else card_text
    path.write_text(head + text if change or text.startswith("!") else text)
    with pytest.raises(ValueError, match=message):
        read_card(path, "org/x")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("optimizer.pt", "", "not on the list"),
        ("checkpoint-3/config.json", "{}", "not on the list"),
        ("config.json", '{"path": "/data/models/mine"}', "a path of this machine"),
        ("config.json", '{"path": "C:\\\\Users\\\\me\\\\x"}', "a path of this machine"),
        ("README.md", "trained in /home/me/models", "a path of this machine"),
        ("README.md", "see /srv/models/mine.", "a path of this machine"),
        ("README.md", f"token = hf_{'a' * 30}", "access token"),
        ("config.json", "{", "not valid JSON"),
        ("LICENSE", "\udca9", "LICENSE is not a text in UTF-8"),
        ("adapter_model.safetensors", "/data/models/mine", r"adapter_model\.safetensors holds .* a path"),
        ("adapter_model.safetensors", "see /srv/models/mine.", r"adapter_model\.safetensors holds .* a path"),
        ("adapter_model.safetensors", f"hf_{'a' * 30}", r"adapter_model\.safetensors holds an access token"),
    ],
)
def test_private_and_foreign_contents(tmp_path: Path, name, text, message):
    """Guards against what must not be on the Hub, where it stays for good."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    if name.endswith(".safetensors"):  # what it says beside its tensors: an adapter's is published as it came
        save_file({}, tmp_path / name, {"format": "pt"})
        assert check_contents(tmp_path), "the premise"
        save_file({}, tmp_path / name, {"source": text})
    else:
        (tmp_path / name).write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        check_contents(tmp_path, [Path("/srv/models/mine")])


def test_the_output_replaces_an_earlier_build_only(source: Source, saved: Path, tmp_path: Path):
    """Guards against --output with somebody's folder, which would be deleted for the build."""
    (tmp_path / "diary.txt").write_text("dear diary")
    with pytest.raises(ValueError, match=r"exists and is not an earlier build.*--output"):
        build(source, tmp_path)
    assert (tmp_path / "diary.txt").is_file()
    output = tmp_path / "out"
    shutil.copytree(saved, output / "main")
    for folder in (output / "main", output):
        with pytest.raises(ValueError, match=r"would replace .*, which holds the model .*--output"):
            build(replace(source, model=str(output / "main")), folder)
    assert (output / "main" / "modules.json").is_file()
    built, _ = build(source, output)
    assert sorted(path.name for path in output.iterdir()) == sorted(built.folders)


def test_a_model_with_gaps(source: Source, saved: Path, tmp_path: Path):
    """Guards against weights that loading makes up: random ones, which every check finds equal to themselves."""
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("mlp.up_proj.weight"))
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks 1 weights of its model, {name}"):
        build(replace(source, model=str(folder)), tmp_path / "build")


def test_what_other_libraries_read(saved: Path, tiny: E2Rank, tmp_path: Path):
    """Guards against a length that refuses long prompts, names that transformers 4 lacks, and a lost limit."""
    copy = tmp_path / "copy"
    E2Rank(str(saved), device="cpu").save_pretrained(str(copy), create_model_card=False)
    for folder in (saved, copy):
        config = read(folder / "tokenizer_config.json")
        assert config["model_max_length"] == 32_768
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert "extra_special_tokens" not in config
        assert "max_seq_length" not in read(folder / "sentence_bert_config.json"), (
            "vLLM would take it for the prompts', too"
        )
        assert SentenceTransformer(str(folder), trust_remote_code=True, device="cpu").max_seq_length == 1024
        assert E2Rank(str(folder), device="cpu").max_seq_length == tiny.max_seq_length == 1024
