"""XLNet's permutation language model (Yang et al., arXiv:1906.08237)."""

import dataclasses
from typing import ClassVar

import numpy as np

from t5x_lite.data.objectives.base import Example, Lengths, length_of
from t5x_lite.errors import UserError
from t5x_lite.ranges import AboveZero


def permutation_order(length: int, predicted: int, rng: np.random.Generator) -> np.ndarray:
    """A factorisation order, int32 [length]: when each token's turn comes.

    `predicted` random tokens have turns 2, 3, ... in random order; all others are the context, 1,
    given from the start: z <= c of the paper, whose tokens see each other as in its released code.
    """
    order = np.ones(length, np.int32)
    last = np.argsort(rng.random(length), kind="stable")[length - predicted :]
    order[last] = np.arange(2, predicted + 2)
    return order


def permutation_masks(
    order: np.ndarray, segment_ids: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (content, query), bool [..., length, length]: may position i look at position j?

    order: int [..., length], 0 on padding. The content stream sees tokens up to and with its own
    turn; the query stream, which predicts, only those before it. With segment_ids [..., length]
    of a packed row, only within a segment. Works on numpy and jax arrays.
    """
    i, j = order[..., :, None], order[..., None, :]
    together = (i > 0) & (j > 0)
    if segment_ids is not None:
        together &= segment_ids[..., :, None] == segment_ids[..., None, :]
    # Context tokens (1) see each other; a token always sees itself in the content stream.
    return together & (j <= i), together & (j < i)


def target_mapping(labels: np.ndarray, predictions: int) -> np.ndarray:
    """int32 [predictions, length], one-hot: which position each prediction is for.

    labels: int32 [length], 0 where nothing is predicted. Rows beyond those are 0; UserError
    if there are more than `predictions`.
    """
    places = np.flatnonzero(labels)
    if len(places) > predictions:
        raise UserError(f"{len(places)} tokens are to be predicted, expected {predictions} or less")
    mapping = np.zeros((predictions, len(labels)), np.int32)
    mapping[np.arange(len(places)), places] = 1
    return mapping


@dataclasses.dataclass(frozen=True)
class PermutationLM:
    """Some tokens of a text, in a random order, from the others and from those before in the order.

    Makes "inputs", the text; "labels", the tokens to predict in their places and 0 in others;
    "order", the factorisation order (0 on padding), all of one length, so that they pack. A model
    with two streams reads `permutation_masks(order, segment_ids)`.

    predict_every: K of the paper: one of K tokens is predicted. EOS, between documents, never is.
    """

    predict_every: AboveZero = 6.0

    features: ClassVar = ("inputs", "labels", "order")
    document_eos: ClassVar = True
    append_eos: ClassVar = False

    def __post_init__(self):
        if self.predict_every < 1:
            raise UserError(f"predict_every is {self.predict_every}, expected 1 or more")

    def segment_length(self, lengths: Lengths) -> int:
        found = {name: length_of(lengths, name) for name in self.features}
        if len(set(found.values())) > 1:
            raise UserError(
                f"feature lengths are {found}, PermutationLM fills them together: set all to "
                f"{max(found.values())}"
            )
        return found["inputs"]

    def __call__(self, tokens, rng, vocabulary, lengths) -> Example:
        tokens = np.array(tokens, np.int32)
        text = np.flatnonzero(tokens != vocabulary.eos_id)
        order = np.ones(len(tokens), np.int32)
        predicted = min(max(1, int(len(text) / self.predict_every)), len(text))
        order[text] = permutation_order(len(text), predicted, rng)
        labels = np.where(order > 1, tokens, 0)
        return {"inputs": tokens, "labels": labels.astype(np.int32), "order": order}
