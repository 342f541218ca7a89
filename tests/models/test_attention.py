"""Every form of attention gives the reference's values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.models.functional import attention as attn
from t5x_lite.models.functional.attention import dot_product_attention
from t5x_lite.models.functional.blockwise import blockwise_attention
from t5x_lite.models.functional.masks import Mask
from t5x_lite.models.functional.positions import RelativePositions, relative_bias


def problem(B=2, T=12, S=12, N=4, K=2, H=4, seed=0, bias=True, bidirectional=False):
    keys = jax.random.split(jax.random.key(seed), 5)
    shapes = [(B, T, N, H), (B, S, K, H), (B, S, K, H), (N, 8), (B, T, N, H)]
    q, k, v, table, out = (jax.random.normal(*pair) for pair in zip(keys, shapes, strict=True))
    return (q, k, v, table if bias else None), out, bidirectional


def segments(length, *ends):
    """[2, length] segment ids; the second row is cut elsewhere; padding at the end."""
    ids = np.zeros((2, length), np.int32)
    for row in range(2):
        start = 0
        for number, end in enumerate(ends):
            ids[row, start : end - row] = number + 1
            start = end - row
    return jnp.asarray(ids)


PREFIX = jnp.arange(12)[None] < jnp.asarray([[4], [6]])
MASKS = {
    "all": (12, 12, None),
    "causal": (12, 12, Mask(causal=True)),
    "segments": (12, 12, Mask(segments(12, 5, 10), segments(12, 5, 10))),
    "causal segments": (12, 12, Mask(segments(12, 5, 10), segments(12, 5, 10), causal=True)),
    "prefix": (12, 12, Mask(None, segments(12, 11), PREFIX, PREFIX, causal=True)),
    "window": (12, 12, Mask(causal=True, window=3)),
    "two-sided window": (12, 12, Mask(window=3)),
    "cross": (6, 11, Mask(segments(6, 6), segments(11, 4, 9))),
    "keys only": (6, 11, Mask(k_segments=segments(11, 9))),
    "later queries": (4, 12, Mask(causal=True, q_start=6)),
}


def values_and_gradients(fn, arrays, weights):
    def loss(arrays):
        out = fn(*arrays)
        return jnp.sum(out * weights), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(arrays)
    return out, grads


def check(fast, arrays, weights, mask, bias_of, **options):
    # What a query sees that may look at no key means nothing.
    T, S = arrays[0].shape[1], arrays[1].shape[1]
    drawn = None if mask is None else mask.materialize(T, S)
    if drawn is not None:
        weights = weights * drawn.any(-1)[:, 0, :, None, None]

    def slow(q, k, v, table):
        return attn.reference(q, k, v, drawn, bias_of(table), **options)

    out, grads = values_and_gradients(slow, arrays, weights)
    fast_out, fast_grads = values_and_gradients(fast, arrays, weights)
    seen = (weights != 0).any(-1, keepdims=True)
    np.testing.assert_allclose(fast_out * seen, out * seen, atol=2e-5)
    assert np.isfinite(fast_out).all()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), fast_grads, grads)


@pytest.mark.parametrize("block, by_row", [(5, False), (4, True), (16, False), (16, True)])
@pytest.mark.parametrize("name", MASKS)
def test_blockwise(name, block, by_row):
    T, S, mask = MASKS[name]
    bias = name in ("all", "segments", "prefix", "later queries")
    arrays, weights, both = problem(T=T, S=S, bias=bias, bidirectional=name == "segments")
    start = 0 if mask is None else mask.q_start
    cap = 2.0 if "window" in name else None

    def bias_of(table):
        if table is None:
            return None
        q, k = start + jnp.arange(T), jnp.arange(S)
        return relative_bias(table, q, k, bidirectional=both, max_distance=9)

    def fast(q, k, v, table):
        where = None if table is None else RelativePositions(table, start, 0, both, 9)
        return blockwise_attention(
            q, k, v, mask, where, scale=0.7, logits_soft_cap=cap, block=block, by_row=by_row
        )

    check(fast, arrays, weights, mask, bias_of, scale=0.7, logits_soft_cap=cap)


def test_described_masks_and_bias_are_the_drawn_ones_to_the_reference():
    arrays, weights, _ = problem()
    mask = MASKS["causal segments"][2]

    def fast(q, k, v, table):
        bias = RelativePositions(table, 0, 0, False, 9)
        return dot_product_attention(q, k, v, mask=mask, bias=bias)

    def bias_of(table):
        at = jnp.arange(12)
        return relative_bias(table, at, at, bidirectional=False, max_distance=9)

    check(fast, arrays, weights, mask, bias_of)


def test_dropout_of_weights_is_the_references():
    arrays, weights, _ = problem(bias=False)
    keep = jax.random.bernoulli(jax.random.key(3), 0.7, (2, 4, 1, 12)) / 0.7

    def fast(q, k, v, table):
        return dot_product_attention(q, k, v, keep_weights=keep, implementation="blockwise")

    check(fast, arrays, weights, None, lambda table: None, keep_weights=keep)


@pytest.mark.parametrize("causal", [True, False])
def test_splash_in_interpret_mode(causal):
    from t5x_lite.models.functional.splash import splash_attention

    arrays, weights, _ = problem(T=128, S=128, H=128, N=2, K=1, bias=False)
    ids = segments(128, 50, 110)
    mask = Mask(ids, ids, causal=causal)

    def fast(q, k, v, table):
        return splash_attention(q, k, v, mask, scale=0.1, interpret=True)

    check(fast, arrays, weights, mask, lambda table: None, scale=0.1)


FEATURES = dict(queries=512, keys=512, head_dim=64, dtype=jnp.bfloat16, bias=False, prefix=False,
                window=False, soft_cap=False)  # fmt: skip


@pytest.mark.parametrize(
    "platform, changes, expected",
    [
        ("tpu", {}, "splash"),
        ("tpu", {"queries": 500}, "xla"),
        ("tpu", {"bias": True}, "xla"),
        ("tpu", {"bias": True, "keys": 4096}, "blockwise"),
        ("gpu", {}, "cudnn"),
        ("gpu", {"dtype": jnp.float32}, "xla"),
        ("cpu", {}, "blockwise"),
        ("cpu", {"queries": 1}, "xla"),
        ("cpu", {"one_device": False}, "xla"),
    ],
)
def test_auto_chooses_by_platform_and_features(platform, changes, expected):
    assert attn.choose("auto", platform, **(FEATURES | changes)) == expected


def test_a_named_form_that_cannot_is_the_reference():
    assert attn.choose("splash", "tpu", **(FEATURES | {"bias": True})) == "xla"
    assert attn.choose("cudnn", "gpu", **(FEATURES | {"window": True})) == "xla"
    assert attn.choose("blockwise", "gpu", **FEATURES) == "blockwise"
