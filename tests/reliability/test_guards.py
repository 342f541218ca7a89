"""Steps that are skipped: what is a spike, what is reported, when a run ends."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.errors import UserError
from t5x_lite.training.guards import SkippedSteps, SpikeGuard


def run_guard(guard, losses, norms=None):
    update, state, spikes = jax.jit(guard.update), guard.init(), []
    for loss, norm in zip(losses, norms or [1.0] * len(losses), strict=True):
        spike, state = update(state, jnp.float32(loss), jnp.float32(norm))
        spikes.append(bool(spike))
    return spikes, state


def test_a_spike_is_beyond_sigma_deviations_of_the_window():
    usual = [3.0 + 0.1 * (-1) ** i for i in range(16)]
    guard = SpikeGuard(window=16, sigma=4.0)
    assert run_guard(guard, [*usual, 3.39, 3.39])[0] == [False] * 18
    assert run_guard(guard, [*usual, 3.45, 3.0])[0] == [False] * 16 + [True, False]
    assert run_guard(guard, [*usual, 3.0], [1.0] * 16 + [5.0])[0][-1]  # the gradient's
    assert not run_guard(guard, [*usual, 0.0])[0][-1]  # less is never a spike


def test_nothing_is_a_spike_before_there_is_a_usual():
    assert not any(run_guard(SpikeGuard(window=8), [1.0, 1.0, 100.0])[0])
    assert run_guard(SpikeGuard(window=8, after=2), [1.0, 1.0, 100.0])[0][-1]


def test_a_loss_that_has_risen_for_good_becomes_the_usual_one():
    spikes, _ = run_guard(SpikeGuard(window=8, sigma=3), [1.0] * 8 + [50.0] * 8)
    assert spikes[8] and not any(spikes[9:])


def test_what_is_not_finite_is_not_remembered():
    _, state = run_guard(SpikeGuard(window=4), [1.0, math.nan, math.inf, 2.0])
    assert int(state["count"]) == 2
    np.testing.assert_array_equal(state["latest"][0], [1, 2, 0, 0])


@given(st.lists(st.floats(0.5, 20, width=32), min_size=1, max_size=40), st.integers(2, 9))
@settings(deadline=None, max_examples=25)
def test_it_agrees_with_numpy(losses, window):
    guard = SpikeGuard(window=window, sigma=2.0)
    spikes, _ = run_guard(guard, losses)
    for i, spike in enumerate(spikes):
        before = np.array(losses[max(0, i - window) : i], np.float32)
        if i < window // 2:
            assert not spike
            continue
        limit = before.mean() + 2 * max(before.std(), 1e-3 * before.mean())
        if abs(losses[i] - limit) > 1e-3:
            assert spike == (losses[i] > limit)


def test_a_bad_guard():
    with pytest.raises(UserError, match="window must be 2 or more"):
        SpikeGuard(window=1)


# ------------------------------------------------------------------------------------ the host


def metrics(bad_steps, loss=1.0, bad_parameter=-1):
    values = {"bad_steps": bad_steps, "loss": loss, "grad_norm": loss}
    return jax.tree.map(jnp.asarray, values | {"bad_parameter": bad_parameter})


class Log(list):
    def __call__(self, step, values):
        self.append((step, values))


def skipped_steps(tmp_path, limit=3, **more):
    log = Log()
    facts = {"seed": 7}
    return SkippedSteps(["a/b", "c"], limit, log, tmp_path / "skipped", facts, **more), log


def test_skipped_steps_are_reported_some_steps_later_and_counted(tmp_path):
    steps, log = skipped_steps(tmp_path, lag=2, total=5)
    steps.after(1, metrics(1, math.nan, 1), {})
    steps.after(2, metrics(0), {})
    assert log == []
    steps.after(3, metrics(0), {})
    [(step, values)] = log
    assert step == 1 and math.isnan(values.pop("skipped/loss"))
    assert math.isnan(values.pop("skipped/grad_norm"))
    assert values == {"skipped/bad_parameter": "c", "skipped/total": 6}
    steps.flush()
    assert len(log) == 1 and steps.total == 6


def test_too_many_in_a_row_end_the_run_and_leave_the_batch(tmp_path):
    steps, log = skipped_steps(tmp_path)
    batch = {"tokens": np.arange(6).reshape(2, 3)}
    steps.after(1, metrics(1, math.inf, 0), {"tokens": np.zeros(1)})
    steps.after(2, metrics(0), {})
    for step in (3, 4, 5):
        steps.after(step, metrics(step - 2, math.inf, 0), batch if step == 3 else {})
    with pytest.raises(FloatingPointError, match="not finite in the 3 steps up to step 5") as e:
        steps.flush()
    assert "first in the gradient of a/b" in str(e.value) and "step_3.npz" in str(e.value)
    assert [step for step, _ in log] == [1, 3, 4, 5]
    with np.load(tmp_path / "skipped" / "step_3.npz", allow_pickle=False) as saved:
        np.testing.assert_array_equal(saved["tokens"], batch["tokens"])
    facts = json.loads((tmp_path / "skipped" / "step_3.json").read_text())
    assert facts["seed"] == 7 and facts["step"] == 3


def test_spikes_are_called_spikes(tmp_path):
    steps, _ = skipped_steps(tmp_path, limit=1)
    steps.after(1, metrics(1, 900.0), {"tokens": np.zeros(1)})
    with pytest.raises(FloatingPointError, match="a spike or not finite in the 1 steps"):
        steps.flush()
