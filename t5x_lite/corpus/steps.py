"""A step of cleaning: it may change a document, and says why one is dropped.

Steps are frozen dataclasses, so that they travel to other processes with their settings, and
compare and print by value. A filter's thresholds are its fields, each with the rule it belongs to.
"""

import dataclasses
from typing import Any, ClassVar, cast

from t5x_lite.corpus.code_languages import is_code

# text, id, source, url, language, license: str; scores: {name: float}. While it is cleaned also
# code: bool, whether it is source code; and counts: {name: int}, what steps found or removed in it;
# they are summed in the data card.
Document = dict[str, Any]


class Step:
    """Called with a document: returns None to keep it, or the reason to drop it."""

    SCORES: ClassVar[tuple[str, ...]] = ()  # what it adds to document["scores"]

    def __call__(self, document: Document) -> str | None:
        raise NotImplementedError


class Filter(Step):
    """A step that looks at the text only: `broken(text)` names the rule that the text breaks.

    PROSE: its rules are about natural language, so source code passes.
    """

    SOURCE: ClassVar[str] = ""
    PROSE: ClassVar[bool] = True

    def broken(self, text: str) -> str | None:
        raise NotImplementedError

    def __call__(self, document: Document) -> str | None:
        if self.PROSE and is_code(document):
            return None
        rule = self.broken(document["text"])
        return None if rule is None else f"{type(self).__name__}/{rule}"


def rule(threshold: Any, name: str, meaning: str) -> Any:
    """The field of one threshold. None switches the rule off."""
    return dataclasses.field(default=threshold, metadata={"rule": name, "meaning": meaning})


def count(document: Document, name: str, number: int = 1) -> None:
    """Adds to what the data card shows under `name`."""
    if number:
        counts = document.setdefault("counts", {})
        counts[name] = counts.get(name, 0) + number


def rules_of(filter_class: type[Filter]) -> list[tuple[str, str, Any, str]]:
    """(rule, meaning, threshold, source) of each rule of a filter."""
    return [
        (f.metadata["rule"], f.metadata["meaning"], f.default, filter_class.SOURCE)
        for f in dataclasses.fields(cast(Any, filter_class))
        if "rule" in f.metadata
    ]
