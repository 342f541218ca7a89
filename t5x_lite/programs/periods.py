"""A run's periods beside its length: what is refused, and what is worth a line at the start."""

from t5x_lite.errors import UserError
from t5x_lite.training.retention import CheckpointConfig


def check_periods(**periods: int) -> None:
    """UserError for a period of `train` below 1; `sample_period` may be 0, for never."""
    for name, value in periods.items():
        least = 0 if name == "sample_period" else 1
        if not isinstance(value, int) or value < least:
            raise UserError(f"train.{name} is {value!r}; it must be a whole number of steps, "
                            f"{least} or more.")  # fmt: skip


def period_notes(
    checkpoint: CheckpointConfig, total_steps: int, *, log_period: int, eval_period: int,
    sample_period: int = 0,
) -> list[str]:  # fmt: skip
    """What a user should hear about periods that don't go with the run, or with each other."""
    periods = {
        "train.log_period": log_period,
        "train.eval_period": eval_period,
        "train.sample_period": sample_period,
        "CheckpointConfig.period": checkpoint.period,
        "CheckpointConfig.keep_every": checkpoint.keep_every,
        "CheckpointConfig.export_every": checkpoint.export_every,
    }
    notes = []
    if late := [
        f"{name}={value:,}" for name, value in periods.items() if value and value > total_steps
    ]:
        notes.append(f"longer than the run of {total_steps:,} steps: {', '.join(late)}; what they "
                     "stand for is done at its end alone")  # fmt: skip
    period, every = checkpoint.period, checkpoint.keep_every
    if every and every % period:
        notes.append(f"CheckpointConfig.keep_every={every:,} keeps only what is written, "
                     f"and CheckpointConfig.period={period:,} doesn't divide it")  # fmt: skip
    return notes
