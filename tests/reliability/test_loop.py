"""One run of 200 steps with evaluations, saves and logs: what its loop does and doesn't."""

import json

import jax
import numpy as np
import pytest
import tiny

from t5x_lite.programs import held_out, recorder, train
from t5x_lite.training import build
from t5x_lite.training.checkpoints import CheckpointConfig
from t5x_lite.training.goodput import ACCOUNTS
from t5x_lite.training.guards import SpikeGuard

WIDTH = dict(total_steps=200, log_period=10, eval_period=50, spike_guard=SpikeGuard(window=8))


class Compilations:
    """Counts what XLA compiles; jax calls it for every event of its monitoring."""

    def __init__(self):
        self.count = 0

    def __call__(self, event, duration, **_):
        self.count += event == "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run, how often its steps were traced, and what was compiled after its first step, save
    and evaluation."""
    traces = {"make_train_step": 0, "make_eval_step": 0}
    modules = {"make_train_step": build, "make_eval_step": held_out}
    compilations, late, blocked = Compilations(), [], []

    def counting(name):
        make = getattr(modules[name], name)

        def make_counting(*args, **kwargs):
            step = make(*args, **kwargs)

            def traced(*args):
                traces[name] += 1
                return step(*args)

            return traced

        return make_counting

    made = recorder.Recorder.made

    def watching(self, step, *args):
        if step == 51:
            late.append(compilations.count)
        if step == 7:
            with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
                jax.jit(lambda x: x)(np.ones(3))
            blocked.append(step)
        return made(self, step, *args)

    folder = tmp_path_factory.mktemp("loop") / "run"
    jax.monitoring.register_event_duration_secs_listener(compilations)
    with pytest.MonkeyPatch.context() as patch:
        for name in traces:
            patch.setattr(modules[name], name, counting(name))
        patch.setattr(recorder.Recorder, "made", watching)
        summary = train.train(
            **tiny.arguments(folder, checkpoint=CheckpointConfig(period=50), **WIDTH)
        )
    late.append(compilations.count)
    return folder, traces, late, blocked, summary


def test_every_step_is_traced_once(watched):
    _, traces, _, _, _ = watched
    assert traces == {"make_train_step": 1, "make_eval_step": 1}


def test_nothing_is_compiled_later(watched):
    _, _, (before, after), _, _ = watched
    assert before > 0 and before == after


def test_transfers_that_nobody_asked_for_are_errors_in_the_loop(watched):
    assert watched[3] == [7]


def test_the_time_of_the_run_is_accounted_for(watched):
    folder, *_, summary = watched
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "goodput" in line][-1]
    seconds = {name: last[f"seconds/{name}"] for name in ACCOUNTS}
    assert all(seconds[n] > 0 for n in ACCOUNTS if n not in ("lost",)) and seconds["lost"] == 0
    # Tracing, the first step, and what was left to wait for: the compiler works while others do.
    assert seconds["compile"] > 2 * seconds["step"] / 200
    assert last["goodput"] == pytest.approx(seconds["step"] / sum(seconds.values()))
    assert summary["goodput"] == last["goodput"] and "training steps" in summary["time"]
    assert summary["restarts"] == 0


def test_the_folder_has_no_lock_left(watched):
    assert {p.name for p in watched[0].iterdir()} == {
        "run.json", "config.gin", "parameters.txt", "metrics.jsonl", "tensorboard", "checkpoints",
        "hyperparameters.json", "summary.json", "report.html", "vocabulary.json",
    }  # fmt: skip
