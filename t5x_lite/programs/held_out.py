"""Held-out data of a set-up, and what a model makes of it; for `train` and `eval`."""

from collections.abc import Iterator
from typing import Any

import jax

from t5x_lite.data.loader import eval_batches
from t5x_lite.data.tasks import Mixture, Task
from t5x_lite.evaluation.evaluator import evaluate, unigram_baseline
from t5x_lite.programs.setup import Features, Setup
from t5x_lite.training.step import make_eval_step


class HeldOut:
    """The validation split of a set-up's task: at most ``batch_count`` batches (None: all)."""

    def __init__(self, setup: Setup, batch_count: int | None):
        self._setup, self._count = setup, batch_count
        self._byte_lengths = setup.task.vocabulary.byte_lengths
        self._step = jax.jit(make_eval_step(setup.model, self._byte_lengths))

    def batches(self, part: Task | Mixture | None = None) -> Iterator[Features]:
        """This process's rows of each batch; of the whole task or of one in its mixture."""
        setup = self._setup
        return eval_batches(
            part or setup.task,
            lengths=setup.lengths,
            batch_size=setup.batch_size,
            architecture=setup.architecture,
            rows=setup.rows,
            max_batches=self._count,
        )

    def evaluate(self, params: Any, *, each_task: bool = True) -> dict[str, float]:
        """Metrics, and with ``each_task`` TASK/METRIC of every task of a mixture."""
        metrics = self._evaluate(params, None)
        if each_task and isinstance(self._setup.task, Mixture):
            for leaf, _ in self._setup.task.leaves:
                found = self._evaluate(params, leaf)
                metrics |= {f"{leaf.name}/{name}": value for name, value in found.items()}
        return metrics

    def _evaluate(self, params: Any, part: Task | None) -> dict[str, float]:
        return evaluate(self._step, params, self._setup.place_all(self.batches(part)))

    def unigram(self) -> dict[str, float]:
        """unigram_loss, unigram_bits_per_byte: of the data's own unigram model."""
        found = unigram_baseline(self.batches(), self._byte_lengths)
        return {f"unigram_{name}": value for name, value in found.items()}
