import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.errors import UserError
from t5x_lite.training.losses import cross_entropy, loss_normalizer

FOLDER = pathlib.Path(__file__).parents[1] / "golden"
CROSS_ENTROPY = np.load(FOLDER / "cross_entropy.npz")
FORWARD = np.load(FOLDER / "tiny_forward.npz")


@pytest.mark.parametrize("smoothing", [0, 0.1])
@pytest.mark.parametrize("z_loss", [0, 0.0001, 0.01])
def test_value_and_gradient_are_t5x_s(smoothing, z_loss):
    def loss(logits):
        sums = cross_entropy(
            logits,
            jnp.asarray(CROSS_ENTROPY["targets"]),
            jnp.asarray(CROSS_ENTROPY["weights"]),
            label_smoothing=smoothing,
            z_loss=z_loss,
        )
        return sums[0], sums

    (_, sums), grad = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(CROSS_ENTROPY["logits"]))
    case = f"ls{smoothing}_z{z_loss}"
    for value, name in zip(sums, ("loss", "z_loss", "weight_sum"), strict=True):
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, CROSS_ENTROPY[f"{case}/{name}"], rtol=2e-7)
    np.testing.assert_allclose(grad, CROSS_ENTROPY[f"{case}/grad"], rtol=0, atol=2e-7)


CASES = {  # T5X's name: (normalizer, label smoothing, z-loss)
    "z1e-4": (None, 0.0, 1e-4),
    "z0": (None, 0.0, 0.0),
    "smooth0.1_z1e-4": (None, 0.1, 1e-4),
    "num_real_target_tokens": ("num_real_target_tokens", 0.0, 1e-4),
    "num_total_target_tokens": ("NUM_TOTAL_TARGET_TOKENS", 0.0, 1e-4),
    "average_per_sequence": ("average_per_sequence", 0.0, 1e-4),
    "factor233472": (233472, 0.0, 1e-4),
}


def golden_batch(kind):
    prefix = f"{kind}/batch/"
    return {k[len(prefix) :]: jnp.asarray(FORWARD[k]) for k in FORWARD if k.startswith(prefix)}


@pytest.mark.parametrize("kind", ["padded", "packed"])
@pytest.mark.parametrize("case", CASES)
def test_normalized_loss_is_t5x_s(kind, case):
    normalizer_kind, smoothing, z_loss = CASES[case]
    batch = golden_batch(kind)
    normalizer, weights = loss_normalizer(normalizer_kind, batch)
    logits, targets = jnp.asarray(FORWARD[f"{kind}/logits"]), batch["decoder_target_tokens"]
    loss, z, _ = cross_entropy(logits, targets, weights, label_smoothing=smoothing, z_loss=z_loss)
    np.testing.assert_allclose(loss / normalizer, FORWARD[f"{kind}/{case}/loss"], rtol=4e-7)
    np.testing.assert_allclose(z / normalizer, FORWARD[f"{kind}/{case}/z_loss"], rtol=4e-7)


@jax.jit
@jax.value_and_grad
def normalized_loss(logits, targets, weights, normalizer):
    return cross_entropy(logits, targets, weights, z_loss=1e-2)[0] / normalizer


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from([None, 7.5, *list(CASES)[3:6]]))
def test_micro_batches_add_up_to_the_batch(seed, kind):
    rng = np.random.default_rng(seed)
    batch = {
        "decoder_target_tokens": jnp.asarray(rng.integers(0, 3, (4, 6)), jnp.int32),
        "decoder_segment_ids": jnp.asarray(np.sort(rng.integers(0, 4, (4, 6)), axis=1), jnp.int32),
    }
    logits = jnp.asarray(rng.normal(size=(4, 6, 3)), jnp.float32)
    normalizer, weights = loss_normalizer(kind, batch)
    whole, *parts = (
        normalized_loss(
            logits[rows], batch["decoder_target_tokens"][rows], weights[rows], normalizer
        )
        for rows in (slice(0, 4), slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 4))
    )
    np.testing.assert_allclose(whole[0], sum(loss for loss, _ in parts), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole[1], np.concatenate([g for _, g in parts]), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), packed=st.booleans())
def test_average_per_sequence_by_loops(seed, packed):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.0, 2.0, (3, 8)).astype(np.float32) * rng.integers(0, 2, (3, 8))
    ids = np.sort(rng.integers(0, 9, (3, 8)), axis=1) if packed else np.ones((3, 8), int)
    expected = np.zeros((3, 8))
    for row in range(3):
        for segment in set(ids[row]):
            members = ids[row] == segment
            if (total := weights[row][members].sum()) > 0:
                expected[row][members] = weights[row][members] / total
    batch = {
        "decoder_target_tokens": jnp.ones((3, 8), jnp.int32),
        "decoder_loss_weights": jnp.asarray(weights),
    }
    if packed:
        batch["decoder_segment_ids"] = jnp.asarray(ids, jnp.int32)
    normalizer, got = loss_normalizer("average_per_sequence", batch)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(normalizer, expected.sum() or 1.0, rtol=1e-5)


def test_perfect_prediction_costs_nothing_even_when_smoothed():
    # The smoothed target itself as the softmax: probabilities 0.9 and twice 0.05.
    logits = jnp.log(jnp.array([[[0.05, 0.9, 0.05]]]))
    loss, _, _ = cross_entropy(logits, jnp.array([[1]]), None, label_smoothing=0.1)
    np.testing.assert_allclose(loss, 0.0, atol=1e-7)


def test_bfloat16_logits_far_from_zero_are_summed_in_float32():
    logits = jnp.array([[[1000.0, 992.0]]], jnp.bfloat16)
    loss, z, _ = cross_entropy(logits, jnp.array([[1]]), jnp.array([[2]]), z_loss=1e-3)
    np.testing.assert_allclose(loss - z, 2 * (8 + np.log1p(np.exp(-8.0))), rtol=1e-4)
    assert loss.dtype == jnp.float32


def test_a_batch_without_targets_has_loss_zero():
    batch = {"decoder_target_tokens": jnp.zeros((2, 3), jnp.int32)}
    for kind in ("num_real_target_tokens", "average_per_sequence"):
        normalizer, weights = loss_normalizer(kind, batch)
        assert normalizer == 1.0 and not weights.any()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda b: loss_normalizer("num_real_tokens", b), "Did you mean 'num_real_target_tokens'"),
        (lambda b: loss_normalizer(0, b), "expected a number > 0"),
        (lambda b: loss_normalizer(True, b), "expected None, a number or one of"),
        (lambda b: cross_entropy(None, None, None, label_smoothing=1.0), "label_smoothing=1.0"),
        (lambda b: cross_entropy(None, None, None, z_loss=-1.0), "z_loss=-1.0"),
    ],
)
def test_nonsense_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call({"decoder_target_tokens": jnp.ones((1, 1), jnp.int32)})
