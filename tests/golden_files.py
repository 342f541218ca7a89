"""Reading the golden files, and the model that they are about."""

from pathlib import Path

import numpy as np

from t5x_lite.models import Model, TransformerConfig, stack_layers

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
