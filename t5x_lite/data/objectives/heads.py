"""What an encoder with a task's head learns: a class or a number, tags, a span.

As BERT is fine-tuned (Devlin et al., arXiv:1810.04805, sections 4 and A.5): a class token, text,
EOS, and perhaps more texts, each with EOS behind. Labels are kept one higher than they are, so
that 0 says that there is none. The records are those that the templates make `for_heads`.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from t5x_lite.data.objectives.base import (
    ENCODER_MARKS,
    Example,
    Lengths,
    length_of,
    same_length,
    special_ids,
)
from t5x_lite.data.source import UNLABELLED
from t5x_lite.errors import UserError
from t5x_lite.ranges import Positive


@dataclasses.dataclass(frozen=True)
class _ForHead:
    """start: an id, or a single piece or special token ("[CLS]"), in front; None: the class token
    that `MaskedLM` takes by default."""

    start: int | str | None = dataclasses.field(default=None, kw_only=True)

    head: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]  # keys of a record
    features: ClassVar[tuple[str, ...]]
    label: ClassVar[tuple[str, int]]  # the feature that isn't one of tokens, and its length
    document_eos: ClassVar = False
    append_eos: ClassVar = False

    def segment_length(self, lengths: Lengths) -> None:
        name, size = self.label
        if size and length_of(lengths, name) != size:
            raise UserError(
                f"lengths are {dict(lengths)}, {type(self).__name__} needs {name!r} of {size}"
            )
        same_length(lengths, tuple(n for n in self.features if n != name or not size),
                      type(self).__name__)  # fmt: skip

    def _check(self, record: Mapping[str, Any]) -> None:
        if missing := [key for key in self.needs if key not in record]:
            raise UserError(
                f"{type(self).__name__} wants {missing[0]!r} of a record, which has "
                f"{', '.join(map(repr, record))}: use a template that has for_heads"
            )

    def _joined(self, parts: Sequence[np.ndarray], vocabulary) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, types), int32 [tokens] each: type 0 for the first part, 1 for others."""
        name = f"{type(self).__name__}.start"
        if self.start is None:
            start = special_ids(vocabulary, None, ENCODER_MARKS, name)[1:]
        else:
            start = special_ids(vocabulary, (self.start,), ("start",), name)
        eos = np.array([vocabulary.eos_id], np.int32)
        pieces = [start, *(x for part in parts for x in (part, eos))]
        types = np.concatenate([np.full(len(p), i > 2) for i, p in enumerate(pieces)])
        return np.concatenate(pieces).astype(np.int32), types.astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Classes(_ForHead):
    """A class, or a number, of one or more texts, for the head "classes".

    Reads "texts" and, of a class, "targets" and "labels", or of a number "value". Makes "inputs",
    "types" and "label" [1] (of a number, its bits: `number_bits`). Texts that are too long
    together are cut token by token, from the end of the longest. With packing it can't be learnt.
    """

    head: ClassVar = "classes"
    needs: ClassVar = ("texts",)
    features: ClassVar = ("inputs", "types", "label")
    reads: ClassVar = ("ids", "parts", "label")  # what `tokens` makes
    label: ClassVar = ("label", 1)

    def tokens(self, record: Mapping[str, Any], vocabulary) -> Example:
        self._check(record)
        parts = [vocabulary.encode(text) for text in record["texts"]]
        if "value" in record:
            label = number_bits(record["value"])
        else:
            label = np.array([label_of(record.get("targets"), record["labels"])], np.int32)
        numbers = np.repeat(np.arange(len(parts), dtype=np.int32), [len(p) for p in parts])
        return {"ids": np.concatenate(parts).astype(np.int32), "parts": numbers, "label": label}

    def __call__(self, tokens: Mapping[str, np.ndarray], rng, vocabulary, lengths) -> Example:
        ids, numbers = tokens["ids"], tokens["parts"]
        parts = [ids[numbers == i] for i in range(numbers.max(initial=0) + 1)]
        kept = fitting([len(p) for p in parts], lengths["inputs"] - 1 - len(parts))
        cut = [part[:size] for part, size in zip(parts, kept, strict=True)]
        inputs, types = self._joined(cut, vocabulary)
        return {"inputs": inputs, "types": types, "label": tokens["label"]}


