"""Files opened so that nothing in them can fill memory: packed ones, torn ones, endless lines."""

import bz2
import codecs
import lzma
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from t5x_lite.corpus.encodings import decoded as decoded
from t5x_lite.corpus.encodings import in_two_bytes

MB = 1 << 20
_TORN = (EOFError, zlib.error, lzma.LZMAError, ValueError)


class Problems:
    """What could not be read: counted by kind, with the first few named."""

    def __init__(self, examples: int = 20):
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self._kept = examples

    def add(self, kind: str, where: str) -> None:
        self.counts[kind] += 1
        named = self.examples.setdefault(kind, [])
        if len(named) < self._kept:
            named.append(where)

    def take(self) -> tuple[dict[str, int], dict[str, list[str]]]:
        """(counts, examples) since it was last called."""
        taken = dict(self.counts), self.examples
        self.counts, self.examples = Counter(), {}
        return taken

    def merge(self, counts: Mapping[str, int], examples: Mapping[str, list[str]]) -> None:
        """Adds what another object took."""
        self.counts.update(counts)
        for kind, named in examples.items():
            known = self.examples.setdefault(kind, [])
            known += named[: self._kept - len(known)]


class Bomb(Exception):
    """A packed file that unpacks to far more than text does."""


class Torn(Exception):
    """A packed file that breaks off or is damaged."""


class Stream:
    """A file as it unpacks: `read(n)` and `line(limit)`, at most a few MB in memory.

    Raises Torn where a packed file is damaged, and Bomb once more than 64 MB came out and that is
    more than `max_ratio` times what went in: text packs 3 to 30 times, deflate at most 1032.
    """

    def __init__(self, file: BinaryIO, name: str, max_ratio: float = 200.0):
        self._raw, self._max_ratio, self._out = file, max_ratio, 0
        self._file: Any = _unpacked(file, name)
        self.packed = self._file is not file
        self._ahead = b""
        self._torn: Torn | None = None

    def check(self) -> None:
        """Raises Torn if what was read last broke off."""
        if self._torn:
            raise self._torn

    def read(self, size: int) -> bytes:
        ahead, self._ahead = self._ahead[:size], self._ahead[size:]
        if len(ahead) == size or (ahead and self._torn):
            return ahead
        return ahead + self._more(size - len(ahead))

    def peek(self, size: int) -> bytes:
        """The next bytes, which stay to be read."""
        if len(self._ahead) < size and not (self._torn and self._ahead):
            self._ahead += self._more(size - len(self._ahead))
        return self._ahead[:size]

    def transcode(self, codec: str) -> None:
        """From here on reads UTF-8 in the place of `codec`."""
        if codec != "utf-8":
            ahead, self._ahead = self._ahead, b""
            self._file = _Transcoded(self._file, ahead, codec)

    def lines(self, limit: int) -> Iterator[bytes | None]:
        """Lines with their ends; None for one longer than `limit` bytes, which is passed over."""
        kept, skipping = bytearray(), False
        while block := self.read(MB // 4):
            *ended, rest = block.split(b"\n")
            for line in ended:
                kept += line + b"\n"
                yield None if skipping or len(kept) > limit else bytes(kept)
                kept, skipping = bytearray(), False
            if not skipping:
                kept += rest
            if len(kept) > limit:
                kept, skipping = bytearray(), True
        if kept or skipping:
            yield None if skipping else bytes(kept)

    def _more(self, size: int) -> bytes:
        parts, wanted = [], size
        while wanted > 0:
            try:
                part = b"" if self._torn else self._file.read(min(wanted, MB))
            except Exception as error:
                # bz2 raises an OSError without a number; zstandard may be absent.
                damage = isinstance(error, OSError) and error.errno is None
                damage = damage or type(error).__name__ == "ZstdError"
                if not damage and not isinstance(error, _TORN):
                    raise
                self._torn, part = Torn(str(error) or type(error).__name__), b""
            if self._torn and not parts:
                raise self._torn  # what came before the damage was handed out
            if not part:
                break
            parts.append(part)
            wanted -= len(part)
            self._out += len(part)
            if self.packed and self._out > 64 * MB:
                went_in = max(self._raw.tell(), 1)
                if self._out > self._max_ratio * went_in:
                    raise Bomb(f"{went_in:,} bytes unpack to more than {self._out:,}")
        return b"".join(parts)


class _Transcoded:
    """A file in another encoding, as UTF-8; what doesn't fit is U+FFFD."""

    def __init__(self, file: Any, ahead: bytes, codec: str):
        self._file, self._ahead, self._ready = file, ahead, b""
        self._decoder = codecs.getincrementaldecoder(codec)(errors="replace")

    def read(self, size: int) -> bytes:
        while not self._ready:
            data, self._ahead = self._ahead or self._file.read(size), b""
            self._ready = self._decoder.decode(data, final=not data).encode(errors="replace")
            if not data:
                break
        out, self._ready = self._ready[:size], self._ready[size:]
        return out


class _Gzip:
    """Reads gzip members one after the other; unlike GzipFile, hands out all before a damage."""

    def __init__(self, file: Any):  # a file with `peek`
        self._file, self._data = file, b""
        self._member: Any = None  # what unpacks the present one

    def read(self, size: int) -> bytes:
        """At most `size` bytes; b"" at the end. Raises EOFError or zlib.error."""
        while True:
            if not self._data:
                self._data = self._file.read(1 << 16)
            if self._member is None:
                self._data = self._data.lstrip(b"\0")  # padding between members
                if not self._data:
                    if self._file.peek(1):
                        continue
                    return b""
                self._member = zlib.decompressobj(wbits=31)
            elif not self._data:
                raise EOFError("the packed data ends early")
            member = self._member
            out = member.decompress(self._data, size)
            self._data = member.unconsumed_tail
            if member.eof:
                self._data, self._member = member.unused_data, None
            if out:
                return out


def _unpacked(file: BinaryIO, name: str) -> Any:
    name = name.lower()
    if name.endswith((".gz", ".tgz")):
        return _Gzip(file)
    if name.endswith((".bz2", ".tbz", ".tbz2")):
        return bz2.BZ2File(file)
    if name.endswith((".xz", ".txz")):
        return lzma.LZMAFile(file)
    if name.endswith((".zst", ".zstd")):
        import zstandard

        return zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
    return file


def is_binary(head: bytes) -> bool:
    """Whether the first bytes of a file are no text in any common encoding."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or in_two_bytes(head) is not None:
        return False  # UTF-16 or UTF-32
    control = sum(b < 32 and b not in b"\t\n\r\f\x1b" for b in head)
    return b"\0" in head or control > 0.05 * len(head)
