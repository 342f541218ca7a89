"""One owner of a run's folder: a file that says which process writes there.

A lock is stale when its process is gone (on this machine), or when its owner on another machine
hasn't touched it for a while.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from t5x_lite.errors import UserError

NAME = "lock.json"
HEARTBEAT = 20.0  # seconds between touches
STALE_AFTER = 300.0  # seconds without a touch, for owners on other machines


class Lock:
    """A context in which this process, and no other, owns `folder`.

    Raises UserError on entry if another process owns it.

    Args:
      folder: exists already.
      host: this machine's name.
      wall: seconds since the epoch, as file times are.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        host: str | None = None,
        wall: Callable[[], float] = time.time,
        heartbeat: float = HEARTBEAT,
    ):
        self._file = Path(folder) / NAME
        self._wall, self._heartbeat = wall, heartbeat
        self._stop = threading.Event()
        self._mine = {
            "host": host or socket.gethostname(),
            "pid": os.getpid(),
            "process_start": process_start(os.getpid()),
            "id": uuid.uuid4().hex,
        }

    def __enter__(self) -> "Lock":
        while not self._create():
            self._clear_if_stale()
        threading.Thread(target=self._touch, name="lock", daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._stop.set()
        if _read(self._file) == self._mine:
            self._file.unlink(missing_ok=True)

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
            beside.unlink()

    def _create_exclusively(self) -> bool:
        try:
            with self._file.open("x") as file:
                file.write(json.dumps(self._mine))
            return True
        except FileExistsError:
            return False

    def _clear_if_stale(self) -> None:
        try:
            owner, age = _read(self._file), self._wall() - self._file.stat().st_mtime
        except FileNotFoundError:
            return
        if self._is_live(owner, age):
            raise UserError(
                f"{self._file.parent} is in use by process {owner.get('pid', '?')} on "
                f"{owner.get('host', 'another machine')} (last sign of life {max(age, 0):.0f} s "
                f"ago): stop it, or take another model_dir. If it is gone, remove {self._file}."
            )
        # Two may find it stale at once: whoever moves it away first wins, the other finds nothing,
        # or the winner's new lock, which it puts back.
        moved = self._file.with_name(f"{NAME}.stale.{self._mine['id']}")
        try:
            self._file.rename(moved)
        except FileNotFoundError:
            return
        if _read(moved) != owner:
            with contextlib.suppress(OSError):
                os.link(moved, self._file)
        moved.unlink()

    def _is_live(self, owner: dict[str, Any], age: float) -> bool:
        if owner.get("host") != self._mine["host"]:
            return age < STALE_AFTER
        started = process_start(owner.get("pid", -1))
        return started is not None and started == owner.get("process_start", started)

    def _touch(self) -> None:
        while not self._stop.wait(self._heartbeat):
            with contextlib.suppress(OSError):
                os.utime(self._file)


def _read(file: Path) -> dict[str, Any]:
    """The owner in a lock file; {} if it can't be read, as after a power cut."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def process_start(pid: Any) -> str | None:
    """Something that tells a process from others that had its number; None if it isn't running."""
    if not isinstance(pid, int) or pid <= 0:
        return None
    try:
        # Fields after the name in parentheses, which may itself hold any character: 0 is the
        # state, 19 the start in clock ticks since boot.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError:
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
