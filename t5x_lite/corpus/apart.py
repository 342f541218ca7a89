"""The reading and cleaning of files in a process of its own, with limits for each document.

A page can keep a parser or a regular expression busy for hours, take all memory, or end the
process by a fault in a library. None of that can be stopped from within; so it happens in a child,
which the kernel ends when one document has used `Corpus.max_seconds` of processor time or
`Corpus.max_megabytes` of memory. The document is named and counted, a new child goes on behind it.
"""

import atexit
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, Pipe
from typing import Any

from t5x_lite.corpus.cleaning import Batch, clean_file
from t5x_lite.corpus.opening import Problems
from t5x_lite.corpus.settings import Corpus
from t5x_lite.errors import UserError

_SEVERAL = 64  # documents in a message
_MOST_ENDS = 3  # children that end one after the other without having read anything
_MB = 1 << 20


def batches(corpus: Corpus, source: str, path: str, name: str) -> Iterator[Batch]:
    """What `clean_file` yields for a file, whatever the file holds."""
    if corpus.max_seconds is None:
        yield from clean_file(corpus, source, path, name)
        return
    start, several, ends = 0, _SEVERAL, 0
    while True:
        child = _child(corpus)
        before = start
        try:
            for batch in child.clean(source, path, name, start, several):
                yield batch
                start = batch.position + 1
            return
        except ChildProcessError as error:
            child.stop()
            problems = Problems()
            ends = 0 if start > before else ends + 1
            if several > 1 and ends < _MOST_ENDS:
                several = 1  # to see which document it was
                continue
            problems.add(str(error), f"{name} item {start + 1}")
            start, several = start + 1, _SEVERAL
            yield Batch.of(start - 1, problems=problems)
            if ends >= _MOST_ENDS:
                return  # it is the file, not a document


class _Child:
    """A process that cleans files for one corpus."""

    def __init__(self, corpus: Corpus):
        import cloudpickle

        self.corpus = corpus
        self._connection, theirs = Pipe()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 # until stop
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", "import sys, json; sys.path[:] = json.loads(sys.argv[2]); "
             "from t5x_lite.corpus.apart import main; main(int(sys.argv[1]))",
             str(theirs.fileno()), json.dumps(sys.path)],
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=self._errors,
            stderr=self._errors, env=environment,
        )  # fmt: skip
        theirs.close()
        try:
            self._connection.send_bytes(cloudpickle.dumps(corpus))
            self._connection.recv()
        except (EOFError, OSError):
            self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip()[-2000:]
            self.stop()
            raise RuntimeError(f"the process that reads documents didn't start: {said}") from None

    def clean(self, *file: Any) -> Iterator[Batch]:
        """Raises ChildProcessError, with what a document did, if it ends on the way."""
        try:
            self._connection.send(file)
            while (found := self._connection.recv()) is not None:
                if isinstance(found, UserError):
                    raise found
                yield found
        except (EOFError, OSError):
            raise ChildProcessError(self._reason(self._process.wait())) from None

    def _reason(self, status: int) -> str:
        if status == -signal.SIGXCPU:
            return f"document that takes more than {self.corpus.max_seconds} s"
        if status < 0:
            return f"document that ends the process ({signal.Signals(-status).name})"
        return f"document that ends the process (status {status})"

    def stop(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()
        self._errors.close()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None


_own = threading.local()  # Beam calls from several threads
_all: list[_Child] = []


def _child(corpus: Corpus) -> _Child:
    child = getattr(_own, "child", None)
    if child is not None and (child.corpus != corpus or not child.alive):
        child.stop()
        child = None
    if child is None:
        child = _own.child = _Child(corpus)
        _all.append(child)
    return child


@atexit.register
def _stop_all() -> None:
    for child in _all:
        with contextlib.suppress(Exception):
            child.stop()


# --------------------------------------------------------------------------------------- the child


def main(descriptor: int) -> None:
    """Cleans the files that the connection names, until it is closed."""
    import pickle

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's business
    connection = Connection(descriptor)
    corpus: Corpus = pickle.loads(connection.recv_bytes())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection.send("ready")
    nowhere = os.open(os.devnull, os.O_WRONLY)  # warcio writes there what is damaged, byte for byte
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    memory_set = False
    with contextlib.suppress(EOFError, OSError):
        while True:
            source, path, name, start, several = connection.recv()

            def renew() -> None:
                nonlocal memory_set
                seconds = int(time.process_time()) + 1 + corpus.max_seconds
                _limit(resource.RLIMIT_CPU, seconds)
                if not memory_set and corpus.max_megabytes is not None:
                    _limit(resource.RLIMIT_AS, _size_now() + corpus.max_megabytes * _MB)
                    memory_set = True

            try:
                for batch in clean_file(corpus, source, path, name, start, several, renew):
                    connection.send(batch)
            except UserError as error:
                connection.send(error)
                continue
            connection.send(None)


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, hard))


def _size_now() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # no Linux
        return 2048 * _MB
