"""Python's garbage collector at fixed steps: it pauses all hosts together, not in turns."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Inside, collection only happens by `collect`; what exists already is never looked at."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


def collect(step: int, period: int) -> None:
    """Collects if `step` is a multiple of `period`."""
    if step % period == 0:
        gc.collect()
