"""Learning-rate schedules: gin-configurable factories that return `step -> learning rate`.

    schedule = cosine(peak_rate=1e-3, total_steps=10_000, warmup_steps=500)
    schedule(step)          # float32 scalar; step may be a Python int or a traced int32
    print(schedule)         # cosine(peak_rate=0.001, total_steps=10000, ...)

    cosine(peak_rate=1e-3).for_run(10_000)  # what `train` does: the length has one owner, the run

A schedule without `total_steps` takes the length of the run, and a warm-up that is too long for the
run is shortened with a word. One that is given a length of its own keeps it: see `for_run`.

Every warm-up rises linearly from step 0 to the peak, reached at `warmup_steps`. As in T5X no rate
is ever below 1e-8, so step 0 of a warm-up is a (tiny) step. A factory raises `UserError` for rates
that are not positive, step counts that are not whole, and a warm-up or decay that doesn't fit.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from t5x_lite.errors import UserError, did_you_mean
from t5x_lite.ranges import Count, NotNegative, Positive
from t5x_lite.training.schedule_base import (
    MINIMUM_RATE,
    Rate,
    Schedule,
    checked,
    default_decay,
    schedule_of,
)

__all__ = [
    "MINIMUM_RATE",
    "Schedule",
    "constant",
    "cosine",
    "inverse_square_root",
    "join_schedules",
    "linear",
    "t5_inverse_square_root",
    "warmup_stable_decay",
]


def _warmup(step: jax.Array, warmup_steps: int) -> jax.Array | float:
    return jnp.minimum(1.0, step / warmup_steps) if warmup_steps else 1.0


def constant(rate: NotNegative, warmup_steps: Count = 0) -> Schedule:
    """`rate` after the warm-up. T5's fine-tuning: 0.001 without one."""
    args = checked("constant", peak_rate=rate, warmup_steps=warmup_steps)
    warmup_steps = args["warmup_steps"]
    return Schedule(
        lambda step: rate * _warmup(step, warmup_steps),
        "constant",
        {"rate": rate, "warmup_steps": warmup_steps},
    )


def inverse_square_root(peak_rate: NotNegative, warmup_steps: Count = 10_000) -> Schedule:
    """peak_rate * sqrt(warmup_steps / step) after the warm-up (Vaswani et al. 2017, section 5.3).

    Equal to T5X's "linear_warmup * rsqrt_normalized_decay".
    """
    args = checked("inverse_square_root", peak_rate=peak_rate, warmup_steps=warmup_steps)
    warmup_steps = args["warmup_steps"]
    knee = max(warmup_steps, 1)

    def rate(step: jax.Array) -> jax.Array:
        decay = math.sqrt(knee) / jnp.sqrt(jnp.maximum(step, knee))
        return peak_rate * _warmup(step, warmup_steps) * decay

    return Schedule(rate, "inverse_square_root", args)


def t5_inverse_square_root(
    base_rate: NotNegative = 1.0, warmup_steps: Count = 10_000, linear_warmup: bool = False
) -> Schedule:
    """base_rate / sqrt(max(step, warmup_steps)): what T5 was pre-trained with (Adafactor).

    The defaults are T5's: a plateau of 0.01 for 10,000 steps, then 0.005 at 40,000 and 0.001 at
    1,000,000 (Raffel et al. 2020, section 3.1.2; T5X's "constant * rsqrt_decay"). `linear_warmup`
    makes the plateau a ramp (T5X's "constant * linear_warmup * rsqrt_decay").
    """
    args = checked("t5_inverse_square_root", base_rate=base_rate, warmup_steps=warmup_steps)
    knee = max(args["warmup_steps"], 1)

    def rate(step: jax.Array) -> jax.Array:
        ramp = _warmup(step, knee) if linear_warmup else 1.0
        return base_rate * ramp / jnp.sqrt(jnp.maximum(step, knee))

    return Schedule(rate, "t5_inverse_square_root", {**args, "linear_warmup": linear_warmup})


def cosine(
    peak_rate: NotNegative,
    total_steps: Positive | None = None,
    warmup_steps: Count = 0,
    final_rate: NotNegative = 0.0,
    cyclic: bool = False,
) -> Schedule:
    """Half a cosine from the peak to `final_rate` at `total_steps` (Loshchilov & Hutter 2017).

    total_steps: None: the run's, by `for_run`. `cyclic` starts again at the peak every
    total_steps - warmup_steps (T5X's "cosine_decay"); otherwise the rate stays at `final_rate`.
    """
    args = checked(
        "cosine",
        peak_rate=peak_rate,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        final_rate=final_rate,
    )

    def make(total_steps: int, warmup_steps: int, **_: Any) -> Rate:
        length = max(total_steps - warmup_steps, 1)

        def rate(step: jax.Array) -> jax.Array:
            progress = jnp.maximum(0.0, (step - warmup_steps) / length)
            progress = progress % 1.0 if cyclic else jnp.minimum(progress, 1.0)
            shape = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
            return _between(final_rate, peak_rate, shape) * _warmup(step, warmup_steps)

        return rate

    return schedule_of("cosine", args, make, {"cyclic": cyclic})


