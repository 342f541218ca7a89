"""When a run has learnt what it will: a metric of held-out data that gets no better."""

import dataclasses
import math
import os
from collections.abc import Sequence

from t5x_lite import evidence
from t5x_lite.errors import UserError, did_you_mean
from t5x_lite.evaluation.results import smaller_is_better
from t5x_lite.parallel import distributed
from t5x_lite.ranges import NotNegative, Positive
from t5x_lite.training.trackers import read_json_lines


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Ends training after `patience` evaluations in a row without a better value.

    metric: as logged after "eval/": "loss", "text/matthews". None: never.
    min_delta: a value must be better by more than this.
    model_dir: the run's folder: what was logged there before counts, so that a run that was
      interrupted stops where it would have. None: that of `train`.
    """

    metric: str | None = None
    patience: Positive = 3
    min_delta: NotNegative = 0.0
    model_dir: str | None = None

    def __post_init__(self):
        if self.patience < 1:
            raise UserError(f"EarlyStopping.patience is {self.patience}; use 1 or more.")

    def is_over(self, step: int) -> bool:
        """Whether what is logged up to `step` says so; every process must ask (a collective).

        Raises:
          UserError: the evaluations have no such metric.
        """
        if self.metric is None or self.model_dir is None:
            return False
        over = distributed.is_main_process() and self._is_over(step)
        return distributed.any_process(over)

    def _is_over(self, step: int) -> bool:
        path = os.path.join(self.model_dir or "", "metrics.jsonl")
        lines = read_json_lines(path) if evidence.exists(path) else []
        found = {r["step"]: r for r in lines if "eval/loss" in r and r["step"] <= step}
        values = []
        for at in sorted(found):
            if f"eval/{self.metric}" not in found[at]:
                names = [k.removeprefix("eval/") for k in found[at] if k.startswith("eval/")]
                raise UserError(
                    f"EarlyStopping.metric is {self.metric!r}; the evaluation gives "
                    f"{', '.join(names)}." + did_you_mean(self.metric, names)
                )
            values.append(float(found[at][f"eval/{self.metric}"]))
        return self.no_better(values)

    def no_better(self, values: Sequence[float]) -> bool:
        """Whether the last `patience` of `values` are no better than the best before them."""
        sign = -1.0 if smaller_is_better(self.metric or "") else 1.0
        best, since = -math.inf, -1
        for value in values:
            better = sign * value > best + self.min_delta
            best, since = (sign * value, 0) if better else (best, since + 1)
        return since >= self.patience
