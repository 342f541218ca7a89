"""Conversations in JSON lines, checked as they are found."""

from collections.abc import Sequence
from typing import Any

from t5x_lite.data.chat import messages_of
from t5x_lite.data.source import Record, Source
from t5x_lite.data.tables import JsonLines
from t5x_lite.data.task_data import when_used
from t5x_lite.ranges import Count, Fraction


class _Conversations(JsonLines):
    """JSON lines of which each is a conversation: {"messages": [...], and its other fields}."""

    def __init__(self, files, held_out: float, validation_files, max_bad_records: int):
        super().__init__(files, None, held_out, validation_files, max_bad_records, 10_000_000)

    def parse(self, file: int, row: bytes) -> Record:
        return _with_messages(super().parse(file, row))

    def check(self, file: int, row: bytes) -> Record:
        return _with_messages(super().check(file, row))


def _with_messages(record: Any) -> Record:
    rest = {k: v for k, v in record.items() if k != "conversations"}
    return rest | {"messages": messages_of(record)}


@when_used
def conversations(
    files: str | Sequence[str],
    validation_files: str | Sequence[str] | None = None,
    held_out: Fraction = 0.05,
    max_bad_records: Count = 0,
) -> Source:
    """Conversations in JSON lines: {"messages": [{"role", "content"}, ...]}, or
    ShareGPT's {"conversations": [{"from", "value"}, ...]}.

    held_out, validation_files, max_bad_records: as of `JsonLines`. A line that is no conversation
    (see `check_messages`) is an error that names its file and line.
    """
    return _Conversations(files, held_out, validation_files, max_bad_records)
