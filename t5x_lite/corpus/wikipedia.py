"""Wikipedia's dumps (pages-articles.xml) as plain text, in every language."""

import html
import re
import xml.parsers.expat
from collections.abc import Iterator
from typing import Any

from t5x_lite.corpus.language import tag

_FILES, _CATEGORIES = "6", "14"  # numbers of namespaces
# What a dump's siteinfo doesn't list: names that every wiki knows, and older ones.
_ALIASES = (
    "File", "Image", "Category", "Media", "Bild", "Fichier", "Archivo", "Imagen", "Immagine",
    "Ficheiro", "Imagem", "Afbeelding", "Grafika", "Obr\u00e1zek", "Fil",
    "\u0418\u0437\u043e\u0431\u0440\u0430\u0436\u0435\u043d\u0438\u0435",
    "\u0417\u043e\u0431\u0440\u0430\u0436\u0435\u043d\u043d\u044f", "\u0635\u0648\u0631\u0629",
    "\u067e\u0631\u0648\u0646\u062f\u0647", "\u56fe\u50cf", "\u6a94\u6848", "\u6863\u6848",
    "\u753b\u50cf", "\u30d5\u30a1\u30a4\u30eb", "\uadf8\ub9bc", "\ud30c\uc77c",
    "\u05ea\u05de\u05d5\u05e0\u05d4", "\u0e20\u0e32\u0e1e",
)  # fmt: skip
_REDIRECT = re.compile(r"\s*#\s?[^\s\[\]#:|]{2,40}\s*:?\s*\[\[[^\[\]]+\]\]")


def pages(file: Any) -> Iterator[Any]:
    """Of each page an item: an article's text, or None for redirects and pages of other namespaces.

    file: a `formats.Opened`. Read with expat a block at a time, so that memory is one page's.
    Entities that a document defines itself (billion laughs) are refused by expat's own limits.
    """
    dump = _Dump(file)
    parser = xml.parsers.expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = dump.start, dump.end
    parser.CharacterDataHandler = dump.characters
    try:
        while block := file.stream.read(1 << 18):
            parser.Parse(block)
            if not dump.language_known:
                file.problem("XML that is no MediaWiki dump")
                return
            yield from dump.take()
        parser.Parse(b"", True)
        yield from dump.take()
    except xml.parsers.expat.ExpatError as error:
        yield from dump.take()
        file.problem("damaged XML", f": {error}")


class _Dump:
    """What the parser has told so far."""

    def __init__(self, file: Any):
        self._file, self._limit = file, file.reader.max_document_bytes
        self._element = self._base = self.language = ""
        self._key = ""
        self.language_known = False
        self._size = 0
        self._parts: list[str] = []
        self._page: dict[str, str] = {}
        self._ended: list[dict[str, str] | None] = []
        self._names = set(_ALIASES)

    def start(self, element: str, attributes: dict[str, str]) -> None:
        self._element, self._size = element, 0
        self._parts.clear()
        if element == "mediawiki":
            self.language_known = True
            self.language = tag(attributes.get("xml:lang", ""))
        elif element == "namespace":
            self._key = attributes.get("key", "")
        elif element == "page":
            self._page = {}
        elif element == "redirect":
            self._page["redirect"] = "yes"

    def characters(self, data: str) -> None:
        self._size += len(data)
        if self._size <= self._limit:
            self._parts.append(data)

    def end(self, element: str) -> None:
        value = "".join(self._parts)
        if element in ("title", "ns", "text", "model"):
            if self._size > self._limit:
                self._file.problem("document too long", f": {self._page.get('title', '')}")
                value = ""
            self._page[element] = value
        elif element == "base":
            self._base = value.rpartition("/")[0]
        elif element == "namespace" and self._key in (_FILES, _CATEGORIES) and value:
            self._names.add(value)
        elif element == "page":
            article = self._page.get("ns", "0") == "0" and "redirect" not in self._page
            article = article and self._page.get("model", "wikitext") == "wikitext"
            text = self._page.get("text", "")
            article = article and not (len(text) < 1000 and _REDIRECT.match(text))
            self._ended.append(self._page if article else None)
        self._parts.clear()

    def take(self) -> Iterator[Any]:
        """Items of the pages that ended."""
        ended, self._ended = self._ended, []
        links = media_links(tuple(sorted(self._names)))
        for page in ended:
            yield None if page is None else lambda page=page: self._fields(page, links)

    def _fields(self, page: dict[str, str], links: re.Pattern) -> dict[str, str] | None:
        text = plain_wikitext(page.get("text", ""), links)
        if not text:
            return None
        title = page.get("title", "").replace(" ", "_")
        url = f"{self._base}/{title}" if self._base else f"{self._file.name}#{title}"
        fields = {"text": text, "url": url, "license": "CC BY-SA"}
        if self.language and self.language != "simple":
            fields["language"] = self.language
        return fields


# ---------------------------------------------------------------------------------------- wikitext

