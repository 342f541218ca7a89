"""The mixture of experts that takes the place of a block's MLP: its parameters, and their places.

Tokens go to their experts by one of two ways. Capacity-bound: each row gives each expert a fixed
number of places, and the rows travel to the devices that hold the experts (XLA makes all-to-alls
of it). Dropless: each device sorts the tokens it has by expert; with a mesh axis ``expert`` it
collects its neighbours' tokens first, and their sums are scattered back.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.functional import moe
from t5x_lite.models.functional.mlp import gated
from t5x_lite.parallel.gather import gather, with_explicit_fsdp
from t5x_lite.parallel.rules import active, constrain, divides, partition_spec, splits

ROWS = ("activation_batch", "activation_length", None)  # [B, T, D], and the routing's [B, T, k]
SLOTS = ("activation_expert_batch", "activation_experts", None, None)  # [B, E, C, D or F]
INNER, OUTER = ("experts", "embed", "mlp"), ("experts", "mlp", "embed")
AUX = "losses"  # the collection of what the layers report


class Experts(nn.Module):
    """One kernel [E, in, out] for all experts."""

    config: TransformerConfig
    shape: tuple[int, int]
    axes: tuple[str, str, str]

    @nn.compact
    def __call__(self) -> jax.Array:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", batch_axis=0)
        if self.config.init_std is not None:
            init = nn.initializers.normal(self.config.init_std)
        init = nn.with_logical_partitioning(init, self.axes)
        return self.param("kernel", init, (self.config.num_experts, *self.shape), jnp.float32)


class Router(nn.Module):
    """The kernel [D, E] of the router, whole on every device but for ``embed``."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, width: int) -> jax.Array:
        init = nn.initializers.normal(self.config.init_std or 0.02)
        init = nn.with_logical_partitioning(init, ("embed", "router_experts"))
        return self.param("kernel", init, (width, self.config.num_experts), jnp.float32)


