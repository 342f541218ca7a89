"""Adafactor (Shazeer & Stern 2018) as T5X runs it, step for step.

The second moments of a matrix are kept as the means of its rows and of its columns. Which two
dimensions form the matrix is told by logical axis names: `embed` is one, `mlp`, `joined_kv`,
`vocab`, ... the other; `layers`, `experts` and `gates` stack parameters that have statistics,
clipping and scale of their own, so that scanned layers train like unrolled ones.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from t5x_lite.errors import UserError, did_you_mean

STACK_AXES = ("layers", "experts", "gates")
FACTOR_RULES: Mapping[str, str] = {
    "embed": "row",
    **dict.fromkeys(("vocab", "mlp", "heads", "kv", "joined_kv", "position"), "column"),
    **dict.fromkeys(("relpos_buckets", "norm", "lora_rank"), "none"),
    **dict.fromkeys(STACK_AXES, "batch"),
}
EPSILON = 1e-30  # added to squared gradients, so that an embedding row never seen divides by > 0


class AdafactorState(NamedTuple):
    """Trees shaped like the parameters' tree; float32, what a parameter doesn't need is zeros [1].

    v_row has the parameter's shape without the larger of the factored dimensions, v_col without
    the smaller; v and m (momentum, of `mu_dtype`) have the parameter's shape. T5X's names.
    """

    count: jax.Array  # int32 scalar, updates made
    v_row: Any
    v_col: Any
    v: Any
    m: Any


@dataclasses.dataclass(frozen=True)
class Dims:
    """How one parameter is seen: its stacked dimensions, and the two that make a matrix, if any."""

    batch: tuple[int, ...] = ()
    matrix: tuple[int, int] | None = None


def axes_per_parameter(abstract_params: Any, logical_axes: Any | None) -> list:
    """The tuple of axis names of each leaf of `abstract_params`, None where it has none."""
    treedef = jax.tree.structure(abstract_params)
    if logical_axes is None:
        return [None] * treedef.num_leaves
    axes = treedef.flatten_up_to(logical_axes)
    for leaf, names in zip(jax.tree.leaves(abstract_params), axes, strict=True):
        assert names is None or len(names) == len(leaf.shape), (leaf.shape, names)
    return axes


def stack_dims(axes: tuple[str | None, ...] | None) -> tuple[int, ...]:
    """The dimensions along which a parameter is a stack of independent ones."""
    return tuple(i for i, axis in enumerate(axes or ()) if axis in STACK_AXES)


def root_mean_square(x: jax.Array, batch_dims: tuple[int, ...] = ()) -> jax.Array:
    """Float32 RMS of each slice along `batch_dims`; the other dimensions are kept as 1."""
    others = tuple(i for i in range(x.ndim) if i not in batch_dims)
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32)), axis=others, keepdims=True))


def factored_dims(
    shape: tuple[int, ...],
    axes: tuple[str | None, ...] | None,
    *,
    rules: Mapping[str, str] = FACTOR_RULES,
    min_dim_size: float = 128,
) -> Dims:
    """Decides by `rules` (axis name -> "row", "column", "batch" or "none") how to factor.

    One "row" and one "column" make the matrix; any "none" prevents it; without axis names, or with
    rules that name no single pair, the two largest dimensions do. Both must reach `min_dim_size`.
    The smaller of the pair comes first, the earlier of equals, as in T5X.

    Raises:
      UserError: an axis without a rule.
    """
    if wrong := {a: r for a, r in rules.items() if r not in ("row", "column", "batch", "none")}:
        raise UserError(
            f"Adafactor.factor_rules {wrong}, expected 'row', 'column', 'batch', 'none'"
        )
    roles = []
    for axis in axes or (None,) * len(shape):
        if axis is not None and axis not in rules:
            raise UserError(
                f"parameter axis {axis!r} has no Adafactor rule, expected one of "
                f"{', '.join(rules)}; add it to Adafactor.factor_rules.{did_you_mean(axis, rules)}"
            )
        roles.append(rules[axis] if axis is not None else None)
    batch = tuple(i for i, role in enumerate(roles) if role == "batch")
    rows, columns = ([i for i, r in enumerate(roles) if r == kind] for kind in ("row", "column"))
    others = [i for i in range(len(shape)) if i not in batch]
    if "none" in roles or len(others) < 2:
        return Dims(batch)
    pair = rows + columns if len(rows) == len(columns) == 1 else others
    smaller, larger = sorted(sorted(pair), key=lambda i: shape[i])[-2:]
    return Dims(batch, (smaller, larger) if shape[smaller] >= min_dim_size else None)


def scale_by_adafactor(
    dims: Any,
    *,
    decay_rate: float = 0.8,
    step_offset: int = 0,
    clipping_threshold: float | None = 1.0,
    multiply_by_parameter_scale: bool = True,
    min_parameter_scale: float = 1e-3,
    beta1: float | None = None,
    mu_dtype: Any = None,
) -> optax.GradientTransformation:
    """Adafactor's direction, float32, to be multiplied by the learning rate.

    With t = count - step_offset + 1 and beta2 = 1 - t**-decay_rate, gradients are divided by the
    root of their second moments, each slice's RMS is clipped to `clipping_threshold`, and the
    result multiplied by max(RMS(parameter), min_parameter_scale), then averaged by `beta1`. (T5X
    averages what it has multiplied by the learning rate: the same while the rate is constant.)

    Args:
      dims: tree of `Dims` shaped like the parameters.
    """

    def init(params: Any) -> AdafactorState:
        def zeros(keep, dtype=jnp.float32):
            def leaf(param, dim):
                shape = keep(param.shape, dim)
                return jnp.zeros((1,) if shape is None else shape, dtype)

            return jax.tree.map(leaf, params, dims)

        return AdafactorState(
            count=jnp.zeros((), jnp.int32),
            v_row=zeros(lambda shape, d: _without(shape, d.matrix[1]) if d.matrix else None),
            v_col=zeros(lambda shape, d: _without(shape, d.matrix[0]) if d.matrix else None),
            v=zeros(lambda shape, d: None if d.matrix else shape),
            m=zeros(lambda shape, d: None if beta1 is None else shape, mu_dtype or jnp.float32),
        )

    def update(grads: Any, state: AdafactorState, params: Any) -> tuple[Any, AdafactorState]:
        t = jnp.maximum(state.count - step_offset, 0).astype(jnp.float32) + 1.0
        beta2 = 1.0 - t**-decay_rate

        def leaf(grad, param, dim, v_row, v_col, v, m):
            grad = grad.astype(jnp.float32)
            squared = jnp.square(grad) + EPSILON
            if dim.matrix:
                smaller, larger = dim.matrix
                v_row = _average(v_row, jnp.mean(squared, axis=larger), beta2)
                v_col = _average(v_col, jnp.mean(squared, axis=smaller), beta2)
                by_row = jnp.expand_dims(v_row, larger)
                by_row = by_row / jnp.mean(by_row, axis=smaller, keepdims=True)
                step = grad * by_row**-0.5 * jnp.expand_dims(v_col, smaller) ** -0.5
            else:
                v = _average(v, squared, beta2)
                step = grad * v**-0.5
            if clipping_threshold is not None:
                excess = root_mean_square(step, dim.batch) / clipping_threshold
                step = step / jnp.maximum(1.0, excess)
            if multiply_by_parameter_scale:
                scale = root_mean_square(param, dim.batch)
                step = step * jnp.maximum(scale, min_parameter_scale)
            if beta1 is not None:
                step = _average(m.astype(jnp.float32), step, beta1)
                m = step.astype(m.dtype)
            return step, v_row, v_col, v, m

        trees = (params, dims, state.v_row, state.v_col, state.v, state.m)
        leaves = jax.tree.map(leaf, grads, *trees)
        step, *moments = jax.tree.transpose(
            jax.tree.structure(grads), jax.tree.structure((0,) * 5), leaves
        )
        return step, AdafactorState(optax.safe_increment(state.count), *moments)

    return optax.GradientTransformation(init, update)


def _average(old: jax.Array, new: jax.Array, decay: jax.Array | float) -> jax.Array:
    return decay * old + (1.0 - decay) * new


def _without(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return shape[:dim] + shape[dim + 1 :]
