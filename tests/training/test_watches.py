import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.errors import UserError
from t5x_lite.training.trackers import Histogram
from t5x_lite.training.watches import Watches, histogram, spread

TREE = {
    "a": {"kernel": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3)},
    "b": {"kernel": jnp.array([3.0, 4.0]), "bias": jnp.array([1.0])},
}
AXES = {
    "a": {"kernel": ("layers", "embed")},
    "b": {"kernel": ("embed",), "bias": ("embed",)},
}


def test_norms_of_what_matches_and_of_each_layer():
    watches = Watches(names="kernel$", of=("updates",))
    found = jax.jit(lambda trees: watches.values(trees, AXES))({"updates": TREE})
    assert set(found) == {"watch/updates_norm/a/kernel", "watch/updates_norm/b/kernel"}
    np.testing.assert_allclose(found["watch/updates_norm/b/kernel"], 5.0)
    np.testing.assert_allclose(found["watch/updates_norm/a/kernel"], [5**0.5, 50**0.5], rtol=1e-6)
    assert list(spread(found)) == [
        "watch/updates_norm/a/kernel/0", "watch/updates_norm/a/kernel/1",
        "watch/updates_norm/b/kernel",
    ]  # fmt: skip
    whole = Watches(names="^a/", of=("updates",), layers=False).values({"updates": TREE}, AXES)
    np.testing.assert_allclose(whole["watch/updates_norm/a/kernel"], 55**0.5, rtol=1e-6)


def test_histograms_count_as_numpy_does():
    x = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    found = jax.jit(lambda x: histogram(x, 16))(x)
    counts, edges = np.histogram(x, 16)
    assert int(np.abs(np.asarray(found.counts) - counts).sum()) <= 2  # values on an edge, rounded
    np.testing.assert_allclose(found.edges(), edges, rtol=1e-5)
    x[0, 0], x[1, 1] = np.nan, np.inf
    assert int(histogram(jnp.asarray(x), 16).counts.sum()) == x.size - 2
    for odd in (jnp.full(3, jnp.nan), jnp.zeros(3)):
        low, high, counts = histogram(odd, 4)
        assert (float(low), float(high)) == (0.0, 0.0)
        assert int(counts.sum()) == int(jnp.isfinite(odd).sum())
    watches = Watches(of=("gradients",), histograms=True, bins=4)
    found = watches.values({"gradients": TREE}, AXES)
    assert isinstance(found["watch/gradients/b/bias"], Histogram)
    assert found["watch/gradients/b/kernel"].counts.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"of": ("gradient",)},
            "Watches.of has 'gradient': expected some of gradients, parameters",
        ),
        ({"period": 0}, "both must be at least 1"),
        ({"names": "("}, "is no regular expression"),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(UserError, match=message):
        Watches(**settings)


def test_watching_nothing_is_a_mistake():
    with pytest.raises(
        UserError, match=r"'encoder' matches no parameter: they are named like 'a/k"
    ):
        Watches(names="encoder").check(TREE)
