"""What training changes, as one plain pytree, and how it lies on the mesh."""

import dataclasses
import zlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from t5x_lite.models.model import Model
from t5x_lite.parallel.rules import (
    MeshAxes,
    check_divisible,
    is_axis_names,
    tree_shardings,
)
from t5x_lite.training.guards import SpikeGuard
from t5x_lite.training.trainable import part


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """``step`` and ``bad_steps`` are int32 scalars; the trees hold float32 arrays.

    ``step`` counts batches seen; ``bad_steps`` the latest ones in a row whose loss or gradient
    was not finite (or a spike), and which therefore changed nothing else; ``guard`` is what
    `SpikeGuard` remembers, None without one. ``opt_state`` is of the parameters that are trained.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    bad_steps: jax.Array
    guard: Any = None

    def to_dict(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def key_for(seed: int, name: str) -> jax.Array:
    """The random key of one purpose: a function of the run's seed and the purpose's name."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def abstract_state(
    model: Model,
    transform: optax.GradientTransformation,
    mesh: Mesh,
    rules: Mapping[str, MeshAxes],
    guard: SpikeGuard | None = None,
    trained: Collection[str] | None = None,
) -> TrainState:
    """The state's shapes, dtypes and shardings; nothing is computed.

    ``trained``: names of the parameters that ``transform`` is for; None: all. Raises UserError for
    an axis that the mesh can't divide, and for heads that ``tensor`` can't.
    """
    params, axes = model.abstract_params(), model.logical_axes()
    shapes = jax.eval_shape(lambda p: _new_state(p, transform, guard, trained), params)
    opt_axes = optimizer_axes(shapes.opt_state, params, axes)
    state_axes = TrainState((), axes, opt_axes, (), guard.axes() if guard else None)
    shardings = tree_shardings(mesh, state_axes, rules)
    check_divisible(mesh, shapes, shardings)
    return _with_shardings(shapes, shardings)


def abstract_params(model: Model, mesh: Mesh, rules: Mapping[str, MeshAxes]) -> Any:
    """The parameters' shapes, dtypes and shardings. Raises UserError as `abstract_state` does."""
    shapes = model.abstract_params()
    shardings = tree_shardings(mesh, model.logical_axes(), rules)
    check_divisible(mesh, shapes, shardings)
    return _with_shardings(shapes, shardings)


def _with_shardings(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def init_state(
    model: Model,
    transform: optax.GradientTransformation,
    abstract: TrainState,
    seed: int,
    guard: SpikeGuard | None = None,
    trained: Collection[str] | None = None,
) -> TrainState:
    """Fresh parameters and optimizer state, every device computing only its own part."""

    def init(key: jax.Array) -> TrainState:
        return _new_state(model.init(key), transform, guard, trained)

    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(init, out_shardings=shardings)(key_for(seed, "params"))


def _new_state(params: Any, transform: Any, guard: SpikeGuard | None, trained: Any) -> TrainState:
    remembered = guard.init() if guard else None
    opt_state = transform.init(params if trained is None else part(params, trained))
    return TrainState(jnp.int32(0), params, opt_state, jnp.int32(0), remembered)


def optimizer_axes(opt_state: Any, params: Any, axes: Any) -> Any:
    """Logical axes for an optimizer's state: those of the parameter that each leaf is about.

    A leaf is about the parameter whose path ends its own; it has its shape, or that shape without
    one axis (Adafactor's factors). Anything else is small and stays whole on every device.
    """
    flat_axes = jax.tree.leaves(axes, is_leaf=is_axis_names)
    by_path = {
        path: (leaf.shape, names)
        for (path, leaf), names in zip(
            jax.tree_util.tree_leaves_with_path(params), flat_axes, strict=True
        )
    }

    def axes_of(path, leaf) -> tuple[str | None, ...]:
        shape, names = by_path.get(_ending(path, by_path), ((), ()))
        if leaf.shape == shape:
            return names
        for i in range(len(shape)):
            if leaf.shape == shape[:i] + shape[i + 1 :]:
                return names[:i] + names[i + 1 :]
        return (None,) * len(leaf.shape)

    return jax.tree_util.tree_map_with_path(axes_of, opt_state)


def trained_part(state: TrainState) -> list[Any]:
    """The parameters' leaves that the optimizer's state is about; all of them if it is of none."""
    leaves = dict(jax.tree_util.tree_leaves_with_path(state.params))
    known = jax.tree_util.tree_leaves_with_path(state.opt_state)
    found = {_ending(path, leaves) for path, _ in known} - {()}
    return [leaves[path] for path in found] or list(leaves.values())


def _ending(path: tuple, known: Mapping[tuple, Any]) -> tuple:
    """The longest end of a path that is one of those that are known; () if none is."""
    path = tuple(path)
    while path and path not in known:
        path = path[1:]
    return path


def parameter_table(abstract_params: Any, axes: Any) -> list[dict[str, Any]]:
    """One row per parameter: name, shape, logical axes, mesh axes, dtype, number of elements."""
    names = jax.tree.leaves(axes, is_leaf=is_axis_names)
    rows = []
    for (path, leaf), logical in zip(
        jax.tree_util.tree_leaves_with_path(abstract_params), names, strict=True
    ):
        spec = leaf.sharding.spec if leaf.sharding is not None else ()
        rows.append(
            {
                "name": jax.tree_util.keystr(path, simple=True, separator="/"),
                "shape": leaf.shape,
                "axes": logical,
                "mesh": tuple(spec),
                "dtype": str(leaf.dtype),
                "size": leaf.size,
            }
        )
    return rows
