"""Pairs of texts of which an encoder learns to make near vectors."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import gin
import numpy as np

from t5x_lite.data.objectives.base import Example, Lengths, length_of


class _Pairs:
    document_eos: ClassVar = False
    append_eos: ClassVar = True

    def segment_length(self, lengths: Lengths) -> None:
        for name in self.features:
            length_of(lengths, name)


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class DropoutPairs(_Pairs):
    """Unsupervised SimCSE (Gao et al., arXiv:2104.08821): a text is its own pair.

    A record {"text": str} becomes "anchor" and "positive", equal, with EOS; the model's dropout
    tells them apart, and the other rows of the batch are the negatives.
    """

    features: ClassVar = ("anchor", "positive")
    reads: ClassVar = ("text",)

    def __call__(self, tokens: Mapping[str, np.ndarray], rng, vocabulary, lengths) -> Example:
        text = np.asarray(tokens["text"], np.int32)
        return {"anchor": text, "positive": text}


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class GivenPairs(_Pairs):
    """Supervised SimCSE (arXiv:2104.08821): records {"anchor": str, "positive": str}.

    hard_negatives: records have a "negative" too, which becomes a third feature.
    """

    hard_negatives: bool = False

    @property
    def features(self) -> tuple[str, ...]:
        return ("anchor", "positive", "negative")[: 2 + self.hard_negatives]

    def __call__(self, tokens: Mapping[str, np.ndarray], rng, vocabulary, lengths) -> Example:
        return {name: np.asarray(tokens[name], np.int32) for name in self.features}
