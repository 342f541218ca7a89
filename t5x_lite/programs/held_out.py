"""Held-out data of a set-up, and what a model makes of it; for `train` and `eval`."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from t5x_lite.data.fixed_sample import apportion
from t5x_lite.data.loader import EvalBatches, eval_batches
from t5x_lite.data.tasks import Mixture, Task
from t5x_lite.evaluation.evaluator import (
    mix,
    summarize,
    target_counts,
    total_sums,
    unigram_baseline,
)
from t5x_lite.evaluation.heads import OBJECTIVES
from t5x_lite.evaluation.metrics.base import check_installed
from t5x_lite.evaluation.predictions import Predictor, Row, TextEvaluation
from t5x_lite.evaluation.results import TEXT, judge
from t5x_lite.evaluation.samples import predict_samples
from t5x_lite.programs.early_stopping import EarlyStopping
from t5x_lite.programs.embed import StsEvaluation
from t5x_lite.training.setup import Features, Setup
from t5x_lite.training.step import make_eval_step

_KEPT_BYTES = 2**28


class HeldOut:
    """The validation split of a set-up's task, or a fixed sample of it.

    ``batch_count``: batches of each task of a mixture, at most; None: all examples.
    """

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
        self._kept: dict[str, tuple[list[Features], int]] = {}  # of a sample, which stays the same
        self._early_stopping = early_stopping or EarlyStopping()
        self._sts, self._pooling = sts or StsEvaluation(), getattr(loss, "pooling", "mean")
        if self._text.during_training:  # said now, not at the first evaluation
            check_installed(m for leaf, _ in setup.task.leaves for m in leaf.metrics)
        self._predictor = Predictor(
            setup.model, setup.lengths, setup.batch_size, setup.rows, self._place, self._text
        )
        self._byte_lengths = setup.task.vocabulary.byte_lengths
        self._step = jax.jit(make_eval_step(setup.model, self._byte_lengths, loss))

    def absent(self) -> str | None:
        """Why there is nothing to evaluate on, and what to do; None: there is.

        A mixture of which some tasks hold out nothing isn't evaluated on the others alone: its
        first evaluation refuses it.
        """
        leaves = [leaf for leaf, _ in self._setup.task.leaves]
        if any(len(leaf.source.split(self._split)) for leaf in leaves):
            return None
        numbers = [f"{leaf.name}: {len(leaf.source.split('train')):,}" for leaf in leaves]
        return (
            f"no document is held out of those there are ({', '.join(numbers)}); hold out one "
            "of two or more different ones (held_out above 0), or give validation_files"
        )

    def batches(self, part: Task | Mixture | None = None, every_row: bool = False) -> EvalBatches:
        """This process's (or every) row of each batch, of the task or of one in its mixture."""
        setup = self._setup
        return eval_batches(
            part or setup.task,
            lengths=setup.lengths,
            batch_size=setup.batch_size,
            architecture=setup.architecture,
            split=self._split,
            rows=None if every_row else setup.rows,
            max_batches=self._count,
        )

    def _looked(self, batches: Iterable[Features]) -> Iterator[Features]:
        for batch in batches:
            self.look()
            yield batch

    def _place(self, features: Features) -> dict[str, jax.Array]:
        self.look()
        return self._setup.place(features)

    def evaluate(self, params: Any, *, each_task: bool = True) -> dict[str, float]:
        """Metrics of tokens, and with ``each_task`` TASK/METRIC of every task of a mixture.

        Those of the mixture itself count each task by its rate, as training does: see `mix`.

        Then those that the tasks name, of texts: text/METRIC, or text/TASK/METRIC of a mixture;
        and of sentence vectors, sts/METRIC.
        """
        leaves = self._setup.task.leaves
        parts = [(share, *self._sums(params, leaf)) for leaf, share in leaves]
        metrics = summarize(mix(parts) if len(parts) > 1 else parts[0][2])
        metrics["target_tokens"] = sum(sums["target_tokens"] for *_, sums in parts)
        if each_task and isinstance(self._setup.task, Mixture):
            for (leaf, _), (*_, sums) in zip(leaves, parts, strict=True):
                found = summarize(sums)
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

    def _sums(self, params: Any, leaf: Task) -> tuple[int, dict[str, float]]:
        """How many examples of a task were looked at, and the sums of what came of them."""
        kept = self._kept.get(leaf.name)
        if kept is None:
            batches = self.batches(leaf)
            if self._count is None:
                sums = total_sums(self._step, params, self._setup.place_all(self._looked(batches)))
                return batches.examples, sums
            kept = [*self._looked(batches)], batches.examples
            size = sum(array.nbytes for batch in kept[0] for array in batch.values())
            if size < _KEPT_BYTES / len(self._setup.task.leaves):
                self._kept[leaf.name] = kept
        return kept[1], total_sums(self._step, params, self._setup.place_all(self._looked(kept[0])))

    def samples(self, params: Any, count: int) -> list[dict[str, str]]:
        """A few of a fixed sample of the examples as text, with the model's predictions."""
        setup = self._setup
        if isinstance(setup.task.objective, OBJECTIVES):
            leaves, rows = setup.task.leaves, []
            numbers = apportion(count, [share for _, share in leaves])
            for (leaf, _), number in zip(leaves, numbers, strict=True):
                if number:
                    rows += self._predictor.predict(params, leaf, self._split, number)
            return [{name: row[name] for name in ("input", "target", "prediction")} for row in rows]
        return predict_samples(setup.model, params, setup.task, setup.lengths, count=count)

    def unigram(self) -> dict[str, float]:
        """unigram_loss, unigram_bits_per_byte: of the data's own unigram model."""
        parts = []
        for leaf, share in self._setup.task.leaves:
            batches = self.batches(leaf, every_row=True)
            if (counts := target_counts(self._looked(batches), len(self._byte_lengths))) is None:
                return {}
            parts.append((share, batches.examples, {"counts": counts}))
        counts = mix(parts)["counts"] if len(parts) > 1 else parts[0][2]["counts"]
        found = unigram_baseline(counts, self._byte_lengths)
        return {f"unigram_{name}": value for name, value in found.items()}
