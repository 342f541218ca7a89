"""Run by test_every_mesh.py: one training step of a tiny model on each mesh, results as JSON lines.

python one_step.py '[["t5", "float32", {"tensor": 2}], ...]'
"""

import dataclasses
import json
import math
import sys

import jax
import tiny

import t5x_lite as tl
from t5x_lite.data.objectives.masked import MaskedLM
from t5x_lite.parallel.mesh import AXES, MeshConfig
from t5x_lite.parallel.rules import use_mesh
from t5x_lite.training.build import build, fresh_state
from t5x_lite.training.schedules import constant
from t5x_lite.training.setup import set_up

SIZES = dict(embed_dim=32, num_heads=8, head_dim=8, mlp_dim=64)
ARCHITECTURES = {
    "t5": (tiny.T5, tl.SpanCorruption(), {"inputs": 64, "targets": 16}),
    "lm": (tiny.LM, tl.CausalLM(), {"targets": 64}),
    "bert": (
        dataclasses.replace(tiny.BERT, encoder_heads=("masked_lm",)),
        MaskedLM(),
        {"inputs": 64, "labels": 64},
    ),
}


def loss(architecture: str, dtype: str, sizes: dict[str, int]) -> float:
    """The loss of the first step, on the first devices."""
    config, objective, lengths = ARCHITECTURES[architecture]
    config = dataclasses.replace(config, dtype=dtype, num_kv_heads=None, **SIZES)
    devices = jax.devices()[: math.prod(sizes.values())]
    mesh = MeshConfig(**{axis: sizes.get(axis, 1) for axis in AXES})
    setup = set_up(config, tiny.task(objective), lengths, 8, mesh, devices=devices)
    training = build(setup, tl.AdamW(schedule=constant(rate=1e-3)))
    state = fresh_state(training, setup.model, 0, None)
    loader = tl.BatchLoader(
        setup.task, lengths=lengths, batch_size=8, seed=0, rows=setup.rows,
        architecture=config.architecture,
    )  # fmt: skip
    batch = setup.place(next(iter(loader)).features)
    with use_mesh(setup.mesh, setup.rules):
        _, metrics = training.step(state, batch)
    return float(metrics["loss"])


if __name__ == "__main__":
    for case in json.loads(sys.argv[1]):
        try:
            found = loss(*case)
        except Exception as error:  # told, so that the other meshes are tried, too
            found = f"{type(error).__name__}: {error}"[:500]
        print(json.dumps([*case, found]), flush=True)
