"""Linen modules that declare parameters, with their logical axes, and call the mathematics.

Dimension letters: see functional/__init__.py.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.functional import attention as attn
from t5x_lite.models.functional.mlp import gated
from t5x_lite.models.functional.norms import layer_norm, rms_norm
from t5x_lite.models.functional.positions import relative_bias, rotary
from t5x_lite.parallel.rules import constrain

Cache = dict[str, jax.Array]


def kernel_init(config: TransformerConfig, distribution: str, divisor: float = 1.0) -> Initializer:
    """T5's variance-scaled fan-in initialiser over ``divisor``, or GPT-2's normal(init_std)."""
    if config.init_std is not None:
        return nn.initializers.normal(config.init_std)
    return nn.initializers.variance_scaling(1.0 / divisor**2, "fan_in", distribution)


class Dense(nn.Module):
    """x [..., in] @ kernel [in, out] (+ bias), computed in x's dtype."""

    features: int
    axes: tuple[str, str]
    init: Initializer
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.with_logical_partitioning(self.init, self.axes)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        y = x @ kernel.astype(x.dtype)
        if self.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
            y += self.param("bias", zeros, (self.features,), jnp.float32).astype(x.dtype)
        return y


class Norm(nn.Module):
    """RMS norm or layer norm, by the configuration."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ones = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        scale = self.param("scale", ones, x.shape[-1:], jnp.float32)
        if self.config.norm == "rms":
            return rms_norm(x, scale, self.config.norm_epsilon)
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("norm",))
        bias = self.param("bias", zeros, x.shape[-1:], jnp.float32)
        return layer_norm(x, scale, bias, self.config.norm_epsilon)


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
        return jnp.take(self.embedding, ids, axis=0).astype(dtype)

    def logits(self, x: jax.Array) -> jax.Array:
        """x [B, T, D] -> float32 [B, T, num]: the table as the output layer."""
        table = self.embedding.astype(x.dtype)
        return jnp.einsum("BTD,VD->BTV", x, table, preferred_element_type=jnp.float32)


class LogitsDense(nn.Module):
    """The untied output layer: x [B, T, D] -> float32 logits [B, T, V]."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = kernel_init(self.config, "truncated_normal")
        init = nn.with_logical_partitioning(init, ("embed", "vocab"))
        kernel = self.param("kernel", init, (x.shape[-1], self.config.vocab_size), jnp.float32)
        kernel = kernel.astype(x.dtype)
        return jnp.einsum("BTD,DV->BTV", x, kernel, preferred_element_type=jnp.float32)


class RelativeBias(nn.Module):
    """T5's bias table, one for all layers of a stack: [1, N, T, S] from positions [T], [S]."""

    config: TransformerConfig
    bidirectional: bool

    @nn.compact
    def __call__(self, q_positions: jax.Array, k_positions: jax.Array) -> jax.Array:
        c = self.config
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        init = nn.with_logical_partitioning(init, ("heads", "relpos_buckets"))
        shape = (c.num_heads, c.relative_buckets)
        table = self.param("rel_embedding", init, shape, jnp.float32)
        return relative_bias(
            table,
            q_positions,
            k_positions,
            bidirectional=self.bidirectional,
            max_distance=c.relative_max_distance,
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
        mask: jax.Array | None,
        bias: jax.Array | None = None,
        positions: jax.Array | None = None,
        cache: Cache | None = None,
        index: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, Cache | None]:
        """Returns the output [B, T, D] and the cache with the new keys and values.

        ``cache`` holds "key" and "value" [B, S, K, H]. With ``index`` (self-attention) the keys
        and values of x are written at it; without (cross-attention) the cache is complete.
        ``positions`` [B, T] are for rotary embeddings.
        """
        c = self.config

        def project(name: str, source: jax.Array, heads: int, divisor: float = 1.0) -> jax.Array:
            init = kernel_init(c, "normal", divisor)
            dense = Dense(heads * c.head_dim, ("embed", "joined_kv"), init, c.use_bias, name=name)
            y = dense(source).reshape(*source.shape[:-1], heads, c.head_dim)
            y = Norm(c, name=f"{name}_norm")(y) if c.qk_norm and name != "value" else y
            return constrain(
                y, "activation_batch", "activation_length", "activation_heads", "activation_kv"
            )

        # T5 has no 1/sqrt(H) on the logits: the query's initialiser carries it.
        divisor = 1.0 if c.scale_attention else math.sqrt(c.head_dim)
        q = project("query", x, c.num_heads, divisor)
        if cache is not None and index is None:
            k, v = cache["key"], cache["value"]
        else:
            source = x if memory is None else memory
            k = project("key", source, c.kv_heads)
            v = project("value", source, c.kv_heads)
        if c.positions == "rope" and positions is not None:
            q, k = rotary(q, positions, c.rope_theta), rotary(k, positions, c.rope_theta)
        if cache is not None and index is not None:
            start = (0, index, 0, 0)
            k = jax.lax.dynamic_update_slice(cache["key"], k.astype(cache["key"].dtype), start)
            v = jax.lax.dynamic_update_slice(cache["value"], v.astype(cache["value"].dtype), start)
            cache = {"key": k, "value": v}

        y = attn.dot_product_attention(
            q,
            k,
            v,
            mask=mask,
            bias=bias,
            scale=1 / math.sqrt(c.head_dim) if c.scale_attention else 1.0,
            logits_soft_cap=c.attention_soft_cap,
            keep_weights=self._keep_weights(x.shape[0], k.shape[1], train),
        )
        y = y.reshape(*x.shape[:-1], c.num_heads * c.head_dim)
        out = Dense(
            x.shape[-1], ("joined_kv", "embed"), kernel_init(c, "normal"), c.use_bias, name="out"
        )
        return out(y), cache

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
        init = kernel_init(c, "truncated_normal")
        names = (
            [f"wi_{i}" for i in range(len(c.mlp_activations))] if c.mlp_activations[1:] else ["wi"]
        )
        hidden = [
            constrain(
                Dense(c.mlp_dim, ("embed", "mlp"), init, c.use_bias, name=name)(x),
                "activation_batch",
                "activation_length",
                "activation_mlp",
            )
            for name in names
        ]
        y = dropout(c, train)(gated(hidden, c.mlp_activations))
        return Dense(x.shape[-1], ("mlp", "embed"), init, c.use_bias, name="wo")(y)


def dropout(config: TransformerConfig, train: bool, whole_sequence: bool = True) -> nn.Dropout:
    """T5's dropout on [B, T, D]: one mask for all positions of a sequence, or one for each."""
    dims = (-2,) if whole_sequence else ()
    return nn.Dropout(config.dropout_rate, broadcast_dims=dims, deterministic=not train)
