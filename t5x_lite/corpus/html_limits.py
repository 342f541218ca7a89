"""HTML that takes time in proportion to its size: what parsers are slow on is taken out first.

Browsers, too, cut the depth of a page (Chromium at 512 elements). Text is never removed.
"""

import re
from itertools import accumulate

import numpy as np

MAX_DEPTH = 256
_MAX_OPEN = 64  # formatting elements: the parser opens them again in each paragraph
_MAX_TAG = 8192  # characters; a parser compares each attribute with all others

# Elements that nest: not the empty ones (br, img), nor those that end by themselves (p, li, td).
_FORMATTING = "a|b|big|code|em|font|i|nobr|s|small|strike|strong|tt|u"
_NO_DEPTH = "area base br col dd dt embed hr img input li link meta option p param path source"
_NO_DEPTH += " tbody td tfoot th thead tr track wbr"
_NO_DEPTH_CODES = np.array(
    sorted({int.from_bytes(name[:3].encode().ljust(3, b"\0")) for name in _NO_DEPTH.split()})
)
_FORMAT_TAG = re.compile(rf"<(/?)(?:{_FORMATTING})(?=[\s/>])[^<>]*+>?", re.IGNORECASE)
_LONG_TAG = re.compile(rf"<([a-z][\w:-]*)\s[^<>]{{{_MAX_TAG},}}+>?", re.IGNORECASE)
_TAG = re.compile(r"<(/?)([a-z][\w:-]*)[^<>]*+>?", re.IGNORECASE)


def limited(page: str) -> str:
    """The page without what takes more than linear time: deep nesting, formatting elements that
    are never closed, and tags with thousands of attributes."""
    if len(page) > _MAX_TAG:
        page = _LONG_TAG.sub(r"<\1>", page)
    deepest = _deepest(page) if page.count("<") > _MAX_OPEN else 0
    if deepest <= _MAX_OPEN:
        return page
    formats = accumulate(-1 if slash else 1 for slash in _FORMAT_TAG.findall(page))
    if max(formats, default=0) > _MAX_OPEN:
        page = _FORMAT_TAG.sub("", page)
    return _shallow(page) if deepest > MAX_DEPTH else page


def _deepest(page: str) -> int:
    """About how many elements are open at once; by the first three letters of their names."""
    data = np.frombuffer(page.encode(errors="replace") + b"\0\0\0\0", np.uint8)
    places = np.flatnonzero(data[:-4] == ord("<")) + 1
    closing = data[places] == ord("/")
    places += closing
    first, second, third = ((data[places + i] | 0x20).astype(np.int32) for i in range(3))
    second *= _is_letter(second)
    third *= _is_letter(third) & (second > 0)
    nests = _is_letter(first) & ~np.isin(first << 16 | second << 8 | third, _NO_DEPTH_CODES)
    return int(np.cumsum(np.where(closing, -1, 1) * nests).max(initial=0))


def _is_letter(codes: np.ndarray) -> np.ndarray:
    return (ord("a") <= codes) & (codes <= ord("z"))


def _shallow(page: str) -> str:
    """Without the tags of elements that stand deeper than MAX_DEPTH."""
    depth = left_out = 0
    no_depth = frozenset(_NO_DEPTH.split())

    def keep(match: re.Match) -> str:
        nonlocal depth, left_out
        if match[2].lower() in no_depth:
            return match[0]
        if match[1]:
            if left_out:
                left_out -= 1
                return " "
            depth = max(0, depth - 1)
            return match[0]
        if depth >= MAX_DEPTH:
            left_out += 1
            return " "
        depth += 1
        return match[0]

    return _TAG.sub(keep, page)
