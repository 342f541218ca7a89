"""The loss in pieces is that of whole logits: values, gradients, on a mesh too, in less memory."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from t5x_lite.errors import UserError
from t5x_lite.models.functional.attention import soft_cap
from t5x_lite.models.model import Head
from t5x_lite.parallel.mesh import MeshConfig, make_mesh
from t5x_lite.parallel.rules import logical_rules, use_mesh
from t5x_lite.training import vocabulary_loss as module
from t5x_lite.training.losses import cross_entropy
from t5x_lite.training.vocabulary_loss import piece_length, vocabulary_loss

B, T, D, V = 4, 10, 8, 24


def problem(tied: bool, scale: float = 1.0, cap: float | None = None):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (B, T, D)) * 2
    shape = (V, D) if tied else (D, V)
    kernel = jax.random.normal(keys[1], shape)
    names = ("vocab", "embed") if tied else ("embed", "vocab")
    targets = jax.random.randint(keys[2], (B, T), 0, V)
    weights = jax.random.uniform(keys[3], (B, T)) * (jnp.arange(T) < 8)
    return hidden, Head(kernel, 0 if tied else 1, names, scale, cap), targets, weights


def whole(hidden, kernel, head, targets, weights, real, **coefficients):
    product = hidden @ (kernel if head.vocab_axis else kernel.T)
    logits = soft_cap(product / head.scale, head.soft_cap)
    loss, z, weight = cross_entropy(logits, targets, weights, **coefficients)
    return loss, z, weight, jnp.sum((logits.argmax(-1) == targets) * real)


def in_pieces(hidden, kernel, head, targets, weights, real, **options):
    head = Head(kernel, head.vocab_axis, head.names, head.scale, head.soft_cap)
    return vocabulary_loss(hidden, head, targets, weights, real, **options)


def gradients(fn, hidden, head, *arrays, **options):
    def loss(hidden, kernel):
        sums = fn(hidden, kernel, head, *arrays, **options)
        return sums[0] / 3.0, sums

    both = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (_, sums), grads = jax.jit(both)(hidden, head.kernel)
    return tuple(sums), grads


def assert_same(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), actual, expected
    )


@pytest.mark.parametrize(
    "tied, scale, cap", [(False, 1.0, None), (True, 2.0, None), (True, 1.0, 3.0)]
)
@pytest.mark.parametrize("smoothing, z_loss", [(0.0, 0.0), (0.1, 1e-2)])
@pytest.mark.parametrize("pieces", [1, 3])
def test_values_and_gradients(tied, scale, cap, smoothing, z_loss, pieces):
    hidden, head, targets, weights = problem(tied, scale, cap)
    real = (weights > 0).astype(jnp.int32)
    options = {"label_smoothing": smoothing, "z_loss": z_loss}
    expected = gradients(whole, hidden, head, targets, weights, real, **options)
    actual = gradients(in_pieces, hidden, head, targets, weights, real, pieces=pieces, **options)
    assert_same(actual, expected)
    sums = vocabulary_loss(hidden, head, targets, weights, real, pieces=pieces, **options)
    assert_same(tuple(sums), expected[0])


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_a_tied_head_on_either_platform(platform, monkeypatch):
    """A CPU has the vocabulary first in its logits, others last."""
    monkeypatch.setattr(module, "platform", lambda: platform)
    hidden, head, targets, weights = problem(True, 2.0, 3.0)
    options = {"label_smoothing": 0.1, "z_loss": 1e-2}
    expected = gradients(whole, hidden, head, targets, weights, weights, **options)
    actual = gradients(in_pieces, hidden, head, targets, weights, weights, pieces=3, **options)
    assert_same(actual, expected)
    program = jax.jit(lambda h: in_pieces(h, head.kernel, head, targets, weights, None, pieces=2))
    logits = {"cpu": f"tensor<{V}x1x20xf32>", "gpu": f"tensor<1x20x{V}xf32>"}[platform]
    assert logits in program.lower(hidden).as_text()


@pytest.mark.parametrize("sizes", [(2, 2, 1, 2), (1, 4, 1, 2), (1, 2, 2, 1), (1, 4, 1, 1)])
@pytest.mark.parametrize("tied", [False, True])
def test_on_a_mesh(sizes, tied):
    data, fsdp, context, tensor = sizes
    count = data * fsdp * context * tensor
    config = MeshConfig(data=data, fsdp=fsdp, context=context, tensor=tensor)
    mesh, rules = make_mesh(config, jax.devices()[:count]), logical_rules()
    hidden, head, targets, weights = problem(tied)
    expected = gradients(whole, hidden, head, targets, weights, weights, z_loss=1e-2)
    axes = ("tensor", "fsdp") if tied else ("fsdp", "tensor")
    kernel = jax.device_put(head.kernel, NamedSharding(mesh, PartitionSpec(*axes)))
    head = Head(kernel, head.vocab_axis, head.names, head.scale, head.soft_cap)
    with use_mesh(mesh, rules):
        actual = gradients(
            in_pieces, hidden, head, targets, weights, weights, z_loss=1e-2, pieces=2
        )
    assert_same(actual, expected)
    assert actual[1][1].sharding.is_equivalent_to(kernel.sharding, 2)


@pytest.mark.parametrize("sizes", [None, (2, 2, 1, 2), (1, 4, 2, 1)])
def test_an_output_bias(sizes):
    """BERT's and XLNet's: on one device and, split as the vocabulary is, on a mesh."""
    hidden, head, targets, weights = problem(True, scale=2.0, cap=3.0)
    bias = jax.random.normal(jax.random.key(5), (V,))

    def expected(hidden, layer):
        logits = soft_cap(hidden @ layer["kernel"].T / head.scale + layer["bias"], head.soft_cap)
        return cross_entropy(logits, targets, weights, z_loss=1e-2)[0]

    def actual(hidden, layer):
        biased = dataclasses.replace(head, **layer)
        return vocabulary_loss(hidden, biased, targets, weights, z_loss=1e-2, pieces=3).loss

    layer = {"kernel": head.kernel, "bias": bias}
    wanted = jax.jit(jax.value_and_grad(expected, (0, 1)))(hidden, layer)
    if sizes is None:
        assert_same(jax.jit(jax.value_and_grad(actual, (0, 1)))(hidden, layer), wanted)
        return
    config = MeshConfig(**dict(zip(("data", "fsdp", "context", "tensor"), sizes, strict=True)))
    mesh = make_mesh(config, jax.devices()[: math.prod(sizes)])
    specs = {"kernel": PartitionSpec("tensor", "fsdp"), "bias": PartitionSpec("tensor")}
    layer = {n: jax.device_put(x, NamedSharding(mesh, specs[n])) for n, x in layer.items()}
    with use_mesh(mesh, logical_rules()):
        found = jax.jit(jax.value_and_grad(actual, (0, 1)))(hidden, layer)
    assert_same(found, wanted)
    for name, gradient in found[1][1].items():
        assert gradient.sharding.is_equivalent_to(layer[name].sharding, gradient.ndim)


def test_memory_is_that_of_a_piece():
    hidden = jax.ShapeDtypeStruct((4, 128, 8), jnp.float32)
    kernel = jax.ShapeDtypeStruct((8, 4096), jnp.float32)
    ids = jax.ShapeDtypeStruct((4, 128), jnp.int32)

    def temporary(**options):
        def loss(hidden, kernel, ids):
            head = Head(kernel, 1, ("embed", "vocab"), 1.0, None)
            return vocabulary_loss(hidden, head, ids, ids > 0, **options).loss

        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, kernel, ids).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits = 4 * 128 * 4096 * 4
    assert temporary(pieces=1) > logits
    assert temporary(pieces=8) < logits / 2


@pytest.mark.parametrize("fsdp", [1, 4])
def test_bfloat16_is_near(fsdp):
    hidden, head, targets, weights = problem(False)
    half = functools.partial(in_pieces, pieces=2)
    (loss, *_), (dhidden, dkernel) = gradients(half, hidden, head, targets, weights, weights)
    hidden = hidden.astype(jnp.bfloat16)
    mesh = make_mesh(MeshConfig(data=1, fsdp=fsdp), jax.devices()[:fsdp])
    with use_mesh(mesh, logical_rules()):
        narrow = gradients(half, hidden, head, targets, weights, weights)
        loss_of = lambda *args: half(*args, head, targets, weights, weights)[0]  # noqa: E731
        jaxpr = jax.make_jaxpr(jax.grad(loss_of, argnums=(0, 1)))(hidden, head.kernel)
    # What travels is as wide as what is multiplied.
    travels = re.findall(r":(\w+)\[[\d,]*\] = (?:all_gather|reduce_scatter)\[", str(jaxpr))
    assert set(travels) == ({"bf16"} if fsdp > 1 else set())
    assert narrow[1][0].dtype == jnp.bfloat16
    assert narrow[1][1].dtype == jnp.float32
    np.testing.assert_allclose(narrow[0][0], loss, rtol=1e-2)
    for a, b in zip(narrow[1], (dhidden, dkernel), strict=True):
        scale = float(jnp.abs(b).max())
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=2e-2 * scale)


def test_bad_coefficients():
    hidden, head, targets, weights = problem(False)
    with pytest.raises(UserError, match="z_loss"):
        vocabulary_loss(hidden, head, targets, weights, z_loss=-1.0)
    with pytest.raises(UserError, match="label_smoothing"):
        vocabulary_loss(hidden, head, targets, weights, label_smoothing=1.0)


@pytest.mark.parametrize(
    "length, pieces, expected",
    [
        (512, 31, 16),  # not 17
        (512, 1, 512), (114, 1, 114), (114, 4, 24), (2048, 100, 16), (100, 100, 1), (7, 50, 1),
        (536, 20, 24), (13, 2, 6),
    ],
)  # fmt: skip
def test_pieces_are_whole_tiles(length, pieces, expected):
    assert piece_length(length, pieces) == expected


@given(st.integers(1, 5000), st.integers(1, 500))
def test_pieces_are_about_as_many_as_are_wanted(length, pieces):
    found = piece_length(length, pieces)
    longest = max(length // min(pieces, length), 1)
    assert 1 <= found <= longest and 2 * found >= min(longest, 2 * longest - 15)
    assert longest < 8 or found == longest or found % 8 == 0
