"""tf.Example and TFRecord files, read without TensorFlow.

A tf.Example is the protocol buffer {1: Features {1: map<string, Feature>}}; a Feature holds one of
{1: BytesList, 2: FloatList, 3: Int64List}, each a repeated field 1. A TFRecord file is a row of
frames: length uint64, masked CRC-32C of it uint32, data, CRC of that uint32 (little-endian).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from t5x_lite.data.file_bytes import Bytes, Window

Value = bytes | int | float | list


def parse_example(data: bytes) -> dict[str, Value]:
    """{feature: value, or list of values if there isn't exactly one}.

    Raises ValueError if `data` is no tf.Example.
    """
    try:
        features: dict[str, Value] = {}
        for field, message in _fields(data):
            if field != 1 or not isinstance(message, bytes):
                raise ValueError("field of another message")
            for _, entry in _fields(message):
                name, feature = "", b""
                for number, content in _fields(entry):
                    if number == 1:
                        name = content.decode()
                    else:
                        feature = content
                values = [v for kind, x in _fields(feature) for v in _values(kind, x)]
                features[name] = values[0] if len(values) == 1 else values
        return features
    except (IndexError, TypeError, AttributeError, ValueError) as e:
        raise ValueError(f"no tf.Example ({e})") from e


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, content) of a message's fields; the content is bytes, or an int."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        match tag & 7:
            case 0:
                content, at = _varint(data, at)
                yield tag >> 3, content
                continue
            case 2:
                size, at = _varint(data, at)
            case 5:
                size = 4
            case 1:
                size = 8
            case kind:
                raise ValueError(f"wire type {kind}")
        if at + size > len(data):
            raise ValueError("cut short")
        yield tag >> 3, data[at : at + size]
        at += size


def _values(kind: int, message: bytes) -> list:
    found = []
    for _, content in _fields(message):
        if kind == 1:
            found.append(content)
        elif kind == 2:  # packed, or one a field: the same bytes
            found += np.frombuffer(content, "<f4").tolist()
        elif isinstance(content, int):
            found.append(_signed(content))
        else:
            at = 0
            while at < len(content):
                value, at = _varint(content, at)
                found.append(_signed(value))
    return found


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC = _crc_table()


def masked_crc(data: bytes) -> int:
    """The masked CRC-32C that TFRecord files hold."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


class TornFile(Exception):
    """`at`: the byte where the first frame that isn't whole begins."""

    def __init__(self, at: int, spans: np.ndarray):
        self.at, self.spans = at, spans
        super().__init__(f"no whole TFRecord frame at byte {at}")


def frame_spans(data: Bytes) -> np.ndarray:
    """Spans int64 [N, 2] of the data of each frame in a TFRecord file's bytes.

    The CRC of each length is checked, so that a wrong one can't send us astray; that of the data is
    not (Python would take a second for 10 MB). Raises TornFile, with the frames before.
    """
    spans, at, end = [], 0, len(data)
    window = Window(data)
    while at < end:
        header = window[at : at + 12]
        size = int.from_bytes(header[:8], "little")
        whole = len(header) == 12 and at + 16 + size <= end
        if not whole or masked_crc(header[:8]) != int.from_bytes(header[8:], "little"):
            raise TornFile(at, np.array(spans, np.int64).reshape(-1, 2))
        spans.append((at + 12, at + 12 + size))
        at += 16 + size
    return np.array(spans, np.int64).reshape(-1, 2)
