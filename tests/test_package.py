"""What is installed: the wheel, its metadata, and the types that it offers."""

import ast
import email
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import t5x_lite

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, unpacked."""
    pytest.importorskip("hatchling", reason="hatchling isn't installed")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [file] = folder.glob("t5x_lite-*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_a_wheel_holds_what_is_needed_without_the_checkout(wheel, tmp_path):
    files = {file.relative_to(wheel).as_posix() for file in wheel.rglob("*") if file.is_file()}
    assert {
        "t5x_lite/py.typed",
        "t5x_lite/__init__.pyi",
        "t5x_lite/gin_configs/runs/base.gin",
    } <= files
    assert all(name.startswith("t5x_lite") for name in files)  # no tests, no launch scripts
    shipped = (ROOT / "gin_configs").rglob("*.gin")
    assert {
        f"t5x_lite/gin_configs/{f.relative_to(ROOT / 'gin_configs').as_posix()}" for f in shipped
    } <= files
    # Every file that isn't Python and that the package reads is in it.
    for file in (ROOT / "t5x_lite").rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            assert file.relative_to(ROOT).as_posix() in files
    code = (
        "from t5x_lite import cli, config, gin_files; "
        "print(gin_files.find_gin_file('recipes/quickstart.gin')); cli.main(['--help'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(wheel)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, *overview = done.stdout.splitlines()
    assert Path(found) == wheel / "t5x_lite/gin_configs/recipes/quickstart.gin"
    assert "usage: t5x_lite" in overview[0]


def test_the_metadata_of_a_wheel(wheel):
    [folder] = wheel.glob("t5x_lite-*.dist-info")
    metadata = email.message_from_string((folder / "METADATA").read_text())
    assert metadata["Version"] == t5x_lite.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra")) == set(EXTRAS)
    assert "Apache License" in (folder / "licenses" / "LICENSE").read_text()
    assert "t5x_lite = t5x_lite.cli:main" in (folder / "entry_points.txt").read_text()


def test_the_version_is_told_alike_everywhere():
    assert f"\nversion: {t5x_lite.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {t5x_lite.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_package_that_the_tests_install_is_pinned():
    def names(requirements):
        for requirement in requirements:
            name = re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")
            if name == "t5x-lite":
                yield from names(
                    r for e in re.findall(r"[\w]+", requirement[8:]) for r in EXTRAS[e]
                )
            else:
                yield name

    lines = (ROOT / "launch" / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert set(names(["t5x_lite[dev]", *PROJECT["dependencies"]])) <= pinned


def test_the_stub_offers_the_public_names():
    tree = ast.parse((ROOT / "t5x_lite" / "__init__.pyi").read_text())
    modules = {
        name.asname: node.module.removeprefix("t5x_lite.")
        for node in tree.body if isinstance(node, ast.ImportFrom)
        for name in node.names
    }  # fmt: skip
    assert modules == t5x_lite._NAMES


USES = """
import t5x_lite as tl

config = tl.TransformerConfig(
    vocab_size=384, embed_dim=64, num_heads=4, head_dim=16, mlp_dim=128, num_decoder_layers=2
)
reveal_type(config.embed_dim)
reveal_type(tl.generate)
tl.TransformerConfig(vocab_sice=3)
tl.AdamV
"""


def test_types(tmp_path):
    """mypy finds nothing in the package, and tells users what they have got wrong."""
    pytest.importorskip("mypy", reason="mypy isn't installed")
    (tmp_path / "uses.py").write_text(USES)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--cache-dir",
         str(tmp_path / "cache"), "-O", "json", "-p", "t5x_lite", "-m", "uses"],
        cwd=ROOT, env=os.environ | {"MYPYPATH": str(tmp_path), "PYTHONPATH": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    in_package = [f for f in found if "uses.py" not in f["file"] and f["severity"] == "error"]
    lines = [f"{f['file']}:{f['line']}: {f['message']}" for f in in_package]
    assert not lines, "\n".join(lines)
    told = " ".join(f["message"] for f in found if "uses.py" in f["file"])
    assert 'Revealed type is "int"' in told and "max_new_tokens: int | None" in told
    assert 'did you mean "vocab_size"?' in told and 'maybe "AdamW"?' in told
