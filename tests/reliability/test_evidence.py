"""What can't be read now is neither missing nor wrong, whatever reads it."""

import errno
import json
import os
from pathlib import Path

import pytest
from etils import epath

from t5x_lite import evidence
from t5x_lite.errors import Unreadable
from t5x_lite.evaluation import results
from t5x_lite.programs import folder
from t5x_lite.programs.early_stopping import EarlyStopping
from t5x_lite.training import services


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(evidence.time, "sleep", lambda _: None)


@pytest.fixture
def unreadable(tmp_path):
    """A file that is there and that nobody can open: a link to itself (ELOOP)."""

    def make(name: str) -> Path:
        (tmp_path / name).symlink_to(tmp_path / name)
        return tmp_path / name

    return make


def test_three_things_stay_three(tmp_path, unreadable):
    (tmp_path / "there").write_text("text")
    assert evidence.read_text(tmp_path / "there") == "text" and evidence.exists(tmp_path / "there")
    assert evidence.read_text(epath.Path(tmp_path) / "not_there") is None
    assert not evidence.exists(tmp_path / "not_there")
    file = unreadable("file")
    for read in (evidence.read_text, evidence.exists):
        with pytest.raises(Unreadable, match=f"{file} can't be read now: .*ELOOP"):
            read(file)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ETIMEDOUT])
def test_what_passes_is_read(number):
    left = [number, number]

    def read():
        if left:
            raise OSError(left.pop(), "for a moment")
        return "content"

    assert evidence.attempt(read, "file") == "content"


def test_rights_are_not_waited_for():
    calls = []

    def read():
        calls.append(1)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "secret")

    with pytest.raises(Unreadable, match="secret can't be read now: Permission denied .EACCES."):
        evidence.attempt(read, "file")
    assert len(calls) == 1


def test_no_new_identity_of_a_run(unreadable, tmp_path):
    unreadable("run.json")
    with pytest.raises(Unreadable, match="run.json"):
        folder.check(str(tmp_path), {})
    unreadable("wandb_id")
    with pytest.raises(Unreadable, match="wandb_id"):
        services._run_id(str(tmp_path))


def test_no_result_is_left_out(tmp_path, unreadable):
    (tmp_path / "2.json").write_text(json.dumps({"step": 2, "values": {}}))
    (tmp_path / "other.json").write_text("[")
    assert [r["step"] for r in results.read_all(epath.Path(tmp_path))] == [2]
    unreadable("4.json")
    with pytest.raises(Unreadable, match="4.json"):
        results.read_all(epath.Path(tmp_path))


def test_no_evaluation_is_forgotten(tmp_path, unreadable):
    unreadable("metrics.jsonl")
    with pytest.raises(Unreadable, match="metrics.jsonl"):
        EarlyStopping(metric="loss", model_dir=str(tmp_path)).is_over(4)
