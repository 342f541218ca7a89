"""Trackers of other people's making; each test needs the package that it is about."""

import json
import sqlite3
import sys

import pytest

from t5x_lite.errors import UserError
from t5x_lite.training.services import Trackio, WandB
from t5x_lite.training.trackers import Histogram, Trackers


def log_two_processes(service, model_dir):
    """A run of two steps, continued for a third; returns the run that the last process had."""
    for step in (0, 2):
        tracker = service.open(str(model_dir), step)
        trackers = Trackers([tracker], process_index=0)
        trackers.log_hyperparameters({"model": "tiny", "config": {"a": 1}})
        for k in range(step + 1, 3 if step == 0 else 4):
            trackers.log(k, {"loss": 1.0 / k, "note": "a text", "h": Histogram(0, 2, [3, 1])})
        trackers.log_summary({"last": {"loss": 0.25}})
        (model_dir / "page.html").write_text("<p>")
        trackers.log_artifact(str(model_dir / "page.html"), "report")
        trackers.finish()
    return tracker._run


def test_wandb_offline(tmp_path, monkeypatch, caplog):
    pytest.importorskip("wandb", reason="wandb isn't installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("CONFIG_DIR", "CACHE_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / name))
    run = log_two_processes(WandB(project="p", tags=("a",)), tmp_path)
    assert caplog.text == ""
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    name = (tmp_path / "wandb_id").read_text()
    assert runs and all(run.name.endswith(name) for run in runs)
    assert run.config["model"] == "tiny" and run.config["config/a"] == 1
    assert run.name == tmp_path.name and run.project == "p"
    # What is sent by `wandb sync` later: a log of records, texts in it readable.
    written = b"".join(f.read_bytes() for r in runs for f in r.glob("*.wandb"))
    for part in (b"a text", b"histogram", b"last/loss", b"page.html"):
        assert part in written


def test_trackio(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="trackio isn't installed")
    log_two_processes(Trackio(project="p"), tmp_path)
    assert caplog.text == ""
    [database] = (tmp_path / "trackio").glob("p*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select run_name, step, metrics from metrics order by step")
        rows = [(name, step, json.loads(metrics)) for name, step, metrics in rows]
    name = f"{tmp_path.name}-{(tmp_path / 'trackio_id').read_text()}"
    assert {run for run, _, _ in rows} == {name}
    assert {step: m["loss"] for _, step, m in rows if "loss" in m} == {1: 1.0, 2: 0.5, 3: 1 / 3}


@pytest.mark.parametrize("service, package", [(WandB, "wandb"), (Trackio, "trackio")])
def test_a_service_that_is_not_installed_is_said_at_the_start(service, package, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"needs the package {package}: pip install {package}"):
        service()


def test_a_service_that_does_not_start_is_said_in_one_line(tmp_path, monkeypatch):
    class Broken:
        @staticmethod
        def init(**options):
            raise RuntimeError("no API key\nsee the manual")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "wandb", Broken)
    with pytest.raises(UserError, match=r"WandB doesn't start \(RuntimeError: no API key\): log"):
        WandB().open(str(tmp_path), 0)
