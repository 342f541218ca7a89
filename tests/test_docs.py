"""What the documentation shows is run: its commands in their order, its Python as it stands."""

import argparse
import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import t5x_lite
from t5x_lite import cli, config
from t5x_lite import config_checks as checks
from t5x_lite.errors import UserError

ROOT = Path(__file__).parent.parent
PAGES = sorted(page for page in (ROOT / "docs").glob("*.md") if page.name != "LOG.md")
# What stands before or behind a dot in backquotes without being gin's.
FILE_ENDINGS = re.compile(
    "md|gin|py|sh|jsonl?|txt|model|html|npz|bin|parquet|arrow|gz|bz2|xz|zst|csv|tsv|warc|xml|epub|"
    "ipynb|pdf|zip|tar|safetensors|jinja|log|h|m|v|pl"
)
MODULES = ("models", "numpy", "jax", "optax", "interop", "t5x_lite")
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


def commands(document: str, language: str = "bash") -> list[list[str]]:
    """The `t5x_lite ...` commands of a document, split as the shell does."""
    found = []
    for block in blocks(document, language):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["t5x_lite"]:
                found.append(words[1:])
    return found


def shrink(words: list[str]) -> list[str]:
    if words[0] == "train" and not any("config.gin" in word for word in words):
        words = [re.sub(r"^--gin.TOTAL_STEPS=\d+", "--gin.TOTAL_STEPS=2", word) for word in words]
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
            if any("total_steps=" in word for word in words):
                check_that_it_trained(words)
    return {words[0] for words in commands(document)}


def check_that_it_trained(words: list[str]) -> None:
    """What makes a finished run longer must have a rate that changes something."""
    folder = Path(next(word for word in words if "config.gin" in word).partition("=")[2]).parent
    text = (folder / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.split("\n") if line]
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    assert rates[-1] > 1e-6, words


def build(document: str) -> set[str]:
    """The same without training: what would train is built, and what needs a run is parsed."""
    for words in commands(document):
        if any("config.gin" in word for word in words):
            assert cli.parse_args(words).verb == words[0]
            continue
        with config.fresh():
            dry = ["--dry_run"] if words[0] == "train" and "--dry_run" not in words else []
            assert cli.main([*shrink(words), *dry]) == 0, words
    return {words[0] for words in commands(document)}


def write_files(document: str) -> None:
    """Writes the files that a document shows: "`name`:" and then a block."""
    shown = r"`([\w.]+\.(?:gin|py))`[^`]*:\n\n```\w+\n(.*?)```"
    for name, text in re.findall(shown, read(document), flags=re.DOTALL):
        Path(name).write_text(text)


def write_books() -> None:
    Path("books").mkdir()
    Path("books", "argparse.txt").write_text(inspect.getsource(argparse))


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


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "runs").mkdir()
    return tmp_path


def test_the_first_hour_and_the_pages_on_what_is_trained(folder):
    """What they train is trained by the README's commands, and those of docs/your_data.md."""
    write_books()
    write_files("docs/first_hour.md")
    verbs = {"doctor", "vocab", "train", "eval", "infer", "data"}
    assert build("docs/first_hour.md") == verbs
    for page in ("models", "sharding", "objectives"):
        assert build(f"docs/{page}.md")


