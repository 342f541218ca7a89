"""Parameters gathered by hand: what is sent, and that the gradient is the plain one."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from t5x_lite.parallel.gather import keep_all_but_gathered, scatterable, with_explicit_fsdp
from t5x_lite.parallel.mesh import MeshConfig, make_mesh
from t5x_lite.parallel.rules import DEFAULT_RULES, partition_spec, use_mesh

TOKENS = ("activation_batch", "activation_length", None)
MESH = {"data": 2, "fsdp": 4, "fsdp_split": (2, 2)}


def setting(axes, sizes=MESH):
    """A product's loss and its arguments, with a kernel of these axes, on a mesh."""
    x = jax.random.normal(jax.random.key(0), (8, 4, 16))
    kernel = jax.random.normal(jax.random.key(1), (16, 24))
    mesh = make_mesh(MeshConfig(**sizes))
    placed = jax.device_put(kernel, NamedSharding(mesh, partition_spec(axes, DEFAULT_RULES, mesh)))

    def loss(kernel, x):
        y = with_explicit_fsdp(jnp.matmul, [x], [TOKENS], [kernel], [axes], TOKENS)
        return jnp.sum(jnp.sin(y))

    return loss, mesh, kernel, placed, x


@pytest.mark.parametrize("axes", [("embed", "mlp"), ("mlp", "embed")])
@pytest.mark.parametrize(
    "sizes",
    [MESH, {"data": 1, "fsdp": 8, "fsdp_split": (2, 2, 2)}, {"fsdp": 4, "fsdp_split": (4,)}],
    ids=str,
)
def test_value_and_gradient(axes, sizes):
    loss, mesh, kernel, placed, x = setting(axes, sizes)
    wanted = jax.value_and_grad(loss, argnums=(0, 1))(kernel, x)
    with use_mesh(mesh, DEFAULT_RULES):
        got = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(placed, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), got, wanted)
    assert got[1][0].sharding.shard_shape(kernel.shape) == placed.sharding.shard_shape(kernel.shape)


@pytest.mark.parametrize("axes", [("embed", "mlp"), ("mlp", "embed")])
def test_the_gradient_is_scattered_along_each_axis_and_only_then_summed_over_replicas(axes):
    loss, mesh, _, placed, x = setting(axes)
    with use_mesh(mesh, DEFAULT_RULES):
        text = jax.jit(jax.grad(loss)).lower(placed, x).compile().as_text()
    sent = re.findall(r"= f32\[([\d,]*)\]\S* (all-gather|all-reduce|reduce-scatter)\(", text)
    sizes = [(kind, int(np.prod([int(n) for n in shape.split(",")]))) for shape, kind in sent]
    whole = 16 * 24
    # 16 x 24 is gathered by halves, reduced by halves, and what is all-reduced is a quarter.
    assert sizes == [
        ("all-gather", whole // 2),
        ("all-gather", whole),
        ("reduce-scatter", whole // 2),
        ("reduce-scatter", whole // 4),
        ("all-reduce", whole // 4),
    ]


def test_without_a_split_mesh_nothing_is_touched():
    loss, _, kernel, _, x = setting(("embed", "mlp"))
    plain = lambda kernel, x: jnp.sum(jnp.sin(x @ kernel))  # noqa: E731
    expected = str(jax.make_jaxpr(plain)(kernel, x))
    assert str(jax.make_jaxpr(loss)(kernel, x)) == expected
    with use_mesh(make_mesh(MeshConfig(data=2, fsdp=4)), DEFAULT_RULES):
        assert str(jax.make_jaxpr(loss)(kernel, x)) == expected


def test_rows_that_cannot_be_cut_are_left_to_xla():
    loss, mesh, kernel, _, x = setting(("embed", "mlp"))
    with use_mesh(mesh, DEFAULT_RULES):
        np.testing.assert_allclose(loss(kernel, x[:3]), jnp.sum(jnp.sin(x[:3] @ kernel)), rtol=1e-5)


def test_gathered_parameters_are_not_kept_for_the_backward_pass():
    """Under the policy that a stack uses where nothing else is recomputed."""
    loss, mesh, _, placed, x = setting(("embed", "mlp"))
    with use_mesh(mesh, DEFAULT_RULES):
        _, back = jax.eval_shape(
            lambda *a: jax.vjp(jax.checkpoint(loss, policy=keep_all_but_gathered), *a), placed, x
        )
        _, kept = jax.eval_shape(lambda *a: jax.vjp(loss, *a), placed, x)
    # Seen from outside, 8 devices' 16 x 24 numbers make one array of 128 x 24.
    shapes = lambda tree: {leaf.shape for leaf in jax.tree.leaves(tree)}  # noqa: E731
    assert (128, 24) in shapes(kept) and (128, 24) not in shapes(back)


def test_widths_that_reduce_scatter_takes():
    assert [scatterable(n) for n in (4096, 11008, 100, 32000)] == [4096, 11008, 100, 32256]
    assert scatterable(32128) == 32256 and scatterable(50304) == 51200
