"""Blocks, and the stack of them: scanned or unrolled, rematerialised or not."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5x_lite.models.adapters import ADAPTERS
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.functional import attention as attn
from t5x_lite.models.functional.context import context_shards
from t5x_lite.models.layers import (
    WEIGHTS,
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
from t5x_lite.models.products import prefers_transposed, transpose_kernels
from t5x_lite.parallel.gather import keep_all_but_gathered, uses_explicit_fsdp
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
    """Self-attention and MLP. ``shared`` holds what every layer of the stack reads."""

    config: TransformerConfig
    train: bool
    experts: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, cache: None, shared: dict[str, Any], local: Any = None):
        c, train = self.config, self.train
        y = norm_before(c, "attention", x)
        y, _ = Attention(c, name="attention")(
            y,
            None,
            mask=shared["mask"],
            bias=bias_of(c, True, shared),
            positions=shared["positions"],
            train=train,
        )
        x = add(c, "attention", x, y, train)
        y = feed_forward(c, self.experts, norm_before(c, "mlp", x), shared, train)
        return add(c, "mlp", x, y, train), cache


class DecoderBlock(nn.Module):
    """Causal self-attention, cross-attention if there is an encoder, and MLP.

    ``local``, where layers differ in that: whether the layer has a window.
    """

    config: TransformerConfig
    train: bool
    experts: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, cache: dict | None, shared: dict[str, Any], local: Any = None):
        c, train = self.config, self.train
        cache = cache or {"self": None, "cross": None}
        y = norm_before(c, "self_attention", x)
        y, self_cache = Attention(c, name="self_attention")(
            y,
            None,
            mask=mask_of(c, shared["mask"], local),
            bias=bias_of(c, False, shared),
            positions=shared["positions"],
            local=local,
            cache=cache["self"],
            index=shared["index"],
            train=train,
        )
        x = add(c, "self_attention", x, y, train)
        if c.has_encoder:
            y = norm_before(c, "cross_attention", x)
            y, _ = Attention(c, name="encoder_decoder_attention")(
                y,
                shared["encoded"],
                mask=shared["cross_mask"],
                cache=cache["cross"],
                train=train,
            )
            x = add(c, "cross_attention", x, y, train)
        y = feed_forward(c, self.experts, norm_before(c, "mlp", x), shared, train)
        return add(c, "mlp", x, y, train), self_cache


def norm_before(config: TransformerConfig, sublayer: str, x: jax.Array) -> jax.Array:
    """What a sublayer reads, by norm_placement."""
    pre = config.norm_placement != "post"
    return Norm(config, name=f"pre_{sublayer}_layer_norm")(x) if pre else x


def add(
    config: TransformerConfig, sublayer: str, x: jax.Array, y: jax.Array, train: bool
) -> jax.Array:
    """The residual sum of a sublayer's output y; by norm_placement, y or the sum is normed."""
    placement, name = config.norm_placement, f"post_{sublayer}_layer_norm"
    y = Norm(config, name=name)(y) if placement == "both" else y
    x = residual(x, dropout(config, train)(y))
    return Norm(config, name=name)(x) if placement == "post" else x


def mask_of(config: TransformerConfig, mask: attn.Mask | jax.Array, local: Any):
    """The mask of a layer, which has its window only if it is ``local`` (None: all are alike)."""
    if local is None:
        return mask
    nothing = jnp.iinfo(jnp.int32).max // 2
    return mask.replace(window=jnp.where(local, config.attention_window, nothing))


