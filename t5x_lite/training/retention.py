"""When checkpoints are written, and which of them stay."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from t5x_lite.errors import UserError
from t5x_lite.ranges import Positive


@dataclass(frozen=True)
class CheckpointConfig:
    """When a checkpoint is written and which ones stay.

    A checkpoint stays if any of the three rules wants it, or while its export isn't made; the
    newest always does.

    Attributes:
      period: steps between checkpoints, in absolute steps: resuming at an odd step shifts nothing.
      keep_latest: how many of the newest stay; None keeps all.
      keep_every: every multiple of this many steps stays for good; None for none.
      keep_best: name of a metric given to `save`; the `keep_best_count` checkpoints that are best
        by it stay. None for none.
      best_mode: "min" if smaller is better, or "max".
      keep_best_count: how many of the best stay.
      asynchronous: write in the background while training goes on.
      require_finite: a NaN in the state, or an inf among the parameters, is an error, not saved.
      export_every: at every multiple of this many steps a checkpoint is written and, in the
        background, exported for Hugging Face to model_dir/exports/STEP; see programs/exports.py.
      export_dtype: of those exports: "float32", "bfloat16" or "float16"; None: the parameters'.
    """

    period: Positive = 1000
    keep_latest: Positive | None = 3
    keep_every: Positive | None = None
    keep_best: str | None = None
    best_mode: str = "min"
    keep_best_count: Positive = 1
    asynchronous: bool = True
    require_finite: bool = True
    export_every: Positive | None = None
    export_dtype: str | None = None

    def __post_init__(self):
        names = ("period", "keep_latest", "keep_every", "keep_best_count", "export_every")
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"CheckpointConfig.{name} is {value}; it must be at least 1.")
        if self.best_mode not in ("min", "max"):
            raise UserError(
                f"CheckpointConfig.best_mode is {self.best_mode!r}; it must be 'min' or 'max'."
            )
        if self.export_dtype not in (None, "float32", "bfloat16", "float16"):
            raise UserError(
                f"CheckpointConfig.export_dtype is {self.export_dtype!r}; expected float32, "
                f"bfloat16 or float16."
            )


def steps_to_keep(
    metrics: Mapping[int, Mapping[str, float] | None], config: CheckpointConfig
) -> set[int]:
    """Returns which of the steps in `metrics` stay, given the metrics each was saved with.

    Among equally good steps the later one is better; a step whose metric is missing or isn't finite
    is never one of the best.
    """
    steps = sorted(metrics)
    keep = set(steps if config.keep_latest is None else steps[-config.keep_latest :])
    if config.keep_every is not None:
        keep |= {step for step in steps if step % config.keep_every == 0}
    if config.keep_best is not None:
        sign = -1 if config.best_mode == "min" else 1
        values = {step: (metrics[step] or {}).get(config.keep_best) for step in steps}
        scores = {s: sign * v for s, v in values.items() if v is not None and math.isfinite(v)}
        keep |= set(sorted(scores, key=lambda s: (scores[s], s))[-config.keep_best_count :])
    return keep


class Keep:
    """`steps_to_keep` as an Orbax preservation policy.

    Args:
      needed: steps that must stay for now, whatever the rules say.
      leaving: told which are about to be deleted.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        needed: Callable[[], Collection[int]] = tuple,
        leaving: Callable[[list[int]], None] = lambda steps: None,
    ):
        self._config, self._needed, self._leaving = config, needed, leaving

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        keep = steps_to_keep({c.step: c.metrics for c in checkpoints}, self._config)
        keep |= set(self._needed())
        if going := [c.step for c in checkpoints if c.step not in keep]:
            self._leaving(going)
        return [c.step in keep for c in checkpoints]
