"""Products in the form for few rows, and decoders that hold their weights for it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from t5x_lite.inference.weights import compressed, expanded
from t5x_lite.models.model import Model
from t5x_lite.models.products import TRANSPOSED, prefers_transposed, product, transposed_product

T5 = dataclasses.replace(tiny.T5, num_encoder_layers=1, num_decoder_layers=2)
LM = dataclasses.replace(tiny.LM, num_decoder_layers=2, use_bias=True, tied_embeddings=False)
CONFIGS = {
    "t5": T5,
    "fused": dataclasses.replace(T5, fused_projections=True),
    "lm": LM,
    "unrolled": dataclasses.replace(LM, scan_layers=False),
    "experts": dataclasses.replace(LM, num_experts=2, use_bias=False),
}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(3, 60, (2, 5)), jnp.int32)


def drawn(shape):
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def test_transposed_product_is_the_product():
    x, kernel = drawn((2, 3, 8)), drawn((8, 16))
    np.testing.assert_allclose(
        jax.jit(transposed_product)(x, kernel.T), product(x, kernel), rtol=1e-5, atol=1e-6
    )


def test_transposed_product_of_bfloat16_is_summed_and_returned_in_float32():
    x, kernel = drawn((4, 8)).astype(jnp.bfloat16), drawn((8, 16)).astype(jnp.bfloat16)
    found = jax.jit(functools.partial(transposed_product, dtype=jnp.float32))(x, kernel.T)
    assert found.dtype == jnp.float32
    exact = np.asarray(x, np.float32) @ np.asarray(kernel, np.float32)
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)


def kernels(tree, name):
    return [
        "/".join(str(step.key) for step in path if hasattr(step, "key"))
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
        if any(getattr(step, "key", None) == name for step in path)
    ]


@pytest.mark.parametrize("weights", ["float32", "int8"])
@pytest.mark.parametrize("name", CONFIGS)
def test_steps_of_several_rows_compute_what_one_pass_does(name, weights):
    """And their decoder holds every kernel that they multiply by in the form for few rows."""
    model = Model(CONFIGS[name])
    params = jax.tree.map(lambda leaf: 0.3 * drawn(leaf.shape), model.abstract_params())
    params = compressed(params, weights)
    before = jax.tree.structure(params)
    batch = {"decoder_input_tokens": TOKENS, "encoder_input_tokens": TOKENS[:, ::-1]}

    def decoder(rows):
        whole = expanded(params)
        cache = model.start_decoding(whole, batch, TOKENS.shape[1])
        return model.for_steps(params, cache, rows)

    @jax.jit
    def at_once():
        whole = expanded(params)
        cache = model.start_decoding(whole, batch, TOKENS.shape[1])
        return model.decode(whole, cache, TOKENS)[0]

    @functools.partial(jax.jit, static_argnums=0)
    def in_steps(rows):
        stepper, held, cache = decoder(rows)
        found = []
        for i in range(TOKENS.shape[1]):
            logits, cache = stepper.decode(expanded(held), cache, TOKENS[:, i : i + 1])
            found.append(logits)
        return jnp.concatenate(found, axis=1)

    wanted = at_once()
    assert float(jnp.std(wanted)) > 0.1
    for rows in (1, 2):
        np.testing.assert_allclose(in_steps(rows), wanted, atol=1e-4 * float(jnp.std(wanted)))

    one, several = (jax.eval_shape(lambda r=r: decoder(r)[1]["decoder"]) for r in (1, 2))
    assert kernels(one, "kernel") and not kernels(one, TRANSPOSED)
    # What is left: keys and values of a cross-attention, made once, and experts.
    left = {path.split("/")[1] for path in kernels(several, "kernel")}
    assert left == {"t5": {"encoder_decoder_attention"}, "experts": {"moe"}}.get(
        name.replace("fused", "t5"), set()
    )
    assert any("out" in path for path in kernels(several, TRANSPOSED))
    assert jax.tree.structure(params) == before  # nothing was taken out of the caller's own


def test_many_rows_are_not_few():
    assert prefers_transposed(1) and prefers_transposed(64) and not prefers_transposed(65)
