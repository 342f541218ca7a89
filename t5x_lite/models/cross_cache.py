"""What a decoder reads of an encoder's output, computed once for all of its steps."""

from typing import Any

import jax

from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.functional.fusing import split_heads
from t5x_lite.models.layers import Norm

Params = dict[str, Any]


def cross_cache(config: TransformerConfig, decoder: Params, encoded: jax.Array) -> Any:
    """Every layer's keys and values [B, K, S, H] of the encoder's output [B, S, D]."""

    def project(dense: Params) -> jax.Array:
        y = encoded @ dense["kernel"].astype(encoded.dtype)
        return y + dense["bias"].astype(y.dtype) if "bias" in dense else y

    def heads(layer: Params, name: str, y: jax.Array) -> jax.Array:
        y = y.reshape(*y.shape[:-1], config.kv_heads, config.head_dim)
        if f"{name}_norm" in layer:
            y = Norm(config).apply({"params": layer[f"{name}_norm"]}, y)
        return y.swapaxes(1, 2)

    def cache(layer: Params) -> dict[str, jax.Array]:
        if config.fused_projections:
            widths = [config.kv_heads * config.head_dim] * 2
            found = split_heads(project(layer["kv"]), config.kv_heads, widths)
        else:
            found = [project(layer[name]) for name in ("key", "value")]
        both = zip(("key", "value"), found, strict=True)
        return {name: heads(layer, name, y) for name, y in both}

    attention = "encoder_decoder_attention"
    if config.scan_layers:
        return jax.lax.map(cache, decoder["layers"][attention])
    layers = (decoder[f"layers_{i}"] for i in range(config.num_decoder_layers))
    return tuple(cache(layer[attention]) for layer in layers)
