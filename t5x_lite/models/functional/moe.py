"""Mixture of experts: routing, and the experts' products, with capacity or dropless.

Letters: B rows, T positions, D embed, E experts, k experts per token, C capacity, F mlp, n tokens.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Kernels = Sequence[jax.Array]  # [E, D, F] of each activation, then [E, F, D]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Routing:
    """Each token's experts, best first, and two losses over all tokens that aren't padding.

    experts: int32 [B, T, k]; E (no expert) for padding.
    weights: float32 [B, T, k]; 0 for padding.
    load_balance: E times the sum over experts of (share of choices) * (mean probability): 1 where
      all are used alike, E where one has everything (GShard, https://arxiv.org/abs/2006.16668;
      Switch, https://arxiv.org/abs/2101.03961; with k > 1 all choices count, k-th part each).
    z_loss: mean of logsumexp(router logits)^2 (ST-MoE, https://arxiv.org/abs/2202.08906).
    """

    experts: jax.Array
    weights: jax.Array
    load_balance: jax.Array
    z_loss: jax.Array


def route(x: jax.Array, kernel: jax.Array, valid: jax.Array, k: int, *, normalize: bool) -> Routing:
    """Chooses the ``k`` likeliest experts of each token of x [B, T, D] by kernel [D, E].

    ``valid`` bool [B, T] is False for padding, which is sent to no expert and enters no loss.
    Everything is float32. With ``normalize`` the chosen experts' weights sum to 1 (Mixtral).
    """
    E = kernel.shape[1]
    logits = jnp.einsum(
        "BTD,DE->BTE", x.astype(jnp.float32), kernel.astype(jnp.float32), precision="highest"
    )
    probabilities = jax.nn.softmax(logits, axis=-1)
    weights, experts = jax.lax.top_k(probabilities, k)
    if normalize:
        weights /= jnp.sum(weights, axis=-1, keepdims=True)

    tokens = jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1.0)
    chosen = jax.nn.one_hot(experts, E, dtype=jnp.float32) * valid[..., None, None]
    share = jnp.sum(chosen, axis=(0, 1, 2)) / (k * tokens)
    mean = jnp.sum(probabilities * valid[..., None], axis=(0, 1)) / tokens
    squares = jnp.square(jax.nn.logsumexp(logits, axis=-1))
    return Routing(
        experts=jnp.where(valid[..., None], experts, E),
        weights=weights * valid[..., None],
        load_balance=E * jnp.sum(share * mean),
        z_loss=jnp.sum(squares * valid) / tokens,
    )


def capacity(length: int, num_experts: int, k: int, factor: float) -> int:
    """Capacity of each expert for the tokens of one row: an even share times ``factor``."""
    return min(length, max(1, math.ceil(factor * k * length / num_experts)))


def assign_slots(experts: jax.Array, num_experts: int, places: int) -> jax.Array:
    """experts int32 [T, k] of one row -> each choice's slot, int32 [T, k], in [0, E * places].

    Slots are assigned to all first choices in row order, then to all second choices, ...; choices
    over the capacity, and padding, get slot E * places, which means none.
    """
    T, k = experts.shape
    queue = experts.T.reshape(-1)
    one_hot = jax.nn.one_hot(queue, num_experts, dtype=jnp.int32)
    before = jnp.sum((jnp.cumsum(one_hot, axis=0) - one_hot) * one_hot, axis=-1)
    has_place = (before < places) & (queue < num_experts)
    slots = jnp.where(has_place, queue * places + before, num_experts * places)
    return slots.reshape(k, T).T


def dispatch(x: jax.Array, slots: jax.Array, size: int) -> jax.Array:
    """Puts one row's tokens [T, D] into their slots [T, k]: [size, D], zeros in empty slots."""
    T, k = slots.shape
    source = jnp.full((size,), T, jnp.int32)
    tokens = jnp.repeat(jnp.arange(T, dtype=jnp.int32), k)
    source = source.at[slots.reshape(-1)].set(tokens, mode="drop")
    return jnp.take(x, source, axis=0, mode="fill", fill_value=0)


def combine(y: jax.Array, slots: jax.Array, weights: jax.Array) -> jax.Array:
    """Puts one row's outputs [size, D] back to their tokens: [T, D], weighted by weights [T, k]."""
    at_token = jnp.take(y, slots, axis=0, mode="fill", fill_value=0)  # [T, k, D]
    return weighted_sum(at_token, weights)


def weighted_sum(y: jax.Array, weights: jax.Array) -> jax.Array:
    """y [..., k, D], weights [..., k] -> [..., D] in y's dtype, summed in float32."""
    return jnp.sum(y.astype(jnp.float32) * weights[..., None], axis=-2).astype(y.dtype)


def dropless(
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    kernels: Kernels,
    activate: Callable[[list[jax.Array]], jax.Array],
    first: Any = 0,
) -> jax.Array:
    """The experts' weighted outputs [n, D] for tokens x [n, D], every choice served.

    The n * k choices are sorted by expert, and each expert multiplies its range of rows
    (`jax.lax.ragged_dot`, a grouped kernel on TPU and GPU and a masked product on CPU).

    Args:
      experts: int32 [n, k]; choices of experts other than these give 0.
      weights: float32 [n, k].
      kernels: of the experts ``first``, ``first`` + 1, ...
      activate: hidden arrays [rows, F] -> [rows, F].
    """
    n, k = experts.shape
    at_hand = kernels[0].shape[0]
    local = experts.reshape(-1) - first
    local = jnp.where((local >= 0) & (local < at_hand), local, at_hand)
    order = jnp.argsort(local, stable=True)
    sizes = jnp.bincount(local, length=at_hand + 1)[:at_hand].astype(jnp.int32)
    # Rows behind the last group belong to no expert: mask whatever a kernel leaves there.
    served = (jnp.arange(n * k) < jnp.sum(sizes))[:, None]
    rows = jnp.where(served, jnp.take(x, order // k, axis=0), 0)
    *inner, outer = kernels
    hidden = activate([jax.lax.ragged_dot(rows, kernel, sizes) for kernel in inner])
    y = jnp.where(served, jax.lax.ragged_dot(hidden, outer, sizes), 0)
    return weighted_sum(y[jnp.argsort(order)].reshape(n, k, -1), weights)


def every_expert(
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    kernels: Kernels,
    activate: Callable[[list[jax.Array]], jax.Array],
) -> jax.Array:
    """The reference of `dropless`: every expert computes every token."""
    *inner, outer = kernels
    hidden = activate([jnp.einsum("nD,EDF->EnF", x, kernel) for kernel in inner])
    y = jnp.einsum("EnF,EFD->EnD", hidden, outer)
    one_hot = jax.nn.one_hot(experts, outer.shape[0], dtype=jnp.float32)
    share = jnp.einsum("nkE,nk->nE", one_hot, weights)
    return jnp.einsum("EnD,nE->nD", y.astype(jnp.float32), share).astype(x.dtype)
