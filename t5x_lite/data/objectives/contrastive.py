"""Pairs of texts of which an encoder learns to make near vectors."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from t5x_lite.data.objectives.base import Example, Lengths, length_of, special_ids


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """start: an id, or a single piece or special token ("[CLS]"), put in front of each text."""

    start: int | str | None = dataclasses.field(default=None, kw_only=True)

    features: ClassVar[tuple[str, ...]]
    document_eos: ClassVar = False
    append_eos: ClassVar = True

    def segment_length(self, lengths: Lengths) -> None:
        for name in self.features:
            length_of(lengths, name)

    def _begun(self, tokens: np.ndarray, vocabulary) -> np.ndarray:
        tokens = np.asarray(tokens, np.int32)
        if self.start is None:
            return tokens
        start = special_ids(vocabulary, (self.start,), ("start",), f"{type(self).__name__}.start")
        return np.concatenate([start, tokens])


@dataclasses.dataclass(frozen=True)
class DropoutPairs(_Pairs):
    """Unsupervised SimCSE (Gao et al., arXiv:2104.08821): a text is its own pair.

    A record {"text": str} becomes "anchor" and "positive", equal, with EOS; the model's dropout
    tells them apart, and the other rows of the batch are the negatives.
    start: an id, or a single piece or special token ("[CLS]"), put in front of each text.
    """

    features: ClassVar = ("anchor", "positive")
    reads: ClassVar = ("text",)

    def __call__(self, tokens: Mapping[str, np.ndarray], rng, vocabulary, lengths) -> Example:
        text = self._begun(tokens["text"], vocabulary)
        return {"anchor": text, "positive": text}


@dataclasses.dataclass(frozen=True)
class GivenPairs(_Pairs):
    """Supervised SimCSE (arXiv:2104.08821): records {"anchor": str, "positive": str}.

    hard_negatives: records have a "negative" too, which becomes a third feature.
    start: as of `DropoutPairs`.
    """

    hard_negatives: bool = False

    @property
    def features(self) -> tuple[str, ...]:
        return ("anchor", "positive", "negative")[: 2 + self.hard_negatives]

    def __call__(self, tokens: Mapping[str, np.ndarray], rng, vocabulary, lengths) -> Example:
        return {name: self._begun(tokens[name], vocabulary) for name in self.features}
