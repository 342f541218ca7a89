"""Fill-in-the-middle for decoder-only models (Bavarian et al., arXiv:2207.14255)."""

import dataclasses
from typing import ClassVar

import numpy as np

from t5x_lite.data.objectives.base import (
    Example,
    Lengths,
    TokenNames,
    length_of,
    special_ids,
)
from t5x_lite.errors import UserError, did_you_mean
from t5x_lite.ranges import Positive, Share

ROLES = ("prefix", "suffix", "middle")
LEVELS = ("document", "context")
UNITS = ("character", "token")


def fill_in_the_middle(
    prefix: np.ndarray, middle: np.ndarray, suffix: np.ndarray, marks: np.ndarray, spm: bool
) -> np.ndarray:
    """Moves the middle of a text to its end. int32 [tokens] each, marks int32 [3].

    PSM: <prefix> prefix <suffix> suffix <middle> middle.
    SPM: <prefix> <suffix> suffix <middle> prefix middle, the paper's variant 2, in which a model
    trained on either learns from both.
    """
    pre, suf, mid = marks[:1], marks[1:2], marks[2:]
    if spm:
        return np.concatenate([pre, suf, suffix, mid, prefix, middle])
    return np.concatenate([pre, prefix, suf, suffix, mid, middle])


def undo_middle(tokens: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """The text that `fill_in_the_middle` was made of; `tokens` if that wasn't applied to it."""
    if not len(tokens) or tokens[0] != marks[0]:
        return tokens
    suf, mid = (int(np.flatnonzero(tokens == mark)[0]) for mark in marks[1:])
    return np.concatenate([tokens[1:suf], tokens[mid + 1 :], tokens[suf + 1 : mid]])


@dataclasses.dataclass(frozen=True)
class FillInTheMiddle:
    """Causal LM on documents of which a share has its middle moved behind its end.

    A document becomes `fill_in_the_middle` of it with the probability `rate`; the two cuts are
    uniform, so any part may be empty. Its form is SPM with the probability `spm_rate`, else PSM.

    mark_tokens: ids or single pieces that mark prefix, suffix and middle; None: the vocabulary's
      last three sentinels.
    level: "document": whole documents, before they are concatenated and cut, so that a context may
      hold a part of one only. "context": what a context holds of each document; at most
      `documents_per_context` are changed, and three tokens of the row's length are kept free for
      each of these, so that nothing is cut off.
    unit: cut between "character"s, so that the model learns to begin within a token (the paper's
      choice; it tokenizes the three parts anew and needs a vocabulary that is lossless), or
      between "token"s, as "context" always does.
    """

    rate: Share = 0.5
    spm_rate: Share = 0.5
    mark_tokens: TokenNames = None
    level: str = "document"
    unit: str = "character"
    documents_per_context: Positive = 4

    features: ClassVar = ("targets",)
    append_eos: ClassVar = False
    document_eos: ClassVar = True

    def __post_init__(self):
        for name, known in (("level", LEVELS), ("unit", UNITS)):
            if (value := getattr(self, name)) not in known:
                raise UserError(
                    f"FillInTheMiddle.{name} is {value!r}, expected one of {', '.join(known)}."
                    + did_you_mean(value, known)
                )
        for name in ("rate", "spm_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"FillInTheMiddle.{name} is {getattr(self, name)}, expected between 0 and 1"
                )

    def segment_length(self, lengths: Lengths) -> int:
        length = length_of(lengths, "targets")
        if self.level == "document":
            return length
        if (left := length - 3 * self.documents_per_context) < 2:
            raise UserError(
                f"targets of {length} tokens are too short for FillInTheMiddle on "
                f"{self.documents_per_context} documents per context: "
                f"{3 * self.documents_per_context + 2} or more"
            )
        return left

    def document(self, tokens: np.ndarray, rng: np.random.Generator, vocabulary) -> np.ndarray:
        """A document, int32 [tokens] with its EOS, as it goes into the text."""
        if self.level == "context" or len(tokens) < 2:
            return tokens
        return np.concatenate([self._changed(tokens[:-1], rng, vocabulary, self.unit), tokens[-1:]])

    def __call__(self, tokens, rng, vocabulary, lengths) -> Example:
        tokens = np.asarray(tokens, np.int32)
        if self.level == "document":
            return {"targets": tokens}
        parts, left = [], self.documents_per_context
        ends = np.flatnonzero(tokens == vocabulary.eos_id)
        for piece in np.split(tokens, np.unique(np.concatenate([ends, ends + 1]))):
            changed = piece
            if left and len(piece) and piece[0] != vocabulary.eos_id:
                changed = self._changed(piece, rng, vocabulary, "token")
                left -= len(changed) > len(piece)
            parts.append(changed)
        return {"targets": np.concatenate(parts)}

    def _changed(self, tokens, rng, vocabulary, unit: str) -> np.ndarray:
        if rng.random() >= self.rate:
            return tokens
        spm = rng.random() < self.spm_rate
        marks = special_ids(vocabulary, self.mark_tokens, ROLES, "FillInTheMiddle.mark_tokens")
        text = vocabulary.decode(tokens) if unit == "character" else tokens
        first, second = sorted((rng.random(2) * (len(text) + 1)).astype(int).tolist())
        parts = [text[:first], text[first:second], text[second:]]
        if unit == "character":
            parts = [vocabulary.encode(part) for part in parts]
        prefix, middle, suffix = parts
        return fill_in_the_middle(prefix, middle, suffix, marks, spm)
