"""A model as everything above this folder sees it: pure functions over plain nested dicts."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5x_lite.errors import UserError
from t5x_lite.models import adapters, moe, reading
from t5x_lite.models.architectures import EncoderOnly, Transformer
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.cross_cache import cross_cache
from t5x_lite.models.functional.attention import soft_cap
from t5x_lite.models.functional.masks import Mask
from t5x_lite.models.heads import Outputs
from t5x_lite.models.layers import WEIGHTS
from t5x_lite.models.transformer import decoder_for_steps
from t5x_lite.models.xlnet import XLNet
from t5x_lite.parallel.platform import platform
from t5x_lite.parallel.rules import constrain

Params = dict[str, Any]
Batch = dict[str, jax.Array]
Cache = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Head:
    """The output layer: logits = soft_cap(hidden @ kernel / scale + bias)."""

    kernel: jax.Array  # [D, V], or the embedding's table [V, D]
    vocab_axis: int
    names: tuple[str, str]  # its logical axes
    scale: float
    soft_cap: float | None
    bias: jax.Array | None = None  # [V]


@dataclasses.dataclass(frozen=True)
class Model:
    """The functions of one Transformer.

    Batches are dicts of int32 [B, length] with T5X's feature names; absent segment ids mean one
    segment, ended by padding (id 0). Parameters are float32 nested dicts with T5X's names, and the
    configuration's adapters beside them (adapters.py).

    prompts: how the weights that it was opened with read prompts, for whoever exports them (the
      `attention` of data/reading.py); None: not known. No function here depends on it.
    """

    config: TransformerConfig
    prompts: str | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def dtype(self) -> Any:
        """The dtype of activations; "auto" is float32 on CPU and bfloat16 elsewhere."""
        if self.config.dtype == "auto":
            return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        return jnp.dtype(self.config.dtype)

    @property
    def _module(self) -> Transformer | EncoderOnly | XLNet:
        kind = Transformer
        if self.encoder_only:
            kind = XLNet if self.config.positions == "transformer_xl" else EncoderOnly
        return kind(self.config, self.dtype)

    @property
    def encoder_only(self) -> bool:
        return self.config.architecture == "encoder_only"

    # -- parameters ---------------------------------------------------------------------------

    def _boxed_init(self, rng: jax.Array) -> Params:
        ids = jnp.ones((1, 2), jnp.int32)
        if self.encoder_only:
            batch = {"encoder_input_tokens": ids}
            return self._module.init(rng, batch, method=reading.encoded)["params"]
        batch = {"decoder_input_tokens": ids, "decoder_target_tokens": ids}
        if self.config.has_encoder:
            batch["encoder_input_tokens"] = ids
        return self._module.init(rng, batch, method=reading.logits)["params"]

    def init(self, rng: jax.Array) -> Params:
        """Returns fresh parameters; under jit with out_shardings each device makes its part.

        Raises UserError, as the next two do, for adapters that don't fit the model.
        """
        return self.adapted(nn.unbox(self._boxed_init(rng)), rng)

    def adapted(self, params: Params, rng: jax.Array) -> Params:
        """Parameters of this model without adapters, with fresh ones beside them."""
        if not self.config.adapters:
            return params
        return adapters.init(self.config, params, self._base_axes(), rng)

    def abstract_params(self) -> Params:
        """The parameters as jax.ShapeDtypeStruct, without computing or allocating anything."""
        params = nn.unbox(_boxed_shapes(self))
        if not self.config.adapters:
            return params
        return jax.eval_shape(self.adapted, params, jax.random.key(0))

    def logical_axes(self) -> Params:
        """A tree shaped like the parameters, of tuples of logical axis names."""
        axes = self._base_axes()
        if not self.config.adapters:
            return axes
        return adapters.logical_axes(self.config, adapters.base_of(self.abstract_params()), axes)

    def _base_axes(self) -> Params:
        boxed = _boxed_shapes(self)
        is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)  # noqa: E731
        return jax.tree.map(lambda box: tuple(box.names), boxed, is_leaf=is_box)

    def merged(self, params: Params) -> "tuple[Model, Params]":
        """The same model with LoRA's changes made, as a model without; a soft prompt stays."""
        c, prompt = self.config, adapters.PROMPT
        kept = {prompt: params[prompt]} if prompt in params else {}
        rest = tuple(a for a in c.adapters if not isinstance(a, adapters.LoRA))
        if rest == c.adapters:
            return self, params
        model = Model(dataclasses.replace(c, adapters=rest))
        return model, adapters.merged(c, params) | kept

    # -- training -----------------------------------------------------------------------------

    def apply(
        self, params: Params, batch: Batch, *, rng: jax.Array | None = None, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Teacher-forced logits, float32 [B, T, V], and auxiliary values (scalars).

        ``rng`` is dropout's key, needed if ``train`` and the dropout rate is positive. With
        experts, the auxiliary values are those of `moe.auxiliary`; "loss" is to be added, once per
        target token.
        """
        if self.encoder_only:
            found, aux = self.encoded(params, batch, rng=rng, train=train)
            head = self.head(params)
            table = head.kernel.astype(found["hidden"].dtype)
            exact = {"preferred_element_type": jnp.float32}
            logits = jnp.einsum("BSD,VD->BSV", found["hidden"], table, **exact) / head.scale
            logits = soft_cap(logits if head.bias is None else logits + head.bias, head.soft_cap)
            names = ("activation_batch", "activation_length", "activation_vocab")
            return constrain(logits, *names), aux
        return self._run(params, batch, rng, train, output="logits")

    def encoded(
        self, params: Params, batch: Batch, *, rng: jax.Array | None = None, train: bool = False
    ) -> tuple[Outputs, dict[str, jax.Array]]:
        """What an encoder_only model ends with, see `heads.Heads`; and auxiliary values.

        Reads ``encoder_input_tokens``, _segment_ids, _positions, _types and, XLNet, _order.
        """
        return self._run(params, batch, rng, train)

    def _run(self, params, batch, rng, train, **more):
        options = {
            "train": train,
            "rngs": {"dropout": rng} if train and rng is not None else None,
            "method": reading.encoded if self.encoder_only else reading.logits,
            **more,
        }
        variables, module = adapters.variables(self.config, params), self._module
        batch, aux = adapters.prompted(self.config, batch), {}
        if self.config.num_experts:
            result, reports = module.apply(variables, batch, **options, mutable=[moe.AUX])
            aux = moe.auxiliary(self.config, reports[moe.AUX])
        else:
            result = module.apply(variables, batch, **options)
        prompt = 0 if self.config.has_encoder else adapters.prompt_length(self.config)
        return result[:, prompt:] if prompt else result, aux

    def hidden(
        self, params: Params, batch: Batch, *, rng: jax.Array | None = None, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """As `apply`, but what the output layer is applied to, [B, T, D]; see `head`."""
        if self.encoder_only:
            found, aux = self.encoded(params, batch, rng=rng, train=train)
            return found["hidden"], aux
        return self._run(params, batch, rng, train, output="hidden")

    def head(self, params: Params) -> Head:
        """The output layer, to be applied to `hidden`; UserError for an encoder without one."""
        c, params = self.config, adapters.variables(self.config, params)["params"]
        if self.encoder_only and not {"masked_lm", "lm"} & set(c.encoder_heads):
            raise UserError(f"encoder_heads = {c.encoder_heads!r} has no output layer.")
        if c.tied_embeddings:
            table = params["token_embedder"]["embedding"]
            scale = math.sqrt(c.embed_dim) if c.scale_tied_logits else 1.0
            bias = params.get("heads", {}).get("output", {}).get("bias")
            return Head(table, 0, ("vocab", "embed"), scale, c.logits_soft_cap, bias)
        kernel = params["decoder"]["logits_dense"]["kernel"]
        return Head(kernel, 1, ("embed", "vocab"), 1.0, c.logits_soft_cap)

    def attention(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """What each query attends to, float32 [L, B, N, queries, keys], of a batch as for `apply`.

        {"encoder": [.., S, S], "decoder": [.., T, T], "cross": [.., T, S]}: those that there are.
        """
        method = reading.encoded if self.encoder_only else reading.logits
        wanted = [WEIGHTS, moe.AUX]
        variables = adapters.variables(self.config, params)
        batch = adapters.prompted(self.config, batch)
        _, found = self._module.apply(variables, batch, method=method, mutable=wanted)
        kinds: dict[str, dict[int, jax.Array]] = {}
        for path, weights in jax.tree_util.tree_leaves_with_path(found.get(WEIGHTS, {})):
            side, layers, name = (getattr(step, "key", "") for step in path[:3])
            kind = "cross" if name == "encoder_decoder_attention" else side
            layer = int(layers.partition("_")[2] or 0)
            kinds.setdefault(kind, {})[layer] = weights
        prompt, first = adapters.prompt_length(self.config), self.config.has_encoder
        found = {
            kind: of[0] if of[0].ndim == 5 else jnp.stack([of[i] for i in sorted(of)])
            for kind, of in kinds.items()
        }
        if not prompt:
            return found
        # Of a soft prompt there is nothing to look at: its columns and rows are left out.
        sides = {"encoder": (first, first), "decoder": (not first,) * 2, "cross": (False, first)}
        return {
            kind: w[..., prompt * sides[kind][0] :, prompt * sides[kind][1] :]
            for kind, w in found.items()
        }

    def encode(self, params: Params, batch: Batch) -> jax.Array:
        """The encoder's output, [B, S, D], without dropout; a soft prompt is part of it."""
        if self.encoder_only:
            return self.encoded(params, batch)[0]["encoded"]
        batch = adapters.prompted(self.config, batch)
        return self._module.apply(
            adapters.variables(self.config, params), batch, method=reading.encode
        )

    def embed(
        self,
        params: Params,
        batch: Batch,
        *,
        pooling: str = "mean",
        rng: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Texts as vectors of length 1, float32 [B, D], by an encoder_only model.

        Args:
          batch: as of `encoded`, a text to a row.
          pooling: "mean" of a row's tokens, its first ("cls"), or BERT's "pooler" on that.
        """
        found, _ = self.encoded(params, batch, rng=rng, train=train)
        x = found["encoded"].astype(jnp.float32)
        if pooling == "mean":
            real = reading.segments_of(batch, "encoder", "encoder_input_tokens")[..., None] > 0
            x = jnp.sum(x * real, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)
        else:
            x = found["pooled"].astype(jnp.float32) if pooling == "pooler" else x[:, 0]
        length = jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)
        return x / length

    # -- decoding -----------------------------------------------------------------------------

    def start_decoding(self, params: Params, batch: Batch, max_length: int) -> Cache:
        """Returns an empty cache for ``max_length`` tokens per row.

        Encoder-decoder: runs the encoder on ``encoder_input_tokens`` and keeps each layer's keys
        and values of its output. Decoder-only: only the batch's size is read.
        """
        c, layers = self.config, self.config.num_decoder_layers
        batch_size = next(iter(batch.values())).shape[0]
        prompt = 0 if c.has_encoder else adapters.prompt_length(c)
        max_length += prompt
        shape = (batch_size, c.kv_heads, max_length, c.head_dim)
        zeros = jnp.zeros((layers, *shape) if c.scan_layers else shape, self.dtype)
        layer = {"key": zeros, "value": zeros}
        cache: Cache = {
            "index": jnp.int32(0),
            "valid": jnp.zeros((batch_size, max_length), bool),
            "prefix": jnp.zeros((batch_size, max_length), bool),
            "layers": {"self": layer if c.scan_layers else (layer,) * layers, "cross": None},
            "encoder_segments": None,
        }
        if c.has_encoder:
            encoded, decoder = self.encode(params, batch), adapters.merged(c, params)["decoder"]
            cache["layers"]["cross"] = cross_cache(c, decoder, encoded)
            batch = adapters.prompted(c, batch)
            cache["encoder_segments"] = reading.segments_of(
                batch, "encoder", "encoder_input_tokens"
            )
        if prompt:
            tokens = jnp.broadcast_to(-1 - jnp.arange(prompt), (batch_size, prompt))
            _, cache = self.decode(params, cache, tokens, last_only=True)
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
            adapters.variables(self.config, params),
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

    def for_steps(
        self, params: Params, cache: Cache, rows: int = 1
    ) -> "tuple[Model, Params, Cache]":
        """This model, parameters and a cache in the form in which single steps are fast.

        On a CPU a scan copies every layer's weights and cache out of the stack and back, at each
        step; so there, at the price of one copy of the decoder, layers are unrolled, and their
        kernels transposed if a step has several rows, but few. LoRA's changes are made once.

        Args:
          rows: of the products of a step: tokens of all texts, samples and beams.
        """
        model, params = self.merged(params)
        if platform() != "cpu":
            return model, params, cache
        if self.config.scan_layers:
            model = Model(dataclasses.replace(model.config, scan_layers=False))
            each = range(self.config.num_decoder_layers)
            layers = {
                name: part and tuple(jax.tree.map(lambda a, i=i: a[i], part) for i in each)
                for name, part in cache["layers"].items()
            }
            cache = cache | {"layers": layers}
        return model, params | {"decoder": decoder_for_steps(params["decoder"], rows)}, cache

    @staticmethod
    def rewind(cache: Cache, count: jax.Array | int) -> Cache:
        """The cache without its last ``count`` tokens.

        What they left there is seen by no query before them, and written over by what comes next.
        """
        return cache | {"index": cache["index"] - count}

    @staticmethod
    def map_cache(fn: Callable[[jax.Array, int], jax.Array], cache: Cache) -> Cache:
        """Applies ``fn(array, batch_axis)`` to every array that holds decoded rows.

        Those of the encoder have a row for each batch entry, which its samples or beams, rows that
        follow each other, share: they are neither copied nor reordered.
        """
        layers = cache["layers"]
        return cache | {
            "layers": layers | {"self": jax.tree.map(lambda a: fn(a, a.ndim - 4), layers["self"])},
            "valid": fn(cache["valid"], 0),
            "prefix": fn(cache["prefix"], 0),
        }


@functools.lru_cache(maxsize=8)  # tracing takes a quarter of a second, and is asked for often
def _boxed_shapes(model: Model) -> Params:
    return jax.eval_shape(model._boxed_init, jax.random.key(0))
