"""Perplexity under a small language model of characters, trained on text one trusts.

What is far from that text, in either direction, is noise or boilerplate: the idea of CCNet (Wenzek
et al. 2020) and ROOTS with a model that needs no package and trains in seconds.
"""

import dataclasses
import functools
import math
from collections import Counter
from pathlib import Path

from t5x_lite.corpus.steps import Document, Step, rule
from t5x_lite.errors import UserError


class CharacterModel:
    """An interpolated n-gram model (Witten and Bell 1991) of lower-case characters."""

    def __init__(self, text: str, order: int = 5):
        self.order, text = order, "\n" * (order - 1) + text.lower()
        self._counts = [
            Counter(text[i : i + n] for i in range(len(text) - n + 1)) for n in range(1, order + 1)
        ]
        self._followers = [Counter(gram[:-1] for gram in grams) for grams in self._counts]
        self._totals: list[Counter] = [Counter() for _ in self._counts]
        for grams, total in zip(self._counts, self._totals, strict=True):
            for gram, number in grams.items():
                total[gram[:-1]] += number

    def bits(self, text: str) -> float:
        """Bits per character; lower is nearer to what the model was trained on. 0 for no text."""
        text = "\n" * (self.order - 1) + text.lower()
        total = 0.0
        for i in range(self.order - 1, len(text)):
            probability = 1 / 0x10000
            for n in range(self.order):
                gram = text[i - n : i + 1]
                seen, kinds = self._totals[n][gram[:-1]], self._followers[n][gram[:-1]]
                if not seen:
                    break
                probability = (self._counts[n][gram] + kinds * probability) / (seen + kinds)
            total -= math.log2(probability)
        return total / max(len(text) - self.order + 1, 1)


@dataclasses.dataclass(frozen=True)
class Perplexity(Step):
    """Sets the score `bits_per_character`, and drops documents outside of two limits.

    reference: a UTF-8 file of good text; the more it is like what one wants, the better. Its first
    `max_reference` characters are used. sample: characters of a document that are looked at.
    """

    SCORES = ("bits_per_character",)

    reference: str = ""
    max_bits: float | None = rule(None, "unlikely", "bits per character, at most")
    min_bits: float | None = rule(None, "too_likely", "bits per character, at least")
    order: int = 5
    sample: int = 2000
    max_reference: int = 2_000_000

    def __call__(self, document: Document) -> str | None:
        model = _model(self.reference, self.order, self.max_reference)
        bits = model.bits(document["text"][: self.sample])
        document["scores"]["bits_per_character"] = bits
        if self.max_bits is not None and bits > self.max_bits:
            return "Perplexity/unlikely"
        return (
            "Perplexity/too_likely" if self.min_bits is not None and bits < self.min_bits else None
        )


@functools.lru_cache(maxsize=4)
def _model(reference: str, order: int, characters: int) -> CharacterModel:
    try:
        with open(Path(reference).expanduser(), encoding="utf-8") as file:
            return CharacterModel(file.read(characters), order)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"Perplexity.reference {reference!r} can't be read ({error}); give a UTF-8 text file."
        ) from None