@dataclasses.dataclass(frozen=True)
class Tags(_ForHead):
    """A tag for each word, on the first token of each, for the head "tags".

    Reads "words", "tags" and "labels"; makes "inputs" and, as long, "tags": 0 on other tokens.
    """

    head: ClassVar = "tags"
    needs: ClassVar = ("words", "labels")
    features: ClassVar = ("inputs", "tags")
    reads: ClassVar = ("ids", "words", "tags")  # what `tokens` makes
    label: ClassVar = ("tags", 0)

    def tokens(self, record: Mapping[str, Any], vocabulary) -> Example:
        """ "words": the number of the word that begins at a token, from 1, or 0."""
        self._check(record)
        ids, words, tags = [], [], []
        labels = record.get("tags", [None] * len(record["words"]))
        for number, (word, tag) in enumerate(zip(record["words"], labels, strict=True), 1):
            pieces = vocabulary.encode(" " * (number > 1) + word).tolist()
            rest = [0] * (len(pieces) - 1)
            ids += pieces
            words += [number, *rest][: len(pieces)]
            tags += [label_of(tag, record["labels"]), *rest][: len(pieces)]
        arrays = (np.array(x, np.int32) for x in (ids, words, tags))
        return dict(zip(self.reads, arrays, strict=True))

    def __call__(self, tokens: Mapping[str, np.ndarray], rng, vocabulary, lengths) -> Example:
        room = lengths["inputs"] - 2
        inputs, _ = self._joined([tokens["ids"][:room]], vocabulary)
        tags = np.zeros(len(inputs), np.int32)
        tags[1:-1] = tokens["tags"][:room]
        return {"inputs": inputs, "tags": tags}


@dataclasses.dataclass(frozen=True)
class Span(_ForHead):
    """Where a question's answer is in its context, for the head "span" (SQuAD).

    Reads "question", "context", "answers" and "starts" (their places, in characters). Makes
    "inputs" = question and context, "types", and "span" [2]: first and last token of the answer,
    or the class token twice where the window holds none.

    stride: a context that is too long is read in windows, so many tokens apart. Each example of
      training is one of them, by chance; predictions are from all.
    max_question: tokens of a question, which is cut.
    max_answer: tokens of an answer that is predicted.
    no_answers: whether a question may have no answer (SQuAD 2); the text is then empty.
    """

    stride: Positive = 128
    max_question: Positive = 64
    max_answer: Positive = 30
    no_answers: bool = False

    head: ClassVar = "span"
    needs: ClassVar = ("question", "context")
    features: ClassVar = ("inputs", "types", "span")
    reads: ClassVar = ("question", "context", "answer")  # what `tokens` makes
    label: ClassVar = ("span", 2)

    def __post_init__(self):
        for name in ("stride", "max_question", "max_answer"):
            if getattr(self, name) < 1:
                raise UserError(f"Span.{name} is {getattr(self, name)}, expected 1 or more")

    def segment_length(self, lengths: Lengths) -> None:
        super().segment_length(lengths)
        if lengths["inputs"] < self.max_question + 4:
            raise UserError(
                f"inputs of {lengths['inputs']} tokens hold no context beside a question: expected "
                f"{self.max_question + 4} or more, or a lower Span.max_question"
            )

    def tokens(self, record: Mapping[str, Any], vocabulary) -> Example:
        """ "answer": the context's tokens that hold it, first and last; -1 if there is none."""
        self._check(record)
        context, places = located(record["context"], vocabulary)
        answer = np.zeros(0, np.int32)  # unknown
        if "answers" in record:
            answer = np.full(2, -1, np.int32)
            for text, start in zip(record["answers"][:1], record["starts"], strict=False):
                inside = (places[:, 1] > start) & (places[:, 0] < start + len(text))
                found = np.flatnonzero(inside) if start >= 0 else []
                answer = np.array([found[0], found[-1]] if len(found) else [], np.int32)
        question = vocabulary.encode(record["question"])[: self.max_question]
        return {"question": question, "context": context, "answer": answer}

    def windows(self, tokens: Mapping[str, np.ndarray], lengths: Lengths) -> list[tuple[int, int]]:
        """Spans of the context's tokens, each [begin, end) that fits."""
        room, size = lengths["inputs"] - 3 - len(tokens["question"]), len(tokens["context"])
        step = min(self.stride, room)
        starts = range(0, max(size - room, 0) + step, step)
        return [(start, min(start + room, size)) for start in starts]

    def window(self, tokens, window: tuple[int, int], vocabulary) -> Example:
        """The example of one of the `windows`; "span" is 0 if nothing is known of an answer."""
        question, (begin, end) = tokens["question"], window
        inputs, types = self._joined([question, tokens["context"][begin:end]], vocabulary)
        span = np.ones(2, np.int32) if len(tokens["answer"]) else np.zeros(2, np.int32)
        if len(tokens["answer"]) and begin <= tokens["answer"][0] and tokens["answer"][1] < end:
            span = tokens["answer"] - begin + self.offset(tokens) + 1
        return {"inputs": inputs, "types": types, "span": span.astype(np.int32)}

    @staticmethod
    def offset(tokens: Mapping[str, np.ndarray]) -> int:
        """Where the context begins in "inputs"."""
        return len(tokens["question"]) + 2

    def __call__(self, tokens: Mapping[str, np.ndarray], rng, vocabulary, lengths) -> Example:
        windows = self.windows(tokens, lengths)
        return self.window(tokens, windows[int(rng.random() * len(windows))], vocabulary)


