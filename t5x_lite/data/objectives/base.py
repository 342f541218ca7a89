"""What an objective is, and what all share: cutting text into segments, trimming, EOS."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Protocol

import numpy as np

from t5x_lite.errors import UserError

Example = dict[str, np.ndarray]
Lengths = Mapping[str, int]

ENCODER_MARKS = ("mask", "class")  # the special tokens that objectives of encoders need


class Objective(Protocol):
    """What a Task asks of its objective.

    features: names of the features made, ("inputs", "targets") or ("targets",); others for an
      encoder-only model.
    document_eos: whether each document gets EOS before documents are concatenated.
    append_eos: whether each feature gets EOS (`finish_example`).

    It may have three attributes more:
    reads: keys of a record that is an example, if they aren't the features'.
    document(tokens, rng, vocabulary) -> tokens: changes a document before it is concatenated.
    tokens(record, vocabulary) -> {name: int32 [n]}: of a record that isn't plain texts under the
      names in `reads`, those arrays.
    """

    features: ClassVar[tuple[str, ...]]
    document_eos: ClassVar[bool]
    append_eos: ClassVar[bool]

    def segment_length(self, lengths: Lengths) -> int | None:
        """Tokens of text that make one example; None: a record is an example.

        Raises UserError if an example of this objective doesn't fit `lengths`.
        """

    def __call__(self, tokens, rng: np.random.Generator, vocabulary, lengths: Lengths) -> Example:
        """Makes one example (int32 [tokens] each, without EOS) of a segment, int32 [tokens].

        Where `segment_length` is None, `tokens` is a dict with the tokens of each feature.
        """


def split_documents(
    documents: Iterable[np.ndarray], merge: int | None, segment_length: int
) -> Iterator[np.ndarray]:
    """Concatenates groups of `merge` documents and cuts each group into segments.

    documents: int32 [tokens] each; empty ones are dropped and don't count.
    merge: documents to a group (T5: 128); 1 keeps documents apart; None is one endless group.
    Yields int32 [segment_length], and the rest of each group, which is shorter.
    T5's `reduce_concat_tokens` and `split_tokens`.
    """
    rest, held = np.zeros(0, np.int32), 0
    for document in documents:
        if not len(document):
            continue
        tokens = np.concatenate([rest, np.asarray(document, np.int32)])
        full = len(tokens) - len(tokens) % segment_length
        yield from tokens[:full].reshape(-1, segment_length)
        rest, held = tokens[full:], held + 1
        if held == merge:
            if len(rest):
                yield rest
            rest, held = rest[:0], 0
    if len(rest):
        yield rest


def finish_example(
    example: Example, lengths: Lengths, append_eos: bool, eos_id: int = 1
) -> Example:
    """Trims each feature to its length; with `append_eos`, to one less, and EOS behind it.

    T5's `append_eos_after_trim`: a feature that was trimmed ends with EOS too.
    """
    end = np.full(1, eos_id, np.int32)
    if append_eos:
        return {k: np.concatenate([v[: lengths[k] - 1], end]) for k, v in example.items()}
    return {k: v[: lengths[k]] for k, v in example.items()}


TokenNames = tuple[int | str, ...] | None


@functools.lru_cache(maxsize=64)
def special_ids(vocabulary, tokens: TokenNames, roles: tuple[str, ...], owner: str) -> np.ndarray:
    """int32 [roles]: the ids that play an objective's roles, which `owner` names in errors.

    tokens: an id, or the text of a single piece or special token ("[MASK]"), for each role; None
    takes the vocabulary's last sentinels, which span corruption hardly ever reaches. Raises
    UserError if they don't exist.
    """
    count, sentinels = len(roles), vocabulary.num_sentinels
    if tokens is None:
        if sentinels < count:
            raise UserError(
                f"{owner} needs {count} sentinels for {', '.join(roles)}, the vocabulary has "
                f"{sentinels}: give it more extra ids, or name pieces of it in {owner}"
            )
        return (vocabulary.size - 1 - np.arange(sentinels - count, sentinels)).astype(np.int32)
    if len(tokens) != count:
        raise UserError(
            f"{owner} is {tokens}, expected {count} ids or pieces, for {', '.join(roles)}"
        )
    ids = []
    for token in tokens:
        found = _ids_of(vocabulary, token)
        if len(found) != 1 or not 0 < found[0] < vocabulary.size:
            shown = f"{len(found)} pieces" if isinstance(token, str) else "no id"
            raise UserError(
                f"{owner} names {token!r}, which is {shown} of the vocabulary, expected one: train "
                "it with user_symbols, or use its sentinels, such as '<extra_id_99>'"
            )
        ids += found
    return np.array(ids, np.int32)


def _ids_of(vocabulary, token: int | str) -> list[int]:
    if not isinstance(token, str):
        return [int(token)]
    if (special := vocabulary.special_id(token)) is not None:
        return [special]
    return vocabulary.encode(token).tolist()


def free_sentinels(vocabulary, taken: np.ndarray) -> int:
    """How many sentinels, from the first on, are not among the ids `taken`."""
    index = vocabulary.size - 1 - taken
    return int(min([vocabulary.num_sentinels, *index[index >= 0].tolist()]))


def length_of(lengths: Lengths, name: str) -> int:
    if lengths.get(name, 0) < 1:
        raise UserError(
            f"feature lengths are {dict(lengths)}, expected a positive length for {name!r}: add it"
        )
    return lengths[name]


def same_length(lengths: Lengths, names: tuple[str, ...], owner: str) -> int:
    """The one length in tokens of the features ``names``; raises UserError if they differ."""
    found = {name: length_of(lengths, name) for name in names}
    if len(set(found.values())) > 1:
        raise UserError(
            f"feature lengths are {found}, {owner} fills them together: set all of "
            f"{', '.join(names)} to {max(found.values())}"
        )
    if (length := found[names[0]]) < 2:
        raise UserError(f"inputs of {length} tokens are too short for {owner}: 2 or more")
    return length
