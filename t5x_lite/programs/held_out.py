"""Held-out data of a set-up, and what a model makes of it; for `train` and `eval`."""

from collections.abc import Callable, Iterator
from typing import Any

import jax

from t5x_lite.data.loader import eval_batches
from t5x_lite.data.tasks import Mixture, Task
from t5x_lite.evaluation.evaluator import evaluate, unigram_baseline
from t5x_lite.evaluation.heads import OBJECTIVES
from t5x_lite.evaluation.metrics.base import check_installed
from t5x_lite.evaluation.predictions import Predictor, Row, TextEvaluation
from t5x_lite.evaluation.results import TEXT, judge
from t5x_lite.evaluation.samples import predict_samples
from t5x_lite.programs.early_stopping import EarlyStopping
from t5x_lite.programs.embed import StsEvaluation
from t5x_lite.training.setup import Features, Setup
from t5x_lite.training.step import make_eval_step


class HeldOut:
    """The validation split of a set-up's task: at most ``batch_count`` batches (None: all)."""

    def __init__(
        self,
        setup: Setup,
        batch_count: int | None,
        loss: Any = None,
        *,
        split: str = "validation",
        text: TextEvaluation | None = None,
        sts: StsEvaluation | None = None,
        early_stopping: EarlyStopping | None = None,
    ):
        self._setup, self._count, self._split = setup, batch_count, split
        self.look: Callable[[], None] = lambda: None  # called before each batch; it may raise
        self._text = text or TextEvaluation()
        self._early_stopping = early_stopping or EarlyStopping()
        self._sts, self._pooling = sts or StsEvaluation(), getattr(loss, "pooling", "mean")
        if self._text.during_training:  # said now, not at the first evaluation
            check_installed(m for leaf, _ in setup.task.leaves for m in leaf.metrics)
        self._predictor = Predictor(
            setup.model, setup.lengths, setup.batch_size, setup.rows, self._place, self._text
        )
        self._byte_lengths = setup.task.vocabulary.byte_lengths
        self._step = jax.jit(make_eval_step(setup.model, self._byte_lengths, loss))

    def batches(self, part: Task | Mixture | None = None) -> Iterator[Features]:
        """This process's rows of each batch; of the whole task or of one in its mixture."""
        setup = self._setup
        found = eval_batches(
            part or setup.task,
            lengths=setup.lengths,
            batch_size=setup.batch_size,
            architecture=setup.architecture,
            split=self._split,
            rows=setup.rows,
            max_batches=self._count,
        )
        for batch in found:
            self.look()
            yield batch

    def _place(self, features: Features) -> dict[str, jax.Array]:
        self.look()
        return self._setup.place(features)

    def evaluate(self, params: Any, *, each_task: bool = True) -> dict[str, float]:
        """Metrics of tokens, and with ``each_task`` TASK/METRIC of every task of a mixture.

        Then those that the tasks name, of texts: text/METRIC, or text/TASK/METRIC of a mixture;
        and of sentence vectors, sts/METRIC.
        """
        metrics = self._evaluate(params, None)
        if each_task and isinstance(self._setup.task, Mixture):
            for leaf, _ in self._setup.task.leaves:
                found = self._evaluate(params, leaf)
                metrics |= {f"{leaf.name}/{name}": value for name, value in found.items()}
        with jax.transfer_guard("allow"):
            metrics |= self._sts.values(self._setup, params, self._pooling)
        if each_task and self._text.during_training:
            metrics |= self.judge_texts(params)[0]["values"]
        return metrics

    def judge_texts(self, params: Any, samples: int = 0) -> tuple[Row, list[Row]]:
        """What the tasks' metrics say ("values", "notes", "intervals" by name), and predictions.

        ``samples``: of the bootstrap, for the intervals; 0: none.
        """
        result: Row = {"values": {}, "notes": {}, "intervals": {}}
        rows: list[Row] = []
        limit = None if self._count is None else self._count * self._setup.batch_size
        several = len(self._setup.task.leaves) > 1
        for leaf, _ in self._setup.task.leaves:
            headed = isinstance(leaf.objective, OBJECTIVES)
            if not leaf.metrics or (self._setup.model.encoder_only and not headed):
                continue
            with jax.transfer_guard("allow"):
                found = self._predictor.predict(params, leaf, self._split, limit)
            self.look()
            prefix = f"{TEXT}{leaf.name}/" if several else TEXT
            for kind, values in judge(leaf, found, samples=samples).items():
                result[kind] |= {f"{prefix}{name}": value for name, value in values.items()}
            rows += found
        return result, rows

    def exhausted(self, step: int) -> bool:
        """Whether early stopping ends the run, by what was logged up to ``step``."""
        return self._early_stopping.is_over(step)

    def _evaluate(self, params: Any, part: Task | None) -> dict[str, float]:
        return evaluate(self._step, params, self._setup.place_all(self.batches(part)))

    def samples(self, params: Any, count: int) -> list[dict[str, str]]:
        """The first examples as text, with the model's predictions."""
        setup, task = self._setup, self._setup.task.leaves[0][0]
        if isinstance(task.objective, OBJECTIVES):
            rows = self._predictor.predict(params, task, self._split, count)
            return [{name: row[name] for name in ("input", "target", "prediction")} for row in rows]
        return predict_samples(setup.model, params, setup.task, setup.lengths, count=count)

    def unigram(self) -> dict[str, float]:
        """unigram_loss, unigram_bits_per_byte: of the data's own unigram model."""
        found = unigram_baseline(self.batches(), self._byte_lengths)
        return {f"unigram_{name}": value for name, value in found.items()}
