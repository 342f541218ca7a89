"""T5's span corruption (Raffel et al., arXiv:1910.10683), token for token as
`t5.data.preprocessors` computes it, except for the random numbers.
"""

import dataclasses
import functools
from typing import ClassVar

import numpy as np

from t5x_lite.data.objectives.base import Example, Lengths, length_of
from t5x_lite.errors import UserError
from t5x_lite.ranges import AboveZero

# --- Masks: which tokens are noise ----------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def noise_counts(length: int, noise_density: float, mean_span_length: float) -> tuple[int, int]:
    """Returns (noise tokens, noise spans) of a text of `length` tokens, as T5 counts them.

    T5 rounds half to even in float32, and has at least one of each and one token left over.
    Where the text is too short for so many spans, we have fewer (T5 fails).
    """
    length = max(length, 2)
    noise = int(np.rint(np.float32(length) * np.float32(noise_density)))
    noise = min(max(noise, 1), length - 1)
    spans = int(np.rint(np.float32(noise) / np.float32(mean_span_length)))
    return noise, min(max(spans, 1), noise, length - noise)


def random_spans_noise_mask(
    length: int, noise_density: float, rng: np.random.Generator, mean_span_length: float = 3.0
) -> np.ndarray:
    """Returns bool [length], True for noise: spans of random length, first non-noise, last noise.

    The number of noise tokens and of spans is fixed by `length` (`noise_counts`); how they are
    partitioned is uniform over all partitions into non-empty spans.
    """
    if noise_density == 0:
        return np.zeros(length, bool)
    kept_edges, noise_edges = _span_edges(length, noise_density, rng, mean_span_length)
    # Noise span i lies between kept spans i and i + 1: +1 where it begins, -1 where it ends.
    steps = np.zeros(max(length, 2) + 1, np.int8)
    steps[kept_edges[1:] + noise_edges[:-1]] = 1
    steps[kept_edges[1:] + noise_edges[1:]] = -1
    return steps.cumsum(dtype=np.int8)[:length].view(bool)


def _span_edges(
    length: int, noise_density: float, rng: np.random.Generator, mean_span_length: float
) -> tuple[np.ndarray, np.ndarray]:
    """Where the kept spans end, put together, and the noise spans: int64 [spans + 1] from 0."""
    noise, spans = noise_counts(length, noise_density, mean_span_length)
    noise_edges = _random_edges(noise, spans, rng)
    return _random_edges(max(length, 2) - noise, spans, rng), noise_edges


