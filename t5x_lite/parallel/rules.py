"""Maps logical axis names to mesh axes, and places arrays by them.

Models name the axes of their parameters and activations; this table alone says which mesh axis
each is split over. A name that is missing in the table is an error at start-up.
"""

import contextlib
import contextvars
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5x_lite.errors import UserError, did_you_mean
from t5x_lite.parallel.mesh import fsdp_axes

MeshAxes = str | tuple[str, ...] | None
Rules = Mapping[str, MeshAxes]  # logical name -> mesh axes

# Parameters: Megatron splits over `tensor`; `embed`, which every kernel has, over `fsdp` (ZeRO-3).
DEFAULT_RULES: dict[str, MeshAxes] = {
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv": None,
    "joined_kv": "tensor",
    "mlp": "tensor",
    "gates": None,  # a gated MLP's input projections, stacked in one array
    "experts": "expert",
    "router_experts": None,  # each router scores all experts
    "layers": None,
    "relpos_buckets": None,
    "position": None,
    "norm": None,
    "head_out": None,  # of an encoder's heads
    "lora_rank": None,
    "activation_batch": ("data", "fsdp", "expert"),
    "activation_length": "context",
    "activation_kv_length": None,  # every query attends to the keys of its whole row
    "activation_embed": None,
    "activation_heads": "tensor",
    "activation_kv": None,
    "activation_mlp": "tensor",
    "activation_vocab": "tensor",
    # Tokens dispatched to experts: each device holds its experts' tokens of many rows.
    "activation_experts": "expert",
    "activation_expert_batch": ("data", "fsdp"),
}

_active: contextvars.ContextVar[tuple[Mesh, Mapping[str, MeshAxes]] | None] = (
    contextvars.ContextVar("active_mesh_and_rules", default=None)
)


def logical_rules(overrides: Mapping[str, MeshAxes] | None = None) -> dict[str, MeshAxes]:
    """Returns the rules table: the default one with ``overrides`` (logical name -> mesh axes)."""
    return DEFAULT_RULES | dict(overrides or {})


def partition_spec(
    names: Sequence[str | None], rules: Mapping[str, MeshAxes], mesh: Mesh | None = None
) -> PartitionSpec:
    """Returns the PartitionSpec of an array whose axes have these logical names.

    A mesh axis can split only one axis of an array: the first one in order gets it. With a
    ``mesh``, ``fsdp`` stands for its sub-axes in that mesh.
    """
    fsdp = ("fsdp",) if mesh is None else fsdp_axes(mesh)
    used: set[str] = set()
    spec = []
    for name in names:
        if name is not None and name not in rules:
            raise UserError(
                f"logical axis {name!r} is not in the sharding rules.{did_you_mean(name, rules)} "
                f"Add it through logical_rules.overrides."
            )
        wanted = rules[name] if name is not None else None
        axes = (wanted,) if isinstance(wanted, str) else (wanted or ())
        axes = [part for axis in axes for part in (fsdp if axis == "fsdp" else (axis,))]
        axes = tuple(axis for axis in axes if axis not in used)
        used.update(axes)
        spec.append(axes if len(axes) > 1 else (axes[0] if axes else None))
    return PartitionSpec(*spec)


def is_axis_names(x: Any) -> bool:
    """Whether ``x`` is a leaf of a tree of logical axes: a plain tuple of names (no NamedTuple)."""
    return type(x) is tuple and all(n is None or isinstance(n, str) for n in x)


def tree_shardings(mesh: Mesh, axes: Any, rules: Mapping[str, MeshAxes]) -> Any:
    """Maps a tree of logical axis names to a tree of NamedShardings of the same structure."""
    return jax.tree.map(
        lambda names: NamedSharding(mesh, partition_spec(names, rules, mesh)),
        axes,
        is_leaf=is_axis_names,
    )


def check_divisible(mesh: Mesh, shapes: Any, shardings: Any) -> None:
    """Raises UserError naming the first array with an axis that its mesh axes don't divide."""
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        for size, axes in zip(leaf.shape, splits(sharding.spec), strict=False):
            parts = int(np.prod([mesh.shape[axis] for axis in axes]))
            if size % parts:
                name = "/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path)
                raise UserError(
                    f"parameter {name} {leaf.shape}: its axis of {size} can't be split in {parts} "
                    f"(mesh axis {'*'.join(axes)}): choose a mesh size that divides it, or map "
                    f"the axis to None through logical_rules.overrides."
                )


