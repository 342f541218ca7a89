"""Steps that must not count: a loss or gradient that isn't finite, or (optional) far above usual.

The train step itself leaves the state as it was at such a step; here is how it tells a spike, and
what the host does about skipped steps: report them, and end the run when there are too many.
"""

import collections
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.errors import NotFinite, UserError
from t5x_lite.ranges import AboveZero, Positive


@dataclasses.dataclass(frozen=True)
class SpikeGuard:
    """Skips updates whose loss or gradient norm is beyond mean + sigma * deviation of the latest.

    As OLMo's and Levanter's skip-step optimizers do. What was skipped is one of the latest, too: a
    loss that has risen for good is soon the usual one.

    Attributes:
      window: how many steps' values are kept (on the device, and in checkpoints).
      sigma: standard deviations above the mean that are a spike.
      after: steps before which nothing is one; None: half of the window.
    """

    window: Positive = 128
    sigma: AboveZero = 6.0
    after: int | None = None

    def __post_init__(self):
        if self.window < 2 or self.sigma <= 0:
            raise UserError(
                f"SpikeGuard(window={self.window}, sigma={self.sigma}): window must be 2 or more, "
                "sigma above 0."
            )

    def init(self) -> dict[str, jax.Array]:
        """latest: float32 [2, window] (losses, gradient norms); count: int32, of those seen."""
        return {"latest": jnp.zeros((2, self.window), jnp.float32), "count": jnp.int32(0)}

    def axes(self) -> dict[str, tuple]:
        return {"latest": (None, None), "count": ()}

    def update(
        self, state: dict[str, jax.Array], loss: jax.Array, grad_norm: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns whether this step is a spike, and the next state; both values may be NaN."""
        values = jnp.stack([loss, grad_norm]).astype(jnp.float32)
        finite = jnp.isfinite(values).all()
        latest, count = state["latest"], state["count"]
        seen = jnp.arange(self.window) < count
        total = jnp.maximum(seen.sum(), 1)
        mean = jnp.where(seen, latest, 0).sum(1) / total
        variance = jnp.where(seen, (latest - mean[:, None]) ** 2, 0).sum(1) / total
        # A floor, lest a loss that has not moved at all makes a spike of rounding.
        deviation = jnp.maximum(jnp.sqrt(variance), 1e-3 * jnp.abs(mean))
        after = self.window // 2 if self.after is None else self.after
        spike = (values > mean + self.sigma * deviation).any() & (count >= after)
        added = jax.lax.dynamic_update_slice(latest, values[:, None], (0, count % self.window))
        return spike, {
            "latest": jnp.where(finite, added, latest),
            "count": count + finite.astype(jnp.int32),
        }


class SkippedSteps:
    """Reports skipped steps, and ends the run after `limit` of them in a row.

    It looks at each step's flag when `lag` more steps have been started, so that the device always
    has work and nobody waits; and at the same steps on every process, so that all stop together.

    Args:
      names: of the parameters, in tree order.
      limit: skipped steps in a row that end the run.
      report: called as report(step, values) for every skipped step.
      folder: where the batch of the first of too many steps is written.
      facts: JSON values to write beside it: seed, ...
      total: steps skipped in this run before.
    """

    def __init__(
        self,
        names: Sequence[str],
        limit: int,
        report: Callable[[int, dict[str, Any]], None],
        folder: Path,
        facts: Mapping[str, Any],
        total: int = 0,
        lag: int = 4,
    ):
        self.total = total
        self._names, self._limit, self._report, self._lag = list(names), limit, report, lag
        self._folder, self._facts = folder, dict(facts)
        self._waiting: collections.deque[tuple[int, Mapping[str, jax.Array], Any]]
        self._waiting = collections.deque()
        self._first: tuple[int, Any] | None = None  # of those in a row: its step and batch

    def after(self, step: int, metrics: Mapping[str, jax.Array], features: Any) -> None:
        """Takes note of a step that was started. Raises FloatingPointError if there are too many.

        Args:
          features: this process's rows of the batch, numpy.
        """
        metrics["bad_steps"].copy_to_host_async()
        self._waiting.append((step, metrics, features))
        while len(self._waiting) > self._lag:
            self._look(*self._waiting.popleft())

    def flush(self) -> None:
        """Looks at all steps so far, which waits for the device."""
        while self._waiting:
            self._look(*self._waiting.popleft())

    def _look(self, step: int, metrics: Mapping[str, jax.Array], features: Any) -> None:
        in_a_row = int(jax.device_get(metrics["bad_steps"]))
        if in_a_row == 0:
            self._first = None
            return
        self._first = self._first or (step, features)
        self.total += 1
        names = ("loss", "grad_norm", "bad_parameter")
        loss, norm, bad = jax.device_get([metrics[name] for name in names])
        values: dict[str, Any] = {"skipped/loss": float(loss), "skipped/grad_norm": float(norm)}
        if bad >= 0:
            values["skipped/bad_parameter"] = self._names[int(bad)]
        self._report(step, values | {"skipped/total": self.total})
        if in_a_row >= self._limit:
            kind = "a spike or not finite" if np.isfinite([loss, norm]).all() else "not finite"
            where = f" (first in the gradient of {self._names[int(bad)]})" if bad >= 0 else ""
            raise NotFinite(
                f"loss or gradient {kind} in the {in_a_row} steps up to step {step}{where}: they "
                f"changed nothing, the last checkpoint is good; the batch is in {self._save()}. "
                "Lower the learning rate, or clip (clip_norm)."
            )

    def _save(self) -> Path:
        step, features = self._first
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"step_{step}" + (f"_process_{jax.process_index()}" if jax.process_index() else "")
        np.savez_compressed(self._folder / f"{name}.npz", **features)
        facts = self._facts | {
            "step": step,
            "read_with": "numpy.load(file, allow_pickle=False): the features of this batch",
            "dropout_key": "jax.random.fold_in(state.key_for(seed, 'dropout'), step - 1)",
        }
        (self._folder / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
        return self._folder / f"{name}.npz"