def linear(
    peak_rate: NotNegative,
    total_steps: Positive | None = None,
    warmup_steps: Count = 0,
    final_rate: NotNegative = 0.0,
) -> Schedule:
    """A straight line from the peak at `warmup_steps` to `final_rate` at `total_steps`.

    total_steps: None: the run's, by `for_run`.
    """
    args = checked(
        "linear",
        peak_rate=peak_rate,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        final_rate=final_rate,
    )

    def make(total_steps: int, warmup_steps: int, **_: Any) -> Rate:
        length = max(total_steps - warmup_steps, 1)

        def rate(step: jax.Array) -> jax.Array:
            shape = jnp.clip((total_steps - step) / length, 0.0, 1.0)
            return _between(final_rate, peak_rate, shape) * _warmup(step, warmup_steps)

        return rate

    return schedule_of("linear", args, make)


_DECAYS = {"linear": lambda p: 1.0 - p, "1-sqrt": lambda p: 1.0 - jnp.sqrt(p)}


def warmup_stable_decay(
    peak_rate: NotNegative,
    total_steps: Positive | None = None,
    warmup_steps: Count = 0,
    decay_steps: int | None = None,
    final_rate: NotNegative = 0.0,
    decay: str = "1-sqrt",
) -> Schedule:
    """Warm-up, a plateau at the peak, then a short decay over the last `decay_steps`.

    total_steps: None: the run's, by `for_run`. decay_steps: None: a tenth of all steps, or what the
    warm-up leaves when that is less.

    MiniCPM's schedule (Hu et al. 2024, section 4): checkpoints of the plateau can be trained on or
    decayed later. `decay` is "linear" or "1-sqrt", 1 - sqrt(progress) (Hägele et al. 2024).
    """
    name = "warmup_stable_decay"
    if decay not in _DECAYS:
        hint = did_you_mean(str(decay), _DECAYS)
        raise UserError(f"{name}: decay={decay!r}, expected one of {', '.join(_DECAYS)}.{hint}")
    if decay_steps is None and total_steps is not None:
        given = checked(name, total_steps=total_steps, warmup_steps=warmup_steps)
        decay_steps = default_decay(given["total_steps"], given["warmup_steps"])
    args = checked(
        name,
        peak_rate=peak_rate,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        decay_steps=decay_steps,
        final_rate=final_rate,
    )

    def make(total_steps: int, warmup_steps: int, decay_steps: int, **_: Any) -> Rate:
        start = total_steps - decay_steps

        def rate(step: jax.Array) -> jax.Array:
            shape = _DECAYS[decay](jnp.clip((step - start) / max(decay_steps, 1), 0.0, 1.0))
            return _between(final_rate, peak_rate, shape) * _warmup(step, warmup_steps)

        return rate

    return schedule_of(name, args, make, {"decay": decay})


def join_schedules(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Schedule:
    """One schedule after the other, as optax.join_schedules: how a finished run goes on.

    boundaries: the steps at which the second, third, ... begin. Each counts its own steps from
    there, and one without `total_steps` ends where the next begins, the last one with the run.
    """
    boundaries = list(boundaries)
    whole = all(isinstance(b, int) and not isinstance(b, bool) for b in boundaries)
    rising = whole and all(a < b for a, b in itertools.pairwise([0, *boundaries]))
    if len(schedules) != len(boundaries) + 1 or not rising:
        raise UserError(
            f"join_schedules: {len(schedules)} schedules and boundaries={boundaries}; expected one "
            "boundary less than schedules, whole steps above 0, each above the one before"
        )
    if others := [s for s in schedules if not isinstance(s, Schedule)]:
        raise UserError(f"join_schedules: {others[0]!r} is no schedule; call one: @cosine()")
    arguments = {"schedules": list(schedules), "boundaries": boundaries}

    def fit(total_steps: int) -> Schedule:
        if boundaries and boundaries[-1] >= total_steps:
            raise UserError(
                f"join_schedules: the last schedule begins at step {boundaries[-1]:,}, and the run "
                f"ends at step {total_steps:,}; train longer, or leave it out"
            )
        starts, ends = [0, *boundaries], [*boundaries, total_steps]
        parts = [s.for_run(e - b) for s, b, e in zip(schedules, starts, ends, strict=True)]

        def rate(step: jax.Array) -> jax.Array:
            found = parts[0](step)
            for start, part in zip(starts[1:], parts[1:], strict=True):
                found = jnp.where(step < start, found, part(step - start))
            return found

        notes = [note for part in parts for note in part.notes]
        given = {"schedules": parts, "boundaries": boundaries}
        return Schedule(rate, "join_schedules", given, notes=notes)

    return Schedule(None, "join_schedules", arguments, fit)


def _between(low: float, high: float, share: jax.Array) -> jax.Array:
    return low + (high - low) * share if low else high * share
