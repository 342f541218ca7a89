"""`--restart=N`: what is started again and what isn't."""

import os
import signal
import subprocess
import sys

import pytest
from waiting import wait_until

from t5x_lite.programs.supervisor import supervise, train_command


def child(tmp_path, code: str) -> list[str]:
    """A command that counts its starts; `n` is the number of this one, from 1."""
    before = f"""
import os, signal, sys, time
from pathlib import Path
file = Path({str(tmp_path / "starts")!r})
n = int(file.read_text()) + 1 if file.exists() else 1
file.write_text(str(n))
"""
    return [sys.executable, "-S", "-c", before + code]


def starts(tmp_path) -> int:
    return int((tmp_path / "starts").read_text())


@pytest.mark.parametrize(
    "code, restarts, status, count",
    [
        ("sys.exit(0)", 3, 0, 1),
        ("sys.exit(2)", 3, 2, 1),  # a mistake in the config is one the second time, too
        ("sys.exit(130)", 3, 130, 1),
        ("sys.exit(143)", 3, 143, 1),  # saved on request: who asked may start it again
        ("sys.exit(1)", 2, 1, 3),
        ("os.kill(os.getpid(), signal.SIGKILL)", 1, 137, 2),
        ("sys.exit(1 if n < 3 else 0)", 5, 0, 3),
        ("sys.exit(75 if n < 2 else 0)", 1, 0, 2),
    ],
)
def test_what_is_started_again(tmp_path, capfd, code, restarts, status, count):
    assert supervise(child(tmp_path, code), restarts, first_wait=0.01) == status
    assert starts(tmp_path) == count


def test_it_says_what_it_does(tmp_path, capfd):
    supervise(child(tmp_path, "os.kill(os.getpid(), signal.SIGSEGV)"), 1, first_wait=0.01)
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        "supervisor: training was killed by signal 11; restart 1 of 1 in 0.01 s",
        "supervisor: training was killed by signal 11; not started again after 1 restarts in a row",
    ]


def test_a_long_run_between_two_crashes_starts_the_count_again(tmp_path):
    now = iter(range(0, 100_000, 1000))
    command = child(tmp_path, "sys.exit(1 if n < 6 else 0)")
    assert supervise(command, 1, first_wait=0.01, clock=lambda: next(now)) == 0
    assert starts(tmp_path) == 6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_the_child_and_nothing_is_started_again(tmp_path, number):
    code = (
        "signal.signal(signal.%s, lambda *_: sys.exit(0)); print('up', flush=True); time.sleep(600)"
    )
    script = (
        "import sys; from t5x_lite.programs.supervisor import supervise;"
        f"sys.exit(supervise({child(tmp_path, code % number.name)!r}, 3))"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    parent = subprocess.Popen(
        [sys.executable, "-c", script], env=env, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout.readline() == "up\n"
    parent.send_signal(number)
    assert parent.wait(120) == 0
    parent.stdout.close()
    assert starts(tmp_path) == 1


def test_a_supervisor_that_is_killed_takes_its_child_along(tmp_path):
    code = """
from t5x_lite import parent
parent.follow()
def leave(*_):
    Path(file.parent / 'saved').touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, leave)
print('up', flush=True)
time.sleep(600)
"""
    script = (
        "import sys; from t5x_lite.programs.supervisor import supervise;"
        f"sys.exit(supervise({child(tmp_path, code)!r}, 3))"
    ).replace("'-S', ", "")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    parent = subprocess.Popen(
        [sys.executable, "-c", script], env=env, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout.readline() == "up\n"
    parent.kill()
    parent.wait()
    wait_until(lambda: (tmp_path / "saved").exists())
    assert parent.stdout.read() == ""  # nobody holds it open any more
    parent.stdout.close()


def test_the_childs_command():
    argv = ["train", "--restart=3", "--gin_file=a.gin", "--restart", "4", "--gin.X=1"]
    assert train_command(argv)[1:] == ["-m", "t5x_lite", "train", "--gin_file=a.gin", "--gin.X=1"]
