"""Meshes, rules and batches: sizes, names, what lies where, and every mistake."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from t5x_lite.errors import UserError
from t5x_lite.parallel.mesh import AXES, MeshConfig, fsdp_axes, gathers_explicitly, make_mesh
from t5x_lite.parallel.rules import (
    DEFAULT_RULES,
    batch_rows,
    batch_sharding,
    check_lengths,
    partition_spec,
    place_batch,
)


def test_positional_fields_and_defaults_stay():
    assert MeshConfig(2, 4, 1) == MeshConfig(data=2, fsdp=4, tensor=1, context=1, expert=1)
    mesh = make_mesh()
    assert mesh.axis_names == AXES and mesh.shape["data"] == 8
    assert [d.id for d in mesh.devices.flat] == list(range(8))


def test_split_fsdp_is_the_same_devices_in_the_same_order():
    whole = make_mesh(MeshConfig(data=1, fsdp=8))
    split = make_mesh(MeshConfig(data=1, fsdp=8, fsdp_split=(2, 2, 2)))
    assert fsdp_axes(split) == ("fsdp_x", "fsdp_y", "fsdp_z") and fsdp_axes(whole) == ("fsdp",)
    assert gathers_explicitly(split) and not gathers_explicitly(whole)
    spec = partition_spec(("embed", "mlp"), DEFAULT_RULES, split)
    assert spec == P(("fsdp_x", "fsdp_y", "fsdp_z"), "tensor")
    assert partition_spec(("embed", "mlp"), DEFAULT_RULES, whole) == P("fsdp", "tensor")
    x = np.arange(64.0).reshape(8, 8)
    for device, index in jax.NamedSharding(split, spec).devices_indices_map(x.shape).items():
        there = jax.NamedSharding(whole, P("fsdp", "tensor")).devices_indices_map(x.shape)[device]
        np.testing.assert_array_equal(x[index], x[there])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"fsdp": 8, "fsdp_split": (4, 4)}, r"set MeshConfig.fsdp = 16"),
        ({"fsdp": 1, "fsdp_split": ()}, "one to three positive sizes"),
        ({"context": 3}, "needs a multiple of 3 devices, found 8"),
        ({"data": 2, "expert": 2}, "needs 4 devices, found 8"),
        ({"expert": 0}, "sizes are positive"),
    ],
)
def test_mistakes(config, message):
    with pytest.raises(UserError, match=message):
        MeshConfig(**config).sizes(8)


@pytest.mark.parametrize(
    "sizes", [{"context": 4}, {"expert": 2, "context": 2}, {"data": 1, "context": 8}], ids=str
)
def test_batches_are_cut_in_rows_and_stretches(sizes):
    mesh = make_mesh(MeshConfig(**sizes))
    sharding = batch_sharding(mesh, DEFAULT_RULES)
    rows = batch_rows(sharding, 4)
    np.testing.assert_array_equal(rows, np.arange(4))
    local = np.arange(4 * 16, dtype=np.int32).reshape(4, 16)
    placed = place_batch({"tokens": local}, sharding, rows, 4)["tokens"]
    np.testing.assert_array_equal(placed, local)
    parts = mesh.shape["context"]
    assert {shard.data.shape[1] for shard in placed.addressable_shards} == {16 // parts}


def test_lengths_that_cannot_be_cut():
    sharding = batch_sharding(make_mesh(MeshConfig(context=4)), DEFAULT_RULES)
    check_lengths({"encoder_input_tokens": 64}, sharding)
    with pytest.raises(UserError, match=r"targets of 114 tokens .* in 4 .*context.* such as 116"):
        check_lengths({"encoder_input_tokens": 64, "targets": 114}, sharding)
