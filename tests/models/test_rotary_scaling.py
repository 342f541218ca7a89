"""Rotary frequencies for longer texts, windows and the places of biases, as settings."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from t5x_lite.errors import UserError
from t5x_lite.models.functional.positions import rotary, rotary_frequencies
from t5x_lite.models.model import Model


def test_linear_scaling_divides_positions():
    x = jax.random.normal(jax.random.key(0), (1, 8, 2, 6))
    scaled = rotary(x, 4 * jnp.arange(8)[None], 1e4, ("linear", 4.0))
    np.testing.assert_allclose(scaled, rotary(x, jnp.arange(8)[None]), atol=1e-6)


def test_llama3_scaling_is_the_published_rule():
    """By wavelengths, pair by pair, as in the paper's code."""
    factor, low, high, length, half, theta = 8.0, 1.0, 4.0, 64, 24, 500.0
    plain = np.asarray(rotary_frequencies(half, theta))
    wanted = []
    for f in plain.astype(float):
        wavelength = 2 * math.pi / f
        if wavelength < length / high:
            wanted.append(f)
        elif wavelength > length / low:
            wanted.append(f / factor)
        else:
            smooth = (length / wavelength - low) / (high - low)
            wanted.append((1 - smooth) * f / factor + smooth * f)
    got = rotary_frequencies(half, theta, ("llama3", factor, low, high, length))
    np.testing.assert_allclose(got, wanted, rtol=2e-6)
    kinds = np.isclose(got, plain), np.isclose(got, plain / factor)
    assert kinds[0].any() and kinds[1].any() and (~kinds[0] & ~kinds[1]).any()


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"rope_scaling": ("yarn", 4.0)}, "expected ('linear', factor)"),
        ({"rope_scaling": ("linear",)}, "expected ('linear', factor)"),
        ({"rope_scaling": ("llama3", 8.0, 1.0, 4.0, -1)}, "expected ('linear', factor)"),
        ({"use_bias": "kv"}, "expected True, False, 'qkv' or 'mlp'"),
        ({"attention_window": 0}, "expected 1 or more"),
    ],
)
def test_bad_settings(changes, said):
    with pytest.raises(UserError) as caught:
        dataclasses.replace(tiny.LM, **changes)
    assert said in str(caught.value)


def test_a_window_hides_what_is_further_away():
    """With one layer, a token's logits depend on the last three tokens and on no other."""
    config = dataclasses.replace(tiny.LM, attention_window=3, num_decoder_layers=1)
    model = Model(config)
    params = jax.jit(model.init)(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (1, 9), 3, 384)

    def last(tokens):
        batch = {"decoder_input_tokens": tokens, "decoder_target_tokens": tokens}
        return np.asarray(jax.jit(model.apply)(params, batch)[0][0, -1])

    before = last(tokens)
    np.testing.assert_array_equal(last(tokens.at[0, :6].add(1)), before)
    assert np.abs(last(tokens.at[0, 6].add(1)) - before).max() > 1e-3
    # and one token after another, from the cache
    cache = model.start_decoding(params, {"x": tokens}, 9)
    for i in range(9):
        logits, cache = jax.jit(model.decode)(params, cache, tokens[:, i : i + 1])
    np.testing.assert_allclose(logits[0, 0], before, atol=1e-5)


def test_where_biases_are():
    def biased(use_bias):
        params = Model(dataclasses.replace(tiny.LM, use_bias=use_bias)).abstract_params()
        block = params["decoder"]["layers"]
        parts = block["self_attention"] | block["mlp"]
        return {name for name, part in parts.items() if "bias" in part}

    assert biased(False) == set()
    assert biased("qkv") == {"query", "key", "value"}
    assert biased(True) == {"query", "key", "value", "out", "wi_0", "wi_1", "wo"}
