"""Embeddings, stacks and output layers put together: with a decoder, or an encoder alone."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5x_lite.models.adapters import ADAPTERS, PROMPT, embedded
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.functional.attention import segment_mask, soft_cap
from t5x_lite.models.functional.masks import Mask
from t5x_lite.models.heads import Heads, Outputs
from t5x_lite.models.layers import Embed
from t5x_lite.models.transformer import DecoderBlock, EncoderBlock, Stack
from t5x_lite.parallel.rules import constrain


class Transformer(nn.Module):
    """Encoder-decoder (T5) or decoder-only (GPT, Llama), by the configuration."""

    config: TransformerConfig
    dtype: Any  # of activations

    def setup(self):
        c = self.config
        std = 1.0 if c.init_std is None else c.init_std
        self.token_embedder = Embed(c.vocab_size, c.embed_dim, ("vocab", "embed"), std)
        if c.has_encoder:
            self.encoder = Stack(c, EncoderBlock, c.num_encoder_layers, True, "encoder_norm")
        head = not c.tied_embeddings
        self.decoder = Stack(c, DecoderBlock, c.num_decoder_layers, False, "decoder_norm", head)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """tokens int32 [B, T] -> [B, T, D]; negative ones are places of a soft prompt."""
        if self.has_variable(ADAPTERS, PROMPT):
            x = self.token_embedder(jnp.maximum(tokens, 0), self.dtype)
            x = embedded(x, tokens, self.get_variable(ADAPTERS, PROMPT))
        else:
            x = self.token_embedder(tokens, self.dtype)
        if self.config.scale_embeddings:
            x *= jnp.asarray(math.sqrt(self.config.embed_dim), self.dtype)
        return x

    def encode(
        self, tokens: jax.Array, segments: jax.Array, positions: jax.Array, train: bool = False
    ) -> jax.Array:
        """tokens, segment ids (0 = padding), positions int32 [B, S] -> [B, S, D]."""
        encoded, _ = self.encoder(
            self.embed(tokens),
            mask=segment_mask(segments, segments),
            positions=positions,
            valid=segments > 0,
            train=train,
        )
        return encoded

    def decode(
        self,
        tokens: jax.Array,
        *,
        mask: Mask,
        positions: jax.Array,
        encoded: jax.Array | None = None,
        cross_mask: Mask | None = None,
        caches: Any = None,
        index: jax.Array | None = None,
        valid: jax.Array | None = None,
        train: bool = False,
        output: str = "logits",
    ) -> tuple[jax.Array, Any]:
        """tokens int32 [B, T] -> (logits float32 [B, T, V], caches); see `Stack`."""
        c = self.config
        x, caches = self.decoder(
            self.embed(tokens),
            mask=mask,
            positions=positions,
            caches=caches,
            train=train,
            encoded=encoded,
            cross_mask=cross_mask,
            index=index,
            valid=valid,
            output=output,
        )
        if output == "hidden":
            return x, caches
        logits = self.token_embedder.logits(x) if c.tied_embeddings else x
        if c.tied_embeddings and c.scale_tied_logits:
            logits /= jnp.sqrt(jnp.float32(c.embed_dim))
        logits = soft_cap(logits, c.logits_soft_cap)
        return constrain(
            logits, "activation_batch", "activation_length", "activation_vocab"
        ), caches


class EncoderOnly(nn.Module):
    """An encoder and its heads (BERT; heads.py), by the configuration."""

    config: TransformerConfig
    dtype: Any  # of activations

    def setup(self):
        c = self.config
        std = 1.0 if c.init_std is None else c.init_std
        self.token_embedder = Embed(c.vocab_size, c.embed_dim, ("vocab", "embed"), std)
        if c.token_types:
            self.type_embedder = Embed(c.token_types, c.embed_dim, ("position", "embed"), 0.02)
        self.encoder = Stack(c, EncoderBlock, c.num_encoder_layers, True, "encoder_norm")
        self.heads = Heads(c)

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        types: jax.Array | None = None,
        order: jax.Array | None = None,
        train: bool = False,
    ) -> Outputs:
        """tokens, segment ids (0 = padding), positions, token types (None: 0) int32 [B, S].

        Returns what `Heads` does. ``order`` is XLNet's, and not for this model.
        """
        assert order is None, "only XLNet's two streams read an order"
        x = self.token_embedder(tokens, self.dtype)
        if self.config.token_types:
            types = jnp.zeros_like(tokens) if types is None else types
            x += self.type_embedder(types, self.dtype)
        x, _ = self.encoder(
            x,
            mask=segment_mask(segments, segments),
            positions=positions,
            valid=segments > 0,
            train=train,
        )
        return self.heads(x, train)
