"""Reading the golden files, and the model that they are about."""

import functools
from pathlib import Path

import numpy as np

import t5x_lite as tl
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.model import Model
from t5x_lite.models.transformer import stack_layers

FOLDER = Path(__file__).parent / "golden"

# The parameters in tiny_params.npz are this model's, unrolled.
TINY = TransformerConfig(
    vocab_size=128,
    embed_dim=32,
    num_heads=4,
    head_dim=8,
    mlp_dim=64,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dtype="float32",
)


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / name) as file:
        return dict(file)


def tree(arrays: dict[str, np.ndarray], prefix: str = "") -> dict:
    """{"a/b": x} -> {"a": {"b": x}}, of the names that begin with ``prefix``."""
    root: dict = {}
    for name, value in arrays.items():
        if name.startswith(prefix):
            *parents, last = name[len(prefix) :].split("/")
            node = root
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
    return root


def tiny_model() -> tuple[Model, dict]:
    """The golden model, scanned, and its parameters."""
    return Model(TINY), stack_layers(tree(load("tiny_params.npz")))


@functools.cache
def model_of(folder: str, name: str) -> tuple[Model, dict, dict[str, np.ndarray]]:
    """One of the models of transformers in a folder: it, its parameters, and what it computed."""
    model, params, vocabulary = tl.from_pretrained(FOLDER / folder / name, dtype="float32")
    assert vocabulary is None
    return model, params, load(f"{folder}/{name}/outputs.npz")
