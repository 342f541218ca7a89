"""The mixture of experts: its routing by hand, its two ways against the reference, on meshes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from golden_files import load, tree

from t5x_lite.errors import UserError
from t5x_lite.models.flops import train_flops
from t5x_lite.models.functional import moe
from t5x_lite.models.functional.mlp import gated
from t5x_lite.models.model import Model
from t5x_lite.models.moe import MoE
from t5x_lite.parallel.mesh import MeshConfig, make_mesh
from t5x_lite.parallel.rules import DEFAULT_RULES, tree_shardings, use_mesh

B, T, D, E, F = 8, 8, 16, 8, 32
LM = dataclasses.replace(
    tiny.LM,
    vocab_size=64,
    embed_dim=D,
    mlp_dim=F,
    num_experts=E,
    mlp_activations=("silu", "linear"),
)
activate = functools.partial(gated, activations=("silu", "linear"))


def draw(seed=0):
    """x [B, T, D], a router [D, E], kernels, and which tokens are no padding."""
    keys = jax.random.split(jax.random.key(seed), 5)
    shapes = [(B, T, D), (D, E), (E, D, F), (E, D, F), (E, F, D)]
    x, router, *kernels = [
        jax.random.normal(key, shape) / shape[-2] ** 0.5
        for key, shape in zip(keys, shapes, strict=True)
    ]
    return x, router, kernels, jnp.arange(T)[None] < jnp.arange(B)[:, None] + 1


# -- routing -------------------------------------------------------------------------------------


def test_router_by_hand():
    """Two tokens that count and a third of padding, two experts out of three."""
    logits = jnp.asarray([[[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [9.0, 9.0, 9.0]]])
    valid = jnp.asarray([[True, True, False]])
    found = moe.route(logits, jnp.eye(3), valid, 2, normalize=True)
    p = jax.nn.softmax(logits[0, :2], axis=-1)
    np.testing.assert_array_equal(found.experts, [[[0, 1], [1, 2], [3, 3]]])
    first = p[0, 0] / (p[0, 0] + p[0, 1])
    second = p[1, 1] / (p[1, 1] + p[1, 2])
    expected = [[first, 1 - first], [second, 1 - second], [0, 0]]
    np.testing.assert_allclose(found.weights[0], expected, atol=1e-6)
    # Of four choices one fell on expert 0, two on 1, one on 2.
    balance = 3 * jnp.dot(jnp.asarray([0.25, 0.5, 0.25]), p.mean(axis=0))
    np.testing.assert_allclose(found.load_balance, balance, rtol=1e-6)
    squares = jax.nn.logsumexp(logits[0, :2], axis=-1) ** 2
    np.testing.assert_allclose(found.z_loss, squares.mean(), rtol=1e-6)
    plain = moe.route(logits, jnp.eye(3), valid, 2, normalize=False)
    np.testing.assert_allclose(plain.weights[0, 0], p[0, :2], atol=1e-6)


def test_balance_is_one_where_all_experts_are_used_alike_and_more_elsewhere():
    everywhere = jnp.ones((1, E), bool)
    even = moe.route(10 * jnp.eye(E)[None], jnp.eye(E), everywhere, 1, normalize=False)
    np.testing.assert_allclose(even.load_balance, 1.0, rtol=1e-5)
    one = jnp.broadcast_to(20 * jnp.eye(E)[:1], (1, E, E))
    skewed = moe.route(one, jnp.eye(E), everywhere, 1, normalize=False)
    np.testing.assert_allclose(skewed.load_balance, E, rtol=1e-3)


def test_places_go_to_first_choices_first_and_to_no_padding():
    experts = jnp.asarray([[0, 1], [0, 1], [2, 2], [1, 0], [0, 1]])  # 2 is no expert: padding
    slots = moe.assign_slots(experts, 2, 2)
    # Expert 0: tokens 0 and 1. Expert 1: the fourth's first choice, then token 0's second.
    np.testing.assert_array_equal(slots, [[0, 3], [1, 4], [4, 4], [2, 4], [4, 4]])
    assert moe.capacity(8, 4, 2, 1.0) == 4 and moe.capacity(8, 4, 2, 9.0) == 8


# -- the two ways, against asking every expert -----------------------------------------------------


def reference(x, router, kernels, valid):
    """By every expert about every token: the choices of `route` at their weights."""
    routing = moe.route(x, router, valid, 2, normalize=True)
    flat = lambda a: a.reshape(B * T, -1)  # noqa: E731
    y = moe.every_expert(flat(x), flat(routing.experts), flat(routing.weights), kernels, activate)
    return y.reshape(x.shape), routing


@pytest.fixture(scope="module")
def expected():
    """Values and gradients of `reference`, as of `layer` below."""
    x, router, kernels, valid = draw()

    def loss(x, router, kernels):
        y, routing = reference(x, router, kernels, valid)
        return jnp.sum(jnp.sin(y)) + routing.load_balance + routing.z_loss, y

    return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(x, router, kernels)


def layer(factor, mesh=None):
    """The Linen layer's loss as a function of (x, router, kernels), compiled on a mesh."""
    config = dataclasses.replace(LM, capacity_factor=factor)
    *_, valid = draw()

    def loss(x, router, kernels):
        names = ("wi_0", "wi_1", "wo")
        params = {name: {"kernel": k} for name, k in zip(names, kernels, strict=True)}
        params["router"] = {"kernel": router}
        y, state = MoE(config).apply({"params": params}, x, valid, mutable=["losses"])
        losses = state["losses"]
        aux = losses["load_balance_loss"][0] + losses["router_z_loss"][0]
        return jnp.sum(jnp.sin(y)) + aux, (y, losses["dropped_choices"][0])

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


