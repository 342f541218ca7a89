"""Explicit FSDP: parameters are all-gathered, and their gradients reduce-scattered, by torus axis.

For the gradient of a parameter that is sharded over 64 or 256 chips, XLA by itself compiles an
all-reduce and a slice: twice the bytes of a reduce-scatter. The same happens to one `psum_scatter`
over both axes of a torus. One `psum_scatter` after the other, each along one torus axis, compiles
to true reduce-scatters; that is the transpose of all-gathers along one axis after the other. This
is known from compiled programs: nobody has timed it on hardware yet.

A mesh with ``MeshConfig.fsdp_split`` does this; on any other mesh these functions leave everything
to XLA.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from t5x_lite.parallel.mesh import FSDP_PARTS, fsdp_axes, gathers_explicitly
from t5x_lite.parallel.rules import active, divides, partition_spec, splits

Names = Sequence[str | None]


def uses_explicit_fsdp() -> bool:
    """Whether this code runs within `use_mesh` of a mesh with explicit FSDP."""
    found = active()
    return found is not None and gathers_explicitly(found[0])


def with_explicit_fsdp(
    fn: Callable[..., Any],
    arrays: Sequence[jax.Array],
    array_names: Sequence[Names],
    params: Sequence[jax.Array],
    param_names: Sequence[Names],
    out_names: Names | Sequence[Names],
    dtype: Any = None,
) -> Any:
    """Computes ``fn(*arrays, *params)``, whose output rows depend only on the same input rows.

    Args:
      fn: is called on each device with its shard of the arrays and the whole parameters. It may
        not mix rows, positions or experts: only parameters' gradients are summed over devices.
      arrays: activations, split over the mesh by ``array_names``.
      params: parameters, with the logical axes ``param_names``; axes on ``fsdp`` are gathered.
      out_names: the result's logical axes; a sequence of them if ``fn`` returns several arrays.
      dtype: parameters are converted to it before they are gathered, and their gradients are
        summed over devices in it; None leaves both as they are.
    """
    if not uses_explicit_fsdp():
        return fn(*arrays, *params)
    mesh, rules = active()
    # The `tensor` axis is left to XLA, which splits the products and sums the partial results.
    manual = tuple(a for a in mesh.axis_names if a != "tensor" or mesh.shape[a] == 1)

    def spec(names: Any) -> PartitionSpec:
        return _only(partition_spec(names, rules, mesh), manual)

    several = bool(out_names) and not isinstance(out_names[0], str | None)
    out_specs = tuple(spec(n) for n in out_names) if several else spec(out_names)
    array_specs = tuple(spec(names) for names in array_names)
    param_specs = tuple(spec(names) for names in param_names)
    for array, array_spec in zip(arrays, array_specs, strict=True):
        if not divides(mesh, array.shape, array_spec):  # initialisation; few rows in decoding
            return fn(*arrays, *params)
    if dtype is not None:
        params = [param.astype(dtype) for param in params]

    def local(*args):
        parts, own = args[: len(arrays)], args[len(arrays) :]
        if all(jnp.issubdtype(part.dtype, jnp.floating) for part in parts):
            parts, own = _scattered_first(parts, own)
        whole = [gather(p, s, fsdp_axes(mesh)) for p, s in zip(own, param_specs, strict=True)]
        return fn(*parts, *whole)

    # Without check_vma, parameters' gradients are summed over `data` at the end: when they
    # are scattered already, not before.
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(*array_specs, *param_specs),
        out_specs=out_specs,
        axis_names=set(manual),
        check_vma=False,
    )(*arrays, *params)


@jax.custom_vjp
def _scattered_first(arrays: Any, params: Any) -> Any:
    """Identity; in the backward pass the arrays' gradients wait for the parameters'.

    Otherwise XLA scatters later, and keeps several whole parameters' gradients in memory.
    """
    return arrays, params


_scattered_first.defvjp(
    lambda arrays, params: ((arrays, params), None),
    lambda _, gradients: jax.lax.optimization_barrier(gradients),
)


def gather(param: jax.Array, spec: PartitionSpec, axes: Sequence[str]) -> jax.Array:
    """Within shard_map: gathers a parameter along those of its mesh axes that are in ``axes``."""
    for dimension, split in enumerate(splits(spec)):
        split = tuple(axis for axis in split if axis in axes)
        if split:
            param = _gather(param, dimension, split)
    return param


def keep_all_but_gathered(primitive: Any, *_: Any, **settings: Any) -> bool:
    """A remat policy that recomputes only a layer's all-gathered parameters.

    It matches the all-gathers themselves: a name on their result would keep the all-gathers.
    """
    for inner in settings.values():  # a call of `_gather`, or of a function that calls it
        equations = getattr(inner, "eqns", ())
        if not all(keep_all_but_gathered(e.primitive, **e.params) for e in equations):
            return False
    axes = settings.get("axis_name", ())
    axes = (axes,) if isinstance(axes, str) else axes
    return primitive.name != "all_gather" or not {"fsdp", *FSDP_PARTS} & set(axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(param: jax.Array, dimension: int, axes: tuple[str, ...]) -> jax.Array:
    for axis in reversed(axes):  # the last axis is the innermost: it is joined first
        param = jax.lax.all_gather(param, axis, axis=dimension, tiled=True)
    return param


def _scatter(dimension: int, axes: tuple[str, ...], _: None, gradient: jax.Array):
    """Reduce-scatters a gradient over the axes, one axis at a time.

    The shards are separate leading axes: for tiled sums in place XLA still compiles all-reduces
    when they are small.
    """
    gradient = jnp.moveaxis(gradient, dimension, 0)
    width = gradient.shape[-1]
    if gradient.ndim > 1:
        more = scatterable(width) - width
        gradient = jnp.pad(gradient, [(0, 0)] * (gradient.ndim - 1) + [(0, more)])
    parts = tuple(jax.lax.axis_size(axis) for axis in axes)
    kept = gradient.shape[0] // math.prod(parts)
    gradient = gradient.reshape(*parts, kept, *gradient.shape[1:])
    for place, axis in enumerate(axes):
        gradient = jax.lax.psum_scatter(gradient, axis, scatter_dimension=place, tiled=True)
    gradient = gradient.reshape(gradient.shape[len(axes) :])[..., :width]
    return (jnp.moveaxis(gradient, 0, dimension),)


def scatter(gradient: jax.Array, spec: PartitionSpec, axes: Sequence[str]) -> jax.Array:
    """Within shard_map: what `gather`'s transpose does to the gradient of a whole parameter."""
    for dimension, split in enumerate(splits(spec)):
        split = tuple(axis for axis in split if axis in axes)
        if split:
            (gradient,) = _scatter(dimension, split, None, gradient)
    return gradient


def scatterable(width: int) -> int:
    """The next width for which XLA compiles a reduce-scatter.

    Found by compiling for v5e: 250, 251 and 393 tiles of 128 (vocabularies) give all-reduces;
    252 = 4 * 63, 400 = 16 * 25 and 86 = 2 * 43 (Llama's MLP) give reduce-scatters.
    """
    tiles = -(-width // 128)
    if tiles // (tiles & -tiles) < 64:
        return width
    while tiles // (tiles & -tiles) >= 64:
        tiles += 1
    return 128 * tiles


_gather.defvjp(lambda param, dimension, axes: (_gather(param, dimension, axes), None), _scatter)


def _only(spec: PartitionSpec, axes: Sequence[str]) -> PartitionSpec:
    """The spec without the mesh axes that aren't in ``axes``."""
    kept = [tuple(axis for axis in split if axis in axes) for split in splits(spec)]
    return PartitionSpec(*(split or None for split in kept))
