"""Language models: causal, with a prefix, and supervised text to text."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from t5x_lite.data.objectives.base import Example, Lengths, length_of
from t5x_lite.errors import UserError, did_you_mean

PREFIXES = ("bidirectional", "causal")


def random_prefix_mask(length: int, rng: np.random.Generator) -> np.ndarray:
    """Returns bool [length], True for a prefix of length uniform in [1, length - 1] (0 of 1)."""
    prefix = min(1, length - 1) + int(rng.random() * max(length - 1, 1))
    return np.arange(length) < prefix


@dataclasses.dataclass(frozen=True)
class CausalLM:
    """Every token from those before it; documents end with EOS and run on across examples."""

    features: ClassVar = ("targets",)
    document_eos: ClassVar = True
    append_eos: ClassVar = False

    def segment_length(self, lengths: Lengths) -> int:
        return length_of(lengths, "targets")

    def __call__(self, tokens, rng, vocabulary, lengths) -> Example:
        return {"targets": np.asarray(tokens, np.int32)}


@dataclasses.dataclass(frozen=True)
class PrefixLM:
    """T5's prefix LM: text of the inputs' length is cut at a random place; its rest is predicted.

    The cut is uniform, so either part may be nearly the whole text: targets must be as long as
    inputs.
    """

    features: ClassVar = ("inputs", "targets")
    document_eos: ClassVar = False
    append_eos: ClassVar = True

    def segment_length(self, lengths: Lengths) -> int:
        inputs, targets = length_of(lengths, "inputs"), length_of(lengths, "targets")
        if inputs < 2:
            raise UserError(f"inputs of {inputs} tokens are too short for prefix LM: 2 or more")
        if targets < inputs:
            raise UserError(
                f"prefix LM of inputs of {inputs} tokens makes targets of up to {inputs}, "
                f"found targets of {targets}: set targets to {inputs}"
            )
        return inputs

    def __call__(self, tokens, rng, vocabulary, lengths) -> Example:
        mask = random_prefix_mask(len(tokens), rng)
        tokens = np.asarray(tokens, np.int32)
        return {"inputs": tokens[mask], "targets": tokens[~mask]}


@dataclasses.dataclass(frozen=True)
class TextToText:
    """Supervised text to text: a record {"inputs": str, "targets": str} is one example.

    prefix: how a decoder_only model reads the inputs. "bidirectional": with EOS behind them, and
      each of them sees all others, as a T5X prefix LM; "causal": without EOS, as an ordinary
      language model, which is what transformers' decoders do. Not for an encoder_decoder.
    """

    prefix: str = dataclasses.field(default="bidirectional", repr=False)

    features: ClassVar = ("inputs", "targets")
    document_eos: ClassVar = False
    append_eos: ClassVar = True

    def __post_init__(self):
        if self.prefix not in PREFIXES:
            raise UserError(
                f"TextToText.prefix is {self.prefix!r}, expected one of {', '.join(PREFIXES)}."
                + did_you_mean(str(self.prefix), PREFIXES)
            )

    def segment_length(self, lengths: Lengths) -> None:
        for name in self.features:
            length_of(lengths, name)

    def __call__(self, tokens: Mapping[str, np.ndarray], rng, vocabulary, lengths) -> Example:
        return {name: np.asarray(tokens[name], np.int32) for name in self.features}
