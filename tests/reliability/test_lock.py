"""One owner of a run's folder."""

import json
import multiprocessing
import os
import subprocess
import sys
import time

import pytest
from waiting import wait_until

from t5x_lite.errors import UserError
from t5x_lite.programs.lock import NAME, STALE_AFTER, Lock, process_start


def test_a_second_owner_is_refused_and_told_who_has_it(tmp_path):
    with Lock(tmp_path):
        owner = json.loads((tmp_path / NAME).read_text())
        assert owner["pid"] == os.getpid()
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on {owner['host']}"):
            Lock(tmp_path).__enter__()
        assert json.loads((tmp_path / NAME).read_text()) == owner
    assert list(tmp_path.iterdir()) == []
    with Lock(tmp_path):
        pass


def test_a_lock_whose_process_is_gone_is_taken(tmp_path):
    code = f"""
import os
from t5x_lite.programs.lock import Lock
Lock({str(tmp_path)!r}).__enter__()
os.kill(os.getpid(), 9)
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.Popen([sys.executable, "-c", code], env=env)
    wait_until(lambda: (tmp_path / NAME).exists() and process_start(process.pid) is None)
    with Lock(tmp_path):  # though nobody has waited for the process: it is a zombie
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    process.wait()


def test_another_process_with_the_old_number_is_not_the_owner(tmp_path):
    owner = {"host": "here", "pid": os.getpid(), "process_start": "another boot/123", "id": "x"}
    (tmp_path / NAME).write_text(json.dumps(owner))
    with Lock(tmp_path, host="here"):
        assert json.loads((tmp_path / NAME).read_text())["process_start"] != "another boot/123"


@pytest.mark.parametrize("age, refused", [(STALE_AFTER - 5, True), (STALE_AFTER + 5, False)])
def test_an_owner_on_another_machine_lives_while_it_touches_the_lock(tmp_path, age, refused):
    file = tmp_path / NAME
    file.write_text(json.dumps({"host": "elsewhere", "pid": 1, "id": "x"}))
    lock = Lock(tmp_path, host="here", wall=lambda: file.stat().st_mtime + age)
    if refused:
        with pytest.raises(UserError, match="in use by process 1 on elsewhere"):
            lock.__enter__()
    else:
        with lock:
            assert json.loads(file.read_text())["host"] == "here"


def test_the_owner_touches_its_lock(tmp_path):
    with Lock(tmp_path, heartbeat=0.01):
        os.utime(tmp_path / NAME, (0, 0))
        wait_until(lambda: (tmp_path / NAME).stat().st_mtime != 0, "a heartbeat")


def test_a_lock_that_cannot_be_read_is_stale_after_a_while(tmp_path):
    (tmp_path / NAME).write_text("{")
    with pytest.raises(UserError, match="in use by process"):
        Lock(tmp_path).__enter__()
    with Lock(tmp_path, wall=lambda: time.time() + 2 * STALE_AFTER):
        pass


def _try(folder, barrier, results):
    barrier.wait()
    lock = Lock(folder)
    try:
        lock.__enter__()
    except UserError:
        results.put(0)
        barrier.wait()
        return
    results.put(1)
    barrier.wait()  # an owner that leaves earlier makes room for those that are late
    lock.__exit__()


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_at_once_one_gets_it(tmp_path, stale):
    if stale:
        owner = {"host": "elsewhere", "pid": 1, "id": "x"}
        (tmp_path / NAME).write_text(json.dumps(owner))
        os.utime(tmp_path / NAME, (0, 0))
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(6), context.Queue()
    processes = [context.Process(target=_try, args=(tmp_path, barrier, results)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert sum(results.get(timeout=60) for _ in processes) == 1
