"""Several processes: one is lost, all are stopped, another number of them goes on."""

import json
import re
import signal
import time

import processes
import pytest
import tiny

from t5x_lite.programs.train import train
from t5x_lite.training.checkpoints import CheckpointConfig, Checkpoints

STEPS = 30


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The losses of one process with eight devices."""
    folder = tmp_path_factory.mktemp("one") / "run"
    train(**tiny.arguments(folder, total_steps=STEPS, checkpoint=CheckpointConfig(period=5)))
    return tiny.logged(folder)


def wait_for_step(run, started, step):
    deadline = time.monotonic() + 240
    while True:
        assert time.monotonic() < deadline and all(p.poll() is None for p in started), (
            processes.output(run, 0)[-3000:]
        )
        if (run / "metrics.jsonl").exists():
            lines = (run / "metrics.jsonl").read_text().split("\n")[:-1]
            if lines and json.loads(lines[-1])["step"] >= step:
                return
        time.sleep(0.02)


def assert_same_batches(run, expected):
    found = tiny.logged(run)
    assert list(found) == list(range(1, STEPS + 1))
    for step, loss in expected.items():
        assert abs(found[step] - loss) < 2e-4, step


@pytest.mark.slow
@pytest.mark.parametrize("count, then, victim", [(2, 4, 0), (4, 2, 2)])
def test_when_one_is_killed_all_end_and_another_number_goes_on(
    count, then, victim, expected, tmp_path
):
    run = tmp_path / "run"
    started = processes.train(count, run, 1000)
    wait_for_step(run, started, 8)
    started[victim].kill()
    for index, process in enumerate(started):
        status = process.wait(240)
        if index != victim:
            assert status != 0
            assert re.search(
                "another process of this run has ended|another task died",
                processes.output(run, index),
            )
    assert Checkpoints(run).latest_step() >= 5
    processes.finish(run, processes.train(then, run, STEPS))
    assert_same_batches(run, expected)


@pytest.mark.slow
def test_sigterm_to_one_saves_all_at_one_step(expected, tmp_path):
    run = tmp_path / "run"
    started = processes.train(2, run, 1000)
    wait_for_step(run, started, 7)
    started[1].send_signal(signal.SIGTERM)
    processes.finish(run, started)
    saved = Checkpoints(run).latest_step()
    assert 7 <= saved < STEPS, "the next lines need some steps to be left"
    assert f"SIGTERM: saved step {saved}" in processes.output(run, 0)
    train(**tiny.arguments(run, total_steps=STEPS, checkpoint=CheckpointConfig(period=5)))
    assert_same_batches(run, expected)
