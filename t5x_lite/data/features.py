"""Examples -> rows of fixed length -> the features a model reads, under T5X's names.

Packing puts several examples in a row: `*_segment_ids` number them from 1 (0 is padding),
`*_positions` count from 0 in each. Rows are seqio's, and model features those of its feature
converters EncDec, LM and PrefixLM.

An encoder-only model reads what an objective makes under these names: encoder_input_tokens,
encoder_target_tokens (0 where nothing is predicted), encoder_loss_weights (1 where something is)
and, if packed, encoder_segment_ids and encoder_positions, of "inputs" and "labels"; any other
feature X as encoder_X and, if packed, encoder_X_segment_ids and encoder_X_positions, unless X is
"order", "types" or "tags", which go with the inputs.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from t5x_lite.errors import UserError, did_you_mean

ARCHITECTURES = ("encoder_decoder", "decoder_only", "encoder_only")
_ENCODER_NAMES = {"inputs": "encoder_input_tokens", "labels": "encoder_target_tokens"}
# Features of an encoder-only model that say something of each token of the inputs.
_OF_INPUTS = ("inputs", "labels", "order", "types", "tags")

Row = dict[str, np.ndarray]
Lengths = Mapping[str, int]


def feature_lengths(
    lengths: Lengths,
    architecture: str,
    objective_features: Iterable[str],
    pack: bool,
    attention: str = "bidirectional",
) -> dict[str, int]:
    """Returns {model feature: length}: the static shapes of what `model_features` makes.

    lengths: tokens of each of the objective's features; a decoder-only row holds inputs and
    targets one behind the other. Raises UserError if a length is missing, or if an
    encoder-decoder gets an objective without inputs. attention: as of `model_features`.
    """
    names = tuple(objective_features)
    _check_architecture(architecture, names)
    if architecture != "encoder_only" and "targets" not in names:
        raise UserError(
            f"the objective makes {', '.join(names)}, for an encoder_only model, found "
            f"architecture {architecture!r}: use an objective that makes targets"
        )
    for name in names:
        if lengths.get(name, 0) < 1:
            raise UserError(
                f"feature lengths are {dict(lengths)}, expected a positive length for {name!r}: "
                "add it"
            )
    if architecture == "encoder_only":
        sizes = {}
        for name, feature in _encoder_features(names, pack).items():
            of = name.removesuffix("_segment_ids").removesuffix("_positions")
            sizes[feature] = lengths[of]
        if "labels" in names:
            sizes["encoder_loss_weights"] = lengths["labels"]
        return sizes
    decoder = ["decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights"]
    if pack:
        decoder += ["decoder_segment_ids", "decoder_positions"]
    if architecture == "decoder_only":
        if "inputs" in names and attention != "causal":
            decoder.append("decoder_causal_attention")
        total = sum(lengths[name] for name in names if name != "learnt")
        return dict.fromkeys(decoder, total)
    encoder = ["encoder_input_tokens"]
    if pack:
        encoder += ["encoder_segment_ids", "encoder_positions"]
    return dict.fromkeys(encoder, lengths["inputs"]) | dict.fromkeys(decoder, lengths["targets"])


# --- Examples -> rows -----------------------------------------------------------------------------


class NextFitPacker:
    """Fills one open row with examples; the first that doesn't fit closes it and opens the next.

    lengths: row length of each feature. An example is trimmed to them; features not named in
      them are left out, and an example without a token is dropped.
    architecture: for "decoder_only" with inputs, inputs and targets are joined before they are
      packed (so what counts is their sum) into rows "targets*" with "targets_prefix", 1 on what
      came from inputs. `model_features` takes either kind of row.

    seqio's rule, without its closing of a row every max(lengths) examples.
    """

    def __init__(self, lengths: Lengths, architecture: str = "encoder_decoder"):
        _check_architecture(architecture)
        self._lengths = dict(lengths)
        self._join = architecture == "decoder_only" and "inputs" in lengths
        self._room = {"targets": sum(lengths.values())} if self._join else self._lengths
        self._open: list[Row] = []
        self._left = dict(self._room)

    def __len__(self) -> int:
        """Number of examples in the open row."""
        return len(self._open)

    @property
    def room(self) -> list[int]:
        """Tokens of an empty row, of each feature that counts."""
        return list(self._room.values())

    def sizes(self, example: Row) -> np.ndarray:
        """int64 [features]: tokens that an example takes of each feature in `room`."""
        sizes = [min(len(example[name]), length) for name, length in self._lengths.items()]
        return np.array([sum(sizes)] if self._join else sizes)

    def fits(self, example: Row) -> bool:
        """Whether `add(example)` would leave the open row open."""
        return self._fits(self._trim(example))

    def add(self, example: Row) -> Row | None:
        """Adds an example of int32 [tokens] features; returns the row that it closed, or None."""
        example = self._trim(example)
        if not any(map(len, example.values())):
            return None
        closed = None if self._fits(example) else self.flush()
        self._open.append(example)
        for name in self._left:
            self._left[name] -= len(example[name])
        return closed

    def flush(self) -> Row | None:
        """Closes and returns the open row; None if it is empty."""
        if not self._open:
            return None
        row: Row = {}
        for name, length in self._room.items():
            pieces = [example[name] for example in self._open]
            row |= _pack_feature(name, pieces, length)
        if self._join:
            prefix = np.concatenate([example["prefix"] for example in self._open])
            row["targets_prefix"] = _padded(prefix, self._room["targets"])
        self._open, self._left = [], dict(self._room)
        return row

    def _fits(self, example: Row) -> bool:
        return all(len(example[name]) <= left for name, left in self._left.items())

    def _trim(self, example: Row) -> Row:
        trimmed = {name: example[name][:length] for name, length in self._lengths.items()}
        if not self._join:
            return trimmed
        inputs, targets = trimmed["inputs"], trimmed["targets"]
        joined = np.concatenate([inputs, targets])
        return {"targets": joined, "prefix": np.arange(len(joined)) < len(inputs)}


def pack_examples(
    examples: Iterable[Row], lengths: Lengths, architecture: str = "encoder_decoder"
) -> Iterator[Row]:
    """Packs examples, in order, into rows of int32 [length] features (see `NextFitPacker`).

    Yields {"inputs", "inputs_segment_ids", "inputs_positions", ...the same of "targets"}.
    """
    packer = NextFitPacker(lengths, architecture)
    for example in examples:
        if (row := packer.add(example)) is not None:
            yield row
    if (row := packer.flush()) is not None:
        yield row


def pad_example(example: Row, lengths: Lengths) -> Row:
    """Returns a row of this one example: trimmed or zero-padded to int32 [length] features."""
    return {name: _padded(example[name][:length], length) for name, length in lengths.items()}


def _pack_feature(name: str, pieces: list[np.ndarray], length: int) -> Row:
    tokens, segment_ids, positions = np.zeros((3, length), np.int32)
    count, start = _count(length), 0
    for number, piece in enumerate(pieces, 1):  # a handful: slices beat cumsum and repeat
        stop = start + len(piece)
        tokens[start:stop] = piece
        segment_ids[start:stop] = number
        positions[start:stop] = count[: stop - start]
        start = stop
    return {name: tokens, f"{name}_segment_ids": segment_ids, f"{name}_positions": positions}


@functools.lru_cache(maxsize=16)
def _count(length: int) -> np.ndarray:
    return np.arange(length, dtype=np.int32)


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    out = np.zeros(length, np.int32)
    out[: len(values)] = values
    return out


# --- Rows -> model features -----------------------------------------------------------------------


def model_features(
    row: Row, architecture: str, pack: bool, attention: str = "bidirectional"
) -> Row:
    """Turns a row, or rows stacked to [..., length], into int32 model features of that shape.

    Encoder-only: see above. Others: always decoder_target_tokens, decoder_input_tokens (the targets
    shifted right; 0, the start token, at every segment's start) and decoder_loss_weights (1 on
    targets, 0 on padding); for an encoder-decoder, encoder_input_tokens; if packed,
    {encoder,decoder}_segment_ids and _positions. Decoder-only with inputs: inputs and targets of an
    example one behind the other, loss on targets only. It is a prefix LM unless `attention` is
    "causal" (data/reading.py): decoder_causal_attention is 1 where attention may look ahead, on
    the tokens read up to and with the last input, one more than there are inputs.
    """
    _check_architecture(architecture, row)
    if architecture == "encoder_only":
        return _encoder_only_features(row, pack)
    assert pack == ("targets_segment_ids" in row), "pack must say whether the row is packed"
    features: Row = {}
    if architecture == "encoder_decoder":
        features["encoder_input_tokens"] = row["inputs"]
        if pack:
            features["encoder_segment_ids"] = row["inputs_segment_ids"]
            features["encoder_positions"] = row["inputs_positions"]
    elif "inputs" in row:
        row = _join_rows(row)

    targets = row["targets"]
    segment_ids = row.get("targets_segment_ids")
    prefix = row.get("targets_prefix")
    weights = targets != 0
    if prefix is not None:
        if attention != "causal":
            features["decoder_causal_attention"] = _prefix_attention(prefix, targets, segment_ids)
        weights &= prefix == 0
    if "learnt" in row:
        weights &= row["learnt"] > 0
    features["decoder_target_tokens"] = targets
    features["decoder_input_tokens"] = _shift_right(targets, segment_ids, 0)
    features["decoder_loss_weights"] = weights.astype(np.int32)
    if pack:
        features["decoder_segment_ids"] = segment_ids
        features["decoder_positions"] = row["targets_positions"]
    return features


def _encoder_features(names: Iterable[str], pack: bool) -> dict[str, str]:
    """{name in a row: model feature} of an encoder-only model, without the loss weights."""
    found = {}
    for name in names:
        found[name] = _ENCODER_NAMES.get(name, f"encoder_{name}")
        if pack and (name == "inputs" or name not in _OF_INPUTS):
            own = "" if name == "inputs" else f"{name}_"
            found[f"{name}_segment_ids"] = f"encoder_{own}segment_ids"
            found[f"{name}_positions"] = f"encoder_{own}positions"
    return found


def _encoder_only_features(row: Row, pack: bool) -> Row:
    names = [name for name in row if not name.endswith(("_segment_ids", "_positions"))]
    assert pack == (len(names) < len(row)), "pack must say whether the row is packed"
    features = {new: row[name] for name, new in _encoder_features(names, pack).items()}
    if "labels" in row:
        features["encoder_loss_weights"] = (row["labels"] != 0).astype(np.int32)
    return features


def padding_share(features: Mapping[str, np.ndarray]) -> float:
    """The share of a batch's tokens (model features [..., length]) that are padding, 0 to 1."""
    ids = [x for name, x in features.items() if name.endswith("segment_ids")]
    if not ids:
        names = ("encoder_input_tokens", "decoder_target_tokens")
        ids = [features[name] for name in names if name in features] or list(features.values())
    return float(sum((x == 0).sum() for x in ids) / sum(x.size for x in ids))