def label_of(target: Any, labels: Sequence[str]) -> int:
    """1 + the number of a target among the labels; 0 if there is none."""
    if target is None or target == UNLABELLED:
        return 0
    if target not in labels:
        raise UserError(f"target {target!r} is none of the labels {', '.join(labels)}")
    return 1 + list(labels).index(target)


def number_bits(value: float | None) -> np.ndarray:
    """The bits of a float32 as int32 [1], of which 0 stands for none: 0.0 is kept as -0.0."""
    if value is None:
        return np.zeros(1, np.int32)
    bits = np.array([value], np.float32).view(np.int32)
    return np.where(bits == 0, np.int32(-(2**31)), bits).astype(np.int32)


def fitting(sizes: Sequence[int], room: int) -> list[int]:
    """How many tokens of each part are kept: the longest loses one until all fit."""
    kept = list(sizes)
    while sum(kept) > max(room, 0):
        kept[int(np.argmax(kept))] -= 1
    return kept


def located(text: str, vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of a text, int32 [tokens], and the characters [begin, end) they are from [tokens, 2].

    To the word, or, where the vocabulary cuts at punctuation by itself, to a word's parts.
    """
    ids: list[int] = []
    places: list[tuple[int, int]] = []
    for word in re.finditer(r"\S+", text):
        space = " " * (word.start() > 0)
        whole = vocabulary.encode(space + word[0]).tolist()
        cut = [(space * (not p.start()) + p[0], p.span()) for p in re.finditer(r"\w+|\W", word[0])]
        parts = [(vocabulary.encode(part).tolist(), span) for part, span in cut]
        if [i for found, _ in parts for i in found] != whole:
            parts = [(whole, (0, len(word[0])))]
        for found, (begin, end) in parts:
            ids += found
            places += [(word.start() + begin, word.start() + end)] * len(found)
    return np.array(ids, np.int32), np.array(places, np.int32).reshape(-1, 2)


def labels_of(task: Any) -> list[str] | None:
    """The labels that a task's template has; None where it makes numbers."""
    return next((list(p.labels) for p in task.preprocessors if hasattr(p, "labels")), None)


def check_labels(tasks: Sequence[Any], num_labels: int) -> None:
    """UserError unless a head of so many labels suits the tasks' (None: they predict a number)."""
    for task in tasks:
        head = getattr(task.objective, "head", None)
        if head not in ("classes", "tags"):
            continue
        found = labels_of(task)
        wanted = 1 if found is None else len(found)
        if wanted != num_labels:
            what = "a number" if found is None else f"the labels {', '.join(found)}"
            raise UserError(
                f"task {task.name!r} has {what:.200}, and the model num_labels = {num_labels}: set "
                f"TransformerConfig.num_labels = {wanted}, and encoder_heads with {head!r}."
            )
