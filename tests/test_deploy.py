"""The image and its compose file fit the package. Nothing is built here: most machines of tests have no Docker."""

import json
import re
from fnmatch import fnmatch

import pytest
import typer

from e2rank_st.cli.app import app
from tests import ROOT

yaml = pytest.importorskip("yaml")
tomllib = pytest.importorskip("tomllib")  # Python 3.11
DEPLOY = ROOT / "deploy"
SECRET = re.compile(r"key|token|secret|password", re.IGNORECASE)


def instructions() -> list[tuple[str, str]]:
    """Names and arguments of the Dockerfile."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [tuple(line.split(" ", 1)) for line in lines if line]  # type: ignore[misc]


def given(name: str) -> list[str]:
    return [arguments for found, arguments in instructions() if found == name]


def options_of_serve(arguments: list[str]) -> dict:
    """The options that the command line reads; an unknown one raises."""
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return command.make_context("serve", list(arguments)).params


def test_the_image_installs_what_is_there():
    """Guards against an extra that was renamed, and a file that the builder does not get."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = re.findall(r'"\.\[([\w,-]+)\]"', " ".join(given("RUN")))
    assert named and set(named[0].split(",")) <= set(extras)
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for arguments in given("COPY"):
        for source in arguments.split()[:-1]:
            assert (ROOT / source).exists() and f"!{source}" in allowed
    assert "*" in allowed
    assert re.search(r"^TORCH +\?= (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1] in (
        argument.removeprefix("TORCH=") for argument in given("ARG")
    )


def test_the_image_starts_a_server():
    """Guards against an option that the command does not know, and a server that nobody reaches."""
    (entry,), (command,) = ([json.loads(row) for row in given(name)] for name in ("ENTRYPOINT", "CMD"))
    assert entry[:2] == ["e2rank", "serve"]
    options = options_of_serve([*entry[2:], *command])
    assert options["host"] == "0.0.0.0" and options["model"] == "bundled"
    assert given("EXPOSE") == [str(options["port"])]
    (check,) = given("HEALTHCHECK")
    assert f"http://127.0.0.1:{options['port']}/health" in check
    code = json.loads(check[check.index("[") :])[-1]
    compile(code, "HEALTHCHECK", "exec")


def test_the_image_is_harmless():
    """Guards against a server that runs as root, and a key that everyone with the image reads."""
    names = [name for name, _ in instructions()]
    assert given("USER") == ["e2rank"] and names.index("USER") > max(
        place for place, name in enumerate(names) if name in ("RUN", "COPY", "VOLUME")
    )
    assert not any(SECRET.search(arguments) for name in ("ARG", "ENV") for arguments in given(name))
    assert not any(fnmatch(".env", arguments) for arguments in given("COPY"))


def test_the_compose_file_fits_the_image():
    """Guards against a service without a key, and a volume that the image does not use."""
    whole = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    (service,) = whole["services"].values()
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    assert options_of_serve(service["command"])["cache_mb"] == 200
    assert service["environment"]["E2RANK_API_KEY"].startswith("${E2RANK_API_KEY:?")
    assert [volume.partition(":")[2] for volume in service["volumes"]] == given("VOLUME")
    assert {volume.partition(":")[0] for volume in service["volumes"]} == whole["volumes"].keys()
    assert service["ports"][0].endswith(f":{given('EXPOSE')[0]}")


def test_the_commented_lines_are_yaml():
    """Guards against a GPU's lines that fail once someone takes their marks away."""
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    uncommented = re.sub(r"^( +)# (?=args|deploy| +[\w-])", r"\1", text, flags=re.MULTILINE)
    (service,) = yaml.safe_load(uncommented)["services"].values()
    assert service["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert set(service["build"]["args"]) <= {argument.partition("=")[0] for argument in given("ARG")}
