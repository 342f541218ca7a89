"""Ctrl-C and SIGTERM as a request: finish the step, save, leave. A second one leaves at once."""

import os
import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils


class Interrupt:
    """A context in which the first SIGINT or SIGTERM only sets a flag.

    With several processes the flag must rise at the same step everywhere: SIGTERM (and so notices
    of maintenance) is then left to jax's preemption service, which makes the processes agree on
    one. SIGINT is turned into it.
    """

    def __init__(self):
        self.signal: str | None = None
        self._previous: dict[int, Any] = {}
        self._several = jax.process_count() > 1

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            if self._several:
                # jax has put its own handler on SIGTERM when the processes were joined.
                self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._pass_on)
            else:
                for number in (signal.SIGINT, signal.SIGTERM):
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, frame) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = signal.Signals(number).name
        _write(f"\n{self.signal}: saving after this step; once more to stop at once\n")

    def _pass_on(self, number, frame) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = signal.Signals(number).name
        _write(f"\n{self.signal}: all processes will save at one step; once more to stop at once\n")
        os.kill(os.getpid(), signal.SIGTERM)

    def requested(self, step: int) -> bool:
        """Whether to stop after ``step``; the same answer on every process."""
        if not self._several:
            return self.signal is not None
        if multihost_utils.reached_preemption_sync_point(step):
            self.signal = self.signal or "SIGTERM"
            return True
        return False


def _write(text: str) -> None:
    # Not print: the signal may have come in the middle of one.
    os.write(2, text.encode())
