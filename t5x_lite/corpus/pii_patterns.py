"""Spans of personal data in text: a pattern for what may be some, and a check of what it finds.

Checks are Luhn's for cards, ISO 13616's for IBANs, libphonenumber's for phone numbers, the public
internet for IP addresses. What source code and tables have that only looks like it is left alone:
matrix products (W@x.T()), file names (logo@2x.png), coordinates, numbers of versions and sections.
"""

import functools
import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Any

from t5x_lite.errors import UserError

_SPACE = " \u00a0\u2009\u202f"  # NBSP and narrow ones, as typesetters use within numbers
_EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9](?:[\w.+-]{0,62}[\w+-])?@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b"
)
_KEY = re.compile(
    r"-----BEGIN (?P<t>(?:[A-Z]+ )?PRIVATE KEY)-----.{1,8000}?-----END (?P=t)-----"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bglpat-[\w-]{20,}"
    r"|(?<![\w.#-])sk-[A-Za-z0-9_-]{20,}|\bxox[abprs]-[A-Za-z0-9-]{10,}"
    r"|\bAIza[\w-]{35}|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
    re.DOTALL,
)
_IBAN = re.compile(rf"(?<![A-Za-z0-9])([A-Z]{{2}})\d\d(?=[{_SPACE}-]?[A-Z0-9])")
_CARD = re.compile(
    rf"(?<![\d.-])(?<!\d[{_SPACE}])(?:\d{{13,19}}|\d{{4}}([{_SPACE}-])\d{{4}}\1\d{{4}}\1\d{{4}}(?:\1\d{{3}})?"
    rf"|\d{{4}}([{_SPACE}-])\d{{6}}\2\d{{4,5}})(?!\d)"
)
_IP = re.compile(
    r"(?<![\w.:-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)|"
    r"(?<![\w.:])(?:[0-9A-Fa-f]{1,4}:){2,7}:?(?:[0-9A-Fa-f]{1,4})?(?::[0-9A-Fa-f]{1,4})*(?![\w:])"
)
_PHONE = re.compile(
    rf"(?<![\w.+/=%$\u20ac\u00a3-])(?:\+|00[{_SPACE}]?(?=[1-9]))[1-9]\d{{0,2}}[{_SPACE}.-]?(?:\(0?\d{{1,4}}\)[{_SPACE}.-]?)?"
    rf"\d(?:[{_SPACE}./-]{{0,2}}\d){{5,12}}(?![\w-]|[.,]\d)"
    rf"|(?<![\w.+/=%$\u20ac\u00a3:-])(?:\(\d{{1,5}}\)|\d{{2,5}})[{_SPACE}./-]{{1,3}}\d(?:[{_SPACE}./-]{{0,2}}\d){{4,10}}(?![\w-]|[.,]\d)"
)
_SPOKEN_OF = re.compile(
    r"(?:\b(?:tel|telephone|phone|ph|fax|mobile|mob|cell|call|whatsapp|hotline|t\u00e9l|t\u00e9l\u00e9phone|telefon|"
    r"telefono|tel\u00e9fono|telefone|m\u00f3vil|celular|handy|rufnummer|\u0442\u0435\u043b|\u0442\u0435\u043b\u0435\u0444\u043e\u043d)\b|"
    r"\u96fb\u8a71|\u7535\u8bdd|\u96fb\u8a71\u756a\u53f7|\uc804\ud654|\u260e|\u260f|\u2706|\U0001f4de)[^\w\d]{0,4}(?:\w{1,10}[^\w\d]{1,3}){0,2}$",
    re.IGNORECASE,
)
_NOT_AN_ADDRESS = re.compile(
    r"(?:\bv|\b(?:version|release|build|section|sections|chapter|clause|figure|fig|table|item|rule|"
    r"step|paragraph|para|article|appendix|annex|see|rev|revision|abschnitt|kapitel|ziffer|"
    r"sec|ch|no|nr)\.?|\u00a7|#)\s*$",
    re.IGNORECASE,
)
_ADDRESS_NEAR = re.compile(
    r"\b(?:ip|ipv4|address|addr|host|server|dns|resolver|ping|ssh|nameserver|gateway|from|client|"
    r"remote|router|peer|bind|listen|connect\w*|adresse|direcci\u00f3n|indirizzo)\b[^.\n]{0,12}$|//$|@$",
    re.IGNORECASE,
)  # fmt: skip
_RESOLVERS = {"8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9"}

