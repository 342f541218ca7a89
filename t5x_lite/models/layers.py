"""Linen modules that declare parameters, with their logical axes, and call the mathematics.

Dimension letters: see functional/__init__.py.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.nn.initializers import Initializer

from t5x_lite.models.adapters import ADAPTERS
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.functional import attention as attn
from t5x_lite.models.functional.context import context_shards, over_context
from t5x_lite.models.functional.fusing import joined_init, split_heads, stacked_init
from t5x_lite.models.functional.mlp import gated
from t5x_lite.models.functional.norms import layer_norm, rms_norm
from t5x_lite.models.functional.positions import RelativePositions, rotary_frequencies, rotate
from t5x_lite.models.products import (
    TRANSPOSED,
    low_rank,
    prefers_transposed,
    product,
    transposed_product,
)
from t5x_lite.parallel.gather import with_explicit_fsdp
from t5x_lite.parallel.platform import one_device, platform
from t5x_lite.parallel.rules import constrain

Cache = dict[str, jax.Array]


def kernel_init(config: TransformerConfig, distribution: str, divisor: float = 1.0) -> Initializer:
    """T5's variance-scaled fan-in initialiser over ``divisor``, or GPT-2's normal(init_std)."""
    if config.init_std is not None:
        return nn.initializers.normal(config.init_std)
    return nn.initializers.variance_scaling(1.0 / divisor**2, "fan_in", distribution)


WEIGHTS = "attention_weights"  # the collection that they go to, if it is wanted
TOKENS = ("activation_batch", "activation_length", None)  # the axes of [B, T, features]


class Dense(nn.Module):
    """x [..., in] @ kernel [in, *features] (+ bias), computed in x's dtype."""

    features: int | tuple[int, ...]
    axes: tuple[str, ...]
    init: Initializer
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.with_logical_partitioning(self.init, self.axes)
        out = (self.features,) if isinstance(self.features, int) else self.features
        names = (*TOKENS[:2], *(None,) * len(out))
        if self.has_variable("params", TRANSPOSED):
            y = transposed_product(x, self.get_variable("params", TRANSPOSED))
            y = y.reshape(*x.shape[:-1], *out)
        else:
            kernel = self.param("kernel", init, (x.shape[-1], *out), jnp.float32)
            kernel = kernel.astype(x.dtype)
            y = with_explicit_fsdp(product, [x], [TOKENS], [kernel], [self.axes], names)
        if self.has_variable(ADAPTERS, "lora_a"):
            a, b = (self.get_variable(ADAPTERS, f"lora_{i}").astype(x.dtype) for i in "ab")
            axes = [(self.axes[0], None), (None, *self.axes[1:])]
            y += with_explicit_fsdp(low_rank, [x], [TOKENS], [a, b], axes, names)
        if self.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
            y += self.param("bias", zeros, out, jnp.float32).astype(x.dtype)
        return y


class Norm(nn.Module):
    """RMS norm or layer norm, by the configuration."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        from_one = self.config.norm_scale_from_one
        start = nn.initializers.zeros if from_one else nn.initializers.ones
        start = nn.with_logical_partitioning(start, ("norm",))
        scale = self.param("scale", start, x.shape[-1:], jnp.float32)
        dtype = x.dtype
        if from_one:  # and, as in Gemma, multiplied before the result is rounded
            x, scale = x.astype(jnp.float32), 1.0 + scale
        # Checkpointed: x is kept for the backward pass anyway, what is computed of it is cheap.
        if self.config.norm == "rms":
            y = jax.checkpoint(rms_norm, static_argnums=2)(x, scale, self.config.norm_epsilon)
            return y.astype(dtype)
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("norm",))
        bias = self.param("bias", zeros, x.shape[-1:], jnp.float32)
        return jax.checkpoint(layer_norm, static_argnums=3)(
            x, scale, bias, self.config.norm_epsilon
        ).astype(dtype)


class Embed(nn.Module):
    """A table [num, D], read by gather."""

    num: int
    features: int
    axes: tuple[str, str]
    std: float

    def setup(self):
        init = nn.with_logical_partitioning(nn.initializers.normal(self.std), self.axes)
        self.embedding = self.param("embedding", init, (self.num, self.features), jnp.float32)

    def __call__(self, ids: jax.Array, dtype: Any) -> jax.Array:
        def read(ids: jax.Array, table: jax.Array) -> jax.Array:
            # In float32 also where the table came in bfloat16: frequent ids sum many gradients.
            return jnp.take(table.astype(jnp.float32), ids, axis=0).astype(dtype)

        axes = [self.axes]
        return with_explicit_fsdp(read, [ids], [TOKENS[:2]], [self.embedding], axes, TOKENS, dtype)

    def logits(self, x: jax.Array) -> jax.Array:
        """x [B, T, D] -> float32 [B, T, num]: the table as the output layer."""
        table = self.embedding.astype(x.dtype)
        if prefers_transposed(x.shape[0] * x.shape[1]):
            return transposed_product(x, table, jnp.float32)
        product = functools.partial(jnp.einsum, "BTD,VD->BTV", preferred_element_type=jnp.float32)
        return with_explicit_fsdp(product, [x], [TOKENS], [table], [self.axes], TOKENS)


class LogitsDense(nn.Module):
    """The untied output layer: x [B, T, D] -> float32 logits [B, T, V]."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = kernel_init(self.config, "truncated_normal")
        init = nn.with_logical_partitioning(init, ("embed", "vocab"))
        if self.has_variable("params", TRANSPOSED):
            return transposed_product(x, self.get_variable("params", TRANSPOSED), jnp.float32)
        kernel = self.param("kernel", init, (x.shape[-1], self.config.vocab_size), jnp.float32)
        kernel = kernel.astype(x.dtype)
        product = functools.partial(jnp.einsum, "BTD,DV->BTV", preferred_element_type=jnp.float32)
        return with_explicit_fsdp(product, [x], [TOKENS], [kernel], [("embed", "vocab")], TOKENS)


