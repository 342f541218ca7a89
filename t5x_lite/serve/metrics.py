"""What a server counts, as Prometheus reads it."""

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Metrics:
    """waiting, running: of the engine, asked when somebody reads."""

    def __init__(self, waiting: Callable[[], int], running: Callable[[], int]):
        self._registry = CollectorRegistry()
        more: dict[str, Any] = {"namespace": "t5x_lite", "registry": self._registry}
        self.requests = Counter("requests", "Requests, by path and status",
                                ["path", "status"], **more)  # fmt: skip
        self.tokens = Counter("tokens", "Tokens read (prompt) and written (completion)",
                              ["kind"], **more)  # fmt: skip
        self.seconds = Histogram("request_seconds", "From a request's arrival to its answer's end",
                                 ["path"], buckets=_SECONDS, **more)  # fmt: skip
        self.first_token = Histogram("first_token_seconds", "Until an answer's first token",
                                     buckets=_SECONDS, **more)  # fmt: skip
        Gauge("queue_length", "Texts that wait", **more).set_function(waiting)
        Gauge("running", "Texts that are being decoded", **more).set_function(running)

    def text(self) -> bytes:
        return generate_latest(self._registry)
