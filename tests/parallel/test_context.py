"""Attention over rows cut in stretches is attention over whole rows: values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.models.functional.attention import dot_product_attention
from t5x_lite.models.functional.context import over_context
from t5x_lite.models.functional.masks import Mask
from t5x_lite.models.functional.positions import RelativePositions
from t5x_lite.parallel.mesh import MeshConfig, make_mesh
from t5x_lite.parallel.rules import DEFAULT_RULES, use_mesh

B, T, N, K, H = 2, 16, 4, 2, 12


def arguments(kind: str):
    keys = jax.random.split(jax.random.key(0), 5)
    q, k, v = (
        jax.random.normal(key, (B, T, heads, H))
        for key, heads in zip(keys[:3], (N, K, K), strict=True)
    )
    place = jnp.arange(T)[None].repeat(B, 0)
    segments = jnp.where(place < 7, 1, jnp.where(place < 14, 2, 0))
    table = jax.random.normal(keys[3], (N, 8))
    keep = jax.random.bernoulli(keys[4], 0.8, (B, N, 1, T)) / 0.8
    masks = {
        "causal, packed": Mask(segments, segments, causal=True),
        "bias, packed": Mask(segments, segments),
        "prefix, dropout": Mask(None, None, place < 5, place < 5, causal=True),
        "window": Mask(causal=True, window=5),
        "cross": Mask(k_segments=segments),
    }
    return q, k, v, table, masks[kind], keep if "dropout" in kind else None, segments > 0


def attend(implementation="xla"):
    return functools.partial(dot_product_attention, scale=0.3, implementation=implementation)


@pytest.mark.parametrize("implementation", ["xla", "blockwise"])
@pytest.mark.parametrize(
    "kind", ["causal, packed", "bias, packed", "prefix, dropout", "window", "cross"]
)
def test_stretches(kind, implementation):
    q, k, v, table, mask, keep, seen = arguments(kind)

    def loss(q, k, v, table):
        bias = RelativePositions(table, 0, 0, True, 8) if "bias" in kind else None
        y = over_context(attend(implementation), q, k, v, mask, bias, keep)
        y = jnp.where(seen[..., None, None], y, 0)  # padding's output means nothing
        return jnp.sum(jnp.sin(y)), y

    step = lambda: jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))  # noqa: E731
    wanted = step()(q, k, v, table)
    mesh = make_mesh(MeshConfig(data=2, context=2, tensor=2))
    with use_mesh(mesh, DEFAULT_RULES):
        compiled = step().lower(q, k, v, table).compile()
    got = compiled(q, k, v, table)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5), got, wanted)


def test_no_device_has_the_scores_of_a_whole_row():
    q, k, v, _, mask, _, _ = arguments("causal, packed")
    mesh = make_mesh(MeshConfig(data=2, context=2, tensor=2))
    with use_mesh(mesh, DEFAULT_RULES):
        fn = lambda *a: over_context(attend(), *a, mask, None, None)  # noqa: E731
        text = jax.jit(fn).lower(q, k, v).compile().as_text()
    # Of B, N, T and S, every device has half of each but the keys.
    assert f"f32[{B // 2},{N // 2},{T // 2},{T}]" in text
    assert f",{T},{T}]" not in text
