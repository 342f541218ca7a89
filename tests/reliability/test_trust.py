"""Configurations that may be somebody else's run no code of theirs; nothing is unpickled."""

import http.server
import re
import sys
import threading
from pathlib import Path

import pytest

from t5x_lite import config, gin_files
from t5x_lite.errors import UserError

PACKAGE = Path(config.__file__).parent
CODE = "import sys\nsys.ran_foreign_code = True\n"


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A run's folder whose config.gin imports a module, which is there to be imported."""
    (tmp_path / "foreign_module.py").write_text(CODE)
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    (run / "config.gin").write_text("import foreign_module\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield run / "config.gin"
    sys.modules.pop("foreign_module", None)
    if hasattr(sys, "ran_foreign_code"):
        del sys.ran_foreign_code


def parse(name, **options):
    with config.fresh():
        config.parse([str(name)], root="train", **options)


def test_a_runs_stored_config_imports_nothing_foreign(foreign, tmp_path):
    with pytest.raises(UserError, match="'import foreign_module' .* give --trust_config"):
        parse(foreign)
    (tmp_path / "mine.gin").write_text(f"include '{foreign}'\n")
    with pytest.raises(UserError, match="--trust_config"):
        parse("mine.gin")
    assert not hasattr(sys, "ran_foreign_code")
    parse(foreign, trust=True)
    assert sys.ran_foreign_code


@pytest.mark.parametrize("place", ["configs", "checkpoints/7/description"])
def test_a_file_anywhere_in_a_run_imports_nothing_foreign(foreign, place):
    folder = foreign.parent / place
    folder.mkdir(parents=True)
    moved = foreign.rename(folder / "config.gin")
    with pytest.raises(UserError, match="lies in the run's folder .*run.: give --trust_config"):
        parse(moved)
    (foreign.parent / "run.json").rename(foreign.parent / "parameters.txt")
    with pytest.raises(UserError, match="lies in the run's folder"):
        parse(moved)
    link = foreign.parents[1] / "mine.gin"
    link.symlink_to(moved)
    with pytest.raises(UserError, match="lies in the run's folder"):
        parse(link)
    assert not hasattr(sys, "ran_foreign_code")


@pytest.mark.parametrize("through", ["path", "beside", "search path"])
def test_what_a_file_includes_by_its_path_is_asked_for(foreign, tmp_path, through):
    (foreign.parent / "run.json").unlink()
    other = foreign.rename(foreign.parent / "other.gin")
    main = tmp_path / "main.gin" if through != "beside" else foreign.parent / "main.gin"
    main.write_text(f"include '{other if through == 'path' else 'other.gin'}'\n")
    options = {"search_paths": [str(other.parent)]} if through == "search path" else {}
    with pytest.raises(UserError, match="included by its path.*--trust_config.*--gin_file=.*other"):
        parse(main, **options)
    assert not hasattr(sys, "ran_foreign_code")
    with config.fresh():  # named, too
        config.parse([str(main), str(other)], root="train", **options)
    assert sys.ran_foreign_code


def test_a_shipped_file_may_be_included(foreign, tmp_path, monkeypatch):
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    monkeypatch.setattr(gin_files, "shipped_gin_configs", lambda: shipped)
    (shipped / "theirs.gin").write_text("import foreign_module\n")
    (tmp_path / "mine.gin").write_text("include 'theirs.gin'\n")
    parse("mine.gin")
    assert sys.ran_foreign_code


def test_ones_own_files_and_own_modules_are_trusted(foreign):
    (foreign.parent / "run.json").unlink()
    parse(foreign)
    assert sys.ran_foreign_code
    (foreign.parent / "run.json").write_text("{}")
    foreign.write_text("import t5x_lite.errors\n")
    parse(foreign)


def test_a_config_from_a_url(foreign, monkeypatch):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        base = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(UserError, match="'import foreign_module' .* from a URL"):
            parse(f"{base}/run/config.gin")
        assert not hasattr(sys, "ran_foreign_code")
        Path("plain.gin").write_text("train.total_steps = 3\n")
        parse(f"{base}/plain.gin")
        monkeypatch.setattr(gin_files, "MAX_GIN_BYTES", 10)
        with pytest.raises(UserError, match="more than 10 bytes"):
            parse(f"{base}/plain.gin")
        with pytest.raises(UserError, match="cannot read the gin file .*404"):
            parse(f"{base}/none.gin")
    finally:
        server.shutdown()
        server.server_close()


def test_nothing_is_unpickled():
    """No pickle, marshal or shelve, no eval or exec, no npz that may hold objects.

    Only data/workers.py and corpus/apart.py may: what they unpickle comes from their own parent or
    child, by a pipe that nobody else has (a task's and a step's functions can't travel otherwise).
    """
    by_own_pipe = [PACKAGE / "data" / "workers.py", PACKAGE / "corpus" / "apart.py"]
    bad = re.compile(
        r"\bpickle\.loads?\b|\bimport (pickle|marshal|shelve|dill)|allow_pickle=True|"
        r"(?<![\w.])(eval|exec)\(|yaml\.load\("
    )
    for file in PACKAGE.rglob("*.py"):
        if file in by_own_pipe:
            continue
        for number, line in enumerate(file.read_text().splitlines(), 1):
            assert not bad.search(line), f"{file}:{number}: {line}"
            if "np.load(" in line or "numpy.load(" in line:
                assert "allow_pickle=False" in line, f"{file}:{number}: {line}"
