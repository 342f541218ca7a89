"""XLNet's two streams over Transformer-XL's relative positions.

Yang et al., https://arxiv.org/abs/1906.08237; Dai et al., https://arxiv.org/abs/1901.02860. The
content stream reads the tokens; the query stream knows only where it is, and predicts the token
there from those whose turn in the factorisation order comes before. Both have the same parameters.
There is no memory of earlier segments. Scores are an array: no fast form of attention has these
positions.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.functional.masks import MASKED
from t5x_lite.models.heads import Bias, Heads, Outputs
from t5x_lite.models.layers import Dense, Embed, kernel_init
from t5x_lite.models.transformer import Stack, add, feed_forward
from t5x_lite.parallel.rules import constrain

HEADS = ("activation_batch", "activation_length", "activation_heads", "activation_kv")


def stream_masks(order: jax.Array | None, segments: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(content, query), bool [B, S, S]: may position i look at position j?

    order: int [B, S], each token's turn, from 1; None: all are context. segments: int [B, S], 0 =
    padding; tokens see those of their own. In the content stream a token sees itself, too.
    """
    together = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
    if order is None:
        return together, together
    i, j = order[:, :, None], order[:, None, :]
    return together & (j <= i), together & (j < i)


def sinusoids(length: int, features: int) -> jax.Array:
    """float32 [2 length, features]: of the distances length, length - 1, ..., 1 - length."""
    distances = jnp.arange(length, -length, -1, dtype=jnp.float32)
    frequencies = 10_000.0 ** -(jnp.arange(0, features, 2, dtype=jnp.float32) / features)
    angles = distances[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def shifted(scores: jax.Array) -> jax.Array:
    """Scores by distance [..., S, 2 S], as `sinusoids` orders them -> by key [..., S, S]."""
    *batch, S, _ = scores.shape
    # Key j of row i is at S - i + j: without the first S numbers, with rows one shorter, at j.
    flat = scores.reshape(*batch, 2 * S * S)[..., S:]
    return flat.reshape(*batch, S, 2 * S - 1)[..., :S]


class RelativeAttention(nn.Module):
    """Attention of both streams to the content stream, with Transformer-XL's positions."""

    config: TransformerConfig
    train: bool

    @nn.compact
    def __call__(self, streams: tuple, shared: dict[str, Any]) -> list[jax.Array]:
        """streams: one or two arrays [B, S, D], the content first; shared: see `TwoStreams`."""
        c, N, H = self.config, self.config.num_heads, self.config.head_dim
        init = kernel_init(c, "normal")

        def heads(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:-1], N, H)

        def dense(name: str) -> Dense:
            return Dense(N * H, ("embed", "joined_kv"), init, name=name)

        def bias(name: str) -> jax.Array:
            return Bias(N * H, "joined_kv", name=f"{name}_bias")()

        query, content = dense("query"), streams[0]
        k, v = (constrain(heads(dense(name)(content)), *HEADS) for name in ("key", "value"))
        places = heads(dense("position")(shared["sinusoids"]))[0]  # [2 S, N, H]
        biases = [bias(name).astype(k.dtype) for name in ("content", "position", "segment")]
        segment = Embed(2, N * H, ("position", "joined_kv"), 0.02, name="segment_embedder")
        # Same type, other type: read also where there are no types, as it is a parameter.
        kinds = heads(segment(jnp.arange(2)[None], k.dtype))[0]
        out = Dense(c.embed_dim, ("joined_kv", "embed"), init, name="out")
        results = []
        for x, mask in zip(streams, shared["masks"], strict=False):
            q = query(x)
            by_content, by_place, by_type = (heads(q + b) for b in biases)
            scores = _scores(by_content, by_place, by_type, k, places, kinds, shared["types"])
            scores = jnp.where(mask[:, None], scores / jnp.sqrt(jnp.float32(H)), MASKED)
            weights = jax.nn.softmax(scores, axis=-1)
            weights = nn.Dropout(c.dropout_rate, deterministic=not self.train)(weights)
            y = jnp.einsum("BNTS,BSNH->BTNH", weights.astype(v.dtype), v)
            results.append(out(y.reshape(*y.shape[:-2], N * H)))
        return results


def _scores(content, position, segment, k, places, kinds, types) -> jax.Array:
    """float32 [B, N, T, S] of three forms of the queries [B, T, N, H]: see the papers."""
    exact = {"preferred_element_type": jnp.float32}
    scores = jnp.einsum("BTNH,BSNH->BNTS", content, k, **exact)
    scores += shifted(jnp.einsum("BTNH,PNH->BNTP", position, places, **exact))
    if types is None:
        return scores
    by_kind = jnp.einsum("BTNH,KNH->BNTK", segment, kinds, **exact)
    other = (types[:, :, None] != types[:, None, :])[:, None]
    return scores + jnp.where(other, by_kind[..., 1:], by_kind[..., :1])


class TwoStreamBlock(nn.Module):
    """A layer on the streams: (content,) or (content, query)."""

    config: TransformerConfig
    train: bool
    experts: bool = False

    @nn.compact
    def __call__(self, streams: tuple, cache: None, shared: dict[str, Any], local: Any = None):
        c, train = self.config, self.train
        read = RelativeAttention(c, train, name="attention")(streams, shared)
        # One behind the other: both go through the same norms and the same MLP.
        count, x = len(streams), jnp.concatenate(streams, axis=1)
        x = add(c, "attention", x, jnp.concatenate(read, axis=1), train)
        y = feed_forward(c, self.experts, x, shared, train)
        x = add(c, "mlp", x, y, train)
        return tuple(jnp.split(x, count, axis=1)), cache


class TwoStreams(Stack):
    """The layers of `Stack`, scanned and rematerialised as its configuration says."""

    @nn.compact
    def __call__(self, streams: tuple, shared: dict[str, Any], train: bool) -> tuple:
        """streams [B, S, D]; shared: "masks" as of `stream_masks`, "sinusoids" [1, 2 S, D] and
        "types" int [B, S] or None."""
        return self._layers(streams, None, shared, train)[0]


class XLNet(nn.Module):
    """XLNet and its heads; `architectures.EncoderOnly` with another middle."""

    config: TransformerConfig
    dtype: Any  # of activations

    def setup(self):
        c = self.config
        std = 0.02 if c.init_std is None else c.init_std
        self.token_embedder = Embed(c.vocab_size, c.embed_dim, ("vocab", "embed"), std)
        self.mask_embedder = Embed(1, c.embed_dim, ("position", "embed"), std)
        self.encoder = TwoStreams(c, TwoStreamBlock, c.num_encoder_layers, True, "encoder_norm")
        self.drop = nn.Dropout(c.dropout_rate)
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
        """tokens, segment ids (0 = padding), token types (None: no term of theirs) int32 [B, S].

        order: int32 [B, S], each token's turn (data/objectives/permutation.py); the heads read the
        query stream. None: there is no query stream, and the heads read the content's. Positions
        are distances within a row, so ``positions`` isn't read.
        """
        B, S = tokens.shape
        streams = (self.token_embedder(tokens, self.dtype),)
        nothing = self.mask_embedder(jnp.zeros_like(tokens), self.dtype)
        streams += () if order is None else (nothing,)
        streams = tuple(self.drop(x, deterministic=not train) for x in streams)
        places = sinusoids(S, self.config.embed_dim).astype(self.dtype)[None]
        shared = {
            "masks": stream_masks(order, segments),
            "sinusoids": self.drop(places, deterministic=not train),
            "types": types,
        }
        streams = self.encoder(streams, shared, train)
        return self.heads(self.drop(streams[-1], deterministic=not train), train)
