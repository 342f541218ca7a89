"""Instruction tuning: conversations of which the assistant's answers are learnt."""

import collections
import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from t5x_lite.data.chat import ChatTemplate, messages_of
from t5x_lite.data.objectives.base import Example, Lengths, length_of
from t5x_lite.errors import UserError, did_you_mean

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Chat:
    """Conversations for a decoder_only model; the loss is on answers and the end of each alone.

    A record {"messages": [{"role", "content"}, ...]} becomes "targets" and, as long,
    "learnt": 1 on the tokens of answers and of what ends them. Lengths must be the same for both.

    template: how messages become text.
    keep: which side is kept of a conversation that is too long: "end" or "start". Whole exchanges
      are left out, and never a system message that is in front of them (templates that put it
      into the first question lose it with that); a conversation is left out if no exchange fits.
      Either is counted, and said (at the 1st, 10th, 100th, ...).
    """

    template: ChatTemplate = dataclasses.field(default_factory=ChatTemplate)
    keep: str = "end"
    _counts: collections.Counter = dataclasses.field(
        default_factory=collections.Counter, init=False, repr=False, compare=False
    )

    features: ClassVar = ("targets", "learnt")
    reads: ClassVar = ("ids", "turns")  # what `tokens` makes
    document_eos: ClassVar = False
    append_eos: ClassVar = False

    def __post_init__(self):
        if self.keep not in ("end", "start"):
            raise UserError(
                f"Chat.keep is {self.keep!r}, expected end or start."
                + did_you_mean(str(self.keep), ("end", "start"))
            )

    def segment_length(self, lengths: Lengths) -> None:
        found = {name: length_of(lengths, name) for name in self.features}
        if len(set(found.values())) > 1:
            raise UserError(
                f"feature lengths are {found}, Chat fills them together: set both alike"
            )

    def tokens(self, record: Mapping[str, Any], vocabulary) -> Example:
        """Of a whole conversation; see `ChatTemplate.encode`."""
        ids, turns = self.template.encode(messages_of(record), vocabulary)
        return {"ids": ids, "turns": turns}

    def __call__(self, tokens: Mapping[str, np.ndarray], rng, vocabulary, lengths) -> Example:
        ids, turns = tokens["ids"], tokens["turns"]
        kept = self._kept(turns, lengths["targets"])
        return {"targets": ids[kept], "learnt": (turns[kept] % 2).astype(np.int32)}

    def _kept(self, turns: np.ndarray, length: int) -> np.ndarray:
        """bool [tokens]: those that fit, exchange by exchange."""
        sizes = np.bincount(turns // 2)
        exchanges, room = sizes[1:], length - sizes[0]
        self._counts["conversations"] += 1
        ordered = exchanges[::-1] if self.keep == "end" else exchanges
        fitting = int((np.cumsum(ordered) <= room).sum())
        if fitting == len(exchanges):
            return np.ones(len(turns), bool)
        self._say("cut" if fitting else "left out", length)
        number = turns // 2
        if not fitting:
            return np.zeros(len(turns), bool)
        if self.keep == "start":
            return number <= fitting
        return (number == 0) | (number > len(exchanges) - fitting)

    def _say(self, what: str, length: int) -> None:
        self._counts[what] += 1
        if (count := self._counts[what]) == 10 ** (len(str(count)) - 1):
            _log.warning(
                "%d of %d conversations so far were %s: longer than lengths['targets'] = %d.",
                *(count, self._counts["conversations"], what, length),
            )


@dataclasses.dataclass(frozen=True)
class LastAnswer:
    """A preprocessor of conversations for TextToText: the last answer from all before it.

    {"messages": [...]} -> {"inputs": `template`'s prompt, "targets": the answer}; one that has no
    answer, or ends with a question, is cut to its last answer, or dropped.
    """

    template: ChatTemplate = dataclasses.field(default_factory=lambda: ChatTemplate("plain"))

    def __call__(self, record: Mapping[str, Any]) -> dict[str, str] | None:
        messages = messages_of(record)
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers:
            return None
        last = messages[answers[-1]]["content"].strip()
        return {"inputs": self.template.prompt(messages[: answers[-1]]), "targets": last}
