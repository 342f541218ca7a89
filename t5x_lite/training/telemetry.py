"""Time and speed of training: the chronometer, peak FLOP/s of devices, model FLOP/s utilisation."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any


class Chronometer:
    """Times training steps, leaving out what is done under `paused()`.

    JAX dispatches steps without waiting for them: call `lap` and enter `paused` when the last
    step's metrics have been fetched, or its time is charged to the wrong account.

    Args:
      clock: returns seconds from any origin; never goes back.
      state: `state()` of the chronometer of an earlier process of this run.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        state: Mapping[str, float] | None = None,
    ):
        self._clock = clock
        self._total = float(state["train_seconds"]) if state else 0.0
        self._lap_total = self._total
        self._since: float | None = None  # clock time from which training runs; None: it doesn't
        self._step: int | None = None
        self._rate: float | None = None

    def start(self, step: int) -> None:
        """Starts to count; `step` steps have been made so far."""
        self._step = step
        self._since = self._clock()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock for an evaluation or a save; may be nested."""
        running = self._since is not None
        self._settle()
        self._since = None
        try:
            yield
        finally:
            if running:
                self._since = self._clock()

    def lap(self, step: int, tokens: float) -> dict[str, float]:
        """Ends the interval since the last lap (or the start) and begins the next.

        Args:
          step: number of steps made so far.
          tokens: tokens trained on in this interval, over all devices.

        Returns:
          "steps_per_second", "tokens_per_second" and "seconds_per_step" of the interval, and
          "train_seconds", the total of the run. The rates are absent if no step was made or no time
          has passed.
        """
        assert self._step is not None, "lap before start"
        self._settle()
        steps, seconds = step - self._step, self._total - self._lap_total
        self._step, self._lap_total = step, self._total
        values = {"train_seconds": self._total}
        if steps > 0 and seconds > 0:
            self._rate = steps / seconds
            values |= {
                "steps_per_second": self._rate,
                "tokens_per_second": tokens / seconds,
                "seconds_per_step": seconds / steps,
            }
        return values

    def seconds_left(self, total_steps: int) -> float | None:
        """Returns training seconds to `total_steps` at the last lap's speed; None before a lap."""
        if self._rate is None or self._step is None:
            return None
        return max(0, total_steps - self._step) / self._rate

    @property
    def train_seconds(self) -> float:
        """Seconds trained so far, in this process and those before it."""
        self._settle()
        return self._total

    def state(self) -> dict[str, float]:
        """Returns what a later process needs to count on: JSON values, to be saved with the run."""
        return {"train_seconds": self.train_seconds}

    def _settle(self) -> None:
        if self._since is not None:
            now = self._clock()
            self._total += now - self._since
            self._since = now


# Dense bfloat16 FLOP/s per JAX device, by a part of `device_kind`; the first that fits counts, so
# the longer name stands first. TPU: Google Cloud's "TPU versions" pages, per chip; on v2, v3 and 7x
# a chip is two devices. NVIDIA: data sheets, half of the figure "with sparsity". AMD: data sheets;
# an MI250X is two devices. GPUs without bfloat16 tensor cores (V100, T4) have no entry.
_PEAK_FLOPS = (
    ("TPU v2", 22.5e12),
    ("TPU v3", 61.5e12),
    ("TPU v4 lite", 137e12),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6", 918e12),
    ("TPU7x", 1153.5e12),
    ("GB200", 2500e12),
    ("B200", 2250e12),
    ("GH200", 989.4e12),
    ("H200 NVL", 835.5e12),
    ("H200", 989.4e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835.5e12),
    ("H100", 989.4e12),
    ("H800", 989.4e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("RTX 4090", 165.2e12),
    ("RTX 3090", 71e12),
    ("MI300X", 1307.4e12),
    ("MI250X", 191.5e12),
)


def peak_flops(device: Any) -> float | None:
    """Returns a device's peak bfloat16 FLOP/s (dense), or None if it isn't known, as for a CPU.

    Args:
      device: a `jax.Device`, or anything with its `platform` and `device_kind`.
    """
    if device.platform == "cpu":
        return None
    words = f" {device.device_kind.replace('-', ' ')} ".lower()
    for name, flops in _PEAK_FLOPS:
        # Whole words only for GPUs, lest "L4" fit an L40 or "A10" an A100; TPU kinds have suffixes.
        if (name.lower() if name.startswith("TPU") else f" {name.lower()} ") in words:
            return flops
    return None


def mfu(flops_per_step: float, seconds: float, devices: Sequence[Any]) -> float | None:
    """Returns the model FLOP/s utilisation, 0..1, of PaLM (arXiv 2204.02311, appendix B).

    Args:
      flops_per_step: FLOPs that the model needs for one step's batch, recomputation not counted.
      seconds: time of one step.
      devices: all devices that share the step.

    Returns:
      None if a device's peak isn't known, or no time has passed.
    """
    peaks = [peak_flops(device) for device in devices]
    if not peaks or None in peaks or seconds <= 0:
        return None
    return flops_per_step / (seconds * sum(peaks))