_COMMENT = re.compile(
    r"<!--.*?(?:-->|\Z)|<ref\b[^<>]*/>|<ref\b(?:(?!<ref\b).)*?</ref\s*>", re.DOTALL | re.IGNORECASE
)
_BLOCK_TAGS = re.compile(
    r"<(gallery|math|timeline|source|syntaxhighlight|pre|score|imagemap|graph|templatestyles)\b"
    r"(?:[^<>]*/>|(?:(?!<\1\b).)*?</\1\s*>)",
    re.DOTALL | re.IGNORECASE,
)
_TEMPLATE = re.compile(r"\{\{([^{}]*)\}\}|\{\|(?:(?!\{\|).)*?\|\}", re.DOTALL)
_LINK = re.compile(r"\[\[(?::?[^|\[\]]*\|)?:?([^\[\]|]*)\]\]")
_LANGUAGE_LINK = re.compile(r"^\[\[[a-z]{2,3}(?:-[a-z-]+)?:[^\[\]|]+\]\][ \t]*$", re.MULTILINE)
_OUTER_LINK = re.compile(r"\[(?:https?:)?//[^\s\[\]]+[ \t]*([^\[\]\n]*)\]")
_VARIANT = re.compile(r"-\{(?:[^{}|]*\|)?([^{}]*)\}-")
_MARKS = re.compile(r"'{2,}|__[A-Z]+__|</?\w[^<>]*>")
# Templates whose text stays: {name: which of their arguments, from 1; -1 the last}.
_SHOWN = {
    "lang": 2, "langue": 2, "transl": -1, "transliteration": -1, "nowrap": 1, "nobr": 1,
    "nobold": 1, "small": 1, "big": 1, "abbr": 1, "tooltip": 1, "formatnum": 1, "ill": 1,
    "interlanguage link": 1, "link-interwiki": 1, "\u4eee\u30ea\u30f3\u30af": 1, "le": 1,
    "tsl": 3, "link-en": 1, "lang-en": 1, "sic": 1, "quote": 1, "blockquote": 1, "em": 1,
    "strong": 1, "as of": 1, "unit\u00e9": 1, "date": 1, "year": 1, "angbr": 1, "linktext": 1,
    "ruby": 1, "ruby-zh": 1, "val": 1, "num": 1, "sub": 1, "sup": 1, "lien": 1, "circa": 1,
    "c.": 1, "lj": 1, "\u043d\u043f5": 2, "\u043d\u043f3": 2, "keypress": 1, "visible anchor": 1,
}  # fmt: skip
_CHARACTERS = {"nbsp": "\u00a0", "snd": " \u2013 ", "spaced ndash": " \u2013 ", "ndash": "\u2013",
               "mdash": "\u2014", "!": "|", "'": "\u2019", "=": "=", "circa": "c.", "c.": "c.",
               "\u00b7": " \u00b7 ", "bull": "\u2022", "pi": "\u03c0"}  # fmt: skip


def media_links(names: tuple[str, ...]) -> re.Pattern:
    """Matches links to files and categories, whose namespaces have these names."""
    listed = "|".join(re.escape(name).replace(r"\ ", "[ _]+") for name in names)
    return re.compile(
        rf"\[\[\s*(?:{listed})\s*:(?:[^\[\]]|\[\[[^\[\]]*\]\]|\[[^\[\]]*\])*+\]\]", re.IGNORECASE
    )


_DEFAULT_LINKS = media_links(tuple(sorted(_ALIASES)) + ("Kategorie", "Datei", "Cat\u00e9gorie"))


def plain_wikitext(text: str, links: re.Pattern = _DEFAULT_LINKS) -> str:
    """Wikitext without templates, tables, references, files and marks; headings stay as lines.

    Of templates that show text ({{lang}}, {{convert}}, ...) the text stays.
    """
    text = _BLOCK_TAGS.sub("", _COMMENT.sub("", text))
    for _ in range(12):  # templates stand in templates
        text, changed = _TEMPLATE.subn(_template, text)
        if not changed:
            break
    text = _LANGUAGE_LINK.sub("", links.sub("", text))
    text = _OUTER_LINK.sub(r"\1", _LINK.sub(r"\1", _LINK.sub(r"\1", text)))
    text = _MARKS.sub("", _VARIANT.sub(_variant, text))
    text = html.unescape("\n".join(map(_plain_line, text.split("\n"))))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _plain_line(line: str) -> str:
    bare = line.strip()
    if bare[:1] == "=" and bare[-1:] == "=":  # a heading
        return bare.strip("=").strip()
    return line.lstrip("*#:;").lstrip() if line[:1] in ("*", "#", ":", ";") else line


def _template(match: re.Match) -> str:
    """What a template shows, as far as it is known; "" for tables and all other templates."""
    if match[1] is None:
        return ""
    name, *given = match[1].split("|")
    name = name.strip().lower().replace("_", " ")
    if name.startswith("formatnum:"):
        name, given = "formatnum", [name.removeprefix("formatnum:"), *given]
    arguments = [part.strip() for part in given if not re.match(r"\s*[\w -]+=", part)]
    if name in ("convert", "cvt", "convertir", "unit\u00e9"):
        return _converted(arguments)
    if not arguments:
        return _CHARACTERS.get(name, "")
    if name in ("frac", "sfrac", "fraction"):
        return "/".join(arguments[-2:])
    place = 1 if name.startswith("lang-") or name.startswith("langue-") else _SHOWN.get(name)
    if place is None or len(arguments) < place:
        return ""
    return arguments[place - 1] if place > 0 else arguments[-1]


def _converted(arguments: list[str]) -> str:
    """{{convert|5|to|8|km|mi}}: "5 to 8 km"."""
    numbers = re.compile(r"[\d.,/+\u2212-]+|to|and|by|x|\u2013|-|\xd7|or")
    shown = []
    for argument in arguments:
        shown.append(argument)
        if not numbers.fullmatch(argument):
            break
    return " ".join(shown)


def _variant(match: re.Match) -> str:
    """-{zh-hans:A; zh-hant:B}-: A."""
    first = match[1].split(";")[0]
    return re.sub(r"^\s*[a-z]{2}(?:-[a-z]+)*\s*:\s*", "", first)
