"""Published datasets as text to text: preprocessors that write T5's prompts.

Each takes a record as TFDS has it, or a row of a local file with the same fields, and returns
"inputs" and "targets", T5's (arXiv:1910.10683, appendix D), and where it says so

  choices     the texts among which the target is; `eval` ranks them by log-likelihood
  references  all texts that are right
  group       what examples that are judged together have in common

With `for_heads` they return what an encoder's heads learn (objectives/heads.py), too.

A label may be a class number, also as text, a truth value or the label's own text.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5x_lite.data.record_text import as_text, fill, integer_of, list_of, number_of, value_at
from t5x_lite.data.source import UNLABELLED, Record
from t5x_lite.errors import UserError, did_you_mean

# ---------------------------------------------------------------------------------- preprocessors


@dataclasses.dataclass(frozen=True)
class Classify:
    """`cola sentence: ...` -> `acceptable`: T5's template of GLUE and SuperGLUE.

    prefix: the benchmark's name. fields: the record's texts, in order. labels: the classes' texts,
    by number. label: the field that holds the class.
    rank: add the labels as choices. group: the field, "a/b" for a nested one, of its group.
    strip_html: take out <br> and <b>, as T5 does with MultiRC.
    """

    prefix: str
    fields: Sequence[str]
    labels: Sequence[str]
    label: str = "label"
    rank: bool = False
    group: str | Sequence[str] | None = None
    strip_html: bool = False
    for_heads: bool = dataclasses.field(default=False, repr=False)

    def __call__(self, record: Record) -> Record:
        found = [_text(record, field) for field in self.fields]
        if self.strip_html:
            found = [re.sub(r"</?b>", "", value.replace("<br>", " ")) for value in found]
        named = (f"{name}: {value}" for name, value in zip(self.fields, found, strict=True))
        made: Record = {
            "inputs": " ".join([self.prefix, *named]),
            "targets": class_text(record[self.label], self.labels, self.label),
        }
        if self.for_heads:
            made |= {"texts": found, "labels": list(self.labels)}
        if self.rank:
            made["choices"] = list(self.labels)
        if self.group is not None:
            paths = [self.group] if isinstance(self.group, str) else self.group
            made["group"] = "/".join(_text(record, path) for path in paths)
        return made


@dataclasses.dataclass(frozen=True)
class Rate:
    """`stsb sentence1: ... sentence2: ...` -> `3.4`: a number, rounded to a multiple of 0.2."""

    prefix: str
    fields: Sequence[str]
    label: str = "label"
    for_heads: bool = dataclasses.field(default=False, repr=False)

    def __call__(self, record: Record) -> Record:
        parts = [self.prefix, *(f"{name}: {_text(record, name)}" for name in self.fields)]
        value = number_of(record[self.label], self.label)
        made: Record = {"inputs": " ".join(parts), "targets": f"{round(value * 5) / 5:.1f}"}
        if self.for_heads:
            made |= {"texts": [_text(record, name) for name in self.fields], "value": value}
        return made


@dataclasses.dataclass(frozen=True)
class MarkSpans:
    """`wsc text: # This # is a * test *` -> `True`: whether a pronoun means a noun (WSC)."""

    prefix: str = "wsc text:"
    labels: Sequence[str] = ("False", "True")
    for_heads: bool = dataclasses.field(default=False, repr=False)

    def __call__(self, record: Record) -> Record:
        first, second = (integer_of(record[f"span{i}_index"], f"span{i}_index") for i in (1, 2))
        marked = _mark(_text(record, "text"), _text(record, "span1_text"), first, "*")
        second += 2 * (first < second)  # the marks count as words now
        marked = _mark(marked, _text(record, "span2_text"), second, "#")
        target = class_text(record["label"], self.labels)
        made: Record = {"inputs": f"{self.prefix} {marked}", "targets": target}
        return made | ({"texts": [marked], "labels": list(self.labels)} if self.for_heads else {})


def _mark(sentence: str, span: str, index: int, mark: str) -> str:
    pattern = rf"^((?:\S+\s){{{index}}})({re.escape(span)})"
    return re.sub(pattern, rf"\1{mark} \2 {mark}", sentence)


@dataclasses.dataclass(frozen=True)
class EachAnswer:
    """A record for each of `answers`, under "answer"; for `FlatMap`, as T5 trains on ReCoRD."""

    answers: str = "answers"

    def __call__(self, record: Record) -> list[Record]:
        return [{**record, "answer": a} for a in _texts(record, self.answers) or [UNLABELLED]]


@dataclasses.dataclass(frozen=True)
class Cloze:
    """`record query: ... entities: a, b passage: ...` -> `a`: which entity is missing (ReCoRD).

    Reads what `EachAnswer` makes, or takes the first answer. References are all answers.
    """

    def __call__(self, record: Record) -> Record:
        passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", _text(record, "passage"))
        passage = passage.replace("\n@highlight\n", ". ")
        answers = _texts(record, "answers")
        entities = ", ".join(_texts(record, "entities"))
        inputs = f"record query: {_text(record, 'query')} entities: {entities} passage: {passage}"
        target = answers[0] if answers else UNLABELLED
        if "answer" in record:
            target = _text(record, "answer")
        group = "/".join(_text(record, f"idx/{key}") for key in ("passage", "query"))
        return {"inputs": inputs, "targets": target, "references": answers, "group": group}


@dataclasses.dataclass(frozen=True)
class AnswerQuestion:
    """`question: ... context: ...` -> the first answer (SQuAD). References are all answers.

    answers: the field, "a/b" for a nested one, of the answers; none is the empty text.
    pad_punctuation: put spaces around it, as T5 does.
    starts: the field of where in the context they begin, for heads; else that is looked up.
    """

    answers: str = "answers/text"
    pad_punctuation: bool = True
    starts: str = dataclasses.field(default="answers/answer_start", repr=False)
    for_heads: bool = dataclasses.field(default=False, repr=False)

    def __call__(self, record: Record) -> Record:
        clean = space_punctuation if self.pad_punctuation else str
        question, context = (clean(_text(record, key)) for key in ("question", "context"))
        answers = [clean(a) for a in _texts(record, self.answers)]
        inputs = re.sub(r"\s+", " ", f"question: {question} context: {context}")
        target = answers[0] if answers else ""
        made: Record = {"inputs": inputs, "targets": target, "references": answers or [""]}
        return made | (self._located(record) if self.for_heads else {})

    def _located(self, record: Record) -> Record:
        found, context = _texts(record, self.answers), _text(record, "context")
        try:
            starts = [integer_of(start, self.starts) for start in value_at(record, self.starts)]
        except (KeyError, TypeError):  # there is no such field
            starts = [context.find(answer) for answer in found]
        made = {"question": _text(record, "question"), "context": context}
        return made | {"answers": found, "starts": starts}


@dataclasses.dataclass(frozen=True)
class Choose:
    """A question and the choices it has: `eval` takes the one with the highest log-likelihood.

    inputs: template over the record's fields. choices: the fields of the choices, or one field
    that is a list of them, "a/b" for a nested one. label: the field of the right one: its number
    from `first`, or its name among `names`, a field or the names themselves.
    choice: template of a choice.
    """

    inputs: str
    choices: str | Sequence[str]
    label: str = "label"
    names: str | Sequence[str] | None = None
    first: int = 0
    choice: str = "{}"

    def __call__(self, record: Record) -> Record:
        if isinstance(self.choices, str):
            found = _texts(record, self.choices)
        else:
            found = [_text(record, key) for key in self.choices]
        choices = [self.choice.format(c.strip()) for c in found]
        right = _number(record[self.label], self._names(record), self.label) - self.first
        if not 0 <= right < len(choices):
            raise UserError(
                f"{self.label} is {record[self.label]!r}, which is none of the "
                f"{len(choices)} choices of the record; set Choose.first or Choose.names."
            )
        made = {"inputs": fill(self.inputs, record), "targets": choices[right]}
        return made | {"choices": choices}

    def _names(self, record: Record) -> list[str] | None:
        if isinstance(self.names, str):
            return _texts(record, self.names)
        return None if self.names is None else list(self.names)


@dataclasses.dataclass(frozen=True)
class TagWords:
    """`conll2003 sentence: EU rejects ...` -> `B-ORG O ...`: a tag for each word.

    tokens, tags: the fields; in a local file, texts with spaces between words, or between tags.
    labels: the tags' texts, by number.
    """

    prefix: str
    labels: Sequence[str]
    tokens: str = "tokens"
    tags: str = "ner"
    for_heads: bool = dataclasses.field(default=False, repr=False)

    def __call__(self, record: Record) -> Record:
        words, tags = (_split(record, key) for key in (self.tokens, self.tags))
        if len(words) != len(tags):
            raise UserError(
                f"a record has {len(words)} {self.tokens} and {len(tags)} {self.tags}; a tag is "
                "needed for each."
            )
        named = [class_text(tag, self.labels, self.tags) for tag in tags]
        made: Record = {
            "inputs": f"{self.prefix} sentence: {' '.join(words)}", "targets": " ".join(named)
        }  # fmt: skip
        if self.for_heads:
            made |= {"words": words, "tags": named, "labels": list(self.labels)}
        return made


@dataclasses.dataclass(frozen=True)
class LastWord:
    """A passage without its last word -> that word (LAMBADA, arXiv:1606.06031)."""

    key: str = "passage"

    def __call__(self, record: Record) -> Record | None:
        before, _, word = _text(record, self.key).strip().rpartition(" ")
        return {"inputs": before, "targets": word} if before else None


# ------------------------------------------------------------------------------- fields of records


def _text(record: Mapping[str, Any], field: str) -> str:
    return as_text(value_at(record, field), field)


def _texts(record: Mapping[str, Any], field: str) -> list[str]:
    return list_of(value_at(record, field), field)


def _split(record: Mapping[str, Any], field: str) -> list[str]:
    value = record[field]
    return value.split() if isinstance(value, str) else _texts(record, field)


def class_text(value: Any, labels: Sequence[str], field: str = "label") -> str:
    """The text of a class: `value` is its number, also as text, a truth value or that text."""
    if isinstance(value, str | bytes) and as_text(value, field) in labels:
        return as_text(value, field)
    number = _number(value, labels, field)
    if number == -1:
        return UNLABELLED
    if not 0 <= number < len(labels):
        raise UserError(
            f"label {value!r} of a record is none of the {len(labels)} classes (field {field!r})."
        )
    return labels[number]


def _number(value: Any, names: Sequence[str] | None, field: str) -> int:
    found = as_text(value, field)
    if names is not None and found in names:
        return list(names).index(found)
    lowered = found.strip().lower()
    if lowered in ("false", "true"):
        return int(lowered == "true")
    if isinstance(value, float | np.floating):
        # Tables make floats of a column's whole numbers where one of its rows has none.
        return integer_of(value, field)
    try:
        return int(lowered)
    except ValueError as error:
        known = ", ".join(names or ()) or "a number"
        raise UserError(
            f"label {found!r} of a record is neither a number nor one of: {known} "
            f"(field {field!r})." + did_you_mean(found, names or ())
        ) from error


def space_punctuation(value: str) -> str:
    """Puts spaces around each sign that is no letter, mark, number, underscore or white space."""
    spaced = re.sub(
        r"[^\w\s]", lambda m: m[0] if unicodedata.category(m[0])[0] == "M" else f" {m[0]} ", value
    )
    return re.sub(r"\s+", " ", spaced)
