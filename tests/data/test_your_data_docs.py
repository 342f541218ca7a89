"""The commands and gin files of docs/your_data.md, on small files of the names it uses."""

import gzip
import json
import re
import shlex
from pathlib import Path

import pytest

from t5x_lite import cli, config

DOCUMENT = (Path(__file__).parents[2] / "docs" / "your_data.md").read_text()
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "then", "it",
         "sleeps"]  # fmt: skip


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, flags=re.DOTALL)


def commands(verb):
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"t5x_lite {verb}")]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path / "cache"))
    texts = [" ".join(WORDS[i * k % 13] for k in range(1, 20)) for i in range(1, 80)]
    lines = "\n".join(texts) + "\n"
    files = {
        "corpus/a.jsonl.gz": "".join(json.dumps({"text": t}) + "\n" for t in texts),
        "tinyshakespeare/input.txt": lines.replace("\n", "\n\n"),
        **{f"multi30k/{s}.{lang}.gz": lines for s in ("train", "val") for lang in ("en", "de")},
        **{f"cola/in_domain_{s}.tsv": "".join(f"x\t{i % 2}\t\t{t}\n" for i, t in enumerate(texts))
           for s in ("train", "dev")},
    }  # fmt: skip
    for name, text in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        data = text.encode()
        Path(name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    for text in blocks("gin"):
        if name := re.search(r'MODEL_DIR = "runs/(\w+)"', text):
            Path(f"{name[1]}.gin").write_text(text)
    with config.fresh():
        yield tmp_path


@pytest.mark.parametrize(
    "words",
    [words for words in commands("train") if not re.search("gs:|my.gin", str(words))],
    ids=lambda words: words[1],
)
def test_commands_that_train(words, capsys):
    """Built on abstract shapes: what they train on is looked at, too."""
    assert cli.main([*words, "--dry_run"]) == 0, capsys.readouterr().err
    assert cli.main(["data", *words[1:], "--html=page.html"]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "== First row of the first batch ==" in printed
    assert Path("page.html").exists()


def test_commands_that_show_the_data(capsys):
    for words in commands("data"):
        if words[1] not in ("build", "cache"):
            assert cli.main([*words, "--gin.MODEL_DIR=./run"]) == 0, capsys.readouterr().err
    assert Path("data.html").exists()