def test_the_page_on_extending(folder, capsys, monkeypatch):
    """A model, an objective, a dataset and an optimizer from outside of the package."""
    write_files("docs/extending.md")
    monkeypatch.syspath_prepend(str(folder))
    with config.fresh():
        assert commands("docs/extending.md") == [["train", "--gin_file=mine.gin"]]
        assert cli.main(["train", "--gin_file=mine.gin"]) == 0, capsys.readouterr().err
        assert "my_parts" in Path("runs/mine/config.gin").read_text()
    lines = [json.loads(line) for line in Path("runs/mine/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]


def test_the_page_on_continuing(folder):
    """Its commands are executed from a run of two steps, and those of its tables are understood."""
    with config.fresh():
        start = ["train", "--gin_file=recipes/quickstart.gin", "--gin.MODEL_DIR=./runs/first"]
        assert cli.main(shrink(start)) == 0
    assert run("docs/continuing.md") == {"train"}
    rows = re.findall(r"`(--gin\S+[^`]*total_steps=\d+)`", read("docs/continuing.md"))
    assert len(rows) == 3
    for row in rows:
        words = ["train", "--gin_file=runs/first/config.gin", *shlex.split(row)]
        arguments = cli.parse_args(words)
        with config.fresh():
            config.parse(arguments.gin_file, arguments.gin_bindings)
            assert config.evaluate("train.optimizer").schedule.for_run(800) is not None


@pytest.mark.parametrize("page", ["exchange", "from_t5x", "from_hugging_face", "launch", "serve"])
def test_commands_that_need_files_are_understood(page, folder):
    """Their gin files are read, too; the files that those name needn't be there."""
    write_files(f"docs/{page}.md")
    blocks_of = commands(f"docs/{page}.md") + commands(f"docs/{page}.md", "sh")
    assert blocks_of
    for words in blocks_of:
        arguments = cli.parse_args(words)
        files = getattr(arguments, "gin_file", [])
        if all(Path(name).exists() for name in files):
            with config.fresh():
                config.parse(files, getattr(arguments, "gin_bindings", []))


def test_errors_are_answered_as_the_page_on_errors_says(folder, capsys):
    write_books()
    shown = re.findall(r"^\$ t5x_lite (.*)\n(error: .*)$", read("docs/faq.md"), flags=re.MULTILINE)
    assert len(shown) > 9
    for command, error in shown:
        with config.fresh():
            assert cli.main(shlex.split(command)) == 2, command
        pattern = ".*".join(map(re.escape, error.split("...")))
        assert re.fullmatch(pattern, capsys.readouterr().err.splitlines()[-1]), command


def test_scripts_are_called_as_they_want_to_be(folder):
    """The commands `bash launch/...` of README and docs, in dry runs, and what they then train."""
    found = set()
    for document in ["README.md", *(f"docs/{page.name}" for page in PAGES)]:
        for line in "".join(blocks(document, "sh")).replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] != ["bash"]:
                continue
            found.add(words[1])
            assert (ROOT / words[1]).exists(), line
            if words[1] in ("launch/quickstart.sh", "launch/test.sh"):
                continue
            place = words.index("--") if "--" in words else len(words)
            done = subprocess.run(
                ["bash", ROOT / words[1], *words[2:place], "--dry_run", *words[place:]],
                env={"PATH": "/usr/bin:/bin", "TMPDIR": str(folder), "HOME": str(folder)},
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            trained = words[place + 1 :]
            if trained:
                verb = [] if trained[0] == "train" else ["train"]
                arguments = cli.parse_args([*verb, *trained])
                with config.fresh():
                    config.parse(arguments.gin_file, arguments.gin_bindings, root="train")
    assert {Path(name).name for name in found} >= {"tpu_vm.sh", "gke.sh", "slurm.sh", "gpus.sh"}


def test_names_in_the_pages_exist():
    """Every `Name.parameter` in backquotes; of the tables of from_t5x.md their right column."""
    checked, wrong = 0, []
    for page in PAGES:
        for line in page.read_text().splitlines():
            if page.name in ("from_t5x.md", "from_hugging_face.md") and line.startswith("|"):
                line = line.split("|")[2]
            last = ""
            for code in re.findall(r"`([^`]+)`", line):
                # "`Loss.z_loss`, `.normalizer`": of the one before.
                match = re.match(r"(?:--gin\.)?([A-Za-z]\w*)?\.(\w+)(?= |$|=)", code)
                if not match or FILE_ENDINGS.fullmatch(match[2]) or match[1] in ("tl", "t5x"):
                    continue
                name = match[1] or last
                if name in MODULES or not name:
                    continue
                last = name
                where = f"{page.name}: {code}"
                checked += 1
                try:
                    checks.check_parameter(checks.find_configurable(name, where), match[2], where)
                except UserError as error:
                    wrong.append(str(error))
    assert not wrong, "\n".join(wrong)
    assert checked > 60


def test_the_page_on_models_names_every_shipped_one():
    named = set()
    for stem, sizes in re.findall(r"`(\w+?)(?:\{([\w,]+)\})?\.gin`", read("docs/models.md")):
        named |= {stem + size for size in sizes.split(",")}
    shipped = {file.stem for file in (ROOT / "gin_configs" / "models").glob("*.gin")}
    # The others are what the sizes of a family share.
    families = {name for name in shipped if any(n.startswith(f"{name}_") for n in shipped)}
    assert named <= shipped and shipped - named <= families


def test_the_site_is_built_and_loads_nothing_from_elsewhere(tmp_path):
    if not importlib.util.find_spec("mkdocstrings"):
        pytest.skip(
            "mkdocs-material and mkdocstrings aren't installed: pip install 't5x_lite[docs]'"
        )
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages = {page.stem for page in tmp_path.glob("*.html")}
    assert pages >= {page.stem for page in PAGES}
    text = {
        file: file.read_text() for file in tmp_path.rglob("*") if file.suffix in (".html", ".css")
    }
    for file, content in text.items():
        loaded = re.findall(
            r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"?(https?:[^\" >]*)", content
        )
        loaded += re.findall(r"(?:url\(|@import )[\"']?(https?:[^\"')]*)", content)
        assert not [url for url in loaded if "rel=canonical" not in url], file
    # The library's page has every public name, with its signature.
    library = text[tmp_path / "api.html"]
    assert all(f'id="t5x_lite.{name}"' in library for name in t5x_lite._NAMES)


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
