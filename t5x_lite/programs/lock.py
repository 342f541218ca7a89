"""One owner of a run's folder: a file that says which process writes there.

Its owner touches the file every few seconds. Whoever finds a lock asks the system whether the
process is there, if it can see it (same machine since its start, same process namespace: host names
don't tell, as containers share them); else it watches the file, by its own clock, for a sign of
life. An owner that was stopped for longer than that, and then goes on, finds another one's lock and
writes nothing more: it looks before each save, and between them when it hasn't looked for a while.
"""

import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from t5x_lite import evidence
from t5x_lite.errors import Unreadable, UserError

log = logging.getLogger(__name__)

NAME = "lock.json"
HEARTBEAT = 10.0  # seconds between touches
STALE_AFTER = 60.0  # seconds of watching without a touch, of owners that can't be asked about


class Lost(UserError):
    """Another process owns the folder now."""


class Lock:
    """A context in which this process, and no other, owns `folder`.

    Raises UserError on entry if another process owns it; that may take `stale_after` seconds to
    tell.

    Args:
      folder: exists already.
      namespace: what tells where process numbers mean the same; None: they are never compared.
      clock: seconds from any origin, never going back, to watch by.
      wall: seconds since the epoch: they go on while this process, or its machine, is stopped.
      active: False in the processes of a run that leave the lock to the first one.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        namespace: str | None = "",
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        heartbeat: float = HEARTBEAT,
        stale_after: float = STALE_AFTER,
        active: bool = True,
    ):
        self._file, self._active = Path(folder) / NAME, active
        self._clock, self._wall, self._sleep = clock, wall, sleep
        self._heartbeat, self._stale_after = heartbeat, stale_after
        self._seen, self._stop = wall(), threading.Event()
        self._mine = {
            "host": socket.gethostname(),
            "namespace": process_namespace() if namespace == "" else namespace,
            "pid": os.getpid(),
            "process_start": process_start(os.getpid()),
            "id": uuid.uuid4().hex,  # the token: no two owners have one
        }

    def __enter__(self) -> "Lock":
        if not self._active:
            return self
        while not self._create():
            self._clear_if_stale()
        self._clear_leftovers()
        self._seen = self._wall()
        threading.Thread(target=self._touch, name="lock", daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.release()

    def release(self) -> None:
        """Gives the folder up; may be called more than once."""
        self._stop.set()
        with contextlib.suppress(OSError):  # it becomes stale by itself
            if self._active and _read(self._file) == self._mine:
                self._file.unlink(missing_ok=True)

    def check(self, now: bool = False) -> None:
        """Raises Lost if another process has the lock; looks at the file if it is time to.

        ``now``: look in any case, as before a save.
        """
        away = abs(self._wall() - self._seen)
        if not self._active or not (now or away > self._heartbeat):
            return
        try:
            owner = _read(self._file)
            if not owner and self._create():  # removed by hand, or about to be put back
                owner = self._mine
            owner = owner or _read(self._file)
        except Unreadable as error:  # no evidence: and what can't be read can't be saved to, either
            log.warning("%s", error)
            return
        if owner != self._mine:
            self._stop.set()
            raise Lost(
                f"{self._file} isn't this process's any more: process {owner.get('pid', '?')} on "
                f"{owner.get('host', '?')} has it, as this one gave no sign of life for too long. "
                "It ends without saving."
            )
        self._seen = self._wall()

    def _clear_leftovers(self) -> None:
        """Removes what processes left that were killed in the middle of `_create`, long ago."""
        with contextlib.suppress(OSError):
            limit = self._file.stat().st_mtime - self._stale_after  # by the file system's clock
            for left in self._file.parent.glob(f"{NAME}.*"):
                if left.stat().st_mtime < limit:
                    left.unlink()

    def _create(self) -> bool:
        # Written beside it and linked: it appears whole, and only if there is none.
        beside = self._file.with_name(f"{NAME}.{self._mine['id']}")
        beside.write_text(json.dumps(self._mine))
        try:
            os.link(beside, self._file)
            return True
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            return self._create_exclusively()
        finally:
            beside.unlink(missing_ok=True)

    def _create_exclusively(self) -> bool:
        try:
            with self._file.open("x") as file:
                file.write(json.dumps(self._mine))
            return True
        except FileExistsError:
            return False

    def _clear_if_stale(self) -> None:
        found = self._watch()
        if found is None:
            return
        # Two may find it stale at once: whoever moves it away first wins, the other finds nothing,
        # or the winner's new lock, which it puts back.
        moved = self._file.with_name(f"{NAME}.stale.{self._mine['id']}")
        try:
            self._file.rename(moved)
        except FileNotFoundError:
            return
        if _signs(moved) != found:
            with contextlib.suppress(OSError):
                os.link(moved, self._file)
        moved.unlink(missing_ok=True)

    def _watch(self) -> Any:
        """What a stale lock's file is; None if it is gone. Raises UserError if its owner lives."""
        first = _signs(self._file)
        if first is None:
            return None
        owner = _parsed(first[1])
        if (lives := self._lives(owner)) is not None:
            if lives:
                raise self._in_use(owner)
            return first
        print(
            f"{self._file}: its owner, process {owner.get('pid', '?')} on "
            f"{owner.get('host', 'another machine')}, can't be seen from here; watching it for a "
            f"sign of life, for {self._stale_after:.0f} s at most",
            file=sys.stderr,
            flush=True,
        )
        end = self._clock() + self._stale_after
        while self._clock() < end:
            self._sleep(min(1.0, self._stale_after / 20))
            later = _signs(self._file)
            if later is None:
                return None
            if later != first:
                raise self._in_use(_parsed(later[1]))
        return first

    def _in_use(self, owner: dict[str, Any]) -> UserError:
        return UserError(
            f"{self._file.parent} is in use by process {owner.get('pid', '?')} on "
            f"{owner.get('host', 'another machine')}, which is at work: stop it, or take another "
            "model_dir."
        )

    def _lives(self, owner: dict[str, Any]) -> bool | None:
        """Whether the owner's process is there; None if that can't be told from here."""
        if not owner or not owner.get("namespace"):
            return None
        if owner["namespace"] != self._mine["namespace"]:
            return None
        started = process_start(owner.get("pid", -1))
        return started is not None and started == owner.get("process_start", started)

    def _touch(self) -> None:
        while not self._stop.wait(self._heartbeat):
            with contextlib.suppress(OSError):
                owner = _read(self._file)
                if owner == self._mine:
                    os.utime(self._file)
                    self._seen = self._wall()
                elif owner:
                    return  # the next `check` says so


