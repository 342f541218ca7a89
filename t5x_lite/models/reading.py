"""How a module reads a batch: the features' names, and what is missing of them."""

import jax
import jax.numpy as jnp

from t5x_lite.models.architectures import EncoderOnly, Transformer
from t5x_lite.models.functional.attention import decoder_mask, segment_mask
from t5x_lite.models.heads import Outputs
from t5x_lite.models.xlnet import XLNet

Batch = dict[str, jax.Array]


def segments_of(batch: Batch, side: str, tokens: str) -> jax.Array:
    """Segment ids [B, length], 0 where there is padding."""
    if f"{side}_segment_ids" in batch:
        return batch[f"{side}_segment_ids"]
    return (batch[tokens] != 0).astype(jnp.int32)  # below 0: of a soft prompt


def positions_of(batch: Batch, side: str, tokens: str) -> jax.Array:
    if f"{side}_positions" in batch:
        return batch[f"{side}_positions"]
    return jnp.arange(batch[tokens].shape[1])[None]


def encoded(module: EncoderOnly | XLNet, batch: Batch, train: bool = False) -> Outputs:
    return module(
        batch["encoder_input_tokens"],
        segments_of(batch, "encoder", "encoder_input_tokens"),
        positions_of(batch, "encoder", "encoder_input_tokens"),
        batch.get("encoder_types"),
        batch.get("encoder_order"),
        train,
    )


def encode(module: Transformer, batch: Batch, train: bool = False) -> jax.Array:
    segments = segments_of(batch, "encoder", "encoder_input_tokens")
    positions = positions_of(batch, "encoder", "encoder_input_tokens")
    return module.encode(batch["encoder_input_tokens"], segments, positions, train)


def logits(
    module: Transformer, batch: Batch, train: bool = False, output: str = "logits"
) -> jax.Array:
    # Padding is where the *targets* are 0: the first decoder input is 0 too, and is no padding.
    segments = segments_of(batch, "decoder", "decoder_target_tokens")
    encoded = cross_mask = None
    if module.config.has_encoder:
        encoded = encode(module, batch, train)
        encoder_segments = segments_of(batch, "encoder", "encoder_input_tokens")
        cross_mask = segment_mask(segments, encoder_segments)
    mask = decoder_mask(segments, batch.get("decoder_causal_attention"))
    logits, _ = module.decode(
        batch["decoder_input_tokens"],
        mask=mask.replace(window=module.config.attention_window),
        positions=positions_of(batch, "decoder", "decoder_target_tokens"),
        encoded=encoded,
        cross_mask=cross_mask,
        valid=segments > 0,
        train=train,
        output=output,
    )
    return logits
