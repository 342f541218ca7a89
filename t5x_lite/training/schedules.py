"""Learning-rate schedules: gin-configurable factories that return `step -> learning rate`.

    schedule = cosine(peak_rate=1e-3, total_steps=10_000, warmup_steps=500)
    schedule(step)          # float32 scalar; step may be a Python int or a traced int32
    print(schedule)         # cosine(peak_rate=0.001, total_steps=10000, ...)

Every warm-up rises linearly from step 0 to the peak, reached at `warmup_steps`. As in T5X no rate
is ever below 1e-8, so step 0 of a warm-up is a (tiny) step. A factory raises `UserError` for rates
that are not positive, step counts that are not whole, and a warm-up or decay that doesn't fit.
"""

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from t5x_lite.errors import UserError, did_you_mean

MINIMUM_RATE = 1e-8


class Schedule:
    """A learning rate as a function of the step, printed as the call that made it."""

    def __init__(
        self,
        rate: Callable[[jax.Array], jax.Array | float],
        name: str,
        arguments: Mapping[str, Any],
    ):
        self._rate = rate
        self.__name__ = name
        self.arguments = dict(arguments)

    def __call__(self, step: int | jax.Array) -> jax.Array:
        """Float32 of the step's shape; steps above 2**24 are rounded to what float32 holds."""
        step = jnp.asarray(step, jnp.float32)
        rate = jnp.maximum(self._rate(step), MINIMUM_RATE)
        return jnp.broadcast_to(rate, step.shape).astype(jnp.float32)

    def __repr__(self) -> str:
        return f"{self.__name__}({', '.join(f'{k}={v!r}' for k, v in self.arguments.items())})"


def _checked(name: str, **arguments: Any) -> dict[str, Any]:
    """Returns the arguments, step counts as ints, once they make sense together."""
    for key, value in arguments.items():
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if key.endswith("_steps"):
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
    decay = arguments.get("decay_steps", 0)
    if total is not None and warmup + decay > total:
        parts = f"warmup_steps={warmup}" + (f" + decay_steps={decay}" if decay else "")
        raise UserError(
            f"{name}: {parts} is more than total_steps={total}; shorten them or train longer"
        )
    return arguments


def _warmup(step: jax.Array, warmup_steps: int) -> jax.Array | float:
    return jnp.minimum(1.0, step / warmup_steps) if warmup_steps else 1.0


def constant(rate: float, warmup_steps: int = 0) -> Schedule:
    """`rate` after the warm-up. T5's fine-tuning: 0.001 without one."""
    args = _checked("constant", peak_rate=rate, warmup_steps=warmup_steps)
    warmup_steps = args["warmup_steps"]
    return Schedule(
        lambda step: rate * _warmup(step, warmup_steps),
        "constant",
        {"rate": rate, "warmup_steps": warmup_steps},
    )


def inverse_square_root(peak_rate: float, warmup_steps: int = 10_000) -> Schedule:
    """peak_rate * sqrt(warmup_steps / step) after the warm-up (Vaswani et al. 2017, section 5.3).

    Equal to T5X's "linear_warmup * rsqrt_normalized_decay".
    """
    args = _checked("inverse_square_root", peak_rate=peak_rate, warmup_steps=warmup_steps)
    warmup_steps = args["warmup_steps"]
    knee = max(warmup_steps, 1)

    def rate(step: jax.Array) -> jax.Array:
        decay = math.sqrt(knee) / jnp.sqrt(jnp.maximum(step, knee))
        return peak_rate * _warmup(step, warmup_steps) * decay

    return Schedule(rate, "inverse_square_root", args)


def t5_inverse_square_root(
    base_rate: float = 1.0, warmup_steps: int = 10_000, linear_warmup: bool = False
) -> Schedule:
    """base_rate / sqrt(max(step, warmup_steps)): what T5 was pre-trained with (Adafactor).

    The defaults are T5's: a plateau of 0.01 for 10,000 steps, then 0.005 at 40,000 and 0.001 at
    1,000,000 (Raffel et al. 2020, section 3.1.2; T5X's "constant * rsqrt_decay"). `linear_warmup`
    makes the plateau a ramp (T5X's "constant * linear_warmup * rsqrt_decay").
    """
    args = _checked("t5_inverse_square_root", base_rate=base_rate, warmup_steps=warmup_steps)
    knee = max(args["warmup_steps"], 1)

    def rate(step: jax.Array) -> jax.Array:
        ramp = _warmup(step, knee) if linear_warmup else 1.0
        return base_rate * ramp / jnp.sqrt(jnp.maximum(step, knee))

    return Schedule(rate, "t5_inverse_square_root", {**args, "linear_warmup": linear_warmup})


