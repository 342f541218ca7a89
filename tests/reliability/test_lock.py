"""One owner of a run's folder."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time

import pytest
from waiting import wait_until

from t5x_lite.errors import UserError
from t5x_lite.programs.lock import NAME, STALE_AFTER, Lock, Lost, process_start


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


def other(tmp_path, **changes) -> dict:
    """Another owner's lock, of a process that can't be seen from here."""
    owner = {
        "host": "elsewhere",
        "namespace": "another boot/pid:[1]",
        "pid": 1,
        "id": "x",
    } | changes
    (tmp_path / NAME).write_text(json.dumps(owner))
    return owner


def test_another_process_with_the_old_number_is_not_the_owner(tmp_path):
    other(tmp_path, namespace="here", pid=os.getpid(), process_start="another boot/123")
    with Lock(tmp_path, namespace="here"):
        assert json.loads((tmp_path / NAME).read_text())["process_start"] != "another boot/123"


class Time:
    """A clock that `sleep` moves; `then` is called after so many seconds."""

    def __init__(self, after=None, then=None):
        self.now, self.after, self.then = 0.0, after, then

    def sleep(self, seconds):
        self.now += seconds
        if self.after is not None and self.now >= self.after:
            self.after = None
            self.then()

    def options(self):
        return {"clock": lambda: self.now, "sleep": self.sleep}


@pytest.mark.parametrize("age", [-360, 0, 10**6])  # clocks that differ don't matter
@pytest.mark.parametrize("namespace", ["another boot/pid:[1]", None])
def test_an_owner_that_cannot_be_seen_lives_while_it_touches_the_lock(tmp_path, age, namespace):
    file = tmp_path / NAME
    other(tmp_path, namespace=namespace)
    os.utime(file, (time.time() - age, time.time() - age))
    alive = Time(after=STALE_AFTER - 5, then=lambda: os.utime(file))
    with pytest.raises(UserError, match="in use by process 1 on elsewhere"):
        Lock(tmp_path, **alive.options()).__enter__()
    gone = Time()
    with Lock(tmp_path, **gone.options()):
        assert json.loads(file.read_text())["pid"] == os.getpid()
    assert STALE_AFTER <= gone.now < STALE_AFTER + 5


def test_a_host_name_and_a_process_number_say_nothing(tmp_path):
    """Two containers on one machine: the same name, and the first process of each is 1."""
    file = tmp_path / NAME
    with Lock(tmp_path, namespace="boot/pid:[1]"):
        alive = Time(after=5, then=lambda: os.utime(file))
        with pytest.raises(UserError, match="in use by"):
            Lock(tmp_path, namespace="boot/pid:[2]", **alive.options()).__enter__()


def test_an_owner_that_was_stopped_for_long_writes_nothing_more(tmp_path):
    wall = [1000.0]
    first = Lock(tmp_path, wall=lambda: wall[0], heartbeat=10**6)
    with first:
        first.check(now=True)
        other(tmp_path, pid=7)  # which has found it stale
        first.check()  # not looked at: this process has not been away
        wall[0] += 10**7
        with pytest.raises(Lost, match="process 7 on elsewhere has it"):
            first.check()
        with pytest.raises(Lost):
            first.check(now=True)
    assert json.loads((tmp_path / NAME).read_text())["pid"] == 7  # it isn't removed


def test_a_lock_that_somebody_removed_is_taken_again(tmp_path):
    with Lock(tmp_path, heartbeat=10**6) as lock:
        (tmp_path / NAME).unlink()
        lock.check(now=True)
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_killed_processes_are_cleared(tmp_path):
    for name in ("lock.json.0123", "lock.json.stale.4567"):
        (tmp_path / name).write_text("{}")
        os.utime(tmp_path / name, (1, 1))
    (tmp_path / "lock.json.at_work").write_text("{}")
    with Lock(tmp_path):
        assert {p.name for p in tmp_path.iterdir()} == {NAME, "lock.json.at_work"}


def test_a_process_that_leaves_the_lock_to_another_one(tmp_path):
    with Lock(tmp_path, active=False) as lock:
        lock.check(now=True)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_an_owner_in_another_process_namespace(tmp_path):
    code = f"""
import sys
from t5x_lite.errors import UserError
from t5x_lite.programs.lock import Lock
try:
    with Lock({str(tmp_path)!r}):
        print("owns")
except UserError as error:
    print(error)
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    with Lock(tmp_path, heartbeat=0.2):
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    if "unshare" in done.stderr:
        pytest.skip("no right to make a namespace")
    assert f"is in use by process {os.getpid()}" in done.stdout


def test_the_owner_touches_its_lock(tmp_path):
    with Lock(tmp_path, heartbeat=0.01):
        os.utime(tmp_path / NAME, (0, 0))
        wait_until(lambda: (tmp_path / NAME).stat().st_mtime != 0, "a heartbeat")


def test_a_lock_in_which_nothing_can_be_read_is_stale_after_a_while(tmp_path):
    (tmp_path / NAME).write_text("{")  # as after a power cut
    alive = Time(after=STALE_AFTER / 2, then=lambda: os.utime(tmp_path / NAME))
    with pytest.raises(UserError, match="in use by process"):
        Lock(tmp_path, **alive.options()).__enter__()
    with Lock(tmp_path, **Time().options()):
        pass


def _try(folder, barrier, results):
    barrier.wait()
    lock = Lock(folder, **Time().options())
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
        other(tmp_path)
        os.utime(tmp_path / NAME, (0, 0))
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(6), context.Queue()
    processes = [context.Process(target=_try, args=(tmp_path, barrier, results)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert sum(results.get(timeout=60) for _ in processes) == 1
