"""The one exception for mistakes a user can mend, and the nearest-name hint."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad configuration, data, checkpoint or topology.

    The message is one line: what was found, what was expected, the nearest fix. The command line
    prints it without a traceback and exits with status 2.
    """


class Unreadable(OSError):
    """What is there can't be read now: no evidence that it is damaged. One line, status 1."""

    def __str__(self) -> str:
        return str(self.args[1] if len(self.args) > 1 else self.args[0])


class SaveError(OSError):
    """The newest state could not be saved; older checkpoints are untouched."""


class NotFinite(FloatingPointError):
    """Loss, gradient or state aren't finite. The same command would come to the same: status 2."""


class Mistakes(UserError):
    """Several at once: a line that says how many, then a line for each."""


def raise_all(mistakes: Iterable[str]) -> None:
    """Raises a UserError for all of them; nothing if there are none."""
    lines = list(dict.fromkeys(mistakes))
    if len(lines) > 1:
        raise Mistakes("\n  ".join([f"{len(lines)} mistakes in the configuration:", *lines]))
    if lines:
        raise UserError(lines[0])


def did_you_mean(name: str, candidates: Iterable[str], limit: int = 3) -> str:
    """Returns " Did you mean 'a' or 'b'?" for the nearest candidates, or "" if none is near."""
    near = difflib.get_close_matches(name, list(candidates), n=limit, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
