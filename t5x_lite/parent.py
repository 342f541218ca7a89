"""A child that doesn't outlive the process that started it, however that one ends.

Who starts the child adds `environment()` to its environment; the child calls `follow`.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time

_NAME = "T5X_LITE_PARENT"
_PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)


def environment() -> dict[str, str]:
    """What tells a child whom to follow."""
    return {_NAME: str(os.getpid())}


def follow() -> None:
    """If a parent asked for it: SIGTERM comes to this process when that parent has ended."""
    asked = os.environ.pop(_NAME, None)  # of this process, not of its own children
    if asked is None or not asked.isdigit():
        return
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != int(asked):  # it ended before that
        os.kill(os.getpid(), signal.SIGTERM)
    elif sys.platform != "linux":
        threading.Thread(target=_watch, args=(int(asked),), name="parent", daemon=True).start()


def _watch(pid: int, poll: float = 1.0) -> None:
    while os.getppid() == pid:
        time.sleep(poll)
    os.kill(os.getpid(), signal.SIGTERM)
