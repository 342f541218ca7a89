"""Blocks, and the stack of them: scanned or unrolled, rematerialised or not."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.layers import (
    Attention,
    Embed,
    LogitsDense,
    Mlp,
    Norm,
    RelativeBias,
    dropout,
)
from t5x_lite.parallel.rules import constrain

# What a policy keeps for the backward pass; the rest of a block is computed again.
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and MLP. ``shared`` holds what every layer of the stack reads."""

    config: TransformerConfig
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array, cache: None, shared: dict[str, Any]):
        c, train = self.config, self.train
        y = Norm(c, name="pre_attention_layer_norm")(x)
        y, _ = Attention(c, name="attention")(
            y,
            None,
            mask=shared["mask"],
            bias=shared["bias"],
            positions=shared["positions"],
            train=train,
        )
        x = residual(x, dropout(c, train)(y))
        y = Mlp(c, name="mlp")(Norm(c, name="pre_mlp_layer_norm")(x), train)
        return residual(x, dropout(c, train)(y)), cache


class DecoderBlock(nn.Module):
    """Pre-norm causal self-attention, cross-attention if there is an encoder, and MLP."""

    config: TransformerConfig
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array, cache: dict | None, shared: dict[str, Any]):
        c, train = self.config, self.train
        cache = cache or {"self": None, "cross": None}
        y = Norm(c, name="pre_self_attention_layer_norm")(x)
        y, self_cache = Attention(c, name="self_attention")(
            y,
            None,
            mask=shared["mask"],
            bias=shared["bias"],
            positions=shared["positions"],
            cache=cache["self"],
            index=shared["index"],
            train=train,
        )
        x = residual(x, dropout(c, train)(y))
        if c.has_encoder:
            y = Norm(c, name="pre_cross_attention_layer_norm")(x)
            y, _ = Attention(c, name="encoder_decoder_attention")(
                y, shared["encoded"], mask=shared["cross_mask"], cache=cache["cross"], train=train
            )
            x = residual(x, dropout(c, train)(y))
        y = Mlp(c, name="mlp")(Norm(c, name="pre_mlp_layer_norm")(x), train)
        return residual(x, dropout(c, train)(y)), self_cache


def residual(x: jax.Array, y: jax.Array) -> jax.Array:
    return constrain(x + y, "activation_batch", "activation_length", "activation_embed")


class Stack(nn.Module):
    """Embedding dropout, ``num_layers`` blocks, final norm, and the output layer if it is untied.

    The parameters of the blocks are ``layers_0``, ``layers_1``, ... or, with scan_layers, one
    ``layers`` with a leading axis; `stack_layers` and `unstack_layers` convert.
    """

    config: TransformerConfig
    block: type[nn.Module]
    num_layers: int
    bidirectional: bool
    norm_name: str
    head: bool = False  # end with the untied output layer

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None,
        q_positions: jax.Array,
        k_positions: jax.Array,
        positions: jax.Array,
        caches: Any = None,
        train: bool = False,
        **shared: Any,
    ) -> tuple[jax.Array, Any]:
        """x [B, T, D] -> ([B, T, D] or logits [B, T, V], the self-attention caches [L, ...]).

        ``q_positions`` [T] and ``k_positions`` [S] are indices, for the relative bias;
        ``positions`` [B, T] count within each packed segment.
        """
        c = self.config
        bias = None
        if c.positions == "relative":
            table = RelativeBias(c, self.bidirectional, name="relpos_bias")
            bias = table(q_positions, k_positions)
        elif c.positions == "learned":
            table = Embed(
                c.max_positions, c.embed_dim, ("position", "embed"), 0.02, name="position_embedder"
            )
            x += table(positions, x.dtype)
        shared |= {"mask": mask, "bias": bias, "positions": positions}
        x = dropout(c, train)(x)
        x = constrain(x, "activation_batch", "activation_length", "activation_embed")
        x, caches = self._layers(x, caches, shared, train)
        x = Norm(c, name=self.norm_name)(x)
        # T5X drops whole features of a sequence everywhere but after the encoder.
        x = dropout(c, train, whole_sequence=not self.bidirectional)(x)
        return LogitsDense(c, name="logits_dense")(x) if self.head else x, caches

    def _layers(self, x, caches, shared, train):
        c, block = self.config, self.block
        if c.remat != "none":
            block = nn.remat(
                block,
                policy=REMAT_POLICIES[c.remat],
                prevent_cse=not c.scan_layers,  # inside a scan nothing can be shared anyway
            )
        if c.scan_layers:
            scanned = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(0, nn.broadcast),
                length=self.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            return scanned(c, train, name="layers")(x, caches, shared)
        new_caches = []
        for i in range(self.num_layers):
            cache = jax.tree.map(lambda a, i=i: a[i], caches)
            x, cache = block(c, train, name=f"layers_{i}")(x, cache, shared)
            new_caches.append(cache)
        if caches is not None:
            caches = jax.tree.map(lambda *layers: jnp.stack(layers), *new_caches)
        return x, caches


def stack_layers(params: dict) -> dict:
    """Unrolled parameters (``layers_0``, ...) -> scanned (``layers``, leading axis layers)."""
    out, layers = {}, {}
    for name, value in params.items():
        if name.startswith("layers_"):
            layers[int(name.removeprefix("layers_"))] = value
        else:
            out[name] = stack_layers(value) if isinstance(value, dict) else value
    if layers:
        ordered = [layers[i] for i in range(len(layers))]
        out["layers"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ordered)
    return out


def unstack_layers(params: dict) -> dict:
    """Scanned parameters -> unrolled; the inverse of `stack_layers`."""
    out = {}
    for name, value in params.items():
        if name == "layers":
            for i in range(jax.tree.leaves(value)[0].shape[0]):
                out[f"layers_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], value)
        else:
            out[name] = unstack_layers(value) if isinstance(value, dict) else value
    return out