def _random_edges(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [parts + 1] from 0 to `total`, uniform over cuts into `parts` non-empty parts."""
    edges = np.empty(parts + 1, np.int64)
    edges[0], edges[-1] = 0, total
    if parts > 1:
        # The smallest of random keys, not rng.choice: how `choice` uses the bits may change with
        # the version of numpy, and runs must be repeatable.
        keys = rng.random(total - 1)
        edges[1:-1] = keys.argpartition(parts - 2)[: parts - 1] + 1
        edges.sort()
    return edges


# --- From tokens and mask to features -------------------------------------------------------------


def noise_span_to_unique_sentinel(
    tokens: np.ndarray, mask: np.ndarray, first_sentinel: int
) -> np.ndarray:
    """Replaces the i-th run of True in `mask` by the one token `first_sentinel - i`.

    tokens: int32 [length]; mask: bool [length]; returns int32 [length - noise + runs].
    """
    starts = mask.copy()
    np.greater(mask[1:], mask[:-1], out=starts[1:])
    index = starts.nonzero()[0]
    replaced = np.array(tokens, np.int32)
    replaced[index] = np.arange(first_sentinel, first_sentinel - len(index), -1)
    return replaced[starts | ~mask]


def nonnoise_span_to_unique_sentinel(
    tokens: np.ndarray, mask: np.ndarray, first_sentinel: int
) -> np.ndarray:
    """The complement: keeps the noise and replaces each run of False by a sentinel."""
    return noise_span_to_unique_sentinel(tokens, ~mask, first_sentinel)


def corrupt_spans(
    tokens: np.ndarray, kept_edges: np.ndarray, noise_edges: np.ndarray, first_sentinel: int
) -> Example:
    """Both features at once, and without a mask, in half the time: what the two functions above
    make of the mask of these edges (int64 [spans + 1] each, kept span first).
    """
    spans = np.arange(len(noise_edges) - 1)
    begins = kept_edges[1:] + noise_edges[:-1]  # of the noise spans in the text
    sentinels = first_sentinel - spans
    # Which token stands at each place: one after the other, save at the jumps. The place of a
    # sentinel gets some token first.
    steps = np.ones(kept_edges[-1] + len(spans), np.int64)
    places, steps[0] = kept_edges[1:] + spans, 0
    steps[places[:-1] + 1] = noise_edges[1:-1] - noise_edges[:-2]
    inputs = tokens[steps.cumsum()]
    inputs[places] = sentinels
    steps = np.ones(noise_edges[-1] + len(spans), np.int64)
    places, steps[0] = noise_edges[:-1] + spans, begins[0] - 1
    steps[places[1:]] = kept_edges[2:] - kept_edges[1:-1]
    targets = tokens[steps.cumsum()]
    targets[places] = sentinels
    return {
        "inputs": inputs.astype(np.int32, copy=False),
        "targets": targets.astype(np.int32, copy=False),
    }


@functools.lru_cache
def random_spans_helper(
    inputs_length: int, noise_density: float = 0.15, mean_span_length: float = 3.0
) -> tuple[int, int]:
    """Returns (tokens_length, targets_length) of the longest text whose corrupted inputs fit.

    Both features with their EOS: (512, 0.15, 3.0) -> (568, 114). T5's function of this name,
    which counts in float64 and, at density 0.5, takes a token off targets longer than the inputs.
    """

    def feature_lengths(tokens: int) -> tuple[int, int]:
        noise = round(tokens * noise_density)
        spans = round(noise / mean_span_length)
        return tokens - noise + spans + 1, noise + spans + 1

    tokens_length = inputs_length - 1
    while feature_lengths(tokens_length + 1)[0] <= inputs_length:
        tokens_length += 1
    inputs, targets = feature_lengths(tokens_length)
    if noise_density == 0.5 and targets > inputs:
        return tokens_length - 1, targets - 1
    return tokens_length, targets


@dataclasses.dataclass(frozen=True)
class SpanCorruption:
    """T5's objective: random spans of the text become sentinels, the targets are the spans."""

    noise_density: float = 0.15
    mean_span_length: AboveZero = 3.0

    features: ClassVar = ("inputs", "targets")
    document_eos: ClassVar = False
    append_eos: ClassVar = True

    def __post_init__(self):
        if not 0 < self.noise_density < 1:
            raise UserError(f"noise_density is {self.noise_density}, expected between 0 and 1")
        if self.mean_span_length < 1:
            raise UserError(f"mean_span_length is {self.mean_span_length}, expected 1 or more")

    def segment_length(self, lengths: Lengths) -> int:
        """Tokens that fill the inputs: 568 for inputs of 512 (`random_spans_helper`)."""
        inputs, targets = length_of(lengths, "inputs"), length_of(lengths, "targets")
        tokens, _ = random_spans_helper(inputs, self.noise_density, self.mean_span_length)
        while True:
            noise, spans = noise_counts(tokens, self.noise_density, self.mean_span_length)
            if tokens - noise + spans + 1 <= inputs:
                break
            tokens -= 1  # the helper counts no noise in tiny texts; a text has always some
        if tokens < 2:
            raise UserError(
                f"inputs of {inputs} tokens are too short for span corruption: 3 or more"
            )
        if (needed := noise + spans + 1) > targets:
            raise UserError(
                f"span corruption of inputs of {inputs} tokens ({tokens} of text) makes targets of "
                f"{needed}, found targets of {targets}: set targets to {needed}"
            )
        return tokens

    def __call__(self, tokens, rng, vocabulary, lengths) -> Example:
        _, spans = noise_counts(len(tokens), self.noise_density, self.mean_span_length)
        if spans > vocabulary.num_sentinels:
            raise UserError(
                f"{len(tokens)} tokens have {spans} noise spans, the vocabulary has "
                f"{vocabulary.num_sentinels} sentinels: shorten inputs or give it more extra ids"
            )
        first = vocabulary.size - 1
        if len(tokens) > 1:
            edges = _span_edges(len(tokens), self.noise_density, rng, self.mean_span_length)
            return corrupt_spans(tokens, *edges, first)
        mask = random_spans_noise_mask(len(tokens), self.noise_density, rng, self.mean_span_length)
        return {
            "inputs": noise_span_to_unique_sentinel(tokens, mask, first),
            "targets": nonnoise_span_to_unique_sentinel(tokens, mask, first),
        }
