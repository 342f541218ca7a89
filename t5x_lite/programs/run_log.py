"""The package's log of a run: INFO and above in the run's folder, warnings on the console.

What matched which parameter, which checkpoint was tried: too much for the console, needed when a
run surprises. Only the command sets this up; who calls `train` as a library has a log of their own.
"""

import contextlib
import logging
import logging.handlers
import os
import sys
from collections.abc import Iterator

NAME = "train.log"
_LOGGER = logging.getLogger("t5x_lite")
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextlib.contextmanager
def recorded() -> Iterator[None]:
    """Keeps the package's messages until `write_to` names the folder; then appends them there."""
    level, before = _LOGGER.level, list(_LOGGER.handlers)
    if not _LOGGER.hasHandlers():  # else somebody has decided where warnings go
        console = logging.StreamHandler(sys.stderr)
        console.setLevel(logging.WARNING)
        console.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        _LOGGER.addHandler(console)
    _LOGGER.addHandler(logging.handlers.MemoryHandler(10_000, flushLevel=logging.CRITICAL + 1))
    _LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        for handler in [h for h in _LOGGER.handlers if h not in before]:
            _LOGGER.removeHandler(handler)
            handler.close()
        _LOGGER.setLevel(level)


def write_to(folder: str) -> None:
    """Appends what was kept so far, and all that follows, to ``folder``/train.log."""
    for kept in list(_LOGGER.handlers):
        if isinstance(kept, logging.handlers.MemoryHandler):
            file = logging.FileHandler(os.path.join(folder, NAME), encoding="utf-8", delay=True)
            file.setFormatter(logging.Formatter(_FORMAT))
            kept.setTarget(file)
            kept.flush()
            _LOGGER.removeHandler(kept)
            _LOGGER.addHandler(file)