class RelativeBias(nn.Module):
    """T5's bias, described by its table, one for all layers of a stack; keys begin at 0."""

    config: TransformerConfig
    bidirectional: bool

    @nn.compact
    def __call__(self, q_start: jax.Array | int) -> RelativePositions:
        c = self.config
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        init = nn.with_logical_partitioning(init, ("heads", "relpos_buckets"))
        shape = (c.num_heads, c.relative_buckets)
        table = self.param("rel_embedding", init, shape, jnp.float32)
        return RelativePositions(table, q_start, 0, self.bidirectional, c.relative_max_distance)


def implementation(
    config: TransformerConfig, mask: attn.Mask, bias: Any, q: jax.Array, keys: int
) -> str:
    """The form of attention that is best for queries like q [B, T, ...] here."""
    return attn.choose(
        config.attention,
        platform(),
        queries=q.shape[1],
        keys=keys,
        head_dim=config.head_dim,
        dtype=q.dtype,
        bias=bias is not None,
        prefix=mask.q_prefix is not None,
        window=mask.window is not None,
        soft_cap=config.attention_soft_cap is not None,
        one_device=one_device(),
        whole_rows=context_shards() == 1,
    )


class Attention(nn.Module):
    """Multi-head attention of x [B, T, D] to itself or to ``memory`` [B, S, D]."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array | None,
        *,
        mask: attn.Mask | jax.Array | None,
        bias: attn.Bias = None,
        positions: jax.Array | None = None,
        local: jax.Array | bool | None = False,
        cache: Cache | None = None,
        index: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, Cache | None]:
        """Returns the output [B, T, D] and the cache with the new keys and values.

        ``cache`` holds "key" and "value" [B, K, S, H]. With ``index`` (self-attention) the keys
        and values of x are written at it; without (cross-attention) the cache is complete, and
        may have fewer rows than x: then rows of x that follow each other share one.
        ``positions`` [B, T] are for rotary embeddings; ``local``: of a layer with a window, where
        that makes a difference to them.
        """
        c = self.config
        if cache is not None and index is None:
            [q] = self._project(x, "query")
            k, v = cache["key"], cache["value"]
            # Rows that share keys are as good as more queries of one row.
            q = q.reshape(k.shape[0], -1, *q.shape[2:])
        elif memory is None:
            q, k, v = self._project(x, "query", "key", "value")
        else:
            [q], (k, v) = self._project(x, "query"), self._project(memory, "key", "value")
        if c.positions == "rope" and positions is not None:
            frequencies = rotary_frequencies(c.head_dim // 2, c.rope_theta, c.rope_scaling)
            if c.local_rope_theta is not None:
                locally = rotary_frequencies(c.head_dim // 2, c.local_rope_theta)
                frequencies = jnp.where(local, locally, frequencies)
            q, k = rotate(q, positions, frequencies), rotate(k, positions, frequencies)
        if cache is not None and index is not None:
            start = (0, 0, index, 0)
            for name, new in (("key", k), ("value", v)):
                new = new.swapaxes(1, 2).astype(cache[name].dtype)
                cache = cache | {name: jax.lax.dynamic_update_slice(cache[name], new, start)}
            k, v = cache["key"], cache["value"]

        y = self._attend(q, k, v, mask, bias, cache is not None, train)
        y = y.reshape(*x.shape[:-1], c.num_heads * c.head_dim)
        bias = c.use_bias is True
        out = Dense(x.shape[-1], ("joined_kv", "embed"), kernel_init(c, "normal"), bias, name="out")
        return checkpoint_name(out(y), "out"), cache

    def _project(self, x: jax.Array, *names: str) -> list[jax.Array]:
        """The queries, keys or values of x [B, T, D], each [B, T, heads, H]."""
        c = self.config
        # T5 has no 1/sqrt(H) on the logits: the query's initialiser carries it.
        divisor = 1.0 if c.scale_attention else math.sqrt(c.head_dim)
        bias, axes = c.use_bias in (True, "qkv"), ("embed", "joined_kv")
        inits = [kernel_init(c, "normal", divisor if n == "query" else 1.0) for n in names]
        widths = [c.head_dim * (c.num_heads if n == "query" else c.kv_heads) for n in names]
        if c.fused_projections and len(names) > 1:
            init, name = joined_init(inits, c.kv_heads, widths), "qkv"[-len(names) :]
            joined = Dense(sum(widths), axes, init, bias, name=name)(x)
            found = split_heads(joined, c.kv_heads, widths)
        else:
            each = zip(names, widths, inits, strict=True)
            found = [Dense(width, axes, init, bias, name=n)(x) for n, width, init in each]

        def heads(name: str, y: jax.Array) -> jax.Array:
            y = checkpoint_name(y, name).reshape(*x.shape[:-1], -1, c.head_dim)
            y = Norm(c, name=f"{name}_norm")(y) if c.qk_norm and name != "value" else y
            return constrain(
                y, "activation_batch", "activation_length", "activation_heads", "activation_kv"
            )

        return [heads(name, y) for name, y in zip(names, found, strict=True)]

    def _attend(self, q, k, v, mask, bias, cached: bool, train: bool) -> jax.Array:
        """The best form of attention here, [B, T, N, H]; ``cached``: k, v are [B, K, S, H]."""
        c = self.config
        keys, described = k.shape[2 if cached else 1], isinstance(mask, attn.Mask)
        scale = 1 / math.sqrt(c.attention_scalar or c.head_dim) if c.scale_attention else 1.0
        name = implementation(c, mask, bias, q, keys) if described else "xla"
        if cached and name == "xla" and context_shards() == 1:
            return attn.cached_attention(q, k, v, mask, bias, scale, c.attention_soft_cap)
        if cached:
            k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        if self.is_mutable_collection(WEIGHTS):  # somebody wants to look at them
            weights = attn.softmax_weights(q, k, mask, bias, scale, c.attention_soft_cap)
            self.sow(WEIGHTS, "weights", weights)
        attend = functools.partial(
            attn.dot_product_attention,
            scale=scale,
            logits_soft_cap=c.attention_soft_cap,
            implementation=name,
        )
        keep_weights = self._keep_weights(q.shape[0], keys, train)
        if described:
            return over_context(attend, q, k, v, mask, bias, keep_weights)
        return attend(q, k, v, mask=mask, bias=bias, keep_weights=keep_weights)

    def _keep_weights(self, batch: int, keys: int, train: bool) -> jax.Array | None:
        """Dropout on attention weights, one draw for all queries of a row, as in T5X."""
        keep = 1.0 - self.config.dropout_rate
        if not train or keep == 1.0:
            return None
        shape = (batch, self.config.num_heads, 1, keys)
        return jax.random.bernoulli(self.make_rng("dropout"), keep, shape) / keep


class Mlp(nn.Module):
    """x [B, T, D] -> [B, T, D]; gated when the configuration names two activations."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        c = self.config
        init, bias = kernel_init(c, "truncated_normal"), c.use_bias in (True, "mlp")
        count = len(c.mlp_activations)
        if c.fused_projections and count > 1:
            axes = ("embed", "gates", "mlp")
            joined = Dense((count, c.mlp_dim), axes, stacked_init(init), bias, name="wi_fused")(x)
            hidden = [joined[..., i, :] for i in range(count)]
        else:
            names = [f"wi_{i}" for i in range(count)] if count > 1 else ["wi"]
            hidden = [Dense(c.mlp_dim, ("embed", "mlp"), init, bias, name=n)(x) for n in names]
        names = ("activation_batch", "activation_length", "activation_mlp")
        hidden = [constrain(checkpoint_name(h, "wi"), *names) for h in hidden]
        # Checkpointed: the projections are kept for the backward pass, their activations are not.
        y = jax.checkpoint(gated, static_argnums=1)(hidden, c.mlp_activations)
        y = dropout(c, train)(y)
        return Dense(x.shape[-1], ("mlp", "embed"), init, bias, name="wo")(y)


def dropout(config: TransformerConfig, train: bool, whole_sequence: bool = True) -> nn.Dropout:
    """T5's dropout on [B, T, D]: one mask for all positions of a sequence, or one for each."""
    dims = (-2,) if whole_sequence else ()
    return nn.Dropout(config.dropout_rate, broadcast_dims=dims, deterministic=not train)
