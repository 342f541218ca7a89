"""Model FLOPs: what the mathematics needs, whatever the program does (nothing recomputed)."""

from collections.abc import Mapping

from t5x_lite.models.config import TransformerConfig

PAIRS = ("encoder_anchor", "encoder_positive", "encoder_negative")


def train_flops(config: TransformerConfig, lengths: Mapping[str, int], batch_size: int) -> float:
    """FLOPs of one training step: three times the forward pass's matrix products.

    Scores and values count in full (no discount for causal masks), embedding lookups are free,
    padding counts as tokens, and of a mixture's experts those that a token goes to, with the
    router. ``lengths`` are the features' (encoder_input_tokens, decoder_target_tokens).
    """
    c = config
    T = lengths.get("decoder_target_tokens", 0)
    S = lengths.get("encoder_input_tokens", 0)
    if pairs := [lengths[name] for name in PAIRS if name in lengths]:  # all read at one length
        S, batch_size = max(pairs), batch_size * len(pairs)
    width, kv_width = c.num_heads * c.head_dim, c.kv_heads * c.head_dim
    query_and_out, key_and_value = 2 * c.embed_dim * width, 2 * c.embed_dim * kv_width
    mlp = (len(c.mlp_activations) + 1) * c.embed_dim * c.mlp_dim
    more = c.experts_per_token * mlp + c.embed_dim * c.num_experts - mlp  # than an MLP

    macs = c.num_encoder_layers * (S * (query_and_out + key_and_value + mlp) + 2 * S * S * width)
    decoder = T * (query_and_out + key_and_value + mlp) + 2 * T * T * width
    if c.has_encoder:
        decoder += T * query_and_out + S * key_and_value + 2 * T * S * width
    macs += c.num_decoder_layers * decoder + T * c.embed_dim * c.vocab_size
    if c.architecture == "encoder_only":
        L, streams = c.num_encoder_layers, 1
        if "encoder_order" in lengths:  # XLNet's second stream has no keys of its own
            streams = 2
            macs += L * (S * (query_and_out + mlp) + 2 * S * S * width)
        if c.positions == "transformer_xl":  # the scores of distances, of which there are 2 S
            macs += streams * L * 2 * S * S * width
        if {"masked_lm", "lm"} & set(c.encoder_heads) and not pairs:
            macs += S * c.embed_dim * c.vocab_size
        if "masked_lm" in c.encoder_heads and not pairs:
            macs += S * c.embed_dim * c.embed_dim
    for length, layers in ((S, c.num_encoder_layers), (T, c.num_decoder_layers)):
        macs += length * more * sum(map(c.has_experts, range(layers)))
    return 3 * 2 * float(macs) * batch_size
