"""A thread that notices when a step, or the wait for data, takes far longer than usual."""

import collections
import dataclasses
import faulthandler
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from t5x_lite.errors import UserError
from t5x_lite.ranges import AboveZero

HANG_STATUS = 75  # "temporary failure" of sysexits.h: a supervisor starts the run again


@dataclasses.dataclass(frozen=True)
class WatchdogConfig:
    """When a step counts as hanging, and what is done then.

    Attributes:
      factor: times the usual (median) step, waits included, ...
      seconds: ... and at least so many seconds.
      end_process: end the process (status 75), for a supervisor to start it again; otherwise only
        report, once for each hang, with the stacks of all threads.
    """

    factor: AboveZero = 20.0
    seconds: AboveZero = 120.0
    end_process: bool = False

    def __post_init__(self):
        if self.factor <= 1 or self.seconds <= 0:
            raise UserError(
                f"WatchdogConfig(factor={self.factor}, seconds={self.seconds}): the factor must be "
                "above 1, seconds above 0."
            )


class Watchdog:
    """Watches the accounts of a `Goodput`; evaluation, saving and compiling may take their time.

    Args:
      running: returns (account, since when on `clock`).
      stream: a file with a descriptor, where reports go.
      end: called to end the process.
    """

    WATCHED = ("step", "data_wait")

    def __init__(
        self,
        config: WatchdogConfig,
        running: Callable[[], tuple[str, float]],
        *,
        clock: Callable[[], float] = time.monotonic,
        stream: TextIO | None = None,
        end: Callable[[int], None] = os._exit,
        poll: float = 1.0,
    ):
        self._config, self._running, self._clock = config, running, clock
        self._stream, self._end, self._poll = stream or sys.stderr, end, poll
        self._steps: collections.deque[float] = collections.deque(maxlen=101)
        self._step = 0
        self._last: float | None = None
        self._reported = -1
        self._stop = threading.Event()

    def beat(self, step: int) -> None:
        """A step has been made."""
        now = self._clock()
        if self._last is not None:
            self._steps.append(now - self._last)
        self._step, self._last = step, now

    def limit(self) -> float:
        """Seconds after which a step hangs."""
        usual = statistics.median(list(self._steps)) if self._steps else 0.0
        return max(self._config.seconds, self._config.factor * usual)

    def check(self) -> bool:
        """Reports a hang, if there is one that wasn't reported yet; returns whether it did."""
        account, since = self._running()
        waited = self._clock() - since
        if account not in self.WATCHED or waited < self.limit() or self._reported == self._step:
            return False
        self._reported = self._step
        what = "waiting for data" if account == "data_wait" else "in a step"
        usual = f"{statistics.median(list(self._steps)):.3g} s" if self._steps else "unknown"
        then = "; ending the process" if self._config.end_process else ""
        print(
            f"\nwatchdog: {waited:.0f} s {what} after step {self._step} (a step usually takes "
            f"{usual}){then}. Stacks of all threads:",
            file=self._stream,
            flush=True,
        )
        faulthandler.dump_traceback(file=self._stream, all_threads=True)
        self._stream.flush()
        if self._config.end_process:
            self._end(HANG_STATUS)
        return True

    def __enter__(self) -> "Watchdog":
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(self._poll):
            self.check()
