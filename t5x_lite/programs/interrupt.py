"""Ctrl-C, SIGTERM and SIGHUP as a request: save, and leave with status 143. A second one leaves
at once.

The request is looked at after each step and, in evaluations, before each batch. What doesn't come
to a look for some seconds (a compiler, a metric, an export) isn't waited for: a thread saves what
the last step made, and ends the process.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils

from t5x_lite import exit_status

T = TypeVar("T")
PATIENCE = 3.0  # seconds that the main thread gets to look: who sent SIGTERM gives 30 or so


class Stopped(Exception):
    """Raised by a look in the middle of something whose result isn't needed to save."""


class Interrupt:
    """A context in which the first SIGINT, SIGTERM or SIGHUP is a request to stop.

    With several processes all must stop at the same look: SIGTERM (and so notices of maintenance)
    is then left to jax's preemption service, which makes the processes agree on one. The others
    are turned into it. Every process must come to the same looks.

    Args:
      owns_process: the process is this command's and may be ended from here, when the main thread
        doesn't look. Otherwise (a notebook, a program of the user's) there is only the flag.
      leave: ends the process.

    Attributes:
      signal: the name of the signal that came, or None.
      stopped: whether a request was obeyed.
    """

    def __init__(
        self,
        owns_process: bool = False,
        *,
        patience: float = PATIENCE,
        leave: Callable[[int], Any] = os._exit,
    ):
        self.signal: str | None = None
        self.stopped = False
        self._patience, self._leave = patience, leave
        # Asking for the number of processes would start the devices, before a config is checked.
        self._several = jax.distributed.is_initialized() and jax.process_count() > 1
        self._owns_process = owns_process and not self._several
        self._previous: dict[int, Any] = {}
        self._looks = 0
        # Held while the state is being replaced; whoever leaves takes it for good.
        self._consistent = threading.RLock()
        self._save: Callable[[], None] | None = None
        self._pipe: tuple[int, int] | None = None

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is not threading.main_thread():
            return self
        numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
        if self._several:  # jax has put its own handler on SIGTERM
            numbers.remove(signal.SIGTERM)
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                self._previous[number] = signal.signal(number, self._handle)
        if self._owns_process:
            # Python's handlers wait for the main thread, which a compiler holds for minutes. The
            # system's write a byte at once.
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            threading.Thread(target=self._listen, name="interrupt", daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        if self._pipe is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._pipe[1])  # the thread reads the end, and closes the other
            self._pipe = None
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    # ------------------------------------------------------------------- the main thread

    def requested(self) -> bool:
        """Whether to stop now; the same answer on every process."""
        self._looks += 1
        if self._several:
            if multihost_utils.reached_preemption_sync_point(self._looks):
                self.signal = self.signal or "SIGTERM"
                self.stopped = True
        elif self.signal is not None:
            self._consistent.acquire()  # the thread doesn't leave any more; if it does, wait here
            self.stopped = True
        return self.stopped

    def look(self) -> None:
        """Raises Stopped if this is a time to stop."""
        if self.requested():
            raise Stopped

    def looking(self, items: Iterable[T]) -> Iterator[T]:
        """The items, with a look before each."""
        for item in items:
            self.look()
            yield item

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Around what makes a new state of the old one, or writes: the thread waits for it."""
        with self._consistent:
            yield

    def saves(self, save: Callable[[], None] | None) -> None:
        """From now on ``save`` is what the thread calls before it ends the process; None: nothing
        needs to be saved, and it ends at once."""
        with self._consistent:
            self._save = save

    # ------------------------------------------------------------------- signals

    def _handle(self, number, frame) -> None:
        if not self._owns_process:
            self._note(number)

    def _note(self, number: int) -> None:
        name = signal.Signals(number).name
        if self.signal is not None:
            _write(f"\n{name}: leaving at once, without saving\n")
            self._leave(exit_status.INTERRUPTED)
            return
        self.signal = name
        if self._owns_process and self._save is None:
            _write(f"\n{name}: nothing is left to be saved; the same command continues\n")
        else:
            where = "all processes will save at one step" if self._several else "saving"
            _write(f"\n{name}: {where}; once more to stop at once\n")
        if self._several and number != signal.SIGTERM:
            os.kill(os.getpid(), signal.SIGTERM)

    def _listen(self) -> None:
        assert self._pipe is not None
        reading, ours = self._pipe[0], set(self._previous)
        while number := os.read(reading, 1):
            if number[0] in ours:
                first = self.signal is None
                self._note(number[0])
                if first:
                    threading.Thread(target=self._rescue, name="leaving", daemon=True).start()
        os.close(reading)

    def _rescue(self) -> None:
        """Saves and leaves if the main thread doesn't come to a look."""
        if self._save is not None:
            time.sleep(self._patience)
        with self._consistent:
            if self.stopped:
                return
            status = exit_status.FAILED
            try:
                if self._save is not None:
                    self._save()
                status = exit_status.SAVED
            except BaseException as error:  # noqa: BLE001 - the process ends here, whatever it is
                _write(f"error: {type(error).__name__}: {error}\n")
            self._leave(status)


def _write(text: str) -> None:
    # Not print: the signal may have come in the middle of one.
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
