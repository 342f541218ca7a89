"""A model, a task and an optimizer small enough for a test, and what compares two runs of them."""

import dataclasses
import json
from pathlib import Path

import numpy as np

import t5x_lite as tl
from t5x_lite.training.optimizers import AdamW
from t5x_lite.training.schedules import constant

T5 = tl.TransformerConfig(
    vocab_size=384,
    embed_dim=32,
    num_heads=4,
    head_dim=8,
    mlp_dim=64,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dtype="float32",
)
LM = tl.TransformerConfig(
    architecture="decoder_only",
    vocab_size=384,
    embed_dim=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=64,
    num_decoder_layers=2,
    positions="rope",
    scale_attention=True,
    tied_embeddings=True,
    dtype="float32",
)
BERT = tl.TransformerConfig(
    architecture="encoder_only",
    vocab_size=384,
    embed_dim=32,
    num_heads=4,
    head_dim=8,
    mlp_dim=64,
    num_decoder_layers=0,
    num_encoder_layers=1,
    norm="layer",
    norm_placement="post",
    embedding_norm=True,
    positions="learned",
    max_positions=128,
    token_types=2,
    use_bias=True,
    scale_attention=True,
    tied_embeddings=True,
    scale_tied_logits=False,
    init_std=0.05,
    mlp_activations=("gelu_exact",),
    dtype="float32",
)
LENGTHS = {"inputs": 64, "targets": 16}
# A run of 4 steps on the lines of the files TEXT.
GIN = """
include "runs/base.gin"
include "models/t5_1_1_tiny.gin"
include "optimizers/adamw.gin"
TASK = @Task()
Task.name = "sentences"
Task.source = @TextFiles()
TextFiles.files = %TEXT
TextFiles.held_out = 0.2
Task.objective = @SpanCorruption()
Task.vocabulary = @ByteVocabulary()
TransformerConfig.vocab_size = 384
LENGTHS = {"inputs": 64, "targets": 16}
BATCH_SIZE = 8
TOTAL_STEPS = 4
PEAK_RATE = 0.003
WARMUP_STEPS = 1
train.eval_batch_count = 1
"""


def documents(count: int = 60) -> list[dict[str, str]]:
    """Sentences that a tiny model can learn something about."""
    rng = np.random.default_rng(0)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "then"]
    return [{"text": " ".join(rng.choice(words, rng.integers(20, 90)))} for _ in range(count)]


def task(objective=None) -> tl.Task:
    return tl.Task(
        name="tiny",
        source=tl.InMemory(documents(), held_out=0.2),
        objective=objective or tl.SpanCorruption(),
        vocabulary=tl.ByteVocabulary(),
    )


def arguments(model_dir, **changes) -> dict:
    """What `train` needs, on 8 devices."""
    return {
        "model_dir": str(model_dir),
        "model": T5,
        "task": task(),
        "lengths": LENGTHS,
        "batch_size": 8,
        "total_steps": 6,
        "optimizer": AdamW(schedule=constant(rate=3e-3)),
        "log_period": 1,
        "eval_period": 1000,
        "eval_batch_count": 1,
        "num_samples": 0,
    } | changes


def dropout(config: tl.TransformerConfig, rate: float = 0.1) -> tl.TransformerConfig:
    return dataclasses.replace(config, dropout_rate=rate)


def logged(model_dir, name: str = "loss") -> dict[int, float]:
    """step -> value, of a run's metrics.jsonl."""
    lines = Path(model_dir, "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {record["step"]: record[name] for record in records if name in record}
