"""Inspection: a folder that would harm, or fail late, is refused before it is loaded, and the reason is named."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from e2rank_st.publishing.inspection import inspect


def test_kinds(saved: Path, checkpoint: Path, adapter: Path, tmp_path: Path):
    """Guards against a sound folder that is refused or taken for another kind."""
    assert [inspect(folder) for folder in (saved, checkpoint, adapter)] == ["model", "checkpoint", "adapter"]
    with pytest.raises(ValueError, match="holds no model: none of adapter_config"):
        inspect(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        inspect(tmp_path / "nothing")


def edit(name: str, change: Callable) -> Callable[[Path], None]:
    """Change a JSON file."""

    def do(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return do


def put(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def weights(value: float) -> Callable[[Path], None]:
    """Put a value into the weights."""

    def do(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        next(iter(tensors.values())).view(-1)[3] = value
        save_file(tensors, folder / "model.safetensors")

    return do


def link(name: str, target: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).symlink_to(target)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (edit("modules.json", lambda rows: rows[1].update(path="../../other")), r"path '\.\./\.\./other', out of"),
        (edit("modules.json", lambda rows: rows[1].update(path="/etc")), r"path '/etc', out of the folder"),
        (edit("modules.json", lambda rows: rows[1].update(path="C:\\x")), "out of the folder"),
        (edit("modules.json", lambda rows: rows[1].update(type="os.system")), "names the class 'os.system'; allowed"),
        (edit("modules.json", lambda rows: rows.__setitem__(0, "x")), "must be a list of modules"),
        (edit("config.json", lambda config: config.update(auto_map={"AutoModel": "evil.Model"})), "auto_map"),
        (put("pytorch_model.bin", b"x"), r"pytorch_model\.bin is a pickle"),
        (put("notes.dat", pickle.dumps({"a": 1})), r"notes\.dat is a pickle"),
        (put("model.safetensors", pickle.dumps({"a": 1})), r"model\.safetensors is a pickle"),
        (put("model.safetensors", b"cut"), "not a complete safetensors file"),
        (put("config.json", b"{"), r"config\.json is not valid JSON"),
        (link("extra.json", "/etc/hostname"), r"extra\.json is a link to /etc/hostname, out of the folder"),
        (link("1_Pooling/up", "../.."), "up is a link to"),
        (link("broken.json", "nothing"), "neither a file nor a folder"),
        (lambda folder: os.mkfifo(folder / "pipe"), "pipe is neither a file nor a folder"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"needs tokenizer\.json, too"),
        (lambda folder: shutil.rmtree(folder / "2_ListwiseRerank"), r"2_ListwiseRerank/config\.json is missing"),
        (
            put("model.safetensors.index.json", b'{"weight_map": {"a": "../../x"}}'),
            r"'\.\./\.\./x', which is not a file",
        ),
        (put("model.safetensors.index.json", b"{}"), "has no weight_map"),
        (put("config.json", b"[]"), r"config\.json must hold a JSON object, got list"),
        (put("notes.json", b"[" * 200_000), r"notes\.json is not valid JSON"),
        (edit("modules.json", lambda rows: rows[1].pop("name")), "module without a name, at '1_Pooling'"),
        (lambda folder: os.truncate(folder / "chat_template.jinja", 200 * 2**20), "jinja has 200 MiB"),
        (weights(float("nan")), "NaN or infinite weights in '"),
        (weights(float("inf")), "NaN or infinite weights in '"),
        (lambda folder: os.truncate(folder / "README.md", 200 * 2**20), r"README\.md has 200 MiB; allowed are 10"),
    ],
)
def test_broken_and_malicious_folders(saved: Path, tmp_path: Path, spoil, message):
    """Guards against code that runs, files that leak and weights that are worthless, one by one."""
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    (folder / "README.md").write_text("# A model\n")
    assert inspect(folder) == "model", "the premise"
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        inspect(folder)


def test_links_within_the_hubs_cache(saved: Path, tmp_path: Path):
    """Guards against a refusal of every downloaded model: a snapshot in the cache is made of links to its blobs."""
    snapshot = tmp_path / "models--org--x" / "snapshots" / "0"
    shutil.copytree(saved, tmp_path / "models--org--x" / "blobs")
    shutil.copytree(saved, snapshot)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("../../blobs/config.json")
    assert inspect(snapshot, snapshot.parents[1]) == "model"
    with pytest.raises(ValueError, match="out of the folder"):
        inspect(snapshot)


def test_weights_that_begin_as_a_pickle(saved: Path, tmp_path: Path):
    """Guards against a refusal of sound weights: some lengths of a header are the first bytes of a pickle."""
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    content = (folder / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    lengths = (number.to_bytes(8, "little") for number in range(end - 8, end + 2**17))
    length = next(length for length in lengths if length[:2] == b"\x80\x02")
    header = content[8:end].ljust(int.from_bytes(length, "little"))
    (folder / "model.safetensors").write_bytes(length + header + content[end:])
    assert inspect(folder) == "model"