# What follows an @ and a dot in source code and in names of files and services.
_NO_DOMAINS = (
    "png jpg jpeg gif svg webp bmp ico avif tif tiff pdf js jsx mjs css scss less json xml yml "
    "yaml html htm txt csv tsv log ini cfg conf gz zip tar service socket timer target mount "
    "slice local localdomain localhost internal lan test invalid example transpose reshape dot "
    "sum mean shape data view permute float half double cuda cpu detach numpy size flatten conj "
    "inverse inv real imag values value copy astype item items squeeze unsqueeze expand repeat "
    "clone type dtype grad weight weights bias matmul swapaxes ravel toarray todense diagonal "
    "norm exp log sqrt abs max min std var round clip sort index iloc loc columns array append "
    "format join split strip lower upper replace length prototype self name id "
)
_NO_DOMAINS_SET = frozenset(_NO_DOMAINS.split())
_COUNTRY_LENGTHS = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 "
    "DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 "
    "IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 "
    "MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 "
    "SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30 "
)
_IBAN_LENGTHS = {pair[:2]: int(pair[2:]) for pair in _COUNTRY_LENGTHS.split()}
# Countries whose national formats (without +) are looked for.
_REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "BR", "IN", "JP", "CN", "AU", "NL", "RU", "PL")


def find(kind: str, text: str) -> Iterator[tuple[int, int]]:
    """Spans of one kind of personal data that pass its check.

    kind: "key", "email", "iban", "card", "ip" or "phone".
    """
    hints, spans = _KINDS[kind]
    if hints and not any(hint in text for hint in hints):
        return
    yield from spans(text)


def _keys(text: str) -> Iterator[tuple[int, int]]:
    for match in _KEY.finditer(text):
        if not match[0].startswith("sk-") or _is_random(match[0][3:]):
            yield match.span()


def _is_random(value: str) -> bool:
    """A long part with letters and digits mixed; names of classes are words."""
    part = max(re.split(r"[-_]", value), key=len)
    return len(part) >= 16 and sum(map(str.isdigit, part)) >= 2 and not part.isdigit()


def _emails(text: str) -> Iterator[tuple[int, int]]:
    for match in _EMAIL.finditer(text):
        local, _, domain = match[0].partition("@")
        follows = text[match.end() : match.end() + 1]
        if follows and follows in "([" or domain.rpartition(".")[2].lower() in _NO_DOMAINS_SET:
            continue
        if re.fullmatch(r"\d+x", domain.partition(".")[0]):  # logo@2x.anything
            continue
        if local == "git" and follows == ":":
            continue
        yield match.span()


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    """As many letters and digits as the country's numbers have, with single separators between."""
    end = 0
    for match in _IBAN.finditer(text):
        length = _IBAN_LENGTHS.get(match[1])
        if length is None or match.start() < end:
            continue
        at, value = match.end(), match[0]
        while at < len(text) and len(value) < length:
            at += text[at] in _SPACE or text[at] == "-"
            if at >= len(text) or not re.match("[A-Z0-9]", text[at]):
                break
            value += text[at]
            at += 1
        whole = len(value) == length and not re.match(r"[A-Za-z0-9]", text[at : at + 1])
        if whole and is_iban(value):
            yield match.start(), at
            end = at


def _cards(text: str) -> Iterator[tuple[int, int]]:
    for match in _CARD.finditer(text):
        begin, stop = match.span()
        shorter = re.sub(rf"[{_SPACE}-]\d{{3}}$", "", match[0])  # the last may be the card's code
        if re.match(rf"(?:[{_SPACE}]\d{{4}}){{2}}", text[stop:]):  # a table of numbers
            continue
        for value in dict.fromkeys((match[0], shorter)):
            if is_card(value):
                yield begin, begin + len(value)
                break


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    for match in _IP.finditer(text):
        before = text[max(0, match.start() - 30) : match.start()]
        if is_public(match[0], before):
            yield match.span()


