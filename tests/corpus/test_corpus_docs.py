"""docs/corpus.md: its commands run, its table of rules is what the code says; the gin files."""

import re
import shlex
from pathlib import Path

import pytest

from t5x_lite import cli, config, gin_files
from t5x_lite.corpus.c4 import C4, C4Paragraphs, C4Tfds
from t5x_lite.corpus.code import Code
from t5x_lite.corpus.fineweb import FineWeb
from t5x_lite.corpus.gopher import GopherQuality, GopherRepetition
from t5x_lite.corpus.steps import rules_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "corpus.md"
FILTERS = (GopherQuality, GopherRepetition, C4, C4Tfds, C4Paragraphs, FineWeb, Code)
TEXT = (
    "The town had a small library that stood near the old bridge, and most of the people who lived "
    "there had borrowed a book at least once. In winter it was the warmest room for miles. "
)


def table():
    rows = ["| filter | rule | what | threshold | source |", "|---|---|---|---|---|"]
    for kind in FILTERS:
        for rule, meaning, threshold, source in rules_of(kind):
            shown = str(threshold).replace("|", "\\|")
            rows.append(f"| {kind.__name__} | {rule} | {meaning} | {shown} | {source} |")
    return "\n".join(rows)


def test_the_table_of_rules_is_what_the_code_says():
    assert table() in PAGE.read_text()


@pytest.fixture
def fresh():
    with config.fresh():
        yield


@pytest.mark.parametrize("name", ["web_en", "c4_en", "roots", "code", "keep_all"])
def test_recipes(fresh, name, tmp_path):
    pytest.importorskip("py3langid")
    pytest.importorskip("ftfy")
    config.parse([f"corpus/{name}.gin"], [f"INPUT='{tmp_path}'", f"OUTPUT='{tmp_path}.tfds'"], (),
                 "Corpus")  # fmt: skip
    corpus = config.call("Corpus")
    assert corpus.steps and corpus.duplicates is not None
    text = (gin_files.shipped_gin_configs() / f"corpus/{name}.gin").read_text()
    header = text.split("include")[0]
    assert f"# Command: t5x_lite corpus --gin_file=corpus/{name}.gin" in header


def test_the_commands(fresh, tmp_path, monkeypatch, capsys):
    for package in ("apache_beam", "tensorflow_datasets", "rensa", "py3langid", "ftfy"):
        pytest.importorskip(package, reason="needs the extra `corpus`")
    monkeypatch.chdir(tmp_path)
    for folder in ("raw", "dumps", "books"):
        Path(folder).mkdir()
        for i in range(3):
            variants = [f"{TEXT}Once, {folder} number {i} of {k} was lost." for k in range(6)]
            Path(folder, f"{i}.txt").write_text("\n".join(variants[i : i + 3]) + "\n" + TEXT)
    found = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE.read_text(), flags=re.DOTALL))
    lines = found.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("t5x_lite")]
    assert len(commands) == 2
    for words in commands:
        more = ["--gin.Corpus.workers=1", "--gin.Duplicates.near=False"]
        relaxed = ["--gin.GopherRepetition.max_line_characters=0.9",
                   "--gin.GopherRepetition.repeated_n_grams=()",
                   "--gin.FineWeb.max_repeated_characters=0.9"]  # fmt: skip
        more += relaxed if "web_en" in words[1] else ["--gin.Roots.word_repetition=None"]
        assert cli.main([*words, *more]) == 0, capsys.readouterr().err
    assert Path("tfds/mine/1.0.0/data_card.html").exists()
    assert Path("tfds/many/1.0.0/vocabulary.model").exists()
    assert "Tfds.name = 'many:1.0.0'" in capsys.readouterr().out
