"""What the documentation shows is run: its commands in their order, its Python as it stands."""

import argparse
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from t5x_lite import cli, config

ROOT = Path(__file__).parent.parent
# Appended to commands that train, so that they end soon.
SMALL = [
    "--gin.TransformerConfig.embed_dim=16",
    "--gin.TransformerConfig.mlp_dim=32",
    "--gin.TransformerConfig.num_heads=2",
    "--gin.TransformerConfig.head_dim=8",
    "--gin.BATCH_SIZE=8",
    "--gin.train.eval_batch_count=1",
    "--gin.WARMUP_STEPS=1",
]


def read(document: str) -> str:
    return (ROOT / document).read_text()


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", read(document), flags=re.DOTALL)


def commands(document: str) -> list[list[str]]:
    """The `t5x_lite ...` commands of a document, split as the shell does."""
    found = []
    for block in blocks(document, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["t5x_lite"]:
                found.append(words[1:])
    return found


def shrink(words: list[str]) -> list[str]:
    if words[0] == "train" and not any("config.gin" in word for word in words):
        steps = [] if any("TOTAL_STEPS" in w for w in words) else ["--gin.TOTAL_STEPS=2"]
        return [*words, *SMALL, *steps]
    if words[0] == "train":  # longer, from a run's own configuration
        return [re.sub(r"total_steps=\d+", "total_steps=3", word) for word in words]
    if words[0] == "vocab":
        return [*words, "--max_bytes=400000"]
    return words


def run(document: str, *more: str) -> set[str]:
    """Runs a document's commands, with `more`, in the current folder; returns their verbs."""
    with config.fresh():
        for words in commands(document):
            assert cli.main([*shrink(words), *more]) == 0, words
    return {words[0] for words in commands(document)}


def test_the_commands_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert run("README.md") >= {"train", "eval", "infer", "vocab", "doctor"}


def test_the_commands_of_the_page_on_reliability(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "argparse.txt").write_text(inspect.getsource(argparse))
    assert run("docs/reliability.md", "--gin.VOCABULARY_SIZE=1000") == {"train"}


def test_the_programs_and_tests_that_the_page_on_reliability_names_exist():
    named = re.findall(r"\b((?:tests|benchmarks)/[\w/]+\.(?:py|md))", read("docs/reliability.md"))
    assert len(set(named)) > 8
    for name in named:
        assert (ROOT / name).exists(), name


def test_the_python_of_the_readme(capsys):
    [code] = blocks("README.md", "python")
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 20 and losses[-1] < losses[0]


def test_the_tour_of_the_readme_matches_the_tree():
    """Every file that the tour names exists, and it names every folder of the package."""
    [tour] = [block for block in blocks("README.md", "text") if "t5x_lite/" in block]
    named = set()
    folders: list[str] = []
    for line in tour.splitlines():
        match = re.match(r"( *)([\w.{},/*-]+)", line)
        if not match or not match.group(2):
            continue
        depth, names = len(match.group(1)) // 2, match.group(2)
        folders = folders[:depth]
        for name in re.split(r"\s+", names):
            path = "/".join([*folders, name]).replace("//", "/")
            assert (ROOT / path).exists(), f"the tour names {path}"
            named.add(path.rstrip("/"))
        if names.endswith("/"):
            folders.append(names.rstrip("/"))
    package = {str(p.relative_to(ROOT)) for p in (ROOT / "t5x_lite").iterdir() if p.is_dir()}
    assert {p for p in package if "__" not in p} <= named


@pytest.mark.slow
def test_the_quickstart_script(tmp_path):
    """Runs in a copy of the checkout, with this environment instead of a new one."""
    marks = list(Path(sys.prefix).glob("installed-*"))
    if not marks:
        pytest.skip("not in an environment that launch/test.sh made")
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if files.returncode:
        pytest.skip("not in a git checkout")
    for name in filter(None, files.stdout.split("\0")):
        if (ROOT / name).exists() and not name.startswith("tests/"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    command = ["bash", "launch/quickstart.sh", *SMALL, "--gin.TOTAL_STEPS=2"]
    for expected in ("unigram entropy", "is finished"):
        run = subprocess.run(
            command,
            cwd=tmp_path,
            env={"T5X_LITE_VENV": sys.prefix, "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        assert expected in run.stdout
