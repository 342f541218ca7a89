"""A model as everything above this folder sees it: pure functions over plain nested dicts."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5x_lite.models import moe
from t5x_lite.models.architectures import Transformer
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.functional.attention import Mask, decoder_mask, segment_mask

Params = dict[str, Any]
Batch = dict[str, jax.Array]
Cache = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Head:
    """The output layer: logits = soft_cap(hidden @ kernel / scale)."""

    kernel: jax.Array  # [D, V], or the embedding's table [V, D]
    vocab_axis: int
    names: tuple[str, str]  # its logical axes
    scale: float
    soft_cap: float | None


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
        """Teacher-forced logits, float32 [B, T, V], and auxiliary values (scalars).

        ``rng`` is dropout's key, needed if ``train`` and the dropout rate is positive. With
        experts, the auxiliary values are those of `moe.auxiliary`; "loss" is to be added, once per
        target token.
        """
        return self._run(params, batch, rng, train, "logits")

    def _run(self, params, batch, rng, train, output):
        options = {
            "train": train,
            "output": output,
            "rngs": {"dropout": rng} if train and rng is not None else None,
            "method": _logits,
        }
        variables, module = {"params": params}, self._module
        if not self.config.num_experts:
            return module.apply(variables, batch, **options), {}
        result, reports = module.apply(variables, batch, **options, mutable=[moe.AUX])
        return result, moe.auxiliary(self.config, reports[moe.AUX])

    def hidden(
        self, params: Params, batch: Batch, *, rng: jax.Array | None = None, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """As `apply`, but what the output layer is applied to, [B, T, D]; see `head`."""
        return self._run(params, batch, rng, train, "hidden")

    def head(self, params: Params) -> Head:
        """The output layer, to be applied to `hidden`."""
        c = self.config
        if c.tied_embeddings:
            table = params["token_embedder"]["embedding"]
            scale = math.sqrt(c.embed_dim) if c.scale_tied_logits else 1.0
            return Head(table, 0, ("vocab", "embed"), scale, c.logits_soft_cap)
        kernel = params["decoder"]["logits_dense"]["kernel"]
        return Head(kernel, 1, ("embed", "vocab"), 1.0, c.logits_soft_cap)

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
        last_only: bool = False,
    ) -> tuple[jax.Array, Cache]:
        """Appends tokens [B, T] to the cache; returns logits [B, T, V] and the new cache.

        Args:
          valid: bool [B, T], False for padding on the left of prompts of unequal length.
          bidirectional: bool [B, T], True for tokens that see each other both ways (prefix LM);
            they must come in one call.
          last_only: logits [B, 1, V] of the last token only.
        """
        index, (B, T) = cache["index"], tokens.shape
        ones = jnp.ones((B, T), bool)
        new = {"valid": valid if valid is not None else ones}
        new["prefix"] = bidirectional if bidirectional is not None else ~ones
        cache = cache | {
            name: jax.lax.dynamic_update_slice(cache[name], value, (0, index))
            for name, value in new.items()
        }
        mask = Mask(
            k_segments=cache["valid"].astype(jnp.int32),
            q_prefix=new["prefix"],
            k_prefix=cache["prefix"],
            q_start=index,
            causal=True,
            window=self.config.attention_window,
        )
        counts = jnp.cumsum(cache["valid"], axis=1, dtype=jnp.int32) - 1
        positions = jax.lax.dynamic_slice(counts, (0, index), (B, T))
        cross_mask = None
        if cache["encoder_segments"] is not None:
            cross_mask = Mask(k_segments=cache["encoder_segments"])
        logits, layers = self._module.apply(
            {"params": params},
            tokens,
            mask=mask,
            positions=jnp.maximum(positions, 0),
            cross_mask=cross_mask,
            caches=cache["layers"],
            index=index,
            valid=new["valid"],
            output="last" if last_only else "logits",
            method=Transformer.decode,
        )
        layers = {"self": layers, "cross": cache["layers"]["cross"]}
        return logits, cache | {"index": index + T, "layers": layers}

    @staticmethod
    def map_cache(fn: Callable[[jax.Array, int], jax.Array], cache: Cache) -> Cache:
        """Applies ``fn(array, batch_axis)`` to every array that holds decoded rows.

        Those of the encoder have a row for each batch entry, which its samples or beams, rows that
        follow each other, share: they are neither copied nor reordered.
        """
        layers = cache["layers"]
        return cache | {
            "layers": layers | {"self": jax.tree.map(lambda a: fn(a, 1), layers["self"])},
            "valid": fn(cache["valid"], 0),
            "prefix": fn(cache["prefix"], 0),
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


def _logits(
    module: Transformer, batch: Batch, train: bool = False, output: str = "logits"
) -> jax.Array:
    # Padding is where the *targets* are 0: the first decoder input is 0 too, and is no padding.
    segments = _segments(batch, "decoder", "decoder_target_tokens")
    encoded = cross_mask = None
    if module.config.has_encoder:
        encoded = _encode(module, batch, train)
        encoder_segments = _segments(batch, "encoder", "encoder_input_tokens")
        cross_mask = segment_mask(segments, encoder_segments)
    mask = decoder_mask(segments, batch.get("decoder_causal_attention"))
    logits, _ = module.decode(
        batch["decoder_input_tokens"],
        mask=mask.replace(window=module.config.attention_window),
        positions=_positions(batch, "decoder", "decoder_target_tokens"),
        encoded=encoded,
        cross_mask=cross_mask,
        valid=segments > 0,
        train=train,
        output=output,
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
