"""A SentencePiece model as a `tokenizer.json`: what transformers and its kin read.

The same ids, save where Hugging Face's tokenizers can't do otherwise: a text that spells a special
token ("</s>") is that token there; where a model puts a space before the text, none is put before a
sentinel that the text begins with; and where it normalizes, several combining marks on one letter
are composed in another order.
"""

import base64
import struct
from collections.abc import Iterator
from typing import Any

SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2
NEVER = -1e6  # the score of pieces that no text is cut into


def tokenizer_json(model: bytes, *, start: bool) -> dict[str, Any]:
    """The content of tokenizer.json for a serialized model with pad, EOS and unknown at 0, 1, 2.

    ``start``: a text begins with the padding token, as a decoder's does, and has no EOS; else it
    ends with EOS, as an encoder's does.
    """
    fields = list(_fields(model))
    pieces = [_piece(data) for number, data in fields if number == 1]
    trainer = dict(_fields(b"".join(data for number, data in fields if number == 2)))
    normalizer = dict(_fields(b"".join(data for number, data in fields if number == 3)))
    fallback = bool(trainer.get(35, 0))
    prefix, squeeze = bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1))

    steps: list[dict[str, Any]] = []
    if charsmap := normalizer.get(2, b""):
        encoded = base64.b64encode(charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": encoded})
    if squeeze:
        # One space may stay in front: it is the one that Metaspace would put there.
        steps.append({"type": "Strip", "strip_left": False, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    scheme = "first" if prefix else "never"
    after = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    pad, eos, unknown = (piece for piece, _, _ in pieces[:3])
    special = {CONTROL, UNKNOWN}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        # Found in the normalized text, as SentencePiece does.
        "added_tokens": [
            {
                "id": i,
                "content": piece,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": kind not in special,
                "special": kind in special or piece.startswith("<extra_id_"),
            }
            for i, (piece, _, kind) in enumerate(pieces)
            if kind in special | {USER_DEFINED}
        ],
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": SPACE,
            "prepend_scheme": scheme,
            "split": False,
        },
        "post_processor": template(pad if start else eos, 0 if start else 1, start),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *([after] if prefix else []),
            ],
        },
        "model": _model(pieces, trainer.get(3, UNIGRAM), fallback, unknown),
    }


def _model(pieces: list, kind: int, fallback: bool, unknown: str) -> dict[str, Any]:
    if kind == UNIGRAM:
        never = (BYTE, CONTROL, UNUSED)
        return {
            "type": "Unigram",
            "unk_id": 2,
            "vocab": [[p, NEVER if k in never else score] for p, score, k in pieces],
            "byte_fallback": fallback,
        }
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": fallback,
        "ignore_merges": False,
        "vocab": {piece: i for i, (piece, _, _) in enumerate(pieces)},
        "merges": _merges(pieces),
    }


def _merges(pieces: list) -> list[list[str]]:
    """All pairs that make a piece, the best piece first; its score is minus its rank."""
    known = {piece: score for piece, score, kind in pieces if kind == NORMAL}
    ids = {piece: i for i, (piece, _, _) in enumerate(pieces)}
    found = []
    for piece, score in known.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in known and right in known:
                found.append((-score, ids[left], ids[right], [left, right]))
    return [pair for *_, pair in sorted(found, key=lambda entry: entry[:3])]


def template(token: str, i: int, start: bool) -> dict[str, Any]:
    """A post-processor that puts a token at the start of a text, or else at its end."""
    special = {"SpecialToken": {"id": token, "type_id": 0}}

    def around(name: str) -> list[dict[str, Any]]:
        text = {"Sequence": {"id": name, "type_id": 0}}
        return [special, text] if start else [text, special]

    return {
        "type": "TemplateProcessing",
        "single": around("A"),
        "pair": around("A") + around("B"),
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]}},
    }


def _piece(data: bytes) -> tuple[str, float, int]:
    found = dict(_fields(data))
    score = struct.unpack("<f", found[2])[0] if 2 in found else 0.0
    return found[1].decode(), score, found.get(3, NORMAL)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """A protocol buffer's fields: ints for varints, bytes for all else."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag = varint()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, varint()
            continue
        size = {1: 8, 5: 4}[kind] if kind != 2 else varint()
        yield tag >> 3, data[at : at + size]
        at += size
