"""Embeddings, stacks and output layer put together: one module, with an encoder or without."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.functional.attention import segment_mask, soft_cap
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

    def encode(
        self, tokens: jax.Array, segments: jax.Array, positions: jax.Array, train: bool = False
    ) -> jax.Array:
        """tokens, segment ids (0 = padding), positions int32 [B, S] -> [B, S, D]."""
        index = jnp.arange(tokens.shape[1])
        encoded, _ = self.encoder(
            self.token_embedder(tokens, self.dtype),
            mask=segment_mask(segments, segments),
            q_positions=index,
            k_positions=index,
            positions=positions,
            train=train,
        )
        return encoded

    def decode(
        self,
        tokens: jax.Array,
        *,
        mask: jax.Array,
        q_positions: jax.Array,
        k_positions: jax.Array,
        positions: jax.Array,
        encoded: jax.Array | None = None,
        cross_mask: jax.Array | None = None,
        caches: Any = None,
        index: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, Any]:
        """tokens int32 [B, T] -> (logits float32 [B, T, V], caches); see `Stack`."""
        c = self.config
        x, caches = self.decoder(
            self.token_embedder(tokens, self.dtype),
            mask=mask,
            q_positions=q_positions,
            k_positions=k_positions,
            positions=positions,
            caches=caches,
            train=train,
            encoded=encoded,
            cross_mask=cross_mask,
            index=index,
        )
        logits = self.token_embedder.logits(x) if c.tied_embeddings else x
        if c.tied_embeddings and c.scale_tied_logits:
            logits /= jnp.sqrt(jnp.float32(c.embed_dim))
        logits = soft_cap(logits, c.logits_soft_cap)
        return constrain(
            logits, "activation_batch", "activation_length", "activation_vocab"
        ), caches
