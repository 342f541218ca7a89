"""Reading so that three things stay three: not there, not what was saved, can't be read now.

A file that a disk or a network doesn't give at the moment (EIO, ESTALE, EMFILE, EACCES, ...) says
nothing about its content: whoever takes it for damaged or missing throws away what is sound. So an
`OSError` is tried again for a few seconds, and then ends what was being done as `Unreadable`.
"""

import errno
import os
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from t5x_lite.errors import Unreadable
from t5x_lite.retry import retry

T = TypeVar("T")
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_SYSTEM = re.compile(r"\[os_error_code='(\d+|E[A-Z0-9]+)'")  # of tensorstore: '5', or 'EIO'
_MISSING_CODES = ("ENOENT", "ENOTDIR", "EISDIR", "2", "20", "21")


def attempt(read: Callable[[], T], what: str | os.PathLike) -> T:
    """Returns `read()`, tried again for some seconds while the system can't do it.

    Raises:
      FileNotFoundError, NotADirectoryError, IsADirectoryError: as they come: it isn't there.
      Unreadable: any other OSError that stays.
    """
    try:
        return retry(
            read, what=os.fspath(what), first_wait=0.5, transient=can_pass, sleep=time.sleep
        )
    except OSError as error:
        if isinstance(error, (*MISSING, Unreadable)):
            raise
        raise unreadable(what, error) from error


def can_pass(error: BaseException) -> bool:
    """Whether an error is of the system's, and may be over at the next attempt."""
    lasting = (*MISSING, PermissionError, Unreadable)
    return isinstance(error, OSError) and not isinstance(error, lasting)


def unreadable(what: str | os.PathLike, error: BaseException) -> Unreadable:
    """The one line on a file that can't be read now: its name and the system's error."""
    number, path = system_number(error), getattr(error, "filename", None) or what
    if _SYSTEM.search(str(error)):
        path = ([path, *re.findall(r'"(/[^"]+)"', str(error))])[-1]  # the innermost
    reason = os.strerror(number) if number else " ".join(str(error).split())[:300]
    name = f" ({errno.errorcode.get(number, number)})" if number else ""
    return Unreadable(
        number,
        f"{os.fsdecode(path)} can't be read now: {reason}{name}. That is no sign of damage: "
        "nothing was moved. Mend the disk, the mount or the rights; the same command continues.",
    )


def system_number(error: BaseException) -> int | None:
    """The system's number of an error: an OSError's own, or what tensorstore's text gives."""
    if (code := _SYSTEM.search(str(error))) is None:
        return getattr(error, "errno", None)
    names = {name: value for value, name in errno.errorcode.items()}
    return int(code[1]) if code[1].isdigit() else names.get(code[1])


def system_error(error: BaseException) -> BaseException | None:
    """The error of the system behind another one (its causes are followed), if that is what it is.

    None: the content is wrong, or missing.
    """
    seen: set[int] = set()
    todo = [error]
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, OSError) and one.errno and not isinstance(one, MISSING):
            return one
        if (code := _SYSTEM.search(str(one))) and code[1] not in _MISSING_CODES:
            return one
        todo += [e for e in (one.__cause__, one.__context__) if e is not None]
        todo += list(getattr(one, "exceptions", ()))
    return None


def read_text(file: Any) -> str | None:
    """The text of a file (a path of pathlib or epath); None: there is no such file.

    Raises:
      Unreadable: it is there and can't be read now.
      UnicodeDecodeError: it is no UTF-8.
    """
    try:
        return attempt(lambda: file.read_bytes(), file).decode()
    except FileNotFoundError:
        return None


def exists(path: Any) -> bool:
    """Whether there is something at a path of pathlib or epath. Raises Unreadable."""
    if "://" in os.fspath(path):  # folders of an object store can't be looked up by themselves
        return attempt(path.exists, path)
    try:
        attempt(lambda: os.stat(path), path)
        return True
    except MISSING:
        return False
