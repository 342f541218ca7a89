"""Waiting for what another thread or process does: until it is there, never for a fixed time."""

import time
from collections.abc import Callable

import pytest


def wait_until(condition: Callable[[], object], what: str = "", seconds: float = 120):
    """Returns the first true value of ``condition()``; fails the test after ``seconds``.

    The deadline only ends what would hang: it is far longer than a busy machine needs.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds} s for {what or condition}")
        time.sleep(0.01)
    return value