def place(mesh, x, router, kernels):
    inner, outer = ("experts", "embed", "mlp"), ("experts", "mlp", "embed")
    axes = (
        ("activation_batch", "activation_length", None),
        ("embed", "router_experts"),
        [inner, inner, outer],
    )
    return jax.device_put((x, router, kernels), tree_shardings(mesh, axes, DEFAULT_RULES))


def close(got, wanted, atol=2e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), got, wanted)


@pytest.mark.parametrize("factor", [None, 8.0])
def test_both_ways_are_the_reference_where_nothing_is_dropped(factor, expected):
    x, router, kernels, _ = draw()
    (value, (y, dropped)), grads = layer(factor)(x, router, kernels)
    close((value, y, grads), (expected[0][0], expected[0][1], expected[1]))
    assert dropped == 0
    padded = ~np.asarray(draw()[3])
    assert not np.asarray(y)[padded].any() and padded.any()


MESHES = [
    {"data": 1, "expert": 8},
    {"data": 2, "expert": 4},
    {"data": 1, "fsdp": 2, "expert": 2, "tensor": 2},
    {"data": 1, "fsdp": 2, "expert": 2, "context": 2},
    {"data": 1, "fsdp": 4, "expert": 2, "fsdp_split": (2, 2)},
]


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("factor", [None, 1.0])
def test_meshes_compute_the_same(sizes, factor):
    """Also what is dropped: with a factor of 1 something is."""
    x, router, kernels, _ = draw()
    wanted = layer(factor)(x, router, kernels)
    assert (wanted[0][1][1] > 0.02) == (factor == 1.0)
    mesh = make_mesh(MeshConfig(**sizes))
    with use_mesh(mesh, DEFAULT_RULES):
        got = layer(factor)(*place(mesh, x, router, kernels))
    close(got, wanted)


# -- in a model ------------------------------------------------------------------------------------


def batch_of(config):
    targets = jax.random.randint(jax.random.key(0), (2, T), 2, 64)
    return {"decoder_input_tokens": targets, "decoder_target_tokens": targets}


def test_model_reports_losses_and_decodes_what_it_computes():
    model = Model(LM)
    params = jax.jit(model.init)(jax.random.key(0))
    batch = batch_of(LM)
    logits, aux = jax.jit(model.apply)(params, batch)
    weighted = 0.01 * aux["load_balance_loss"] + 0.001 * aux["router_z_loss"]
    np.testing.assert_allclose(aux["loss"], weighted, rtol=1e-6)
    assert 1.0 <= aux["load_balance_loss"] < E and aux["dropped_choices"] == 0
    cache = jax.jit(model.start_decoding, static_argnums=2)(params, batch, T)
    got, _ = jax.jit(model.decode)(params, cache, batch["decoder_input_tokens"])
    np.testing.assert_allclose(got, logits, atol=1e-4)


def test_mixtral_of_hugging_face():
    """The same logits of the same weights."""
    arrays = load("tiny_mixtral.npz")
    config = dataclasses.replace(
        LM, num_experts=4, mlp_dim=16, head_dim=4, tied_embeddings=False, scan_layers=False
    )
    batch = {f"decoder_{name}_tokens": arrays["tokens"] for name in ("input", "target")}
    logits, _ = jax.jit(Model(config).apply)(tree(arrays, "params/"), batch)
    np.testing.assert_allclose(logits, arrays["logits"], atol=5e-6)


def test_padding_changes_nothing():
    model = Model(LM)
    params = jax.jit(model.init)(jax.random.key(0))
    apply = jax.jit(model.apply)
    batch = batch_of(LM)
    padded = {name: jnp.pad(value, ((0, 1), (0, 3))) for name, value in batch.items()}
    (logits, aux), (more_logits, more_aux) = apply(params, batch), apply(params, padded)
    np.testing.assert_allclose(more_logits[:2, :T], logits, atol=1e-5)
    close(more_aux, aux, 1e-5)


def test_experts_in_every_second_layer():
    config = dataclasses.replace(LM, moe_every=2, scan_layers=False)
    names = {name: set(p) for name, p in Model(config).abstract_params()["decoder"].items()}
    assert "moe" in names["layers_1"] and "mlp" not in names["layers_1"]
    assert "mlp" in names["layers_0"] and "moe" not in names["layers_0"]


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        (dict(head_dim=128, num_kv_heads=8, mlp_dim=14336, num_experts=8), 46_702_792_704),
        (
            dict(
                vocab_size=151_936, embed_dim=2048, head_dim=128, num_kv_heads=4, mlp_dim=768,
                num_decoder_layers=48, num_experts=128, experts_per_token=8, qk_norm=True,
            ),
            30_532_122_624,
        ),
    ],
    ids=["Mixtral 8x7B", "Qwen3 30B-A3B"],
)  # fmt: skip
def test_published_models_have_their_published_size(changes, count):
    shape = dict(vocab_size=32_000, embed_dim=4096, num_heads=32, num_decoder_layers=32)
    config = dataclasses.replace(LM, tied_embeddings=False, **(shape | changes))
    assert sum(leaf.size for leaf in jax.tree.leaves(Model(config).abstract_params())) == count


def test_flops_count_the_experts_that_are_used():
    dense = dataclasses.replace(LM, num_experts=0)
    lengths = {"decoder_target_tokens": T}
    more = train_flops(LM, lengths, 1) - train_flops(dense, lengths, 1)
    assert more == 6 * LM.num_decoder_layers * T * ((2 - 1) * 3 * D * F + D * E)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts_per_token": 9}, "experts_per_token = 9 with num_experts = 8: expected 1 to 8"),
        ({"capacity_factor": 0.0}, "capacity_factor = 0.0: it must be above 0"),
        ({"moe_every": 2}, "set scan_layers = False, or moe_every = 1"),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(LM, **changes)
