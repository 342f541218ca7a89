"""A tiny encoder-decoder with random weights, as a folder and a config that `serve` takes."""

from pathlib import Path

import jax
import tiny

from t5x_lite import config
from t5x_lite.interop.pretrained import save_pretrained
from t5x_lite.models.model import Model

BINDINGS = [
    "TransformerConfig.num_encoder_layers=1", "TransformerConfig.num_decoder_layers=1",
    "TransformerConfig.embed_dim=16", "TransformerConfig.mlp_dim=16",
    "TransformerConfig.num_heads=2", "TransformerConfig.head_dim=8",
    'LENGTHS={"inputs": 32, "targets": 24}',
    "ServeConfig.slots=3", "ServeConfig.max_waiting=6", "ServeConfig.max_texts=4",
    "ServeConfig.max_body_bytes=5000", "ServeConfig.read_seconds=1.0",
    "ServeConfig.grace_seconds=3.0", 'ChatTemplate.name="plain"',
]  # fmt: skip


def parse(folder: Path, bindings: list[str] = BINDINGS) -> None:
    """Into the current configuration, which `config.fresh` ends."""
    (folder / "a.txt").write_text("a text\n" * 50)
    file = folder / "tiny.gin"
    file.write_text(f'{tiny.GIN}TEXT = "{folder}/*.txt"\nMODEL_DIR = "{folder}/run"\n')
    config.parse([str(file)], bindings, root="infer")


def weights(folder: Path) -> Path:
    """A folder of Hugging Face with the weights of the model in the current configuration."""
    model = Model(config.evaluate("infer.model"))
    # Larger than at the beginning of training: else what is written hardly depends on the input.
    params = jax.tree.map(lambda x: x * 4, jax.jit(model.init)(jax.random.key(0)))
    save_pretrained(folder / "weights", model, params)
    return folder / "weights"
