"""Predicts a small task on all devices of all processes, for test_prediction_processes.py."""

import dataclasses
import json
from pathlib import Path

import jax
import tiny
from jax.sharding import NamedSharding, PartitionSpec

import t5x_lite as tl
from t5x_lite.evaluation.metrics.classification import accuracy
from t5x_lite.evaluation.metrics.likelihood import perplexity
from t5x_lite.parallel.mesh import MeshConfig
from t5x_lite.parallel.rules import use_mesh
from t5x_lite.programs.held_out import HeldOut
from t5x_lite.training.setup import set_up


def predict_to(path: str) -> None:
    """Writes the rows and values that this process has to PATH.INDEX.json."""
    records = [{"inputs": f"is {i} odd", "targets": "no" if i % 2 else "yes"} for i in range(11)]
    task = tl.Task(
        name="odd",
        source=tl.InMemory(["x"], validation=records),
        objective=tl.TextToText(),
        vocabulary=tl.ByteVocabulary(),
        metrics=[accuracy, perplexity],
    )
    model = dataclasses.replace(tiny.T5, num_encoder_layers=1, num_decoder_layers=1)
    setup = set_up(model, task, {"inputs": 16, "targets": 4}, 8, MeshConfig(data=8), pack=False)
    everywhere = NamedSharding(setup.mesh, PartitionSpec())
    with use_mesh(setup.mesh, setup.rules):
        params = jax.jit(setup.model.init, out_shardings=everywhere)(jax.random.key(0))
        result, rows = HeldOut(setup, None).judge_texts(params)
    found = {"values": result["values"], "rows": rows}
    Path(f"{path}.{jax.process_index()}.json").write_text(json.dumps(found))
