"""Bytes of unknown encoding -> text: one guess for a whole file, which one bad byte can't change.

The order: a byte order mark; UTF-8, if nearly all of its sequences are whole; ISO-2022's escapes;
UTF-16 without a mark; what was declared; what uchardet finds in most pieces of the text. A byte
that doesn't fit is replaced (U+FFFD): it costs its character, and says nothing about the rest.
"""

import codecs
import re
import threading
from collections import Counter
from collections.abc import Iterator

SAMPLE = 1 << 16  # bytes that a guess looks at
_PIECES = 12
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"),
          (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
          (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
_SEQUENCE = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)
_ESCAPE = re.compile(rb"\x1b\$(?:[@B]|\([CDO])|\x1b\([IJ]|(\x1b\$\)C)")
_HIGH = re.compile(rb"[\x80-\xff]")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")

# The WHATWG's encodings by Python's names, where Python's codec of that name knows fewer characters
# than browsers do.
_WIDER = {
    "ascii": "cp1252", "latin_1": "cp1252", "iso8859_1": "cp1252", "iso8859_9": "cp1254",
    "iso8859_11": "cp874", "tis_620": "cp874", "shift_jis": "cp932", "euc_kr": "cp949",
    "gb2312": "gb18030", "gbk": "gb18030", "big5": "big5hkscs", "iso2022_jp": "iso2022_jp_ext",
}  # fmt: skip
# Of two-byte encodings, the first bytes of kana, hangul and the more common ideographs, and ASCII.
_COMMON = {
    "cp932": {*range(128), 0x81, 0x82, 0x83, *range(0x88, 0x98)},
    "euc_jp": {*range(128), 0xA1, 0xA4, 0xA5, *range(0xB0, 0xD0)},
    "gb18030": {*range(128), 0xA1, 0xA3, *range(0xB0, 0xD8)},
    "big5hkscs": {*range(128), 0xA1, *range(0xA4, 0xC7)},
    "cp949": {*range(128), 0xA1, *range(0xB0, 0xC9)},
}
_DOUBLE_BYTE = frozenset(_COMMON)


def decoded(data: bytes, declared: str | None = None) -> str:
    """The text of a whole document; bytes that don't fit its encoding become U+FFFD.

    declared: a label such as HTTP's or HTML's charset; obeyed unless the bytes disprove it.
    """
    codec = guess(data, declared)
    return read_as(data, codec).removeprefix("\ufeff")


def read_as(data: bytes, codec: str) -> str:
    """data.decode(codec, errors="replace"), in step again after a byte that doesn't fit."""
    if codec.startswith("iso2022_jp"):
        return _iso2022(data)
    if codec in _TWO_HIGH:
        data = _marked_halves(data, codec)
    text = data.decode(codec, errors="replace")
    if "\ufffd" not in text:
        return text
    return _in_step(data, codec, Counter(text)) if codec in _DOUBLE_BYTE else text


def _in_step(data: bytes, codec: str, usual: Counter[str]) -> str:
    """Two-byte text, where a lost or added byte shifts all pairs up to the next line.

    After a byte that doesn't fit, reading goes on at the first, second or third byte: where the
    characters that follow are the most usual ones of the text itself and of the encoding.
    """
    common = _COMMON[codec]
    budget = 500  # of places; text that is damaged more than that is read as it comes

    def go_on(error: UnicodeError) -> tuple[str, int]:
        nonlocal budget
        budget -= 1
        if budget < 0 or not isinstance(error, UnicodeDecodeError):
            return "\ufffd", getattr(error, "end", len(data))
        start = error.start

        def how_usual(skipped: int) -> float:
            after = data[start + skipped : start + skipped + 24].decode(codec, errors="ignore")
            first = [c.encode(codec)[0] for c in after[:8]]
            return sum(min(usual[c], 9) for c in after[:8]) + sum(9 * (b in common) for b in first)

        best = max((1, 2, 3), key=lambda skipped: (how_usual(skipped), -skipped))
        return "\ufffd", min(start + best, len(data))

    name = f"t5x_lite.in_step.{threading.get_ident()}"
    codecs.register_error(name, go_on)
    return data.decode(codec, errors=name)


_TWO_HIGH = ("euc_jp", "gb18030", "cp949")  # nearly all characters are two bytes beyond ASCII
_RUN = re.compile(rb"[\x80-\xff]+")


def _marked_halves(data: bytes, codec: str) -> bytes:
    """With the byte that is left of a character as 0xff, in runs of an odd number of bytes.

    Where it is in the run is where the first bytes of the characters before and after it are the
    most usual ones. Text that has many odd runs isn't damaged, but has characters of other lengths.
    """
    runs = [match.span() for match in _RUN.finditer(data)]
    odd = [(begin, end) for begin, end in runs if (end - begin) % 2]
    if not odd or len(odd) > 1 + len(runs) // 20:
        return data
    common, marked = _COMMON[codec], bytearray(data)
    for begin, end in odd:
        run = data[begin:end]
        if b"\x8e" in run or b"\x8f" in run and codec == "euc_jp":
            continue  # of one or three bytes
        usual = [byte in common for byte in run]
        after = sum(usual[1::2])  # if the first byte is the odd one
        best, place = after, 0
        for i in range(0, len(run) - 1, 2):
            after += usual[i] - usual[i + 1]
            if after > best:
                best, place = after, i + 2
        marked[begin + place] = 0xFF
    return bytes(marked)


_SHIFT = re.compile(rb"\x1b(\$[@B]|\([BJI]|\$\(D)")


def _whole_escapes(data: bytes) -> bytes:
    """A bad byte in an escape, or in the place of one of its three, would cost a whole line."""
    for pattern, escape in (
        (rb"(?:\x1b[\x80-\xff]?|[\x80-\xff])\$[\x80-\xff]?([@B])", b"\x1b$\\1"),
        (rb"(?:\x1b[\x80-\xff]?|[\x80-\xff])\([\x80-\xff]?([BJI])", b"\x1b(\\1"),
        (rb"\x1b\$[\x80-\xff]", b"\x1b$B"), (rb"\x1b\([\x80-\xff]", b"\x1b(B"),
    ):  # fmt: skip
        data = re.sub(pattern, escape, data)
    return data


def _iso2022(data: bytes) -> str:
    """Each stretch between escapes as EUC-JP, which can be brought into step again."""
    parts = _SHIFT.split(_whole_escapes(data))
    found = [parts[0].decode("ascii", errors="replace")]
    usual: Counter[str] = Counter()
    for escape, part in zip(parts[1::2], parts[2::2], strict=True):
        if escape in (b"$@", b"$B"):
            high = bytes(b | 0x80 if b < 0x80 else 0xFF for b in part)
            found.append(_in_step(_marked_halves(high, "euc_jp"), "euc_jp", usual))
            usual.update(found[-1])
        else:
            found.append((b"\x1b" + escape + part).decode("iso2022_jp_ext", errors="replace"))
    return "".join(found)


def guess(data: bytes, declared: str | None = None) -> str:
    """The name of the Python codec that `data` is most likely in."""
    for mark, codec in _MARKS:
        if data.startswith(mark):
            return codec
    if _plain_utf8(data):
        return "utf-8"
    if (two := in_two_bytes(data[:SAMPLE])) is not None:
        return two
    if (escape := _ESCAPE.search(data[:SAMPLE])) and _few(_HIGH, data[:SAMPLE]):
        return "iso2022_kr" if escape[1] else "iso2022_jp_ext"
    wanted = codec_of(declared)
    if data.isascii():
        return wanted if wanted == "hz" and b"~{" in data else "utf-8"
    sample = _sample(data)
    if _is_utf8(sample):
        return "utf-8"
    if wanted is not None and wanted != "utf-8" and _fits(sample, wanted):
        return wanted
    return _detected(sample) or wanted or "cp1252"


def _plain_utf8(data: bytes) -> bool:
    """The usual case, quickly seen: UTF-8 without a fault, a null or an escape."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    return not text.isascii() and "\0" not in text and "\x1b" not in text


def codec_of(label: str | None) -> str | None:
    """Python's name for a declared encoding, as browsers read it; None for one that none knows."""
    if not label:
        return None
    label = label.strip().strip("\"'").lower()
    label = {"x-sjis": "cp932", "windows-31j": "cp932", "ms_kanji": "cp932", "x-gbk": "gb18030",
             "ks_c_5601-1987": "cp949", "x-x-big5": "big5hkscs", "x-cp1251": "cp1251",
             "x-mac-cyrillic": "mac_cyrillic", "unicode": "utf-16", "dos-874": "cp874",
             "hz-gb-2312": "hz", "iso-8859-8-i": "iso8859_8", "x-euc-jp": "euc_jp",
             "utf8": "utf-8", "unicode-1-1-utf-8": "utf-8"}.get(label, label)  # fmt: skip
    try:
        found = codecs.lookup(label)
    except (LookupError, ValueError):  # ValueError: a null character
        return None
    if not getattr(found, "_is_text_encoding", True):  # base64, rot13 and others of Python's
        return None
    name = found.name.replace("-", "_")
    if name in ("idna", "punycode", "unicode_escape", "raw_unicode_escape", "utf_7", "mbcs"):
        return None
    return "utf-8" if name in ("utf_8", "utf_8_sig") else _WIDER.get(name, name)


def _sample(data: bytes) -> bytes:
    """From the first byte that isn't ASCII on; cut after a line or a space if there is one."""
    begin = max(0, _HIGH.search(data).start() - 1000) if len(data) > SAMPLE else 0
    sample = data[begin : begin + SAMPLE]
    if begin + SAMPLE < len(data):
        end = max(sample.rfind(b"\n"), sample.rfind(b" "))
        if end > SAMPLE // 2:
            sample = sample[:end]
    return sample


def _is_utf8(sample: bytes) -> bool:
    """At least two thirds of the bytes beyond ASCII are in whole sequences of UTF-8."""
    high = len(_HIGH.findall(sample))
    whole = sum(map(len, _SEQUENCE.findall(sample)))
    return whole > 0 and whole >= 2 * (high - whole)


def _few(pattern: re.Pattern, sample: bytes) -> bool:
    return len(pattern.findall(sample)) <= 1 + 0.01 * len(sample)


def _fits(sample: bytes, codec: str) -> bool:
    """Whether so few bytes don't fit that it may be damage: one, or one in fifty beyond ASCII."""
    try:
        wrong = sample.decode(codec, errors="replace").count("\ufffd")
    except (UnicodeError, LookupError):
        return False
    return wrong <= 2 + 0.02 * len(_HIGH.findall(sample))


def in_two_bytes(sample: bytes) -> str | None:
    """UTF-16 (or 32) without a mark: control bytes, which text in other encodings hasn't, and one
    of each two bytes nearly always from few values."""
    if len(sample) < 4 or _few(_CONTROL, sample[:4096]):
        return None
    if sample[:4096].count(b"\0") > 0.6 * len(sample[:4096]):
        for codec in ("utf-32-le", "utf-32-be"):
            if _reads_as_text(sample[: len(sample) & ~3], codec):
                return codec
        return None
    even = len(sample) & ~1
    for codec in ("utf-16-le", "utf-16-be"):
        if _reads_as_text(sample[:even], codec):
            return codec
    return None


def _reads_as_text(sample: bytes, codec: str) -> bool:
    """Nearly all characters are letters, marks, digits, spaces and common punctuation, and most
    stand in the same part of Unicode as one of their neighbours."""
    text = sample[:4096].decode(codec, errors="replace")
    if not text:
        return False
    good = sum(c.isalnum() or c in "\n\r\t " or c.isprintable() for c in text)
    if good < 0.97 * len(text) or text.count("\ufffd") > 1 + 0.01 * len(text):
        return False
    blocks = Counter(_script(ord(c)) for c in text if not c.isspace())
    usual = sum(number for block, number in blocks.items() if block is not None)
    return usual >= 0.9 * sum(blocks.values())


def _script(code: int) -> str | None:
    """A name for the scripts that most text is in."""
    for name, begin, end in (
        ("latin", 0, 0x250), ("greek", 0x370, 0x400), ("cyrillic", 0x400, 0x530),
        ("hebrew", 0x590, 0x600), ("arabic", 0x600, 0x700), ("indic", 0x900, 0xE00),
        ("thai", 0xE00, 0xF00), ("latin", 0x1E00, 0x1F00), ("latin", 0x2010, 0x2060),
        ("kana", 0x3000, 0x3100), ("han", 0x4E00, 0xA000), ("hangul", 0xAC00, 0xD7B0),
        ("kana", 0xFF00, 0xFFF0),
    ):  # fmt: skip
        if begin <= code < end:
            return name
    return None


def _detected(sample: bytes) -> str | None:
    """uchardet's word on the whole, if the bytes fit it; else what most pieces of it say.

    It gives up a candidate at the first byte that can't be one of its; so a bad byte in a text
    spoils a piece, not the guess.
    """
    from resiliparse.parse.encoding import detect_encoding

    def found(data: bytes) -> str | None:
        codec = codec_of(detect_encoding(data, max_len=0, html5_compatible=False))
        return None if codec in (None, "utf-8") or not _fits(data, codec) else codec

    whole = found(sample)
    votes: Counter[str] = Counter({whole: 1} if whole else {})
    pieces = [*_pieces(sample), sample.translate(None, b"\xff\xfe")]  # the commonest bad bytes
    for piece in pieces:
        if codec := found(piece):
            votes[codec] += len(_HIGH.findall(piece))
    likely = next((codec for codec, _ in votes.most_common() if _fits(sample, codec)), None)
    return _of_siblings(sample, likely or _second_opinion(sample))


# Encodings that share most letters, so that a detector takes one for the other.
_SIBLINGS = (
    ("cp1250", "iso8859_2", "cp852", "mac_latin2"), ("cp1251", "iso8859_5", "koi8_r", "koi8_u"),
    ("cp1257", "iso8859_13", "iso8859_4", "cp1252", "mac_roman", "cp850", "cp1250"),
    ("cp1252", "mac_roman", "cp850"), ("cp865", "cp850", "cp1252"), ("cp1256", "iso8859_6"),
    ("cp1253", "iso8859_7"), ("cp1255", "iso8859_8"), ("cp1258", "cp1252"),
)  # fmt: skip
_ODD = re.compile(
    "[\x80-\x9f\ufffd]|(?<=[^\\W\\d_])[\xa4\xa6-\xa9\xac-\xb1\xb4-\xb6\xb8\u02c7\u02d8\u02d9\u02db\u2039-\u203a"
    "\u2020-\u2022\u2030\u2500-\u25a1](?=[^\\W\\d_]|[ ,.])|[\xaf\xac\xb1\xa6](?=[^\\W\\d_])"
)


def _of_siblings(sample: bytes, codec: str | None) -> str | None:
    """Of encodings that are alike the one with the fewest symbols and capitals within words."""

    def odd(candidate: str) -> int:
        text = sample.decode(candidate, errors="replace")
        inner = sum(a.islower() and b.isupper() for a, b in zip(text, text[1:], strict=False))
        return inner + len(_ODD.findall(text))

    group = next((group for group in _SIBLINGS if codec in group), ())
    if not group or odd(codec) <= 2:
        return codec
    return min((codec, *group), key=odd)


def _pieces(sample: bytes) -> Iterator[bytes]:
    """About a dozen pieces, cut at ends of lines, or at spaces, where there are some."""
    size = max(40, len(sample) // _PIECES)
    begin = 0
    while begin < len(sample):
        end = sample.find(b"\n", begin + size // 2, begin + 2 * size)
        end = sample.find(b" ", begin + size, begin + 2 * size) if end < 0 else end
        end = begin + size if end < 0 else end
        yield sample[begin:end]
        begin = end


def _second_opinion(sample: bytes) -> str | None:
    from charset_normalizer import from_bytes

    best = from_bytes(sample).best()
    return codec_of(best.encoding) if best else None


# ------------------------------------------------------------------------------------------- HTML

_TAG = re.compile(
    rb"<!--.*?-->"
    rb"|<(meta)[\s/]((?:[^>\"']|\"[^\"]*\"|'[^']*')*+)>"
    rb"|</?[a-z](?:[^>\"']|\"[^\"]*\"|'[^']*')*+>|<[!/?][^>]*+>",
    re.IGNORECASE | re.DOTALL,
)
_ATTRIBUTE = re.compile(rb"([^\s/>=][^\s/>=]*)(?:\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s>\"']+)))?")
_IN_CONTENT = re.compile(rb"charset\s*=\s*(?:\"([^\"]+)\"|'([^']+)'|([^\s;\"']+))", re.IGNORECASE)
_XML = re.compile(rb"^\s*<\?xml[^>]*?encoding\s*=\s*[\"']([\w.-]+)[\"']", re.IGNORECASE)


def html_charset(data: bytes) -> str | None:
    """The encoding that a page's <meta> declares, found as the HTML standard's prescan does.

    https://html.spec.whatwg.org/multipage/parsing.html#prescan-a-byte-stream-to-determine-its-encoding,
    in the first 4096 bytes; an XML declaration counts if no <meta> does.
    """
    head = data[:4096]
    for match in _TAG.finditer(head):
        if match[1] and (label := _meta_charset(match[2])):
            return label
    found = _XML.match(head)
    return found[1].decode("ascii", errors="replace") if found else None


def _meta_charset(attributes: bytes) -> str | None:
    values: dict[bytes, bytes] = {}
    for name, *quoted in _ATTRIBUTE.findall(attributes):
        values.setdefault(name.lower(), b"".join(quoted))  # the first of a name counts
    charset = values.get(b"charset")
    if charset is None and values.get(b"http-equiv", b"").strip().lower() == b"content-type":
        found = _IN_CONTENT.search(values.get(b"content", b""))
        charset = b"".join(filter(None, found.groups())) if found else None
    if not charset:
        return None
    label = charset.decode("ascii", errors="replace").strip()
    codec = codec_of(label)
    if codec is None:
        return None
    # The tag could be read, so it isn't UTF-16 whatever it says.
    return "utf-8" if codec.startswith(("utf_16", "utf_32")) else label
