"""Making the next batches in a thread while the current one is used."""

import collections
import threading
import time
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


class Prefetch(Iterator[T]):
    """An iterator over `iterator`, read ahead by a daemon thread; see `prefetch`."""

    def __init__(self, iterator: Iterator[T], depth: int):
        # The thread must not hold on to `self`, or an abandoned Prefetch would never be collected.
        self._shared = _Shared(iterator, depth)
        self._thread = threading.Thread(target=self._shared.fill, name="prefetch", daemon=True)
        self._thread.start()

    def __next__(self) -> T:
        return self._shared.take()

    @property
    def seconds_waited(self) -> float:
        """How long `next` has waited for items so far, all together."""
        return self._shared.waited

    def close(self) -> None:
        """Stops the thread, after the item that it is making, and closes the iterator."""
        self._shared.stop()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> "Prefetch[T]":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_shared"):
            self._shared.stop()


class _Shared:
    """The items read ahead and how the iterator ended, between the thread and its reader."""

    def __init__(self, iterator, depth: int):
        self._iterator, self._depth = iterator, depth
        self._items = collections.deque()
        self._end: BaseException | None = None
        self._changed = threading.Condition()
        self.waited = 0.0

    def fill(self) -> None:
        end: BaseException = StopIteration()
        try:
            while self._wait_for_room():
                item = next(self._iterator)
                with self._changed:
                    if self._end is None:
                        self._items.append(item)
                    self._changed.notify_all()
            # In this thread: a generator can't be closed while another one runs it.
            if hasattr(self._iterator, "close"):
                self._iterator.close()
        except BaseException as e:
            end = e
        with self._changed:
            self._end = self._end or end
            self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._end or len(self._items) < self._depth)
            return self._end is None

    def take(self):
        with self._changed:
            if not (self._items or self._end):
                start = time.perf_counter()
                self._changed.wait_for(lambda: self._items or self._end)
                self.waited += time.perf_counter() - start
            if self._items:
                self._changed.notify_all()
                return self._items.popleft()
            raise self._end

    def stop(self) -> None:
        with self._changed:
            self._items.clear()
            self._end = StopIteration()
            self._changed.notify_all()


def prefetch(iterator: Iterator[T], depth: int = 2) -> Prefetch[T]:
    """Reads up to `depth` items of `iterator` ahead in a daemon thread.

    An exception of the iterator is raised where its item would have come, and again after that.
    `close()`, or leaving it as a context manager, ends the thread; after that it is exhausted.
    """
    if depth < 1:
        raise ValueError(f"depth is {depth}; it must be 1 or more")
    return Prefetch(iter(iterator), depth)
