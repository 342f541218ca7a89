"""Formulas for a step's memory, memory traffic and communication, without a compiler.

Exact for parameters, optimizer state and gradients. Activations are estimated for a plain
Transformer: good enough to rank layouts and to find those that can't fit. For GPUs and CPUs there
is no other source.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax

from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.flops import train_flops
from t5x_lite.parallel.mesh import fsdp_axes
from t5x_lite.training.setup import Setup
from t5x_lite.training.state import TrainState, trained_part


def shard_bytes(tree: Any) -> int:
    """Bytes of a tree of abstract arrays on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def tree_bytes(tree: Any) -> int:
    """Bytes of a tree of abstract arrays, all devices together."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def state_memory(state: TrainState) -> dict[str, int]:
    """Bytes on one device: parameters, optimizer, and gradients (as large as what is trained)."""
    return {
        "parameters": shard_bytes(state.params),
        "optimizer": shard_bytes(state.opt_state),
        "gradients": shard_bytes(trained_part(state)),
    }


# What each remat policy of models/transformer.py keeps of a block, and the share of a block's
# forward pass that it recomputes (roughly: attention scores are a tenth, the projections the rest).
_KEPT = {
    "full": (),
    "offload": (),
    "save_qkv": ("qkv",),
    "save_attention": ("qkv", "attended"),
    "minimal": ("qkv", "attended", "out", "wi"),
    "dots_no_batch": ("qkv", "out", "wi", "wo"),
    "dots": ("qkv", "scores", "attended", "out", "wi", "wo"),
    "none": ("qkv", "scores", "attended", "out", "wi", "wo", "others"),
}
_AGAIN = {"full": 0.95, "offload": 0.7, "save_qkv": 0.7, "save_attention": 0.6, "minimal": 0.05,
          "dots_no_batch": 0.1, "dots": 0.0, "none": 0.0}  # fmt: skip


def _block(c: TransformerConfig, length: int, keys: int, cross: int, tensor: int) -> dict:
    """Bytes per row of a block's activations, by name; ``cross``: the encoder's length, or 0."""
    b, twice = (4 if c.dtype == "float32" else 2), (2 if cross else 1)
    embed = length * c.embed_dim * b
    flash = c.positions != "relative" and b == 2  # attention scores stay in on-chip memory
    return {
        "input": embed,
        "qkv": twice * length * (c.num_heads + 2 * c.kv_heads) * c.head_dim * b / tensor,
        "scores": 0 if flash else 1.5 * c.num_heads / tensor * length * 4 * (keys + cross),
        "attended": twice * length * c.num_heads * c.head_dim * b / tensor,
        "out": twice * embed,
        "wi": length * len(c.mlp_activations) * c.mlp_dim * b / tensor,
        "wo": embed,
        "others": 4 * embed + 2 * length * c.mlp_dim * b / tensor,
    }


def activation_memory(
    c: TransformerConfig, lengths: Mapping[str, int], rows: float, tensor: int = 1
) -> float:
    """Peak bytes of activations on one device with ``rows`` rows at a time, by remat policy."""
    T, S = (lengths.get(name, 0) for name in ("decoder_target_tokens", "encoder_input_tokens"))

    def stack(layers: int, length: int, keys: int, cross: int) -> float:
        parts = _block(c, length, keys, cross, tensor)
        kept = layers * sum(parts[name] for name in ("input", *_KEPT[c.remat]))
        return kept + sum(parts.values())  # the block that is in its backward pass

    bytes_ = stack(c.num_decoder_layers, T, T, S)
    if c.has_encoder:
        bytes_ += stack(c.num_encoder_layers, S, S, 0)
    logits = 2.5 * (T or S) * c.vocab_size / tensor * 4
    return rows * (bytes_ + logits)


def counts(setup: Setup, state: TrainState, num_microbatches: int = 1) -> dict[str, Any]:
    """What `compile.examine` returns, from formulas: FLOPs, HBM bytes, collectives, memory."""
    dtype = jax.numpy.dtype(setup.model.dtype).name
    c, mesh = dataclasses.replace(setup.model.config, dtype=dtype), setup.mesh.shape
    devices, tensor, data = setup.mesh.size, mesh["tensor"], mesh["data"]
    fsdp = math.prod(mesh[axis] for axis in fsdp_axes(setup.mesh))
    shards = devices // tensor
    model_flops = train_flops(c, setup.feature_lengths, setup.batch_size)
    remat = _AGAIN[c.remat] / 3
    b = 4 if c.dtype == "float32" else 2
    parameters = tree_bytes(state.params) / 4
    memory = state_memory(state)
    rows = setup.batch_size / shards / num_microbatches
    memory["activations"] = int(
        activation_memory(c, setup.feature_lengths, rows, tensor)
        + (2 * parameters * b / max(1, c.num_decoder_layers + c.num_encoder_layers))
    )
    tokens = setup.tokens_per_batch / shards
    layers = c.num_encoder_layers + c.num_decoder_layers
    # Weights in both passes, each layer's activations some 20 times, the optimizer's update.
    hbm = (
        3 * num_microbatches * parameters * b / tensor
        + 20 * tokens * layers * b * (c.embed_dim + c.mlp_dim / tensor)
        + 3 * 4 * tokens * c.vocab_size / tensor
        + 2 * (memory["parameters"] + memory["optimizer"]) + 2 * memory["gradients"]
    )  # fmt: skip
    rows_: list[dict[str, Any]] = []

    def sends(kind: str, axes: str, n: int, bytes_: float, times: int) -> None:
        if n > 1:
            rows_.append(
                {"kind": kind, "axes": axes, "members": list(range(n)), "times": times,
                 "bytes": bytes_ * times * (n - 1) / n, "overlapped": bytes_ * times * (n - 1) / n}
            )  # fmt: skip

    sends("all-gather", "fsdp", fsdp, parameters * b / tensor, 2 * num_microbatches)
    sends("reduce-scatter", "fsdp", fsdp, parameters * b / tensor, num_microbatches)
    sends("all-reduce", "data", data, 2 * parameters * 4 / tensor / fsdp, 1)
    blocks = 4 * c.num_encoder_layers + (6 if c.has_encoder else 4) * c.num_decoder_layers
    sends("all-reduce", "tensor", tensor, 2 * tokens * c.embed_dim * b, blocks)
    return {
        "matmul_flops": {"forward": model_flops / 3 / devices, "backward": model_flops / 1.5 /
                         devices, "recomputed": model_flops * remat / devices, "update": 0.0},
        "hbm_bytes": hbm,
        "busy_seconds": None,
        "collectives": rows_,
        "memory": memory,
        "buffers": [],
    }  # fmt: skip