def cosine(
    peak_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    final_rate: float = 0.0,
    cyclic: bool = False,
) -> Schedule:
    """Half a cosine from the peak to `final_rate` at `total_steps` (Loshchilov & Hutter 2017).

    `cyclic` starts again at the peak every total_steps - warmup_steps (T5X's "cosine_decay");
    otherwise the rate stays at `final_rate`.
    """
    args = _checked(
        "cosine",
        peak_rate=peak_rate,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        final_rate=final_rate,
    )
    warmup_steps = args["warmup_steps"]
    length = max(args["total_steps"] - warmup_steps, 1)

    def rate(step: jax.Array) -> jax.Array:
        progress = jnp.maximum(0.0, (step - warmup_steps) / length)
        progress = progress % 1.0 if cyclic else jnp.minimum(progress, 1.0)
        shape = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return _between(final_rate, peak_rate, shape) * _warmup(step, warmup_steps)

    return Schedule(rate, "cosine", {**args, "cyclic": cyclic})


def linear(
    peak_rate: float, total_steps: int, warmup_steps: int = 0, final_rate: float = 0.0
) -> Schedule:
    """A straight line from the peak at `warmup_steps` to `final_rate` at `total_steps`."""
    args = _checked(
        "linear",
        peak_rate=peak_rate,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        final_rate=final_rate,
    )
    total_steps, warmup_steps = args["total_steps"], args["warmup_steps"]
    length = max(total_steps - warmup_steps, 1)

    def rate(step: jax.Array) -> jax.Array:
        shape = jnp.clip((total_steps - step) / length, 0.0, 1.0)
        return _between(final_rate, peak_rate, shape) * _warmup(step, warmup_steps)

    return Schedule(rate, "linear", args)


_DECAYS = {"linear": lambda p: 1.0 - p, "1-sqrt": lambda p: 1.0 - jnp.sqrt(p)}


def warmup_stable_decay(
    peak_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    decay_steps: int | None = None,
    final_rate: float = 0.0,
    decay: str = "1-sqrt",
) -> Schedule:
    """Warm-up, a plateau at the peak, then a short decay over the last `decay_steps`.

    None: a tenth of all steps, or what the warm-up leaves when that is less.

    MiniCPM's schedule (Hu et al. 2024, section 4): checkpoints of the plateau can be trained on or
    decayed later. `decay` is "linear" or "1-sqrt", 1 - sqrt(progress) (Hägele et al. 2024).
    """
    if decay not in _DECAYS:
        hint = did_you_mean(str(decay), _DECAYS)
        raise UserError(
            f"warmup_stable_decay: decay={decay!r}, expected one of {', '.join(_DECAYS)}.{hint}"
        )
    if decay_steps is None:
        given = _checked("warmup_stable_decay", total_steps=total_steps, warmup_steps=warmup_steps)
        total_steps, warmup_steps = given["total_steps"], given["warmup_steps"]
        decay_steps = min(total_steps // 10, total_steps - warmup_steps)
    args = _checked(
        "warmup_stable_decay",
        peak_rate=peak_rate,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        decay_steps=decay_steps,
        final_rate=final_rate,
    )
    warmup_steps, decay_steps = args["warmup_steps"], args["decay_steps"]
    start = args["total_steps"] - decay_steps

    def rate(step: jax.Array) -> jax.Array:
        shape = _DECAYS[decay](jnp.clip((step - start) / max(decay_steps, 1), 0.0, 1.0))
        return _between(final_rate, peak_rate, shape) * _warmup(step, warmup_steps)

    return Schedule(rate, "warmup_stable_decay", {**args, "decay": decay})


def _between(low: float, high: float, share: jax.Array) -> jax.Array:
    return low + (high - low) * share if low else high * share
