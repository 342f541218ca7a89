"""Requests to stop: looked at by the main thread, or obeyed without it."""

import os
import signal
import subprocess
import sys

import pytest

from t5x_lite import exit_status
from t5x_lite.programs.interrupt import Interrupt, Stopped

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
BEFORE = """
import os, signal, sys, time
for number in (signal.SIGINT, signal.SIGHUP):  # jobs in the background inherit "ignore"
    signal.signal(number, signal.SIG_DFL)
from t5x_lite.programs.interrupt import Interrupt, Stopped
def busy():  # the main thread doesn't look
    print("up", flush=True)
    while True:
        time.sleep(1)
"""


def started(tmp_path, code: str) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.Popen(
        [sys.executable, "-c", BEFORE + code], cwd=tmp_path, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "up\n"
    return process


@pytest.mark.parametrize("number", SIGNALS)
def test_a_main_thread_that_does_not_look_is_not_waited_for(tmp_path, number):
    code = """
with Interrupt(owns_process=True, patience=0.1) as interrupt:
    interrupt.saves(lambda: open("saved", "w").close())
    busy()
"""
    process = started(tmp_path, code)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == exit_status.SAVED and (tmp_path / "saved").exists()
    assert f"{number.name}: saving" in errors


def test_where_nothing_is_to_be_saved_it_ends_at_once(tmp_path):
    process = started(tmp_path, "with Interrupt(owns_process=True, patience=10**6): busy()")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == exit_status.SAVED and "nothing is left to be saved" in errors


def test_a_save_that_fails_is_a_failure(tmp_path):
    code = """
def save(): raise OSError("no room")
with Interrupt(owns_process=True, patience=0.1) as interrupt:
    interrupt.saves(save)
    busy()
"""
    process = started(tmp_path, code)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == exit_status.FAILED and "no room" in errors


def test_the_second_signal_ends_it_at_once_and_says_that_nothing_is_saved(tmp_path):
    code = """
with Interrupt(owns_process=True, patience=10**6) as interrupt:
    interrupt.saves(lambda: open("saved", "w").close())
    busy()
"""
    process = started(tmp_path, code)
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline() == "\n" and "saving" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == exit_status.INTERRUPTED and "without saving" in errors
    assert not (tmp_path / "saved").exists()


def test_nobody_saves_while_the_state_is_being_replaced(tmp_path):
    code = """
with Interrupt(owns_process=True, patience=0.01) as interrupt:
    interrupt.saves(lambda: os.write(1, b"saved\\n"))
    with interrupt.undisturbed():
        print("up", flush=True)
        while interrupt.signal is None:
            time.sleep(0.01)
        time.sleep(0.5)
        os.write(1, b"replaced\\n")
    while True:
        time.sleep(1)
"""
    process = started(tmp_path, code)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=120)
    assert text == "replaced\nsaved\n" and process.returncode == exit_status.SAVED


def test_what_was_ignored_stays_ignored(tmp_path):
    """As SIGHUP under nohup, and SIGINT of a job in the background."""
    code = """
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with Interrupt(owns_process=True) as interrupt:
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(0.2)
    print("up", flush=True)
    sys.exit(0 if interrupt.signal is None else 1)
"""
    process = started(tmp_path, code)
    process.communicate(timeout=120)
    assert process.returncode == 0


@pytest.mark.parametrize("number", SIGNALS)
def test_in_a_program_of_the_users_there_is_only_the_flag(number):
    before = signal.getsignal(number)
    if before is signal.SIG_IGN:
        pytest.skip("ignored here")
    with Interrupt() as interrupt:
        interrupt.look()
        assert list(interrupt.looking([1, 2])) == [1, 2] and not interrupt.requested()
        os.kill(os.getpid(), number)
        with pytest.raises(Stopped):
            interrupt.look()
        assert interrupt.requested() and interrupt.stopped and interrupt.signal == number.name
        assert next(iter(interrupt.looking([])), None) is None
    assert signal.getsignal(number) == before
