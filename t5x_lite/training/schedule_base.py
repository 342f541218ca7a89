"""What a learning-rate schedule is, and how it takes the length of a run. See schedules.py."""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from t5x_lite.errors import UserError

MINIMUM_RATE = 1e-8

Rate = Callable[[jax.Array], jax.Array | float]


class Schedule:
    """A learning rate as a function of the step, printed as the call that made it.

    rate: the function; None: known once `for_run` has given the length of the run.
    fit: total_steps -> the schedule of a run of that length; None: the length changes nothing.
    notes: what a user should hear about how it suits the run, in sentences.
    """

    def __init__(
        self,
        rate: Rate | None,
        name: str,
        arguments: Mapping[str, Any],
        fit: "Callable[[int], Schedule] | None" = None,
        notes: Sequence[str] = (),
    ):
        self._rate, self._fit = rate, fit
        self.__name__ = name
        self.arguments, self.notes = dict(arguments), tuple(notes)

    @property
    def open(self) -> bool:
        """Whether it still needs the length of a run."""
        return self._rate is None

    def for_run(self, total_steps: int) -> "Schedule":
        """The schedule of a run that ends at `total_steps`; a function of these two alone.

        Raises UserError if its own `total_steps` ends it before, at a rate of 0.
        """
        if self._fit is not None:
            return self._fit(total_steps)
        notes = _compared(self, total_steps)
        return Schedule(self._rate, self.__name__, self.arguments, notes=notes)

    def __call__(self, step: int | jax.Array) -> jax.Array:
        """Float32 of the step's shape; steps above 2**24 are rounded to what float32 holds.

        UserError while it has no length.
        """
        if self.open:
            raise UserError(
                f"{self.__name__} has no total_steps: give it one, or the run's, by "
                "schedule.for_run(total_steps)"
            )
        step = jnp.asarray(step, jnp.float32)
        rate = jnp.maximum(self._rate(step), MINIMUM_RATE)
        return jnp.broadcast_to(rate, step.shape).astype(jnp.float32)

    def __repr__(self) -> str:
        return f"{self.__name__}({', '.join(f'{k}={v!r}' for k, v in self.arguments.items())})"


def checked(name: str, **arguments: Any) -> dict[str, Any]:
    """Returns the arguments, step counts as ints, once they make sense together."""
    for key, value in arguments.items():
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if key.endswith("_steps"):
            if value is None and key in ("total_steps", "decay_steps"):  # by the run, later
                continue
            if not number or value < 0 or value % 1:  # NaN and infinity: NaN % 1 is true
                raise UserError(f"{name}: {key}={value!r}, expected a whole number of steps >= 0")
            arguments[key] = int(value)
        elif key.endswith("_rate"):
            least = ">= 0" if key == "final_rate" else "> 0"
            if not number or not 0 <= value < math.inf or (not value and key != "final_rate"):
                raise UserError(f"{name}: {key}={value!r}, expected a learning rate {least}")
    if arguments.get("final_rate", 0.0) > arguments.get("peak_rate", math.inf):
        raise UserError(
            f"{name}: final_rate={arguments['final_rate']!r} is above "
            f"peak_rate={arguments['peak_rate']!r}; lower it, or raise the peak"
        )
    total, warmup = arguments.get("total_steps"), arguments.get("warmup_steps", 0)
    decay = arguments.get("decay_steps") or 0
    if total is not None and warmup + decay > total:
        parts = f"warmup_steps={warmup}" + (f" + decay_steps={decay}" if decay else "")
        raise UserError(
            f"{name}: {parts} is more than total_steps={total}; shorten them, or leave total_steps "
            "out: then it is the run's, and a warm-up that is too long for it is shortened"
        )
    return arguments


def schedule_of(
    name: str, arguments: dict[str, Any], make: Callable[..., Rate], more: Mapping[str, Any] = {}
) -> Schedule:
    """The schedule of `make(**arguments)`; without `total_steps`, when the run's is known.

    more: arguments that are printed only.
    """
    if arguments["total_steps"] is not None:
        return Schedule(make(**arguments), name, {**arguments, **more})

    def fit(total_steps: int) -> Schedule:
        fitted, notes = _fitted(name, arguments, total_steps)
        return Schedule(make(**fitted), name, {**fitted, **more}, notes=notes)

    return Schedule(None, name, {**arguments, **more}, fit)


def _fitted(
    name: str, arguments: Mapping[str, Any], total_steps: int
) -> tuple[dict[str, Any], list[str]]:
    """The arguments for a run of so many steps: what is too long is shortened, and said.

    Warm-up and decay together then take half of the run, in the proportion that they had.
    """
    fitted, notes = {**arguments, "total_steps": total_steps}, []
    names = [n for n in ("warmup_steps", "decay_steps") if arguments.get(n)]
    if (together := sum(arguments[n] for n in names)) > total_steps:
        for n in names:
            fitted[n] = arguments[n] * (total_steps // 2) // together
        was, now = (", ".join(f"{n}={a[n]:,}" for n in names) for a in (arguments, fitted))
        notes.append(f"{name}: {was} doesn't fit into {total_steps:,} steps; shortened to {now}")
    if "decay_steps" in fitted and fitted["decay_steps"] is None:
        fitted["decay_steps"] = default_decay(total_steps, fitted["warmup_steps"])
    return fitted, notes


def _compared(schedule: Schedule, total_steps: int) -> list[str]:
    """What to say of a schedule with a length, or without an end, beside that of the run."""
    name, given = schedule.__name__, schedule.arguments
    own, warmup = given.get("total_steps"), given.get("warmup_steps", 0)
    if own is None:
        ramp = given.get("linear_warmup", True) and warmup > total_steps
        return [f"{name}: warmup_steps={warmup:,} isn't over when the run ends at step "
                f"{total_steps:,}"] if ramp else []  # fmt: skip
    if own > total_steps:
        return [f"{name} has total_steps={own:,} of its own, and the run ends at step "
                f"{total_steps:,}, at a rate of {float(schedule(total_steps)):.1e}; leave it out "
                "to decay by then"]  # fmt: skip
    if own == total_steps or given.get("cyclic"):
        return []
    rest = f"{name} ends at its own total_steps={own:,}, and the run at step {total_steps:,}"
    if given.get("final_rate", 0.0) <= MINIMUM_RATE:
        raise UserError(
            f"{rest}: its last {total_steps - own:,} steps would have a rate of {MINIMUM_RATE}, "
            f"and train nothing. Leave {name}.total_steps out, which is the run's length then "
            f"(--gin.{name}.total_steps=None), or set {name}.final_rate for a constant tail"
        )
    return [f"{rest}: the last {total_steps - own:,} steps have a constant rate of "
            f"{given['final_rate']}"]  # fmt: skip


def default_decay(total_steps: int, warmup_steps: int) -> int:
    return min(total_steps // 10, total_steps - warmup_steps)
