"""Personal data: found by pattern and checksum, replaced or reason to drop, masked in reports.

Patterns can't find names or addresses of people; no dataset is free of personal data by this.
"""

import dataclasses
import re

from t5x_lite.corpus.pii_patterns import KINDS, find
from t5x_lite.corpus.steps import Document, Step, count

REPLACEMENTS = {
    "key": "<key>",
    "email": "email@example.com",
    "iban": "<iban>",
    "card": "<card>",
    "ip": "192.0.2.1",  # reserved for documentation (RFC 5737)
    "phone": "<phone>",
}


@dataclasses.dataclass(frozen=True)
class Pii(Step):
    """Replaces personal data, and drops documents that have much of it.

    kinds: of key, email, iban, card, ip, phone. Cards must pass Luhn's check, IBANs mod 97, and
    phone numbers libphonenumber's; IP addresses are those of the public internet. max_found: drop
    a document with more.
    """

    kinds: tuple[str, ...] = KINDS
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
                if text[begin:stop] in REPLACEMENTS.values():
                    continue
                parts += [text[end:begin], REPLACEMENTS[kind]]
                found.append((kind, text[begin:stop]))
                end = stop
            text = "".join(parts) + text[end:] if parts else text
        return text, found


def mask(text: str) -> str:
    """For reports: of each piece of personal data only its ends are left."""
    for kind in KINDS:
        for begin, stop in reversed(list(find(kind, text))):
            value = text[begin:stop]
            if value in REPLACEMENTS.values():
                continue
            hidden = re.sub(r"\w", "*", value[1:-1])[:24]
            text = f"{text[:begin]}{value[0]}{hidden}{value[-1]}{text[stop:]}"
    return text
