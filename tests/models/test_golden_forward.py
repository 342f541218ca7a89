"""The models compute what T5X computes: logits, encodings, losses, gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_files import TINY, load, tree

from t5x_lite.models.functional.positions import relative_bias, relative_position_bucket
from t5x_lite.models.model import Model
from t5x_lite.models.transformer import stack_layers
from t5x_lite.training.losses import cross_entropy, loss_normalizer

UNROLLED = dataclasses.replace(TINY, scan_layers=False)
TINY_1_0 = dataclasses.replace(UNROLLED, mlp_activations=("relu",), tied_embeddings=True)
# T5X's own float32 logits are up to 1.7e-5 away from a float64 computation, where they reach 6.8.
RELATIVE = 1e-5


def assert_close(actual, golden):
    scale = np.abs(golden).max()
    np.testing.assert_allclose(actual, golden, rtol=0, atol=RELATIVE * scale)


@functools.cache
def golden():
    return load("tiny_forward.npz"), tree(load("tiny_params.npz"))


def batch_of(arrays, case):
    return {k: jnp.asarray(v) for k, v in tree(arrays, f"{case}/batch/").items()}


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("case", ["padded", "packed"])
def test_t5_1_1_forward(case, scan):
    arrays, params = golden()
    model = Model(dataclasses.replace(TINY, scan_layers=scan))
    params = stack_layers(params) if scan else params
    assert jax.tree.structure(params) == jax.tree.structure(model.abstract_params())
    batch = batch_of(arrays, case)
    logits, _ = jax.jit(model.apply)(params, batch)
    assert_close(logits, arrays[f"{case}/logits"])
    assert_close(jax.jit(model.encode)(params, batch), arrays[f"{case}/encoded"])


def test_bfloat16_is_as_near_to_float32_as_t5x():
    arrays, params = golden()
    model = Model(dataclasses.replace(UNROLLED, dtype="bfloat16"))
    logits, _ = jax.jit(model.apply)(params, batch_of(arrays, "packed"))
    error = np.abs(logits - arrays["packed/logits"])
    t5x_error = np.abs(arrays["packed/logits_bfloat16"] - arrays["packed/logits"])
    # Another order of rounding, not another amount of it.
    assert 0 < error.mean() < 1.1 * t5x_error.mean()


def test_t5_1_0_forward_loss_and_gradient_norm():
    arrays = load("tiny_t5_1_0_forward.npz")
    params = tree(arrays, "params/")
    batch = {k: jnp.asarray(v) for k, v in tree(arrays, "batch/").items()}
    model = Model(TINY_1_0)
    logits, _ = jax.jit(model.apply)(params, batch)
    assert_close(logits, arrays["logits"])
    loss, _, norm, _ = loss_and_gradients(model, params, batch, None, 1e-4, 0.0)
    np.testing.assert_allclose(loss, arrays["loss"], rtol=1e-5)
    np.testing.assert_allclose(norm, arrays["grad_global_norm"], rtol=1e-5)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("z_loss", "smoothing"))
def _loss_and_gradients(model, params, batch, divisor, weights, *, z_loss, smoothing):
    def loss_fn(params):
        logits, _ = model.apply(params, batch, train=True)
        loss, z, _ = cross_entropy(
            logits,
            batch["decoder_target_tokens"],
            weights,
            label_smoothing=smoothing,
            z_loss=z_loss,
        )
        return loss / divisor, z / divisor

    (loss, z), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return loss, z, optax.tree.norm(grads), grads


def loss_and_gradients(model, params, batch, normalizer, z_loss, smoothing):
    divisor, weights = loss_normalizer(normalizer, batch)
    return _loss_and_gradients(
        model, params, batch, divisor, weights, z_loss=z_loss, smoothing=smoothing
    )


CASES = {
    "z1e-4": (None, 1e-4, 0.0),
    "z0": (None, 0.0, 0.0),
    "smooth0.1_z1e-4": (None, 1e-4, 0.1),
    "num_real_target_tokens": ("num_real_target_tokens", 1e-4, 0.0),
    "num_total_target_tokens": ("num_total_target_tokens", 1e-4, 0.0),
    "average_per_sequence": ("average_per_sequence", 1e-4, 0.0),
    "factor233472": (233472.0, 1e-4, 0.0),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("case", ["padded", "packed"])
def test_losses_and_gradients(case, name):
    arrays, params = golden()
    result = loss_and_gradients(Model(UNROLLED), params, batch_of(arrays, case), *CASES[name])
    loss, z_loss, norm, grads = result
    np.testing.assert_allclose(loss, arrays[f"{case}/{name}/loss"], rtol=1e-5)
    np.testing.assert_allclose(z_loss, arrays[f"{case}/{name}/z_loss"], rtol=1e-5)
    np.testing.assert_allclose(norm, arrays[f"{case}/{name}/grad_global_norm"], rtol=1e-5)
    if name == "z1e-4":
        golden_grads = tree(arrays, f"{case}/grads/")
        scale = float(norm)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale),
            jax.device_get(grads),
            golden_grads,
        )


@pytest.mark.parametrize("buckets, distance", [(32, 128), (64, 256), (16, 64)])
@pytest.mark.parametrize("direction", ["bidirectional", "causal"])
def test_relative_position_buckets(buckets, distance, direction):
    arrays = load("relative_position_buckets.npz")
    name = f"buckets{buckets}_max{distance}_{direction}"
    actual = relative_position_bucket(
        jnp.asarray(arrays["relative_position"]),
        bidirectional=direction == "bidirectional",
        num_buckets=buckets,
        max_distance=distance,
    )
    np.testing.assert_array_equal(actual, arrays[name])


@pytest.mark.parametrize("direction, q, k", [("bidirectional", 20, 150), ("causal", 40, 40)])
def test_relative_bias(direction, q, k):
    arrays = load("relative_position_buckets.npz")
    bias = relative_bias(
        jnp.asarray(arrays["rel_embedding"]),
        jnp.arange(q),
        jnp.arange(k),
        bidirectional=direction == "bidirectional",
        max_distance=128,
    )
    np.testing.assert_array_equal(bias, arrays[f"bias_{direction}_q{q}_k{k}"])
