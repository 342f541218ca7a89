"""Exports while a run goes on: never in its way, whole or not there."""

import sys

import jax.numpy as jnp
import pytest
from waiting import wait_until

from t5x_lite.errors import UserError
from t5x_lite.models.config import TransformerConfig
from t5x_lite.programs.exports import CheckpointConfig, ExportingCheckpoints, convert_command

MODEL = TransformerConfig(64, 8, 2, 4, 8, 1, 1)
CONFIG = CheckpointConfig(period=100, export_every=2, export_dtype="bfloat16")


def saved(checkpoints, step, metrics=None):
    """As the loop does; the state needn't be a model's: the stand-in for convert doesn't look."""
    if not checkpoints.should_save(step):
        return
    state = {"params": {"x": jnp.full(3, step)}, "step": jnp.int32(step)}
    checkpoints.save(step, state, data_position=None, description={}, metrics=metrics)


def stand_in(code):
    """Runs ``code`` with what convert would be told."""
    return lambda checkpoint, to, dtype: [sys.executable, "-c", code, checkpoint, to, str(dtype)]


COPY = "import sys, shutil; shutil.copytree(sys.argv[1], sys.argv[2])"
HANG = (
    "import sys, os, time; os.mkdir(f'exports/.2.{os.getpid()}.tmp');"
    "time.sleep(600); open('waited_for', 'x')"
)


def test_every_so_many_steps_and_waited_for_at_the_end(tmp_path):
    with ExportingCheckpoints(tmp_path, CONFIG, MODEL, stand_in(COPY)) as checkpoints:
        for step in range(1, 6):
            saved(checkpoints, step, metrics={"loss": 1.0})
        checkpoints.finish_exports()
    assert sorted(p.name for p in (tmp_path / "exports").iterdir()) == ["2", "4"]
    assert (tmp_path / "exports/4/description/data.json").exists()  # of a finished checkpoint


def test_interrupted_it_is_done_when_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ExportingCheckpoints(tmp_path, CONFIG, MODEL, stand_in(HANG)) as checkpoints:
        saved(checkpoints, 2)
        checkpoints.wait()
        saved(checkpoints, 3)  # begins with it
        wait_until(lambda: list((tmp_path / "exports").glob(".2.*.tmp")), "the export")
    assert list((tmp_path / "exports").iterdir()) == []
    assert not (tmp_path / "waited_for").exists()
    (tmp_path / "exports/.2.999999.tmp").mkdir()  # as a killed process leaves
    with ExportingCheckpoints(tmp_path, CONFIG, MODEL, stand_in(COPY)) as checkpoints:
        assert checkpoints.exports_due()
        saved(checkpoints, 4, metrics={"loss": 1.0})
        checkpoints.finish_exports()
        assert not checkpoints.exports_due()
    assert sorted(p.name for p in (tmp_path / "exports").iterdir()) == ["2", "4"]


def test_checkpoints_stay_until_they_are_exported(tmp_path):
    go = tmp_path / "go"
    slow = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n" + COPY
    config = CheckpointConfig(period=1, export_every=2, keep_latest=1)
    with ExportingCheckpoints(tmp_path, config, MODEL, stand_in(slow)) as checkpoints:
        for step in range(1, 8):
            saved(checkpoints, step)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 6, 7]
        go.touch()
        checkpoints.finish_exports()
        saved(checkpoints, 9)
        checkpoints.wait()
        assert checkpoints.steps() == [9]
    assert sorted(p.name for p in (tmp_path / "exports").iterdir()) == ["2", "4", "6"]


def test_waiting_for_exports_can_be_interrupted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Enough(Exception):
        pass

    def look():
        if list((tmp_path / "exports").glob(".2.*.tmp")):
            raise Enough

    with ExportingCheckpoints(tmp_path, CONFIG, MODEL, stand_in(HANG)) as checkpoints:
        saved(checkpoints, 2)
        with pytest.raises(Enough):
            checkpoints.finish_exports(look)
    assert list((tmp_path / "exports").iterdir()) == []


def test_what_cannot_be_exported_costs_a_warning(tmp_path, caplog):
    fail = "import sys; sys.exit('error: no room on the disk')"
    with ExportingCheckpoints(tmp_path, CONFIG, MODEL, stand_in(fail)) as checkpoints:
        saved(checkpoints, 2, metrics={"loss": 1.0})
        checkpoints.finish_exports()
    assert "Step 2 wasn't exported: convert said 'error: no room on the disk'" in caplog.text
    assert checkpoints.steps() == [2]


def test_said_before_the_run_begins(tmp_path):
    model = TransformerConfig(64, 8, 2, 4, 8, 1, 1, norm="layer")
    with pytest.raises(UserError, match="T5 has no norm = 'layer'"):
        ExportingCheckpoints(tmp_path, CONFIG, model)
    with pytest.raises(UserError, match="needs a model_dir on a local disk"):
        ExportingCheckpoints("gs://bucket/run", CONFIG, MODEL)
    with pytest.raises(UserError, match="export_dtype is 'int8'"):
        CheckpointConfig(export_dtype="int8")
    with pytest.raises(UserError, match="export_every is 0"):
        CheckpointConfig(export_every=0)
    assert convert_command("run/checkpoints/2", "to", "bfloat16")[1:] == [
        *("-m", "t5x_lite", "convert", "--from=run/checkpoints/2", "--to=to", "--dtype=bfloat16")
    ]
