"""Bitwise resume over objectives, mixtures, packing, optimizers, dtypes, dropout, micro-batches.

The parts of the training program without the program: one compilation serves the uninterrupted and
the continued run.
"""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

import t5x_lite as tl
from t5x_lite.parallel.rules import use_mesh
from t5x_lite.training.checkpoints import CheckpointConfig, Checkpoints
from t5x_lite.training.guards import SpikeGuard
from t5x_lite.training.optimizers import Adafactor, AdamW, Lion, Muon, RmsScaledAdamW
from t5x_lite.training.recovery import restore_newest
from t5x_lite.training.schedules import constant, cosine
from t5x_lite.training.setup import set_up
from t5x_lite.training.state import abstract_state, init_state
from t5x_lite.training.step import make_train_step

PAIRS = [{"inputs": d["text"][:40], "targets": d["text"][40:50]} for d in tiny.documents()]


def task(objective, name="tiny", records=None):
    source = tl.InMemory(records or tiny.documents(), held_out=0.2)
    return tl.Task(name=name, source=source, objective=objective, vocabulary=tl.ByteVocabulary())


def mixture():
    span = task(tl.SpanCorruption(), "spans")
    prefix = task(tl.PrefixLM(), "prefix")
    return tl.Mixture("both", (span, prefix), (0.7, 0.3))


CASES = {
    "span corruption, adamw, bf16, dropout": dict(
        task=task(tl.SpanCorruption()),
        model=dataclasses.replace(tl_t5 := tiny.dropout(tiny.T5), dtype="bfloat16"),
        optimizer=AdamW(schedule=cosine(peak_rate=3e-3, total_steps=12, warmup_steps=3)),
    ),
    "mixture, adafactor, micro-batches, dropout": dict(
        task=mixture(),
        lengths={"inputs": 32, "targets": 32},
        model=tl_t5,
        optimizer=Adafactor(schedule=constant(rate=1e-2)),
        batch_size=16,
        microbatches=2,
    ),
    "text to text, not packed, lion, spike guard": dict(
        task=task(tl.TextToText(), records=PAIRS),
        pack=False,
        optimizer=Lion(schedule=constant(rate=5e-2)),  # so high that the loss jumps: spikes
        guard=SpikeGuard(window=4, sigma=0.5),
    ),
    "lm, concatenated, muon, fsdp and tensor": dict(
        task=task(tl.CausalLM()),
        model=tiny.dropout(tiny.LM),
        lengths={"targets": 48},
        pack="concat",
        optimizer=Muon(schedule=constant(rate=1e-3)),
        mesh=tl.MeshConfig(data=2, fsdp=2, tensor=2),
    ),
    "prefix lm, best fit, rms-scaled adamw": dict(
        task=task(tl.PrefixLM()),
        model=tiny.LM,
        lengths={"inputs": 32, "targets": 32},
        pack="best_fit",
        optimizer=RmsScaledAdamW(schedule=constant(rate=1e-2)),
    ),
}


class Run:
    """A model in training, with its loader, and a state that can be saved and restored."""

    def __init__(
        self, *, task, optimizer, model=tiny.T5, lengths=tiny.LENGTHS, batch_size=8,
        pack=True, microbatches=1, mesh=None, guard=None,
    ):  # fmt: skip
        self.setup = set_up(model, task, lengths, batch_size, mesh, pack=pack)
        transform = optimizer.build(
            self.setup.model.abstract_params(), self.setup.model.logical_axes()
        )
        self.abstract = abstract_state(
            self.setup.model, transform, self.setup.mesh, self.setup.rules, guard
        )
        self.init = lambda: init_state(self.setup.model, transform, self.abstract, 0, guard)
        self.new_loader = lambda: tl.BatchLoader(
            task, lengths=dict(lengths), batch_size=batch_size, seed=0, pack=pack,
            architecture=model.architecture,
        )  # fmt: skip
        self.step = jax.jit(
            make_train_step(
                self.setup.model, transform, optimizer.schedule, num_microbatches=microbatches,
                guard=guard,
            ),
            donate_argnums=0,
            out_shardings=(jax.tree.map(lambda x: x.sharding, self.abstract), None),
        )  # fmt: skip

    def train(self, state, loader, steps, checkpoints=None, save_at=()):
        """Returns the state, the position and every metric of every step."""
        metrics = {}
        with use_mesh(self.setup.mesh, self.setup.rules):
            for step in steps:
                batch = next(loader)
                state, values = self.step(state, self.setup.place(batch.features))
                metrics[step] = values
                if step in save_at:
                    checkpoints.save(
                        step, state.to_dict(), data_position=batch.position, description={}
                    )
        return state, batch.position, jax.device_get(metrics)


@pytest.mark.parametrize("name", CASES)
def test_what_is_continued_equals_what_was_never_interrupted(name, tmp_path):
    """Asynchronous saves at steps 4 and 5 do no harm, and each can be continued from."""
    run = Run(**CASES[name])
    with Checkpoints(tmp_path, CheckpointConfig(keep_latest=None)) as checkpoints:
        expected = run.train(run.init(), run.new_loader(), range(1, 11), checkpoints, (4, 5))
    for saved in (5, 4):
        restored = restore_newest(Checkpoints(tmp_path), run.abstract.to_dict())
        assert restored.step == saved
        loader = run.new_loader()
        loader.restore(restored.position)
        state = tl.TrainState(**restored.state)
        found = run.train(state, loader, range(saved + 1, 11))
        for step, metrics in found[2].items():
            assert metrics == expected[2][step], step
        np.testing.assert_array_equal(found[1], expected[1])
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(expected[0]), jax.tree.leaves(found[0]), strict=True
        ):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path
        Checkpoints(tmp_path).set_aside(saved)
    if "guard" in CASES[name]:
        assert any(metrics["bad_steps"] for metrics in expected[2].values())
