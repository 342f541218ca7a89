"""Blocks, and the stack of them: scanned or unrolled, rematerialised or not."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.functional import attention as attn
from t5x_lite.models.functional.context import stretches
from t5x_lite.models.layers import (
    Attention,
    Embed,
    LogitsDense,
    Mlp,
    Norm,
    RelativeBias,
    dropout,
    implementation,
)
from t5x_lite.models.moe import AUX, MoE
from t5x_lite.parallel.gather import gathering, keep_all_but_gathered
from t5x_lite.parallel.rules import constrain

# What a policy keeps for the backward pass; the rest of a block is computed again.
_policies = jax.checkpoint_policies
_QKV = ("query", "key", "value")
_ATTENTION = (*_QKV, "attention_output")
REMAT_POLICIES = {
    "full": _policies.nothing_saveable,
    "dots": _policies.dots_saveable,
    "dots_no_batch": _policies.dots_with_no_batch_dims_saveable,
    # By name: the projections for attention; its output, too, so that it isn't run again; and all
    # projections, so that only norms, activations and attention's scores are.
    "save_qkv": _policies.save_only_these_names(*_QKV),
    "save_attention": _policies.save_only_these_names(*_ATTENTION),
    "minimal": _policies.save_only_these_names(*_ATTENTION, "out", "wi"),
    # As save_qkv, kept in the host's memory until the backward pass wants them.
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(_QKV),
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and MLP. ``shared`` holds what every layer of the stack reads."""

    config: TransformerConfig
    train: bool
    experts: bool = False

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
        y = feed_forward(c, self.experts, Norm(c, name="pre_mlp_layer_norm")(x), shared, train)
        return residual(x, dropout(c, train)(y)), cache


class DecoderBlock(nn.Module):
    """Pre-norm causal self-attention, cross-attention if there is an encoder, and MLP."""

    config: TransformerConfig
    train: bool
    experts: bool = False

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
                y,
                shared["encoded"],
                mask=shared["cross_mask"],
                cache=cache["cross"],
                train=train,
            )
            x = residual(x, dropout(c, train)(y))
        y = feed_forward(c, self.experts, Norm(c, name="pre_mlp_layer_norm")(x), shared, train)
        return residual(x, dropout(c, train)(y)), self_cache


def feed_forward(
    config: TransformerConfig, experts: bool, x: jax.Array, shared: dict[str, Any], train: bool
) -> jax.Array:
    """A block's MLP or its mixture of experts, [B, T, D] -> [B, T, D]."""
    if not experts:
        return Mlp(config, name="mlp")(x, train)
    valid = shared.get("valid")
    return MoE(config, name="moe")(x, jnp.ones((1, 1), bool) if valid is None else valid)


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
        mask: attn.Mask,
        positions: jax.Array,
        caches: Any = None,
        cross_mask: attn.Mask | None = None,
        train: bool = False,
        output: str = "logits",
        **shared: Any,
    ) -> tuple[jax.Array, Any]:
        """x [B, T, D] -> ([B, T, D] or logits [B, T, V], the self-attention caches [L, ...]).

        ``positions`` [B, T] count within each packed segment. ``output``: "logits", those of the
        "last" column only, or the "hidden" states before the output layer.
        """
        c = self.config
        bias = None
        if c.positions == "relative":
            table = RelativeBias(c, self.bidirectional, name="relpos_bias")
            bias = table(mask.q_start)
        elif c.positions == "learned":
            table = Embed(
                c.max_positions, c.embed_dim, ("position", "embed"), 0.02, name="position_embedder"
            )
            x += table(positions, x.dtype)
        keys = x.shape[1] if caches is None else caches["self"]["key"].shape[2]
        mask, bias = self._settled(mask, bias, x, keys)
        if cross_mask is not None:
            cross_mask, _ = self._settled(cross_mask, None, x, cross_mask.k_segments.shape[1])
        shared |= {"mask": mask, "bias": bias, "cross_mask": cross_mask, "positions": positions}
        x = dropout(c, train)(x)
        x = constrain(x, "activation_batch", "activation_length", "activation_embed")
        x, caches = self._layers(x, caches, shared, train)
        x = Norm(c, name=self.norm_name)(x)
        # T5X drops whole features of a sequence everywhere but after the encoder.
        x = dropout(c, train, whole_sequence=not self.bidirectional)(x)
        x = x[:, -1:] if output == "last" else x
        head = self.head and output != "hidden"
        return LogitsDense(c, name="logits_dense")(x) if head else x, caches

    def _settled(self, mask: attn.Mask, bias: attn.Bias, x: jax.Array, keys: int):
        """Mask and bias drawn once for all layers, if attention wants them drawn."""
        if stretches() > 1 or implementation(self.config, mask, bias, x, keys) != "xla":
            return mask, bias
        return attn.drawn(mask, bias, x.shape[1], keys)

    def _layers(self, x, caches, shared, train):
        c, block = self.config, self.block
        policy = REMAT_POLICIES.get(c.remat)
        if policy is None and (gathering() or c.num_experts):
            policy = keep_all_but_gathered
        if policy is not None:
            block = nn.remat(
                block,
                policy=policy,
                prevent_cse=not c.scan_layers,  # inside a scan nothing can be shared anyway
            )
        if c.scan_layers:
            scanned = nn.scan(
                block,
                variable_axes={"params": 0, AUX: 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(0, nn.broadcast),
                length=self.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            return scanned(c, train, c.has_experts(0), name="layers")(x, caches, shared)
        new_caches = []
        for i in range(self.num_layers):
            cache = jax.tree.map(lambda a, i=i: a[i], caches)
            layer = block(c, train, c.has_experts(i), name=f"layers_{i}")
            x, cache = layer(x, cache, shared)
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