def _shift_right(values: np.ndarray, segment_ids: np.ndarray | None, start: int) -> np.ndarray:
    """Shifts the last axis by one; `start` comes in at the front and wherever a segment begins."""
    shifted = np.full_like(values, start)
    shifted[..., 1:] = values[..., :-1]
    if segment_ids is not None:
        shifted[..., 1:][segment_ids[..., 1:] != segment_ids[..., :-1]] = start
    return shifted


def _prefix_attention(prefix, targets, segment_ids) -> np.ndarray:
    """Position t reads token t-1, hence the shift; the start token belongs to the prefix."""
    real = targets != 0 if segment_ids is None else segment_ids > 0
    return _shift_right(prefix, segment_ids, 1) * real


def _join_rows(row: Row) -> Row:
    """{"inputs*", "targets*"} -> {"targets*", "targets_prefix"}: segment by segment, both parts."""
    tokens = np.concatenate([row["inputs"], row["targets"]], axis=-1)
    packed = "targets_segment_ids" in row
    if packed:
        parts = [row["inputs_segment_ids"], row["targets_segment_ids"]]
        segment_ids = np.concatenate(parts, axis=-1)
    else:
        segment_ids = (tokens != 0).astype(np.int32)
    # Stable, so that within a segment inputs stay before targets; padding goes to the end.
    sort_key = np.where(segment_ids == 0, np.iinfo(np.int32).max, segment_ids)
    order = np.argsort(sort_key, axis=-1, kind="stable")
    segment_ids = np.take_along_axis(segment_ids, order, axis=-1)
    joined = {
        "targets": np.take_along_axis(tokens, order, axis=-1),
        "targets_prefix": ((order < row["inputs"].shape[-1]) & (segment_ids > 0)).astype(np.int32),
    }
    if packed:
        joined["targets_segment_ids"] = segment_ids
        joined["targets_positions"] = _positions(segment_ids)
    return joined


def _positions(segment_ids: np.ndarray) -> np.ndarray:
    index = np.broadcast_to(np.arange(segment_ids.shape[-1], dtype=np.int32), segment_ids.shape)
    begins = _shift_right(segment_ids, None, 0) != segment_ids
    starts = np.maximum.accumulate(np.where(begins, index, 0), axis=-1)
    return np.where(segment_ids > 0, index - starts, 0)


def _check_architecture(architecture: str, features: Iterable[str] = ("inputs", "targets")) -> None:
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"architecture is {architecture!r}, expected one of {', '.join(ARCHITECTURES)}."
            f"{did_you_mean(architecture, ARCHITECTURES)}"
        )
    if architecture == "encoder_decoder" and "targets" in features and "inputs" not in features:
        raise UserError(
            "the objective makes targets only, an encoder_decoder needs inputs too: "
            "use architecture 'decoder_only', or span corruption, prefix LM or text to text"
        )
