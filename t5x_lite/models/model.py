"""A model as everything above this folder sees it: pure functions over plain nested dicts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5x_lite.models.architectures import Transformer
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.functional.attention import decoder_mask, segment_mask

Params = dict[str, Any]
Batch = dict[str, jax.Array]
Cache = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
    """The functions of one Transformer.

    Batches are dicts of int32 [B, length] with T5X's feature names; absent segment ids mean one
    segment, ended by padding (id 0). Parameters are float32 nested dicts with T5X's names.
    """

    config: TransformerConfig

    @property
    def dtype(self) -> Any:
        """The dtype of activations; "auto" is float32 on CPU and bfloat16 elsewhere."""
        if self.config.dtype == "auto":
            return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        return jnp.dtype(self.config.dtype)

    @property
    def _module(self) -> Transformer:
        return Transformer(self.config, self.dtype)

    # -- parameters ---------------------------------------------------------------------------

    def _boxed_init(self, rng: jax.Array) -> Params:
        ids = jnp.ones((1, 2), jnp.int32)
        batch = {"decoder_input_tokens": ids, "decoder_target_tokens": ids}
        if self.config.has_encoder:
            batch["encoder_input_tokens"] = ids
        return self._module.init(rng, batch, method=_logits)["params"]

    def init(self, rng: jax.Array) -> Params:
        """Returns fresh parameters; under jit with out_shardings each device makes its part."""
        return nn.unbox(self._boxed_init(rng))

    def abstract_params(self) -> Params:
        """The parameters as jax.ShapeDtypeStruct, without computing or allocating anything."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def logical_axes(self) -> Params:
        """A tree shaped like the parameters, of tuples of logical axis names."""
        boxed = jax.eval_shape(self._boxed_init, jax.random.key(0))
        is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)  # noqa: E731
        return jax.tree.map(lambda box: tuple(box.names), boxed, is_leaf=is_box)

    # -- training -----------------------------------------------------------------------------

    def apply(
        self, params: Params, batch: Batch, *, rng: jax.Array | None = None, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Teacher-forced logits, float32 [B, T, V], and auxiliary values.

        ``rng`` is dropout's key, needed if ``train`` and the dropout rate is positive.
        """
        rngs = {"dropout": rng} if train and rng is not None else None
        variables = {"params": params}
        return self._module.apply(variables, batch, train=train, rngs=rngs, method=_logits), {}

    def encode(self, params: Params, batch: Batch) -> jax.Array:
        """The encoder's output, [B, S, D], without dropout."""
        return self._module.apply({"params": params}, batch, method=_encode)

    # -- decoding -----------------------------------------------------------------------------

    def start_decoding(self, params: Params, batch: Batch, max_length: int) -> Cache:
        """Returns an empty cache for ``max_length`` tokens per row.

        Encoder-decoder: runs the encoder on ``encoder_input_tokens`` and keeps each layer's keys
        and values of its output. Decoder-only: only the batch's size is read.
        """
        c = self.config
        batch_size = next(iter(batch.values())).shape[0]
        shape = (c.num_decoder_layers, batch_size, max_length, c.kv_heads, c.head_dim)
        zeros = jnp.zeros(shape, self.dtype)
        cache: Cache = {
            "index": jnp.int32(0),
            "valid": jnp.zeros((batch_size, max_length), bool),
            "prefix": jnp.zeros((batch_size, max_length), bool),
            "layers": {"self": {"key": zeros, "value": zeros}, "cross": None},
            "encoder_segments": None,
        }
        if c.has_encoder:
            encoded = self.encode(params, batch)
            cache["layers"]["cross"] = _cross_cache(c, params["decoder"], encoded)
            cache["encoder_segments"] = _segments(batch, "encoder", "encoder_input_tokens")
        return cache

    def decode(
        self,
        params: Params,
        cache: Cache,
        tokens: jax.Array,
        *,
        valid: jax.Array | None = None,
        bidirectional: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Appends tokens [B, T] to the cache; returns logits [B, T, V] and the new cache.

        Args:
          valid: bool [B, T], False for padding on the left of prompts of unequal length.
          bidirectional: bool [B, T], True for tokens that see each other both ways (prefix LM);
            they must come in one call.
        """
        index, (B, T) = cache["index"], tokens.shape
        ones = jnp.ones((B, T), bool)
        new = {"valid": valid if valid is not None else ones}
        new["prefix"] = bidirectional if bidirectional is not None else ~ones
        cache = cache | {
            name: jax.lax.dynamic_update_slice(cache[name], value, (0, index))
            for name, value in new.items()
        }
        q_positions = index + jnp.arange(T)
        k_positions = jnp.arange(cache["valid"].shape[1])
        seen = (k_positions <= q_positions[:, None])[None]  # [1, T, S]
        seen |= new["prefix"][:, :, None] & cache["prefix"][:, None, :]
        counts = jnp.cumsum(cache["valid"], axis=1, dtype=jnp.int32) - 1
        positions = jax.lax.dynamic_slice(counts, (0, index), (B, T))
        cross_mask = None
        if cache["encoder_segments"] is not None:
            cross_mask = (cache["encoder_segments"] > 0)[:, None, None, :]
        logits, layers = self._module.apply(
            {"params": params},
            tokens,
            mask=(seen & cache["valid"][:, None, :])[:, None],
            q_positions=q_positions,
            k_positions=k_positions,
            positions=jnp.maximum(positions, 0),
            cross_mask=cross_mask,
            caches=cache["layers"],
            index=index,
            method=Transformer.decode,
        )
        layers = {"self": layers, "cross": cache["layers"]["cross"]}
        return logits, cache | {"index": index + T, "layers": layers}

    @staticmethod
    def map_cache(fn: Callable[[jax.Array, int], jax.Array], cache: Cache) -> Cache:
        """Applies ``fn(array, batch_axis)`` to every array of the cache that has a batch axis."""
        return {
            "index": cache["index"],
            "layers": jax.tree.map(lambda a: fn(a, 1), cache["layers"]),
            **{
                name: jax.tree.map(lambda a: fn(a, 0), cache[name])
                for name in ("valid", "prefix", "encoder_segments")
            },
        }


def _segments(batch: Batch, side: str, tokens: str) -> jax.Array:
    """Segment ids [B, length], 0 where there is padding."""
    if f"{side}_segment_ids" in batch:
        return batch[f"{side}_segment_ids"]
    return (batch[tokens] > 0).astype(jnp.int32)


def _positions(batch: Batch, side: str, tokens: str) -> jax.Array:
    if f"{side}_positions" in batch:
        return batch[f"{side}_positions"]
    return jnp.arange(batch[tokens].shape[1])[None]


def _encode(module: Transformer, batch: Batch, train: bool = False) -> jax.Array:
    segments = _segments(batch, "encoder", "encoder_input_tokens")
    positions = _positions(batch, "encoder", "encoder_input_tokens")
    return module.encode(batch["encoder_input_tokens"], segments, positions, train)


def _logits(module: Transformer, batch: Batch, train: bool = False) -> jax.Array:
    # Padding is where the *targets* are 0: the first decoder input is 0 too, and is no padding.
    segments = _segments(batch, "decoder", "decoder_target_tokens")
    encoded = cross_mask = None
    if module.config.has_encoder:
        encoded = _encode(module, batch, train)
        encoder_segments = _segments(batch, "encoder", "encoder_input_tokens")
        cross_mask = segment_mask(segments, encoder_segments)
    index = jnp.arange(segments.shape[1])
    logits, _ = module.decode(
        batch["decoder_input_tokens"],
        mask=decoder_mask(segments, batch.get("decoder_causal_attention")),
        q_positions=index,
        k_positions=index,
        positions=_positions(batch, "decoder", "decoder_target_tokens"),
        encoded=encoded,
        cross_mask=cross_mask,
        train=train,
    )
    return logits


def _cross_cache(config: TransformerConfig, decoder: Params, encoded: jax.Array) -> Cache:
    """Every layer's keys and values [L, B, S, K, H] of the encoder's output [B, S, D]."""
    if config.scan_layers:
        layers = decoder["layers"]["encoder_decoder_attention"]
    else:
        names = [f"layers_{i}" for i in range(config.num_decoder_layers)]
        each = [decoder[name]["encoder_decoder_attention"] for name in names]
        layers = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

    def project(name: str) -> jax.Array:
        kernel = layers[name]["kernel"].astype(encoded.dtype)
        y = jnp.einsum("BSD,LDE->LBSE", encoded, kernel)
        if "bias" in layers[name]:
            y += layers[name]["bias"].astype(y.dtype)[:, None, None]
        return y.reshape(*y.shape[:-1], config.kv_heads, config.head_dim)

    return {"key": project("key"), "value": project("value")}
