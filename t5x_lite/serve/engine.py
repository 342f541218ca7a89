"""Jobs in, tokens out: one thread that has the device, and fills its slots from a queue."""

import collections
import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from t5x_lite.inference.slots import Chosen, Rows, Slots

log = logging.getLogger(__name__)


class Token(NamedTuple):
    id: int
    log_prob: float
    top: list[tuple[int, float]]  # the most probable tokens; empty if not asked for


class Full(Exception):
    """So many jobs wait that another is refused."""


class Closing(Exception):
    """The engine takes no more jobs."""


@dataclasses.dataclass(eq=False)
class Job:
    """One text to write.

    tell: called from the engine's thread with new tokens and how it ended: None (it goes on),
      "stop" (EOS, which is the last token), "length", or "error". Must not block.
    cancelled: set it, from any thread, to have no more tokens made.
    """

    batch: dict[str, np.ndarray]  # as `Slots.start` takes it
    limit: int
    tell: Callable[[list[Token], str | None], None]
    seed: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    alternatives: bool = False
    cancelled: bool = False


class Engine:
    """Decodes jobs, at most ``slots.rows`` at a time; the others wait in their order.

    Between two slices of a few tokens, who has ended leaves, and who waits takes the place: its
    prompt is read alone, in a pass of its own. So a job's tokens depend on the job alone.

    Args:
      around: a context manager for the thread, such as `use_mesh(...)`.
    """

    def __init__(
        self,
        slots: Slots,
        params: Any,
        *,
        max_waiting: int,
        slice_tokens: int,
        around: Callable[[], Any],
    ):
        self._slots, self._params, self._around = slots, params, around
        self._max_waiting, self._length = max_waiting, slice_tokens
        self._waiting: collections.deque[Job] = collections.deque()
        self._jobs: list[Job | None] = [None] * slots.rows
        self._rows, self._cache = Rows.empty(slots.rows), None
        self._changed, self._closing, self._abandon = threading.Condition(), False, False
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self.slices = 0

    def start(self) -> None:
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs in the queue that are still wanted."""
        with self._changed:
            return sum(not job.cancelled for job in self._waiting)

    @property
    def running(self) -> int:
        """Jobs that are being decoded and still wanted; an ended job isn't one when it is told."""
        return sum(job is not None and not job.cancelled for job in list(self._jobs))

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, jobs: Sequence[Job]) -> None:
        """All of them or none: raises Full or Closing."""
        with self._changed:
            if self._closing or not self.alive:
                raise Closing
            for job in [job for job in self._waiting if job.cancelled]:
                self._waiting.remove(job)
            # As many as there are slots wait only until the slice that runs has ended.
            if len(self._waiting) + len(jobs) > self._max_waiting + len(self._jobs) - self.running:
                raise Full
            self._waiting.extend(jobs)
            self._changed.notify()

    def close(self, seconds: float) -> None:
        """Takes no more jobs, lets those that there are end; after so many seconds fails them."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        self._abandon = True
        self._thread.join()

    def _run(self) -> None:
        with self._around():
            while self._wait():
                try:
                    self._admit()
                    if self.running:
                        self._advance()
                except Exception:
                    # Their tokens are lost with the cache, which was given away; others aren't.
                    log.exception("decoding failed")
                    self._cache = None
                    lost = [job for job in self._jobs if job is not None]
                    self._jobs = [None] * len(self._jobs)
                    self._rows = Rows.empty(len(self._jobs))
                    self._fail(lost)

    def _wait(self) -> bool:
        """Until there is something to do; False: never again."""
        with self._changed:
            while not (self._waiting or self.running or self._closing):
                self._changed.wait()
            if self._abandon:
                self._fail([*self._waiting, *(job for job in self._jobs if job is not None)])
                return False
            return bool(self._waiting or self.running)

    def _fail(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.tell([], "error")

    def _admit(self) -> None:
        for row, job in enumerate(self._jobs):
            if job is not None and job.cancelled:
                self._leave(row)
        for row in range(len(self._jobs)):
            while self._jobs[row] is None and (job := self._next()) is not None:
                self._begin(row, job)

    def _next(self) -> Job | None:
        with self._changed:
            while self._waiting:
                job = self._waiting.popleft()
                if not job.cancelled:
                    return job
        return None

    def _begin(self, row: int, job: Job) -> None:
        """Reads a job's prompt. What fails here is this job's alone: the others' cache is whole."""
        try:
            chosen = self._start(row, job)
        except Exception:
            if self._cache is not None and any(
                x.is_deleted() for x in jax.tree.leaves(self._cache)
            ):
                raise  # it was given away: all are lost
            log.exception("a text could not be begun")
            self._leave(row)
            self._fail([job])
            return
        self._tell(row, chosen, 0)

    def _start(self, row: int, job: Job) -> Chosen:
        rows = self._rows
        if self._cache is None:
            self._cache = self._slots.empty(self._params, job.batch)
        rows.written[row], rows.limit[row], rows.seed[row] = 0, job.limit, job.seed
        rows.temperature[row], rows.alternatives[row] = job.temperature, job.alternatives
        rows.top_k[row], rows.top_p[row] = job.top_k, job.top_p
        self._jobs[row] = job
        chosen, self._cache = self._slots.start(
            self._params, self._cache, job.batch, np.int32(row), rows.at(row)
        )
        return Chosen(*(np.asarray(x)[None] for x in chosen))

    def _advance(self) -> None:
        # Copies: the arrays change when it has been read, and reading needn't be done on return.
        rows = Rows(*(x.copy() for x in self._rows))
        chosen, self._cache = self._slots.slice(self._params, self._cache, rows, self._length)
        chosen = Chosen(*(np.asarray(x) for x in chosen))
        self.slices += 1
        for row, job in enumerate(self._jobs):
            if job is not None:
                self._tell(row, chosen, row)

    def _tell(self, row: int, chosen: Chosen, column: int) -> None:
        """Gives a job its tokens, and frees its slot when it has ended."""
        job, rows, new, ended = self._jobs[row], self._rows, [], None
        for i in range(len(chosen.tokens)):
            token = int(chosen.tokens[i, column])
            top = []
            if job.alternatives:
                both = zip(chosen.top_ids[i, column], chosen.top_log_probs[i, column], strict=True)
                top = [(int(t), float(p)) for t, p in both]
            new.append(Token(token, float(chosen.log_probs[i, column]), top))
            rows.written[row] += 1
            rows.last[row] = token
            if token in self._slots.eos_ids:
                ended = "stop"
            elif rows.written[row] >= rows.limit[row]:
                ended = "length"
            if ended:
                break
        # First free the slot: who hears of the end must find it free, in `running`, too.
        if ended:
            self._leave(row)
        job.tell(new, ended)

    def _leave(self, row: int) -> None:
        self._jobs[row] = None
        self._rows.limit[row] = 0  # it stands still
        self._rows.alternatives[row] = False
        self._rows.temperature[row] = 0.0
        self._rows.top_k[row], self._rows.top_p[row] = 0, 1.0
