"""Whole models on 8 devices compute what they compute on one: values and gradients, packed rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from t5x_lite.models.model import Model
from t5x_lite.parallel.mesh import MeshConfig, make_mesh
from t5x_lite.parallel.rules import DEFAULT_RULES, batch_sharding, tree_shardings, use_mesh
from t5x_lite.training.losses import cross_entropy

B, T, S = 8, 8, 16
MODELS = {
    "t5": dataclasses.replace(tiny.T5, vocab_size=64, embed_dim=16, mlp_dim=32),
    "lm": dataclasses.replace(tiny.LM, vocab_size=64, embed_dim=16, mlp_dim=32),
    "lm_full_remat": dataclasses.replace(
        tiny.LM, vocab_size=64, embed_dim=16, mlp_dim=32, tied_embeddings=False, remat="full"
    ),
}


def packed(length: int, side: str, seed: int) -> dict[str, jax.Array]:
    """Two segments and some padding in each row."""
    ids = jax.random.randint(jax.random.key(seed), (B, length), 2, 64)
    first, second = length // 2 - 1, length - 2
    place = jnp.arange(length)[None].repeat(B, 0)
    segments = jnp.where(place < first, 1, jnp.where(place < second, 2, 0))
    positions = jnp.where(place < first, place, place - first) * (segments > 0)
    name = "encoder_input_tokens" if side == "encoder" else "decoder_target_tokens"
    return {
        name: ids * (segments > 0),
        f"{side}_segment_ids": segments,
        f"{side}_positions": positions,
    }


def batch_for(config):
    batch = packed(T, "decoder", 0)
    batch["decoder_input_tokens"] = jnp.pad(
        batch["decoder_target_tokens"][:, :-1], ((0, 0), (1, 0))
    )
    if config.has_encoder:
        batch |= packed(S, "encoder", 1)
    return batch


@functools.lru_cache
def loss_and_gradients(name: str, sizes: tuple = (), train: bool = False):
    """On one device, or on a mesh of 8; with dropout if ``train``."""
    config = MODELS[name]
    if train:
        config = tiny.dropout(config, 0.2)
    model, batch = Model(config), batch_for(config)
    params = jax.jit(model.init)(jax.random.key(0))

    def loss(params, batch):
        logits, _ = model.apply(params, batch, rng=jax.random.key(1), train=train)
        targets = batch["decoder_target_tokens"]
        total, _, tokens = cross_entropy(logits, targets, targets > 0, z_loss=1e-3)
        return total / tokens

    step = jax.jit(jax.value_and_grad(loss))
    if not sizes:
        return step(params, batch)
    mesh = make_mesh(MeshConfig(**dict(sizes)))
    params = jax.device_put(params, tree_shardings(mesh, model.logical_axes(), DEFAULT_RULES))
    batch = jax.device_put(batch, batch_sharding(mesh, DEFAULT_RULES))
    with use_mesh(mesh, DEFAULT_RULES):
        return step(params, batch)


def check(name, sizes, train=False):
    wanted = loss_and_gradients(name, train=train)
    got = loss_and_gradients(name, tuple(sizes.items()), train)
    compare = functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=2e-4)
    jax.tree.map(compare, got, wanted)
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(wanted[1]))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("t5", {"data": 2, "context": 4}),
        ("t5", {"data": 1, "fsdp": 8, "fsdp_split": (4, 2)}),
        ("lm_full_remat", {"data": 1, "fsdp": 8, "fsdp_split": (2, 2, 2)}),
        ("lm", {"data": 2, "fsdp": 2, "fsdp_split": (2,), "tensor": 2}),
    ],
)
def test_values_and_gradients(name, sizes):
    check(name, sizes)


def test_dropout_draws_the_same_on_a_mesh():
    check("lm", {"data": 1, "fsdp": 4, "fsdp_split": (2, 2), "context": 2}, train=True)
