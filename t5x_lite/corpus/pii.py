"""Personal data: found by pattern and checksum, replaced or reason to drop, masked in reports.

Patterns can't find names or addresses of people; no dataset is free of personal data by this.
"""

import dataclasses
import ipaddress
import re
from collections.abc import Iterator

import gin

from t5x_lite.corpus.steps import Document, Step, count

_PATTERNS = {
    "key": re.compile(
        r"-----BEGIN (?P<t>(?:[A-Z]+ )?PRIVATE KEY)-----.{1,8000}?-----END (?P=t)-----"
        r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bglpat-[\w-]{20,}"
        r"|\bsk-(?:[a-z]+-)*[A-Za-z0-9_-]{20,}|\bxox[abprs]-[A-Za-z0-9-]{10,}"
        r"|\bAIza[\w-]{35}|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
        re.DOTALL,
    ),
    "email": re.compile(
        r"(?<![\w.+-])[A-Za-z0-9](?:[\w.+-]{0,62}[\w+-])?@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b"
    ),
    "iban": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
    "card": re.compile(r"(?<![\d.-])(?:\d[ -]?){12,18}\d(?![\d-])"),
    "ip": re.compile(r"(?<![\w.:])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])|"
                     r"(?<![\w.:])(?:[0-9A-Fa-f]{1,4}:){2,7}:?(?:[0-9A-Fa-f]{1,4})?"
                     r"(?::[0-9A-Fa-f]{1,4})*(?![\w:])"),
    "phone": re.compile(
        r"(?<![\w.+/-])(?:\+\d{1,3}[ .-]?(?:\(0?\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){5,12}"
        r"|\(?[2-9]\d{2}\)?[ .-][2-9]\d{2}[ .-]\d{4})(?![\w-])"
    ),
}  # fmt: skip
# Without one of these there is nothing to find, which is the common case and quickly seen.
_HINTS = {
    "key": ("-----BEGIN ", "AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "glpat-", "sk-",
            "xox", "AIza", "eyJ"),
    "email": ("@",),
}  # fmt: skip
_VERSION = re.compile(r"(?:\bv|version|release|build)\s*$", re.IGNORECASE)
REPLACEMENTS = {
    "key": "<key>",
    "email": "email@example.com",
    "iban": "<iban>",
    "card": "<card>",
    "ip": "192.0.2.1",  # reserved for documentation (RFC 5737)
    "phone": "<phone>",
}


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class Pii(Step):
    """Replaces personal data, and drops documents that have much of it.

    kinds: of key, email, iban, card, ip, phone. Cards must pass Luhn's check and IBANs mod 97;
    IP addresses are those of the public internet. max_found: drop a document with more.
    """

    kinds: tuple[str, ...] = tuple(_PATTERNS)
    max_found: int | None = None

    def __call__(self, document: Document) -> str | None:
        text, found = self.replace(document["text"])
        if self.max_found is not None and len(found) > self.max_found:
            return "Pii/too_much"
        for kind, _ in found:
            count(document, f"personal data: {kind}")
        document["text"] = text
        return None

    def replace(self, text: str) -> tuple[str, list[tuple[str, str]]]:
        """(text without personal data, [(kind, what was found)])."""
        found: list[tuple[str, str]] = []
        for kind in self.kinds:
            parts, end = [], 0
            for begin, stop in find(kind, text):
                parts += [text[end:begin], REPLACEMENTS[kind]]
                found.append((kind, text[begin:stop]))
                end = stop
            text = "".join(parts) + text[end:] if parts else text
        return text, found


def find(kind: str, text: str) -> Iterator[tuple[int, int]]:
    """Spans of one kind of personal data that pass its check."""
    if kind in _HINTS and not any(hint in text for hint in _HINTS[kind]):
        return
    for match in _PATTERNS[kind].finditer(text):
        value = match.group()
        if kind == "card" and not is_card(value):
            continue
        if kind == "iban" and not is_iban(value):
            continue
        if kind == "ip" and not _is_public(value, text[max(0, match.start() - 9) : match.start()]):
            continue
        if value not in REPLACEMENTS.values():
            yield match.span()


def mask(text: str) -> str:
    """For reports: of each piece of personal data only its ends are left."""
    for kind in _PATTERNS:
        for begin, stop in reversed(list(find(kind, text))):
            value = text[begin:stop]
            hidden = re.sub(r"\w", "*", value[1:-1])[:24]
            text = f"{text[:begin]}{value[0]}{hidden}{value[-1]}{text[stop:]}"
    return text


def is_card(value: str) -> bool:
    """An issuer's number of the right length that passes Luhn's check (ISO/IEC 7812)."""
    digits = re.sub(r"\D", "", value)
    length = len(digits)
    known = (
        (digits[0] == "4" and length in (13, 16, 19))
        or (51 <= int(digits[:2]) <= 55 and length == 16)
        or (2221 <= int(digits[:4]) <= 2720 and length == 16)
        or (digits[:2] in ("34", "37") and length == 15)
        or (digits[:4] == "6011" or digits[:2] in ("65", "35")) and length == 16
    )  # fmt: skip
    doubled = [int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits))]
    return known and sum(d - 9 * (d > 9) for d in doubled) % 10 == 0


def is_iban(value: str) -> bool:
    """Passes ISO 13616's check: the number mod 97 is 1."""
    compact = value.replace(" ", "")
    if not 15 <= len(compact) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def _is_public(value: str, before: str) -> bool:
    if "." in value and _VERSION.search(before):
        return False
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return False
    return address.is_global and not address.is_multicast