class MoE(nn.Module):
    """x [B, T, D], valid bool [B, T] (False: padding) -> [B, T, D]; padding's outputs are 0.

    Reports, in the collection AUX: load_balance_loss, router_z_loss, and dropped_choices, the
    share of the choices that found no place.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        c = self.config
        names = (
            [f"wi_{i}" for i in range(len(c.mlp_activations))] if c.mlp_activations[1:] else ["wi"]
        )
        D = x.shape[-1]
        kernels = [Experts(c, (D, c.mlp_dim), INNER, name=name)() for name in names]
        kernels = [*kernels, Experts(c, (c.mlp_dim, D), OUTER, name="wo")()]
        kernels = [kernel.astype(x.dtype) for kernel in kernels]
        valid = jnp.broadcast_to(valid, x.shape[:2])
        router = Router(c, name="router")(D)
        k = c.experts_per_token
        # One expert's weight, normalised, would be 1: the router could learn nothing from it.
        normalize = c.normalize_expert_weights and k > 1
        choose = functools.partial(moe.route, k=k, normalize=normalize)
        routing = choose(x, router, valid)
        self.sow(AUX, "load_balance_loss", routing.load_balance)
        self.sow(AUX, "router_z_loss", routing.z_loss)
        activate = functools.partial(gated, activations=c.mlp_activations)
        if c.capacity_factor is None:
            self.sow(AUX, "dropped_choices", jnp.float32(0.0))
            return dropless(x, routing, kernels, activate)
        y, dropped = capacity_bound(x, routing, kernels, activate, c.capacity_factor)
        self.sow(AUX, "dropped_choices", dropped)
        return y


def capacity_bound(x, routing, kernels, activate, factor: float) -> tuple[jax.Array, jax.Array]:
    """([B, T, D], the share of choices without a place); see `moe.assign_slots`."""
    B, T, D = x.shape
    E, k = kernels[0].shape[0], routing.experts.shape[-1]
    places = moe.capacity(T, E, k, factor)
    size = E * places
    slots = jax.vmap(lambda row: moe.assign_slots(row, E, places))(routing.experts)
    sent = jax.vmap(lambda row, at: moe.dispatch(row, at, size))(x, slots)
    sent = constrain(sent.reshape(B, E, places, D), *SLOTS)

    def inner(sent, *kernels):
        return activate([jnp.einsum("BECD,EDF->BECF", sent, kernel) for kernel in kernels])

    def outer(hidden, kernel):
        return jnp.einsum("BECF,EFD->BECD", hidden, kernel)

    first = kernels[:-1]
    hidden = with_explicit_fsdp(inner, [sent], [SLOTS], first, [INNER] * len(first), SLOTS)
    hidden = constrain(hidden, *SLOTS[:3], "activation_mlp")
    y = with_explicit_fsdp(outer, [hidden], [SLOTS], kernels[-1:], [OUTER], SLOTS)
    # Back to the devices of their rows, all experts' outputs together.
    y = constrain(constrain(y, *SLOTS).reshape(B, size, D), "activation_batch", None, None)
    y = jax.vmap(moe.combine)(y, slots, routing.weights)
    chosen = routing.experts < E
    dropped = jnp.sum(chosen & (slots == size)) / jnp.maximum(jnp.sum(chosen), 1)
    return constrain(y, *ROWS), dropped.astype(jnp.float32)


def dropless(x, routing, kernels, activate) -> jax.Array:
    """[B, T, D]: `moe.dropless` on each device's tokens, and its share of the experts."""
    found = active()

    def flat(x, experts, weights, kernels, first=0):
        k = experts.shape[-1]
        tokens, choices = x.reshape(-1, x.shape[-1]), experts.reshape(-1, k)
        y = moe.dropless(tokens, choices, weights.reshape(-1, k), kernels, activate, first)
        return y.reshape(x.shape)

    if found is None or found[0].size == 1:
        return flat(x, routing.experts, routing.weights, kernels)
    mesh, rules = found
    rows = partition_spec(ROWS, rules, mesh)
    if not divides(mesh, x.shape, rows):  # initialisation, a few rows to decode
        return flat(x, routing.experts, routing.weights, kernels)
    specs = [partition_spec(INNER, rules, mesh)] * (len(kernels) - 1)
    specs += [partition_spec(OUTER, rules, mesh)]
    batch, length, _ = splits(rows)
    holders, _, parts = splits(specs[0])  # the mesh axes of experts, and of mlp
    collected = tuple(axis for axis in holders if axis in batch)
    gathered = [a for a in mesh.axis_names if a not in holders and a not in parts]
    summed = tuple(a for a in (*holders, *parts) if a not in collected)
    assert not set(parts) & {*batch, *length}, "mlp can't lie on the axes of the tokens"

    def local(x, experts, weights, *kernels):
        kernels = [gather(k, spec, gathered) for k, spec in zip(kernels, specs, strict=True)]
        first = jnp.int32(0)
        for axis in holders:
            first = first * mesh.shape[axis] + jax.lax.axis_index(axis)
        first *= kernels[0].shape[0]
        if collected:
            x, experts, weights = (
                jax.lax.all_gather(a, collected, axis=0, tiled=True) for a in (x, experts, weights)
            )
        y = flat(x, experts, weights, kernels, first)
        if collected:
            y = jax.lax.psum_scatter(y, collected, scatter_dimension=0, tiled=True)
        return jax.lax.psum(y, summed) if summed else y

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(rows, PartitionSpec(*rows[:2]), PartitionSpec(*rows[:2]), *specs),
        out_specs=rows,
        check_vma=False,
    )(x, routing.experts, routing.weights, *kernels)


def auxiliary(config: TransformerConfig, collection: dict) -> dict[str, jax.Array]:
    """The layers' reports as means over the layers, and "loss", what the model asks to be added.

    ``loss`` counts as a loss per target token.
    """
    leaves: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(collection):
        name = [str(key.key) for key in path if hasattr(key, "key")][-1]
        leaves.setdefault(name, []).append(jnp.ravel(leaf))
    aux = {name: jnp.mean(jnp.concatenate(values)) for name, values in leaves.items()}
    balance = config.load_balance_loss * aux["load_balance_loss"]
    return aux | {"loss": balance + config.router_z_loss * aux["router_z_loss"]}
