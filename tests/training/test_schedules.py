import pathlib

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite import config
from t5x_lite.errors import UserError
from t5x_lite.training import schedules as s

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "lr_schedules.npz")

T5X_FORMS = {
    "pretrain_constant_rsqrt_base1_warmup10000": lambda: s.t5_inverse_square_root(),
    "default_constant_linear_warmup_rsqrt_base0.5_warmup1000": lambda: s.t5_inverse_square_root(
        0.5, 1000, linear_warmup=True
    ),
    "finetune_constant_base0.001_warmup1000": lambda: s.constant(0.001),
    "linear_warmup_rsqrt_normalized_base1_warmup10000": lambda: s.inverse_square_root(1.0, 10_000),
    "cosine_base1_warmup10000_cycle100000": lambda: s.cosine(1.0, 110_000, 10_000, cyclic=True),
    "linear_decay_base1_warmup1000_decay1e-5": lambda: s.linear(1.0, 101_000, 1000),
}


@pytest.mark.parametrize("name", T5X_FORMS)
def test_rates_are_t5x_s(name):
    schedule = T5X_FORMS[name]()
    eager = np.array([schedule(int(step)) for step in GOLDEN["steps"]])
    assert eager.dtype == np.float32
    if name.startswith("linear_decay"):  # T5X's 1 - 1e-5 * 99000 is 0.01000005 in float32
        np.testing.assert_allclose(eager, GOLDEN[name], rtol=0, atol=6e-8)
    else:
        np.testing.assert_array_equal(eager, GOLDEN[name])
    traced = jax.jit(jax.vmap(schedule))(jnp.asarray(GOLDEN["steps"]))
    np.testing.assert_allclose(traced, eager, rtol=2e-7, atol=6e-8)


FACTORIES = {
    "constant": lambda **kw: s.constant(kw["peak_rate"], kw["warmup_steps"]),
    "inverse_square_root": lambda **kw: s.inverse_square_root(kw["peak_rate"], kw["warmup_steps"]),
    "cosine": s.cosine,
    "linear": s.linear,
    "warmup_stable_decay": s.warmup_stable_decay,
}


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(sorted(FACTORIES)),
    peak=st.floats(1e-5, 10.0),
    warmup=st.integers(0, 50),
    more=st.integers(1, 200),
)
def test_ramp_reaches_the_peak_and_nothing_passes_it(name, peak, warmup, more):
    total = warmup + 2 * more
    schedule = FACTORIES[name](peak_rate=peak, total_steps=total, warmup_steps=warmup)
    rates = np.asarray(schedule(jnp.arange(512)))  # always one shape: compiled once
    assert rates.dtype == np.float32 and rates.min() >= np.float32(s.MINIMUM_RATE)
    assert rates.max() <= peak * 1.000001
    np.testing.assert_allclose(rates[warmup], peak, rtol=1e-6)
    np.testing.assert_allclose(
        rates[:warmup], np.maximum(peak * np.arange(warmup) / max(warmup, 1), 1e-8), rtol=1e-5
    )
    # XLA multiplies by 1 / warmup: the peak itself may be one unit in the last place lower.
    assert np.all(np.diff(rates[warmup:]) <= np.spacing(np.float32(peak)))


@pytest.mark.parametrize("factory", [s.cosine, s.linear, s.warmup_stable_decay])
def test_ends_at_the_final_rate_and_stays(factory):
    schedule = factory(peak_rate=1e-2, total_steps=100, warmup_steps=10, final_rate=1e-3)
    np.testing.assert_allclose(schedule(jnp.array([100, 101, 5000])), 1e-3, rtol=1e-6)
    assert schedule(99) > 1e-3


def test_a_decay_by_default_gives_way_to_the_warmup():
    assert s.warmup_stable_decay(1.0, 40, 38).arguments["decay_steps"] == 2
    assert s.warmup_stable_decay(1.0, 40, 10).arguments["decay_steps"] == 4
    with pytest.raises(UserError, match=r"warmup_steps=38 \+ decay_steps=4 is more"):
        s.warmup_stable_decay(1.0, 40, 38, decay_steps=4)


def test_warmup_stable_decay_by_hand():
    linear = s.warmup_stable_decay(1.0, 100, 10, decay_steps=20, decay="linear")
    np.testing.assert_allclose(
        [linear(step) for step in (5, 10, 79, 80, 90, 99)], [0.5, 1, 1, 1, 0.5, 0.05], rtol=1e-6
    )
    root = s.warmup_stable_decay(1.0, 100, decay="1-sqrt")  # the last tenth decays
    np.testing.assert_allclose(
        [root(step) for step in (0, 90, 91, 95)], [1, 1, 1 - 0.1**0.5, 1 - 0.5**0.5], rtol=1e-6
    )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: s.cosine(1e-3, 100, 101), "warmup_steps=101 is more than total_steps=100"),
        (lambda: s.linear(-1e-3, 100), "peak_rate=-0.001, expected a learning rate > 0"),
        (lambda: s.constant(0.0), "expected a learning rate > 0"),
        (lambda: s.constant(float("nan")), "expected a learning rate > 0"),
        (lambda: s.constant("1e-3"), "expected a learning rate > 0"),
        (lambda: s.inverse_square_root(1.0, -5), "warmup_steps=-5, expected a whole number"),
        (lambda: s.inverse_square_root(1.0, 0.5), "warmup_steps=0.5, expected a whole number"),
        (lambda: s.inverse_square_root(1.0, float("inf")), "expected a whole number"),
        (lambda: s.cosine(1e-3, 100, final_rate=1e-2), "final_rate=0.01 is above peak_rate=0.001"),
        (lambda: s.warmup_stable_decay(1.0, "x"), "total_steps='x', expected a whole number"),
        (
            lambda: s.warmup_stable_decay(1.0, 100, 50, decay_steps=60),
            "warmup_steps=50 + decay_steps=60 is more than total_steps=100",
        ),
        (lambda: s.warmup_stable_decay(1.0, 100, decay="lnear"), "Did you mean 'linear'"),
    ],
)
def test_nonsense_is_refused_in_one_line(call, message):
    with pytest.raises(UserError) as error:
        call()
    line, *added_by_gin = str(error.value).splitlines()
    assert message in line
    assert all("In call to configurable" in more for more in added_by_gin)


def test_printed_as_the_call_that_made_it():
    schedule = s.cosine(1e-3, 1e3, warmup_steps=10)
    assert repr(schedule) == (
        "cosine(peak_rate=0.001, total_steps=1000, warmup_steps=10, final_rate=0.0, cyclic=False)"
    )
    assert schedule.__name__ == "cosine"


def test_configured_by_gin():
    gin.clear_config()
    try:
        gin.parse_config("t5x_lite.linear.peak_rate = 0.5\nt5x_lite.linear.total_steps = 10")
        assert config.call("t5x_lite.linear")(5) == 0.25
    finally:
        gin.clear_config()