@contextlib.contextmanager
def use_mesh(mesh: Mesh, rules: Mapping[str, MeshAxes]):
    """Within it, `constrain` pins activations to this mesh by these rules."""
    token = _active.set((mesh, rules))
    try:
        yield
    finally:
        _active.reset(token)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Pins the sharding of an activation by its logical axes; does nothing outside `use_mesh`."""
    active = _active.get()
    if active is None or active[0].size == 1:
        return x
    mesh, rules = active
    spec = partition_spec(names, rules, mesh)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def active() -> tuple[Mesh, Mapping[str, MeshAxes]] | None:
    """The mesh and the rules of the enclosing `use_mesh`, or None."""
    return _active.get()


def batch_sharding(mesh: Mesh, rules: Mapping[str, MeshAxes]) -> NamedSharding:
    """The sharding of a batch's features [batch, length]."""
    spec = partition_spec(("activation_batch", "activation_length"), rules, mesh)
    return NamedSharding(mesh, spec)


def splits(spec: PartitionSpec) -> list[tuple[str, ...]]:
    """The mesh axes that split each dimension named by the spec."""
    return [(axes,) if isinstance(axes, str) else tuple(axes or ()) for axes in spec]


def divides(mesh: Mesh, shape: Sequence[int], spec: PartitionSpec) -> bool:
    """Whether the spec divides every dimension evenly, as shard_map requires."""
    parts = [math.prod(mesh.shape[axis] for axis in axes) for axes in splits(spec)]
    return all(size % part == 0 for size, part in zip(shape, parts, strict=False))


def shards(sharding: NamedSharding, dimension: int) -> int:
    """The number of shards of this dimension."""
    axes = splits(sharding.spec)[dimension]
    return math.prod(sharding.mesh.shape[axis] for axis in axes)


def check_lengths(lengths: Mapping[str, int], sharding: NamedSharding) -> None:
    """Raises UserError naming the first feature whose length `context` doesn't divide."""
    parts = shards(sharding, 1)
    for name, length in lengths.items():
        if length % parts:
            raise UserError(
                f"{name} of {length} tokens can't be cut in {parts} (mesh axis "
                f"{'*'.join(splits(sharding.spec)[1])}): use a multiple of {parts}, "
                f"such as {math.ceil(length / parts) * parts}."
            )


def batch_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """Returns the rows of the global batch, sorted, that this process's devices hold.

    Raises UserError if the mesh axes that split the batch don't divide ``batch_size``.
    """
    axes, parts = splits(sharding.spec)[0], shards(sharding, 0)
    if batch_size % parts:
        raise UserError(
            f"batch of {batch_size} rows can't be split over {parts} devices (mesh axes "
            f"{'*'.join(axes)}): use a multiple of {parts}, "
            f"such as {max(parts, round(batch_size / parts) * parts)}."
        )
    by_row = NamedSharding(sharding.mesh, PartitionSpec(axes))
    index_map = by_row.addressable_devices_indices_map((batch_size,))
    rows = [np.arange(batch_size)[index[0]] for index in index_map.values()]
    return np.unique(np.concatenate(rows))


def place_batch(
    features: Mapping[str, np.ndarray],
    sharding: NamedSharding,
    rows: np.ndarray,
    batch_size: int,
) -> dict[str, jax.Array]:
    """Makes global arrays [batch_size, ...] of this process's rows [len(rows), ...].

    ``rows`` is what `batch_rows` gave: the rows may be few or all, and several processes may
    hold the same row (when ``tensor`` or ``context`` spans processes).
    """

    def place(local: np.ndarray) -> jax.Array:
        def shard(index):
            wanted = np.arange(batch_size)[index[0]]
            return local[np.searchsorted(rows, wanted), *index[1:]]

        # The one intended transfer: allowed under any transfer guard.
        with jax.transfer_guard_host_to_device("allow"):
            return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, shard)

    return {name: place(value) for name, value in features.items()}
