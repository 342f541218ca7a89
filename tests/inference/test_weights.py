"""Weights in fewer bytes: how far the logits go, and how many bytes there are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.errors import UserError
from t5x_lite.inference.decoding import generate
from t5x_lite.inference.weights import Int8, compress, compressed, expanded, quantized
from t5x_lite.models.model import Model

CONFIG = dataclasses.replace(
    tiny.LM, embed_dim=64, mlp_dim=256, num_decoder_layers=1, positions="none"
)


def size(params) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), axis=st.sampled_from([-1, -2, -3]), zero=st.booleans())
def test_each_output_is_rounded_to_half_a_step_of_its_own(seed, axis, zero):
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (3, 4, 5)) * 10.0 ** rng.integers(-3, 3, (3, 4, 5))
    x = (x * (not zero)).astype(np.float32)
    found = quantized(jnp.asarray(x), axis)
    assert found.values.dtype == jnp.int8
    step = np.abs(x).max(axis, keepdims=True) / 127
    error = np.abs(np.asarray(expanded({"x": found})["x"]) - x)
    assert np.all(error <= step * 0.5001)
    # The largest of every output keeps its value.
    np.testing.assert_allclose(np.abs(expanded(found)).max(axis), np.abs(x).max(axis), rtol=1e-5)


def test_logits_bytes_and_decoding():
    model = Model(CONFIG)
    params = jax.jit(model.init)(jax.random.key(0))
    batch = {
        "decoder_input_tokens": jax.random.randint(jax.random.key(2), (2, 6), 2, 384),
        "decoder_target_tokens": jax.random.randint(jax.random.key(3), (2, 6), 2, 384),
    }
    apply = jax.jit(lambda params: model.apply(expanded(params), batch)[0])
    wanted = apply(params)
    for kind, bytes_a_weight, error in (("bfloat16", 2, 0.03), ("int8", 1, 0.06)):
        small = compressed(params, kind)
        # Beside the values there are scales and norms.
        assert size(small) < 1.12 * bytes_a_weight / 4 * size(params)
        logits = apply(small)
        found = np.sqrt(np.mean((logits - wanted) ** 2)) / np.std(wanted)
        assert 1e-4 < found < error, kind
        if kind == "int8":
            names = [type(leaf) for leaf in jax.tree.leaves(small, is_leaf=is_int8)]
            assert names.count(Int8) == 4 + 3 + 1
            again = compress(jax.tree.map(lambda x: x, params), kind)
            jax.tree.map(np.testing.assert_array_equal, again, small)
            # Decoding with them is decoding with the weights that they stand for.
            run = lambda p: generate(model, p, batch, max_new_tokens=5, eos_id=-1)  # noqa: E731
            np.testing.assert_array_equal(run(small).tokens, run(expanded(small)).tokens)


def is_int8(leaf) -> bool:
    return isinstance(leaf, Int8)


def test_parameters_are_freed_one_after_the_other():
    params = {"a": {"kernel": jnp.ones((4, 4))}, "b": {"scale": jnp.ones(4)}}
    found = compress(params, "int8")
    assert params == {}
    assert is_int8(found["a"]["kernel"])
    assert not is_int8(found["b"]["scale"])
    assert compress(found, "float32") is found


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(UserError, match=r"'int4': expected one of float32, bfloat16, int8"):
        compressed({}, "int4")
