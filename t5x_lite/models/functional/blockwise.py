"""Blockwise attention: scores, bias and mask are never materialized as a whole.

The softmax is computed online over blocks of keys, and the backward pass recomputes the scores
(https://arxiv.org/abs/2112.05682, https://arxiv.org/abs/2205.14135). Letters as everywhere; Q
queries and C keys make a block, and within this file heads come before positions:
q [B, K, G, T, H], k and v [B, K, S, H].
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from t5x_lite.models.functional.masks import MASKED, SAVED, Mask
from t5x_lite.models.functional.positions import RelativePositions
from t5x_lite.parallel.platform import one_device, platform

BLOCK = 512


class Options(NamedTuple):
    scale: float
    cap: float | None
    q_block: int
    k_block: int
    by_row: bool  # row by row of the batch


def blockwise_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Mask | None,
    bias: RelativePositions | None,
    *,
    scale: float = 1.0,
    logits_soft_cap: float | None = None,
    block: int = BLOCK,
    by_row: bool | None = None,
) -> jax.Array:
    """See `dot_product_attention`; mask and bias are described or None.

    ``by_row`` computes the batch row by row: the default on one CPU device, where a row's scores
    fit in the processor's cache.
    """
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    if by_row is None:
        by_row = platform() == "cpu" and one_device()
    q_block, k_block = min(T, block), min(S, block)
    more_queries, more_keys = -T % q_block, -S % k_block
    mask = Mask() if mask is None else mask
    if more_keys and mask.k_segments is None:
        mask = mask.replace(k_segments=jnp.ones((B, S), jnp.int32))
    mask = mask.pad(more_queries, more_keys)
    q = jnp.pad(q, [(0, 0), (0, more_queries), (0, 0), (0, 0)])
    k, v = (jnp.pad(x, [(0, 0), (0, more_keys), (0, 0), (0, 0)]) for x in (k, v))

    q = q.reshape(B, -1, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    options = Options(scale, logits_soft_cap, q_block, k_block, by_row and B > 1)
    table, where = (None, None) if bias is None else (bias.table, bias.replace(table=None))
    out = _attention(q, k, v, table, (where, mask), options)
    return out.transpose(0, 3, 1, 2, 4)[:, :T].reshape(B, T, N, H)


# ------------------------------------------------------------------- the whole, row by row or not


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(q, k, v, table, fixed, options):
    return _attention_fwd(q, k, v, table, fixed, options)[0]


def _attention_fwd(q, k, v, table, fixed, options):
    if options.by_row:
        fixed_at = _by_row(q, k, table, fixed, options)

        def row(b):
            return _drop(_forward(_row((q, k, v), b), table, fixed_at(b), options))

        out, top, total = jax.lax.map(row, jnp.arange(q.shape[0]))
    else:
        out, top, total = _forward((q, k, v), table, fixed, options)
    # If remat keeps these by name, the backward pass doesn't repeat the forward pass.
    out, top, total = (checkpoint_name(x, SAVED) for x in (out, top, total))
    return out, (q, k, v, table, fixed, out, top, total)


def _attention_bwd(options, residuals, dout):
    q, k, v, table, fixed, out, top, total = residuals
    # sum(weights * their gradients) of a query equals sum(output * its gradient).
    dot = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    arrays = (q, k, v, dout, dot, top, total)
    if options.by_row:
        fixed_at = _by_row(q, k, table, fixed, options)

        def backward(b):
            return _backward(_row(arrays, b), table, fixed_at(b), options)

        def row(dbias, b):
            *grads, more = backward(b)
            return jax.tree.map(jnp.add, dbias, more), _drop(grads)

        nothing = _zeros(jax.eval_shape(backward, 0)[-1])
        dbias, (dq, dk, dv) = jax.lax.scan(row, nothing, jnp.arange(q.shape[0]))
    else:
        dq, dk, dv, dbias = _backward(arrays, table, fixed, options)
    if table is not None and _one_block(q, k, options):
        dbias = _table_gradient(table, fixed[0], dbias)
    return dq, dk, dv, dbias, None


_attention.defvjp(_attention_fwd, _attention_bwd)


def _one_block(q, k, options: Options) -> bool:
    return q.shape[3] == options.q_block and k.shape[2] == options.k_block


def _by_row(q, k, table, fixed, options: Options):
    """Returns a function of b that gives ``fixed`` for the b-th row.

    If a row is one block, bias [N, T, S] and mask [B or 1, 1, T, S] are materialized before the
    loop: inside it XLA would compute an index and compare a mask for each score.
    """
    where, mask = fixed
    if not _one_block(q, k, options):
        return lambda b: (where, mask.row(b))
    T, S = q.shape[3], k.shape[2]
    bias = None if table is None else where.replace(table=table).bias(T, S)
    bias, seen = jax.lax.optimization_barrier((bias, mask.materialize(T, S)))
    if seen is None or len(seen) == 1:
        return lambda b: (bias, seen)
    return lambda b: (bias, jax.lax.dynamic_slice_in_dim(seen, b, 1, axis=0))


def _row(arrays, b):
    return tuple(jax.lax.dynamic_slice_in_dim(x, b, 1, axis=0) for x in arrays)


def _drop(arrays):
    return tuple(x[0] for x in arrays)


def _zeros(shapes):
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def _cut(x, i, size, axis):
    return jax.lax.dynamic_slice_in_dim(x, i * size, size, axis=axis)


def _add(x, i, part, axis):
    """Adds ``part`` to the i-th block of ``axis`` of x."""
    size = part.shape[axis]
    return jax.lax.dynamic_update_slice_in_dim(x, _cut(x, i, size, axis) + part, i * size, axis)


# ------------------------------------------------------------------- forward


def _forward(arrays, table, fixed, options):
    """Returns the output [B, K, G, T, H], and each query's largest logit and sum of exponentials,
    float32 [B, K, G, T]."""
    q, k, v = arrays
    if _one_block(q, k, options):
        scores, _, _ = _scores(q, k, table, fixed, 0, 0, options)
        top = jnp.max(scores, axis=-1)
        weights = jnp.exp(scores - top[..., None])
        total = jnp.sum(weights, axis=-1)
        out = _weigh(weights, v) / total[..., None]
        return out.astype(q.dtype), top, total

    def queries(i):
        q_i = _cut(q, i, options.q_block, 3)

        def keys(j, carry):
            top, total, out = carry
            k_j, v_j = (_cut(x, j, options.k_block, 2) for x in (k, v))
            scores, _, _ = _scores(q_i, k_j, table, fixed, i, j, options)
            new_top = jnp.maximum(top, jnp.max(scores, axis=-1))
            weights = jnp.exp(scores - new_top[..., None])
            shrink = jnp.exp(top - new_top)
            total = total * shrink + jnp.sum(weights, axis=-1)
            return new_top, total, out * shrink[..., None] + _weigh(weights, v_j)

        top = jnp.full(q_i.shape[:-1], -jnp.inf)
        carry = (top, jnp.zeros_like(top), jnp.zeros(q_i.shape, jnp.float32))
        top, total, out = jax.lax.fori_loop(*_range(fixed[1], i, k, options), keys, carry)
        return (out / total[..., None]).astype(q.dtype), top, total

    blocks = jax.lax.map(queries, jnp.arange(q.shape[3] // options.q_block))

    def join(x):  # [blocks, B, K, G, Q, ...] -> [B, K, G, T, ...]
        x = jnp.moveaxis(x, 0, 3)
        return x.reshape(*x.shape[:3], -1, *x.shape[5:])

    return tuple(join(x) for x in blocks)


def _range(mask: Mask, i, k, options: Options):
    """The range [first, last) of key blocks that the i-th query block may attend to."""
    first, last = 0, k.shape[2] // options.k_block
    start = mask.q_start + i * options.q_block
    if mask.causal and mask.q_prefix is None:
        last = jnp.clip((start + options.q_block - 1) // options.k_block + 1, 1, last)
        if mask.window is not None:
            first = jnp.clip((start - mask.window + 1) // options.k_block, 0, last - 1)
    return first, last


def _scores(q, k, table, fixed, i, j, options: Options):
    """Logits float32 [B, K, G, Q, C] of one block, which of them count (None: all), and
    the derivative of the soft cap (None: 1)."""
    where, mask = fixed
    (B, K, G, Q, H), C = q.shape, k.shape[2]
    scores = _dot(q.reshape(B, K, G * Q, H), k, 3, 3).reshape(B, K, G, Q, C)
    scores = scores * options.scale if options.scale != 1.0 else scores
    slope = None
    if options.cap is not None:
        bent = jnp.tanh(scores / options.cap)
        scores, slope = options.cap * bent, 1.0 - jnp.square(bent)
    if table is not None:
        bias = where
        if isinstance(where, RelativePositions):
            at = where.replace(table=table).at(i * options.q_block, j * options.k_block)
            bias = at.bias(Q, C)
        scores += bias.astype(jnp.float32).reshape(K, G, Q, C)
    seen = mask
    if isinstance(mask, Mask):
        seen = mask.at(i * options.q_block, Q, j * options.k_block, C).materialize(Q, C)
    if seen is not None:
        seen = seen[:, :, None]
        scores = jnp.where(seen, scores, MASKED)
    return scores, seen, slope


def _weigh(weights, v):
    """weights [B, K, G, Q, C], v [B, K, C, H] -> float32 [B, K, G, Q, H]."""
    B, K, G, Q, C = weights.shape
    return _dot(weights.astype(v.dtype).reshape(B, K, G * Q, C), v, 3, 2).reshape(B, K, G, Q, -1)


def _dot(x, y, x_axis, y_axis):
    """Product over one axis of each, with the first two axes in common; float32."""
    dims = (((x_axis,), (y_axis,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(x, y, dims, preferred_element_type=jnp.float32)


# ------------------------------------------------------------------- backward


def _backward(arrays, table, fixed, options):
    """Gradients of q, k and v; and of the bias, float32: [N, T, S] if that is one block, of the
    table if not, None without one."""
    q, k, v, dout, dot, top, total = arrays
    if _one_block(q, k, options):
        dq, dk, dv, dbias = _block_gradients(*arrays, table, fixed, 0, 0, options)
        return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), dbias

    def queries(i, grads):
        of_queries = [_cut(x, i, options.q_block, 3) for x in (q, dout, dot, top, total)]
        q_i, *rest = of_queries

        def keys(j, carry):
            dq_i, dk, dv, dtable = carry
            k_j, v_j = (_cut(x, j, options.k_block, 2) for x in (k, v))
            more = _block_gradients(q_i, k_j, v_j, *rest, table, fixed, i, j, options)
            dq_i, dk, dv = dq_i + more[0], _add(dk, j, more[1], 2), _add(dv, j, more[2], 2)
            if table is not None:
                at = fixed[0].at(i * options.q_block, j * options.k_block)
                dtable += _table_gradient(table, at, more[3])
            return dq_i, dk, dv, dtable

        dq, *others = grads
        dq_i = jnp.zeros(q_i.shape, jnp.float32)
        bounds = _range(fixed[1], i, k, options)
        dq_i, *others = jax.lax.fori_loop(*bounds, keys, (dq_i, *others))
        return _add(dq, i, dq_i, 3), *others

    nothing = [jnp.zeros(x.shape, jnp.float32) for x in (q, k, v)]
    nothing.append(None if table is None else jnp.zeros(table.shape, jnp.float32))
    blocks = q.shape[3] // options.q_block
    dq, dk, dv, dtable = jax.lax.fori_loop(0, blocks, queries, tuple(nothing))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), dtable


def _block_gradients(q, k, v, dout, dot, top, total, table, fixed, i, j, options: Options):
    """One block's contribution to the gradients of q, k, v and bias [N, Q, C]; float32."""
    B, K, G, Q, H = q.shape
    scores, seen, slope = _scores(q, k, table, fixed, i, j, options)
    weights = jnp.exp(scores - top[..., None]) / total[..., None]
    dout = dout.reshape(B, K, G * Q, H)
    dv = _over_queries(weights.astype(v.dtype).reshape(B, K, G * Q, -1), dout, options)
    dweights = _dot(dout, v, 3, 3).reshape(weights.shape)
    dscores = weights * (dweights - dot[..., None])
    if seen is not None:  # a query without any key still has (uniform) weights
        dscores *= (top > MASKED)[..., None]
    dbias = None
    if table is not None:
        dbias = jnp.sum(dscores, axis=0).reshape(K * G, Q, -1)
    if slope is not None:
        dscores *= slope
    dscores = dscores * options.scale if options.scale != 1.0 else dscores
    dscores = dscores.astype(q.dtype).reshape(B, K, G * Q, -1)
    dq = _dot(dscores, k, 3, 2).reshape(q.shape)
    dk = _over_queries(dscores, q.reshape(B, K, G * Q, H), options)
    return dq, dk, dv, dbias


def _over_queries(x, y, options: Options):
    """x [B, K, Q, C], y [B, K, Q, H] -> float32 [B, K, C, H], the sum over Q."""
    if not options.by_row:
        return _dot(x, y, 2, 2)
    # On CPUs the transposed product takes half the time; the barrier keeps XLA from undoing it.
    return jax.lax.optimization_barrier(_dot(y, x, 2, 2)).swapaxes(2, 3)


def _table_gradient(table, where: RelativePositions, dbias: jax.Array) -> jax.Array:
    """The table's gradient from that of its bias [N, Q, C]."""
    bias = lambda table: where.replace(table=table).bias(*dbias.shape[1:])  # noqa: E731
    return jax.vjp(bias, table)[1](dbias.astype(table.dtype))[0]