def bias_of(config: TransformerConfig, bidirectional: bool, shared: dict[str, Any]) -> attn.Bias:
    """The stack's bias, or the layer's own."""
    if not config.relative_bias_per_layer:
        return shared["bias"]
    return RelativeBias(config, bidirectional, name="relpos_bias")(shared["q_start"])


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
        """x [B, T, D] -> ([B, T, D] or logits [B, T, V], the self-attention caches).

        ``caches``: {"self", "cross"}, each a dict of arrays with a leading axis layers, or, if
        layers aren't scanned, a tuple of a dict for each.
        ``positions`` [B, T] count within each packed segment. ``output``: "logits", those of the
        "last" column only, or the "hidden" states before the output layer.
        """
        c = self.config
        bias, shared["q_start"] = None, mask.q_start
        if c.positions == "relative" and not c.relative_bias_per_layer:
            table = RelativeBias(c, self.bidirectional, name="relpos_bias")
            bias = table(mask.q_start)
        elif c.positions == "learned":
            table = Embed(
                c.max_positions, c.embed_dim, ("position", "embed"), 0.02, name="position_embedder"
            )
            x += table(positions, x.dtype)
        keys = x.shape[1] if caches is None else jax.tree.leaves(caches["self"])[0].shape[-2]
        mask, bias = self._settled(mask, bias, x, keys)
        if cross_mask is not None:
            cross_mask, _ = self._settled(cross_mask, None, x, cross_mask.k_segments.shape[1])
        shared |= {"mask": mask, "bias": bias, "cross_mask": cross_mask, "positions": positions}
        x = Norm(c, name="embedding_norm")(x) if c.embedding_norm else x
        x = dropout(c, train)(x)
        x = constrain(x, "activation_batch", "activation_length", "activation_embed")
        x, caches = self._layers(x, caches, shared, train)
        if c.norm_placement != "post":  # else the last layer has seen to both
            x = Norm(c, name=self.norm_name)(x)
            # T5X drops whole features of a sequence everywhere but after the encoder.
            x = dropout(c, train, whole_sequence=not self.bidirectional)(x)
        x = x[:, -1:] if output == "last" else x
        head = self.head and output != "hidden"
        return LogitsDense(c, name="logits_dense")(x) if head else x, caches

    def _settled(self, mask: attn.Mask, bias: attn.Bias, x: jax.Array, keys: int):
        """Materializes mask and bias once for all layers, if attention needs the arrays."""
        varied = mask.window is not None and self.config.full_attention_every is not None
        if varied or context_shards() > 1:
            return mask, bias
        if implementation(self.config, mask, bias, x, keys) != "xla":
            return mask, bias
        return attn.materialize(mask, bias, x.shape[1], keys)

    def _layers(self, x, caches, shared, train):
        c, block = self.config, self.block
        policy = REMAT_POLICIES.get(c.remat)
        if policy is None and (uses_explicit_fsdp() or c.num_experts):
            policy = keep_all_but_gathered
        if policy is not None:
            block = nn.remat(
                block,
                policy=policy,
                prevent_cse=not c.scan_layers,  # inside a scan nothing can be shared anyway
            )
        windows = []  # which layers have one, if only some have
        if c.full_attention_every is not None and not self.bidirectional:
            windows = [c.has_window(i) for i in range(self.num_layers)]
        if c.scan_layers:
            scanned = nn.scan(
                block,
                variable_axes={"params": 0, ADAPTERS: 0, AUX: 0, WEIGHTS: 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(0, nn.broadcast, 0),
                length=self.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            local = jnp.array(windows) if windows else None
            return scanned(c, train, c.has_experts(0), name="layers")(x, caches, shared, local)
        new_caches = []
        for i in range(self.num_layers):
            cache = caches and {name: part and part[i] for name, part in caches.items()}
            layer = block(c, train, c.has_experts(i), name=f"layers_{i}")
            x, cache = layer(x, cache, shared, windows[i] if windows else None)
            new_caches.append(cache)
        return x, None if caches is None else tuple(new_caches)


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


def decoder_for_steps(params: dict, rows: int) -> dict:
    """A decoder's parameters, unrolled, for steps of ``rows`` tokens on a CPU."""
    unrolled = unstack_layers(params)
    return transpose_kernels(unrolled) if rows > 1 and prefers_transposed(rows) else unrolled