def _phones(text: str) -> Iterator[tuple[int, int]]:
    for match in _PHONE.finditer(text):
        before = text[max(0, match.start() - 40) : match.start()]
        if is_phone(match[0], bool(_SPOKEN_OF.search(before))):
            yield match.span()


def is_card(value: str) -> bool:
    """An issuer's number of the right length that passes Luhn's check (ISO/IEC 7812)."""
    digits = re.sub(r"\D", "", value)
    length = len(digits)
    known = (
        (digits[0] == "4" and length in (13, 16, 19))
        or (51 <= int(digits[:2]) <= 55 and length == 16)
        or (2221 <= int(digits[:4]) <= 2720 and length == 16)
        or (digits[:2] in ("34", "37") and length == 15)
        or (digits[:2] in ("36", "38") and length == 14)
        or (digits[:4] == "6011" or digits[:2] in ("65", "35", "62")) and length == 16
    )  # fmt: skip
    doubled = [int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits))]
    return known and sum(d - 9 * (d > 9) for d in doubled) % 10 == 0


def is_iban(value: str) -> bool:
    """Passes ISO 13616's check: the number mod 97 is 1."""
    compact = re.sub(r"[^A-Z0-9]", "", value)
    if not 15 <= len(compact) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def is_public(value: str, before: str = "") -> bool:
    """A public internet address; four small numbers only if what stands `before` says so."""
    if "." in value:
        if _NOT_AN_ADDRESS.search(before):
            return False
        small = all(int(part) <= 20 for part in value.split("."))
        if small and value not in _RESOLVERS and not _ADDRESS_NEAR.search(before):
            return False
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return False
    return address.is_global and not address.is_multicast


def is_phone(value: str, named: bool = False) -> bool:
    """A number that libphonenumber takes for valid.

    named: a word such as "phone" stands before it. Without + or that word, only numbers that are
    grouped as their country writes them.
    """
    if re.fullmatch(r"\+?\d{1,3}\.\d+", value):  # a coordinate, or another decimal number
        return False
    library = _phonenumbers()
    digits = value.replace("(0)", "")
    if value.startswith(("+", "00")):
        number = _parsed("+" + digits.lstrip("+0").lstrip(), None)
        if number is not None and library.is_valid_number(number):
            return True
        if value.startswith("+"):
            return False
    for region in _REGIONS:
        number = _parsed(digits, region)
        if number is None or not library.is_valid_number_for_region(number, region):
            continue
        if named or _grouped_as_usual(value, number, library):
            return True
    return False


def _grouped_as_usual(value: str, number: Any, library: Any) -> bool:
    usual = library.format_number(number, library.PhoneNumberFormat.NATIONAL)
    groups = re.findall(r"\d+", value)
    has_sign = value[0] in "0(" or re.fullmatch(r"[2-9]\d\d([-.])[2-9]\d\d\1\d{4}", value)
    return bool(has_sign) and len(groups) >= 2 and groups == re.findall(r"\d+", usual)


def _parsed(value: str, region: str | None) -> Any:
    library = _phonenumbers()
    try:
        return library.parse(value, region)
    except library.NumberParseException:
        return None


@functools.cache
def _phonenumbers() -> Any:
    try:
        import phonenumbers
    except ImportError as error:
        raise UserError(
            f"Phone numbers are checked with libphonenumber ({error}): pip install phonenumbers, "
            "or leave 'phone' out of Pii.kinds."
        ) from None
    return phonenumbers


_KEY_HINTS = ("-----BEGIN ", "AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "glpat-",
              "sk-", "xox", "AIza", "eyJ")  # fmt: skip
# {kind: (strings of which one must be there, which is quickly seen; its spans)}
_KINDS: dict[str, tuple[tuple[str, ...], Callable[[str], Iterator[tuple[int, int]]]]] = {
    "key": (_KEY_HINTS, _keys),
    "email": (("@",), _emails),
    "iban": ((), _ibans),
    "card": ((), _cards),
    "ip": ((), _addresses),
    "phone": ((), _phones),
}
KINDS = tuple(_KINDS)
