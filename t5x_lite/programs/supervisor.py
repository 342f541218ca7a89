"""`t5x_lite train --restart=N`: a parent that starts training again when it crashes.

It imports neither jax nor anything else that could crash with its child.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from t5x_lite import exit_status, parent

FINAL = (
    exit_status.FINISHED,
    exit_status.MISTAKE,  # to be mended first; numbers that aren't finite come again, too
    exit_status.INTERRUPTED,
    exit_status.SAVED,
)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LONG_RUN = 600.0  # seconds after which a crash is a new trouble, not the old one again


def supervise(
    command: Sequence[str],
    restarts: int,
    *,
    first_wait: float = 1.0,
    longest_wait: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Runs `command` until it ends in order; returns its exit status.

    After a crash (any status that isn't FINAL, or a signal) it is started again, `restarts` times
    in a row at most, after 1, 2, 4, ... seconds. A process that ran for ten minutes ends the row.
    SIGTERM, SIGINT and SIGHUP are passed on, and then nothing is started any more. A supervisor
    that is killed takes its child along (parent.py).
    """
    stopping: list[int] = []
    child: subprocess.Popen | None = None

    def pass_on(number, frame) -> None:
        stopping.append(number)
        if child is not None and child.poll() is None:
            child.send_signal(number)

    previous = {n: signal.signal(n, pass_on) for n in _heard()}
    environment = {**os.environ, **parent.environment()}
    try:
        in_a_row = 0
        while True:
            started = clock()
            # A session of its own: Ctrl-C in the terminal reaches it once, through `pass_on`.
            child = subprocess.Popen(command, start_new_session=True, env=environment)
            if stopping:  # the signal came while it was being started
                child.send_signal(stopping[-1])
            status = child.wait()
            if status in FINAL or stopping:
                return 128 - status if status < 0 else status
            if clock() - started > LONG_RUN:
                in_a_row = 0
            in_a_row += 1
            how = f"was killed by signal {-status}" if status < 0 else f"failed with {status}"
            if in_a_row > restarts:
                say(f"training {how}; not started again after {restarts} restarts in a row")
                return 128 - status if status < 0 else status
            wait = min(longest_wait, first_wait * 2 ** (in_a_row - 1))
            say(f"training {how}; restart {in_a_row} of {restarts} in {wait:g} s")
            _sleep(wait, stopping)
            if stopping:
                return exit_status.SAVED  # as much as there is
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _heard() -> list[int]:
    """The signals to pass on: not those that are ignored, as SIGHUP under nohup."""
    return [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]


def _sleep(seconds: float, stopping: list[int]) -> None:
    end = time.monotonic() + seconds
    while not stopping and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.1))


def train_command(argv: Sequence[str]) -> list[str]:
    """The command of the child: the same, without --restart."""
    rest, skip = [], False
    for argument in argv:
        if skip:
            skip = False
        elif argument == "--restart":
            skip = True
        elif not argument.startswith("--restart="):
            rest.append(argument)
    return [sys.executable, "-m", "t5x_lite", *rest]


def say(text: str) -> None:
    print(f"supervisor: {text}", file=sys.stderr, flush=True)
