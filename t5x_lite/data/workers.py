"""Rows of batches made in other processes, each of which has rows of its own.

Rows are independent streams (streams.py), so a worker is a loader of some of the rows, and who
makes a row makes no difference to it.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from t5x_lite.errors import UserError


class Workers:
    """`make(rows)` in each of `count` processes, for its part of `rows`; started on first use.

    A worker goes on while there is room in its pipe (some 64 kB): of large batches it holds one,
    which is being sent, of small ones many.
    """

    def __init__(self, make: Callable[[Sequence[int]], Any], rows: Sequence[int], count: int):
        parts = np.array_split(np.array(rows), min(count, len(rows)))
        self._parts = [part.tolist() for part in parts]
        self._make = make
        self._processes: list[Any] = []
        self._pipes: list[Any] = []
        self._round = 0  # how often it was restored: batches of earlier rounds are dropped

    def next(self, position: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The features and the position after the next batch; `position` is where to begin if the
        workers aren't running."""
        if not self._processes:
            self._start(position)
        parts = [self._receive(i) for i in range(len(self._pipes))]
        features = {name: np.concatenate([f[name] for f, _ in parts]) for name in parts[0][0]}
        return features, np.concatenate([p for _, p in parts])

    def restore(self, position: np.ndarray) -> None:
        if not self._processes:
            return
        self._round += 1
        for pipe, part in zip(self._pipes, self._split(position), strict=True):
            pipe.send((self._round, part))

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()  # a worker ends when it can neither send nor receive
        for process in self._processes:
            process.join(timeout=1)
            if process.is_alive():
                process.kill()
        self._processes, self._pipes = [], []

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def _split(self, position: np.ndarray) -> list[np.ndarray]:
        ends = np.cumsum([len(part) for part in self._parts])
        return np.split(position, ends[:-1])

    def _start(self, position: np.ndarray) -> None:
        try:
            make = pickle.dumps(self._make)
        except Exception as e:  # what can't be pickled raises several kinds
            raise UserError(
                f"the task can't be sent to worker processes ({' '.join(str(e).split())}); define "
                "its functions in a module, or set BatchLoader.num_workers = 0."
            ) from e
        # Not forked: a fork of a process with jax's threads may hang.
        context = multiprocessing.get_context("spawn")
        for rows, part in zip(self._parts, self._split(position), strict=True):
            pipe, other = context.Pipe()
            arguments = (make, rows, self._round, part, other)
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            other.close()
            self._processes.append(process)
            self._pipes.append(pipe)

    def _receive(self, number: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        while True:
            try:
                found, content = self._pipes[number].recv()
            except (EOFError, ConnectionResetError) as e:
                process = self._processes[number]
                process.join(timeout=1)
                raise RuntimeError(
                    f"data worker {number} ended by itself (exit code {process.exitcode}); if it "
                    "was killed for memory, use fewer BatchLoader.num_workers."
                ) from e
            if found != self._round:
                continue
            if isinstance(content, BaseException):
                raise content
            return content


def _work(make: bytes, rows: list[int], number: int, position: np.ndarray, pipe: Any) -> None:
    """A worker: batch after batch to the pipe, from a new position whenever one comes in."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # the accelerator is the parent's
    # What is sent to the whole group is the parent's to act on: it may need another batch.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            loader = pickle.loads(make)(rows)
        except Exception as e:
            pipe.send((number, _portable(e)))
            return
        while True:
            try:
                if position is not None:
                    loader.restore(position)
                    position = None
                batch = next(loader)
                content: Any = (batch.features, batch.position)
            except Exception as e:
                content = _portable(e)
            pipe.send((number, content))
            # After an error there is nothing to do until the parent goes elsewhere.
            while pipe.poll(None if isinstance(content, BaseException) else 0):
                number, position = pipe.recv()
                content = None


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
