"""Goodput, the watchdog, the garbage collector, retries."""

import gc
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import wait_until

from t5x_lite.errors import UserError
from t5x_lite.retry import retry
from t5x_lite.training import garbage
from t5x_lite.training.goodput import ACCOUNTS, Goodput, shares
from t5x_lite.training.watchdog import HANG_STATUS, Watchdog, WatchdogConfig


class Clock:
    def __init__(self, now=100.0):
        self.now = now

    def __call__(self):
        return self.now


# ------------------------------------------------------------------------------------ goodput


@given(st.lists(st.tuples(st.sampled_from(sorted(ACCOUNTS)), st.integers(0, 1000))))
def test_all_time_is_in_one_account(spent):
    clock = Clock()
    goodput = Goodput(clock, wall=Clock())
    expected = dict.fromkeys(ACCOUNTS, 0)
    for account, seconds in spent:
        with goodput.spend(account):
            clock.now += seconds
            expected[account] += seconds
        clock.now += 1
        expected["start"] += 1
    assert goodput.seconds() == expected
    assert sum(goodput.seconds().values()) == clock.now - 100


def test_a_crash_loses_the_time_since_the_checkpoint():
    clock, wall = Clock(), Clock(1e9)

    def advance(seconds):
        clock.now += seconds
        wall.now += seconds

    first = Goodput(clock, wall)
    with first.spend("step"):
        advance(50)
    saved = first.state()
    with first.spend("step"):
        advance(30)  # in vain: killed here
    advance(10)  # until it is started again
    second = Goodput(clock, wall)
    second.restore(saved)
    with second.spend("restore"):
        advance(5)
    assert second.restarts == 1
    seconds = second.seconds()
    assert seconds == dict.fromkeys(ACCOUNTS, 0) | {"step": 50, "lost": 40, "restore": 5}
    assert second.values()["goodput"] == pytest.approx(50 / 95)
    assert shares(second.values()) == "53% training steps, 42% lost to restarts, 5% restoring"


def test_an_orderly_stop_loses_nothing():
    clock, wall = Clock(), Clock(1e9)
    first = Goodput(clock, wall)
    saved = first.state(ended=True)
    wall.now += 10**6
    second = Goodput(clock, wall)
    second.restore(saved)
    assert second.restarts == 0 and second.seconds()["lost"] == 0
    second.restore({})  # a checkpoint from before there was such a thing
    assert second.seconds()["lost"] == 0


# ------------------------------------------------------------------------------------ watchdog


def watchdog(clock, running, **config):
    stream = tempfile.TemporaryFile("w+")  # noqa: SIM115
    ended = []
    dog = Watchdog(
        WatchdogConfig(**config), lambda: running[0], clock=clock, stream=stream, end=ended.append
    )
    return dog, stream, ended


def text_of(stream):
    stream.seek(0)
    return stream.read()


def test_a_hang_is_reported_once_with_stacks():
    clock, running = Clock(), [("step", 100.0)]
    dog, stream, ended = watchdog(clock, running, factor=10, seconds=30)
    for step in range(1, 11):
        clock.now += 4
        dog.beat(step)
    running[0] = ("data_wait", clock.now)
    clock.now += 39
    assert dog.limit() == 40 and not dog.check()
    clock.now += 2
    assert dog.check() and not dog.check()
    text = text_of(stream)
    assert "41 s waiting for data after step 10 (a step usually takes 4 s). Stacks" in text
    assert "test_a_hang_is_reported_once_with_stacks" in text and ended == []
    dog.beat(11)
    running[0] = ("step", clock.now)
    clock.now += 50
    assert dog.check() and "50 s in a step after step 11" in text_of(stream)


def test_a_hang_can_end_the_process():
    clock, running = Clock(), [("step", 0.0)]
    dog, stream, ended = watchdog(clock, running, seconds=99, end_process=True)
    assert dog.check() and ended == [HANG_STATUS]
    assert "ending the process" in text_of(stream)


def test_saving_evaluation_and_compiling_may_take_their_time():
    for account in sorted(set(ACCOUNTS) - set(Watchdog.WATCHED)):
        dog, _, _ = watchdog(Clock(10**6), [(account, 0.0)])
        assert not dog.check()


def test_its_thread_checks_and_ends():
    clock, running = Clock(1000.0), [("step", 0.0)]
    dog, stream, _ = watchdog(clock, running, seconds=1)
    dog._poll = 0.001
    with dog:
        wait_until(lambda: "watchdog: " in text_of(stream))
    with pytest.raises(UserError, match="the factor must be above 1"):
        WatchdogConfig(factor=1)


# ------------------------------------------------------------------------------------ the rest


def test_garbage_is_only_collected_at_its_steps():
    class Cycle:
        def __init__(self):
            self.me = self

    collections = []
    gc.callbacks.append(lambda phase, info: collections.append(phase))
    try:
        with garbage.collector_off():
            collections.clear()
            for _ in range(5000):
                Cycle()
            garbage.collect(7, 10)
            assert collections == []
            garbage.collect(10, 10)
            assert collections == ["start", "stop"]
            assert not gc.isenabled() and gc.get_freeze_count() > 0
    finally:
        gc.callbacks.pop()
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_retry_waits_longer_each_time_and_then_gives_up(caplog):
    waits, calls = [], []

    def fails(times, error):
        def function():
            calls.append(1)
            if len(calls) <= times:
                raise error
            return "read"

        calls.clear()
        waits.clear()
        return retry(function, what="gs://bucket/file", sleep=waits.append)

    assert fails(2, ConnectionResetError("gone")) == "read" and waits == [1, 2]
    assert "gs://bucket/file: gone; trying again in 2 s (3 of 4)" in caplog.text
    with pytest.raises(TimeoutError):
        fails(4, TimeoutError())
    assert waits == [1, 2, 4]
    with pytest.raises(FileNotFoundError):
        fails(1, FileNotFoundError())
    assert waits == []
