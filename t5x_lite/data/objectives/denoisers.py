"""UL2's mixture of denoisers (Tay et al., arXiv:2205.05131)."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, cast

import numpy as np

from t5x_lite.data.objectives.base import (
    Example,
    Lengths,
    TokenNames,
    free_sentinels,
    length_of,
    special_ids,
)
from t5x_lite.data.objectives.span import (
    noise_counts,
    noise_span_to_unique_sentinel,
    nonnoise_span_to_unique_sentinel,
    random_spans_noise_mask,
)
from t5x_lite.errors import UserError

MODES = ("R", "S", "X")


class Denoiser(NamedTuple):
    """One way to corrupt a text.

    mode: "R" regular, "X" extreme: random spans; "S" sequential: one span at the end of the text,
      of a length uniform around `noise_density` of it (`mean_span_length` isn't used).
    rate: its share in the mixture, relative to the others'.
    """

    mode: str
    mean_span_length: float
    noise_density: float
    rate: float = 1.0

    def noise_mask(self, length: int, rng: np.random.Generator) -> np.ndarray:
        """bool [length], True for what is to be predicted."""
        if self.mode == "S":
            suffix = 1 + int(rng.random() * self.longest_suffix(length))
            return np.arange(length) >= max(length - suffix, 1)
        return random_spans_noise_mask(length, self.noise_density, rng, self.mean_span_length)

    def longest_suffix(self, length: int) -> int:
        """So that the mean of a uniform [1, longest] is `noise_density` of the text."""
        return max(min(round(2 * self.noise_density * length) - 1, length - 1), 1)

    def feature_lengths(self, length: int) -> tuple[int, int]:
        """Most tokens of (inputs, targets), EOS included and mode token not."""
        if self.mode == "S":
            return length + 1, self.longest_suffix(length) + 2
        noise, spans = noise_counts(length, self.noise_density, self.mean_span_length)
        return length - noise + spans + 1, noise + spans + 1


# Table 1 of the paper.
UL2_DENOISERS = (
    Denoiser("R", 3.0, 0.15),
    Denoiser("R", 8.0, 0.15),
    Denoiser("S", 0.0, 0.25),
    Denoiser("X", 3.0, 0.5),
    Denoiser("X", 8.0, 0.5),
    Denoiser("X", 64.0, 0.15),
    Denoiser("X", 64.0, 0.5),
)


@dataclasses.dataclass(frozen=True)
class UL2:
    """Each text is corrupted by one of seven denoisers; a mode token in front says which kind.

    denoisers: (mode, mean span length, noise density[, rate]) of each.
    mode_tokens: ids or single pieces for R, S and X; None: the vocabulary's last three sentinels;
      (): no mode tokens. (The released UL2 has "[NLU]", "[S2S]", "[NLG]".)
    text_length: tokens of text in an example; None: as many as the inputs hold with every denoiser.
      As most denoisers' targets are far shorter than the longest, a quarter of that with packing
      leaves much less padding.

    All denoisers get texts of the same length, such that none overflows the inputs. The i-th span
    is `<extra_id_i>` in the inputs, which precedes it in the targets, as in T5; so too with the
    one span of S. Spans are random partitions as in T5, not of normally distributed length.
    """

    denoisers: Sequence[Denoiser | Sequence[str | float]] = UL2_DENOISERS
    mode_tokens: TokenNames = None
    text_length: int | None = None

    features: ClassVar = ("inputs", "targets")
    document_eos: ClassVar = False
    append_eos: ClassVar = True

    def __post_init__(self):
        denoisers = tuple(Denoiser(*denoiser) for denoiser in self.denoisers)
        object.__setattr__(self, "denoisers", denoisers)
        for d in denoisers:
            spans = d.mode == "S" or d.mean_span_length >= 1
            if d.mode not in MODES or not 0 < d.noise_density < 1 or not spans or d.rate < 0:
                raise UserError(
                    f"UL2 denoiser {tuple(d)}: expected (mode R, S or X, mean span length of 1 or "
                    "more, noise density between 0 and 1, rate of 0 or more)"
                )
        if not sum(d.rate for d in denoisers):
            raise UserError("UL2.denoisers have no rate above 0: give one at least")

    @property
    def _mixture(self) -> tuple[Denoiser, ...]:
        return cast(tuple[Denoiser, ...], self.denoisers)  # __post_init__ has made them

    def segment_length(self, lengths: Lengths) -> int:
        """`text_length`, or the most tokens that fit with every denoiser: 510 for inputs of 512."""
        inputs, targets = length_of(lengths, "inputs"), length_of(lengths, "targets")
        room = inputs - (self.mode_tokens != ())
        tokens = 1
        while all(d.feature_lengths(tokens + 1)[0] <= room for d in self._mixture):
            tokens += 1
        if tokens < 2:
            raise UserError(f"inputs of {inputs} tokens are too short for UL2: 6 or more")
        if self.text_length is not None:
            if not 2 <= self.text_length <= tokens:
                raise UserError(
                    f"UL2.text_length is {self.text_length}, expected 2 to {tokens}, what inputs "
                    f"of {inputs} tokens hold"
                )
            tokens = self.text_length
        needed = max(d.feature_lengths(tokens)[1] for d in self._mixture)
        if needed > targets:
            raise UserError(
                f"UL2 on inputs of {inputs} tokens ({tokens} of text) makes targets of up to "
                f"{needed}, found targets of {targets}: set targets to {needed}"
            )
        return tokens

    def __call__(self, tokens, rng, vocabulary, lengths) -> Example:
        ends = list(itertools.accumulate(d.rate for d in self._mixture))
        denoiser = self._mixture[int(np.searchsorted(ends, rng.random() * ends[-1], "right"))]
        mask = denoiser.noise_mask(len(tokens), rng)
        modes = np.zeros(0, np.int32)
        if self.mode_tokens != ():
            modes = special_ids(vocabulary, self.mode_tokens, MODES, "UL2.mode_tokens")
        spans = 1
        if denoiser.mode != "S":
            parameters = denoiser.noise_density, denoiser.mean_span_length
            spans = noise_counts(len(tokens), *parameters)[1]
        if spans > (free := free_sentinels(vocabulary, modes)):
            raise UserError(
                f"{len(tokens)} tokens have {spans} noise spans with UL2 denoiser "
                f"{tuple(denoiser)}, the vocabulary has {free} sentinels left: shorten inputs or "
                "give it more extra ids"
            )
        first = vocabulary.size - 1
        inputs = noise_span_to_unique_sentinel(tokens, mask, first)
        if len(modes):
            mode = modes[MODES.index(denoiser.mode)]
            inputs = np.concatenate([np.array([mode], np.int32), inputs])
        return {"inputs": inputs, "targets": nonnoise_span_to_unique_sentinel(tokens, mask, first)}
