"""Objectives of encoder-only models that see a text with some tokens masked.

BERT's masked LM with next-sentence prediction (Devlin et al., arXiv:1810.04805), ALBERT's sentence
order (Lan et al., arXiv:1909.11942), ELECTRA's replaced-token detection (Clark et al.,
arXiv:2003.10555). "inputs" are what the encoder reads, "labels" the tokens to predict in their
places and 0 in all others, so that `where(labels > 0, labels, inputs)` is the text.
"""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from t5x_lite.data.objectives.base import (
    ENCODER_MARKS,
    Example,
    Lengths,
    TokenNames,
    same_length,
    special_ids,
)
from t5x_lite.errors import UserError
from t5x_lite.ranges import Share


def mask_tokens(
    tokens: np.ndarray,
    maskable: np.ndarray,
    rng: np.random.Generator,
    *,
    noise_density: float,
    mask_id: int,
    random_ids: tuple[int, int],
    mask_share: float = 0.8,
    random_share: float = 0.1,
    groups: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (inputs, labels), int32 [length] each, of BERT's masking of tokens int32 [length].

    round(noise_density * maskable tokens), one at least, become labels. Of these `mask_share` turn
    into `mask_id`, `random_share` into any of range(*random_ids), the others are left.
    maskable: bool [length]. groups: int [length], tokens of a word have the same number: words are
    chosen, in random order, as long as they fit (at least one word).
    """
    inputs, labels = np.array(tokens, np.int32), np.zeros(len(tokens), np.int32)
    places = np.flatnonzero(maskable)
    if not len(places):
        return inputs, labels
    wanted = max(1, round(noise_density * len(places)))
    if groups is None:
        chosen = places[np.argsort(rng.random(len(places)), kind="stable")[:wanted]]
    else:
        _, word, sizes = np.unique(groups[places], return_inverse=True, return_counts=True)
        order = np.argsort(rng.random(len(sizes)), kind="stable")
        total = np.cumsum(sizes[order])
        kept = order[(total <= wanted) | (np.arange(len(order)) == 0)]
        chosen = places[np.isin(word, kept)]
    chosen = np.sort(chosen)
    labels[chosen] = inputs[chosen]
    draw = rng.random(len(chosen))
    low, high = random_ids
    anything = low + (rng.random(len(chosen)) * (high - low)).astype(np.int32)
    inputs[chosen[draw < mask_share]] = mask_id
    swap = (draw >= mask_share) & (draw < mask_share + random_share)
    inputs[chosen[swap]] = anything[swap]
    return inputs, labels


@dataclasses.dataclass(frozen=True)
class _Masking:
    """Fields of the objectives that mask.

    noise_density: share of the text's tokens to predict.
    mask_share, random_share: of those, how many become the mask and any other token.
    whole_words: mask all tokens of a word or none.
    special_tokens: ids or single pieces for (mask, class); None: the vocabulary's last two
      sentinels. EOS separates.
    """

    noise_density: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    whole_words: bool = False
    special_tokens: TokenNames = None

    append_eos: ClassVar = False

    def __post_init__(self):
        if not 0 < self.noise_density < 1:
            raise UserError(f"noise_density is {self.noise_density}, expected between 0 and 1")
        if min(self.mask_share, self.random_share) < 0 or self.mask_share + self.random_share > 1:
            raise UserError(
                f"mask_share is {self.mask_share}, random_share {self.random_share}: expected both "
                "0 or more, and 1 or less together"
            )

    def _special(self, vocabulary) -> tuple[np.ndarray, np.ndarray]:
        ids = special_ids(
            vocabulary, self.special_tokens, ENCODER_MARKS, f"{type(self).__name__}.special_tokens"
        )
        return ids[:1], ids[1:]

    def _masked(self, tokens, maskable, rng, vocabulary, mask_id) -> Example:
        groups = np.cumsum(vocabulary.word_starts[tokens]) if self.whole_words else None
        inputs, labels = mask_tokens(
            tokens,
            maskable,
            rng,
            noise_density=self.noise_density,
            mask_id=mask_id,
            random_ids=(3, vocabulary.size - vocabulary.num_sentinels),
            mask_share=self.mask_share,
            random_share=self.random_share,
            groups=groups,
        )
        return {"inputs": inputs, "labels": labels}


@dataclasses.dataclass(frozen=True)
class MaskedLM(_Masking):
    """BERT's masked LM (as RoBERTa has it, arXiv:1907.11692, over documents that end with EOS).

    Makes "inputs" = class token, text; "labels" = the tokens masked, 0 elsewhere, of one length.
    The class token and EOS are never masked. Fields: see `mask_tokens`; `whole_words` masks all
    tokens of a word, `special_tokens` are ids or pieces for (mask, class).
    """

    features: ClassVar = ("inputs", "labels")
    document_eos: ClassVar = True

    def segment_length(self, lengths: Lengths) -> int:
        return same_length(lengths, self.features, type(self).__name__) - 1

    def __call__(self, tokens, rng, vocabulary, lengths) -> Example:
        mask, start = self._special(vocabulary)
        tokens = np.concatenate([start, tokens]).astype(np.int32)
        maskable = tokens != vocabulary.eos_id
        maskable[0] = False
        return self._masked(tokens, maskable, rng, vocabulary, mask[0])


@dataclasses.dataclass(frozen=True)
class ReplacedTokens(MaskedLM):
    """What ELECTRA's generator reads: as `MaskedLM`, but every token chosen becomes the mask.

    The discriminator's input and labels follow, in the step, from what the generator then samples:
    `replaced_token_detection`.
    """

    mask_share: Share = 1.0
    random_share: Share = 0.0


def replaced_token_detection(inputs: Any, labels: Any, sampled: Any) -> dict[str, Any]:
    """What ELECTRA's discriminator reads and learns, int32 [..., length] as all arguments are.

    inputs, labels: of `ReplacedTokens`; sampled: the generator's tokens, read where labels > 0.
    Returns "inputs", the text with those put in; "replaced", 1 where a token differs from the
    text's (a generator that is right replaces nothing); "weights", 1 where there is text.
    Works on numpy and, inside a jitted step, on jax arrays.
    """
    xp = labels.__array_namespace__()
    original = xp.where(labels > 0, labels, inputs)
    replaced = xp.where(labels > 0, sampled, inputs)
    return {
        "inputs": replaced,
        "replaced": (replaced != original).astype(inputs.dtype),
        "weights": (original != 0).astype(inputs.dtype),
    }


@dataclasses.dataclass(frozen=True)
class _SentencePair(_Masking):
    """class, A, EOS, B, EOS; see NextSentence and SentenceOrder."""

    features: ClassVar = ("inputs", "labels", "types", "pair_label")
    document_eos: ClassVar = False

    def _content_length(self, lengths: Lengths) -> int:
        name = type(self).__name__
        length = same_length(lengths, self.features[:3], name)
        if lengths.get("pair_label") != 1:
            raise UserError(f"feature lengths are {dict(lengths)}, {name} needs 'pair_label' of 1")
        if length < 5:
            raise UserError(f"inputs of {length} tokens are too short for {name}: 5 or more")
        return length - 3

    def _pair(self, a, b, label: bool, rng, vocabulary) -> Example:
        mask, start = self._special(vocabulary)
        eos = np.array([vocabulary.eos_id], np.int32)
        tokens = np.concatenate([start, a, eos, b, eos]).astype(np.int32)
        maskable = np.ones(len(tokens), bool)
        maskable[[0, len(a) + 1, -1]] = False
        types = (np.arange(len(tokens)) > len(a) + 1).astype(np.int32)
        example = self._masked(tokens, maskable, rng, vocabulary, mask[0])
        return example | {"types": types, "pair_label": np.array([1 + label], np.int32)}


@dataclasses.dataclass(frozen=True)
class SentenceOrder(_SentencePair):
    """Masked LM, and ALBERT's question: are the two parts of the text in their order?

    Makes "inputs" = class, A, EOS, B, EOS; "labels" as `MaskedLM`; "types" 0 on the first part and
    1 on the second; "pair_label" [1]: 2 in order, 1 swapped (0 is padding). Lengths must say so:
    {"inputs": n, "labels": n, "types": n, "pair_label": 1}. With packing, a row holds one example.
    The text is cut anywhere, both parts non-empty.
    """

    def segment_length(self, lengths: Lengths) -> int:
        return self._content_length(lengths)

    def __call__(self, tokens, rng, vocabulary, lengths) -> Example:
        a, b = _cut(tokens, rng)
        in_order = rng.random() < 0.5 or not len(b)
        return self._pair(*((a, b) if in_order else (b, a)), in_order, rng, vocabulary)


@dataclasses.dataclass(frozen=True)
class NextSentence(_SentencePair):
    """Masked LM, and BERT's question: does the second part follow the first?

    Features and lengths as of `SentenceOrder`; "pair_label" is 2 if B follows A, 1 if it doesn't.
    Takes twice the text that fits: A and the next of the first half, or B from the second half,
    which is later in the document or in another one; so half of the text isn't used.
    """

    def segment_length(self, lengths: Lengths) -> int:
        return 2 * self._content_length(lengths)

    def __call__(self, tokens, rng, vocabulary, lengths) -> Example:
        half = -(-len(tokens) // 2)
        a, b = _cut(tokens[:half], rng)
        other = tokens[half + len(a) :]
        follows = rng.random() < 0.5 or not len(other)
        return self._pair(a, b if follows else other, follows, rng, vocabulary)


def _cut(tokens: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    at = 1 + int(rng.random() * max(len(tokens) - 1, 1))
    return tokens[:at], tokens[at:]
