"""Where a run's time goes, over all its restarts: the share that made progress is its goodput."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ACCOUNTS = {
    "step": "training steps",
    "data_wait": "waiting for data",
    "checkpoint": "waiting for saves",
    "evaluation": "evaluation",
    "compile": "compiling (first step)",
    "restore": "restoring",
    "start": "starting",
    "lost": "lost to restarts",
}


class Goodput:
    """Seconds by account; at any time exactly one account is running, so they sum up to the run.

    "lost" is the time from the last checkpoint that a crashed process left to the start of the
    next process: steps that must be made again, and the time in which nothing ran. After a stop
    that saved (SIGTERM, the last step) nothing is lost.

    Args:
      clock: seconds from any origin, never going back.
      wall: seconds since the epoch.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ):
        self._clock, self._wall = clock, wall
        self.started = wall()
        self._seconds = dict.fromkeys(ACCOUNTS, 0.0)
        self._imports, self._earlier = process_age(), {}
        self.restarts = 0
        self.running = ("start", clock())  # account, since when: one tuple, read by other threads

    def restore(self, state: Mapping[str, Any]) -> None:
        """Adds what earlier processes spent; `state` is `state()` as of the checkpoint."""
        for account, seconds in state.get("seconds", {}).items():
            if account in self._seconds:
                self._seconds[account] += float(seconds)
        self._earlier = dict(state.get("seconds", {}))
        self.restarts = int(state.get("restarts", 0))
        if state and not state.get("ended", False):
            self.restarts += 1
            self._seconds["lost"] += max(0.0, self.started - float(state["saved_at"]))

    def switch(self, account: str) -> str:
        """From now on time goes to `account`; returns the one it went to."""
        assert account in ACCOUNTS
        (before, since), now = self.running, self._clock()
        self._seconds[before] += now - since
        self.running = (account, now)
        return before

    @contextlib.contextmanager
    def spend(self, account: str) -> Iterator[None]:
        """Inside the `with` block time goes to `account`."""
        before = self.switch(account)
        try:
            yield
        finally:
            self.switch(before)

    def seconds(self) -> dict[str, float]:
        """Seconds of every account until now."""
        self.switch(self.running[0])
        return dict(self._seconds)

    def start(self) -> str:
        """Of this process alone, when its first step is done: the time since it was started."""
        parts = {"imports": self._imports}
        for account, seconds in self.seconds().items():
            if account != "lost":
                parts[ACCOUNTS[account]] = seconds - self._earlier.get(account, 0.0)
        told = ", ".join(f"{n} {seconds:.1f}" for n, seconds in parts.items() if seconds >= 0.05)
        return f"first step {sum(parts.values()):.1f} s after the command: {told}"

    def state(self, ended: bool = False) -> dict[str, Any]:
        """JSON values for a checkpoint; `ended`: the process stops in order after this save."""
        return {
            "seconds": self.seconds(),
            "restarts": self.restarts,
            "saved_at": self._wall(),
            "ended": ended,
        }

    def values(self) -> dict[str, float]:
        """Numbers to log: goodput (0..1), restarts, and seconds/ACCOUNT."""
        seconds = self.seconds()
        total = sum(seconds.values())
        return {
            "goodput": seconds["step"] / total if total > 0 else 0.0,
            "restarts": self.restarts,
        } | {f"seconds/{name}": value for name, value in seconds.items()}


def process_age() -> float:
    """Seconds since this process was started; 0 where the system doesn't tell."""
    try:
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return uptime - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def shares(values: Mapping[str, float]) -> str:
    """Returns "87% training steps, 9% compiling, ..." of logged `Goodput.values`."""
    seconds = {name: float(values.get(f"seconds/{name}", 0.0)) for name in ACCOUNTS}
    total = sum(seconds.values()) or 1.0
    largest = sorted(seconds, key=lambda name: -seconds[name])
    shown = [n for n in largest if n == "step" or seconds[n] / total >= 0.005]
    return ", ".join(f"{seconds[n] / total:.0%} {ACCOUNTS[n]}" for n in shown)
