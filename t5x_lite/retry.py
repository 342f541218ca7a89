"""Trying again what a network may get right the second time."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)


def is_transient(error: Exception) -> bool:
    """Whether an error of a remote read or write is worth another try: lost or slow connections."""
    return isinstance(error, ConnectionError | TimeoutError | InterruptedError) or any(
        word in type(error).__name__ for word in ("Timeout", "Unavailable", "ConnectionError")
    )


def retry(
    function: Callable[[], T],
    *,
    what: str,
    attempts: int = 4,
    first_wait: float = 1.0,
    transient: Callable[[Exception], bool] = is_transient,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Returns `function()`, called again after 1, 2, 4, ... seconds while its error is transient.

    Args:
      what: path or name of what is read, for the warnings.
      attempts: calls in all; the error of the last one is raised.
    """
    for attempt in range(1, attempts + 1):
        try:
            return function()
        except Exception as error:
            if attempt == attempts or not transient(error):
                raise
            wait = first_wait * 2 ** (attempt - 1)
            log.warning("%s: %s; trying again in %g s (%d of %d)", what, error, wait, attempt + 1,
                        attempts)  # fmt: skip
            sleep(wait)
    raise AssertionError("unreachable")