def _signs(file: Path) -> tuple[int, str] | None:
    """The time of the last touch (ns) and the content; None if there is no such file."""

    def read() -> tuple[int, str]:
        with file.open("rb") as opened:  # opening asks a network's file system for what is new
            return os.fstat(opened.fileno()).st_mtime_ns, opened.read().decode(errors="replace")

    try:
        return evidence.attempt(read, file)
    except FileNotFoundError:
        return None


def _read(file: Path) -> dict[str, Any]:
    """The owner in a lock file; {} if there is none, or nothing in it, as after a power cut."""
    found = _signs(file)
    return {} if found is None else _parsed(found[1])


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def process_namespace() -> str | None:
    """What is the same for all processes that see each other; None: it can't be told."""
    if sys.platform != "linux":
        return socket.gethostname()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        if os.readlink("/proc/self") != str(os.getpid()):  # the /proc of another namespace
            return None
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def process_start(pid: Any) -> str | None:
    """Something that tells a process from others that had its number; None if it isn't running."""
    if not isinstance(pid, int) or pid <= 0:
        return None
    try:
        # Fields after the name in parentheses, which may itself hold any character: 0 is the
        # state, 19 the start in clock ticks since boot.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
    except OSError:
        pass
    else:
        return None if fields[0] in "ZX" else f"{boot}/{fields[19]}"
    try:  # no /proc, as on macOS
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "running"
