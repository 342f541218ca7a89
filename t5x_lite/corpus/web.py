"""Pages of the web: HTML's main text, WARC and WET files, Wikipedia's dumps."""

import html
import re
import xml.parsers.expat
from collections.abc import Iterator
from typing import Any

from t5x_lite.corpus.opening import Problems, Stream, decoded
from t5x_lite.errors import UserError

_CHARSET = re.compile(rb"""charset\s*=\s*["']?([\w-]+)""", re.IGNORECASE)
_NEXT_RECORD = re.compile(rb"\r\nWARC/1\.\d\r\nWARC-")


def main_text(data: bytes, declared: str | None = None, extractor: str = "resiliparse") -> str:
    """The text of a page without navigation, headers, footers and advertisements."""
    if found := _CHARSET.search(data[:4096]):
        declared = declared or found[1].decode("ascii", errors="replace")
    page = decoded(data, declared)
    if extractor == "trafilatura":
        import trafilatura

        return trafilatura.extract(page, favor_precision=True, include_comments=False) or ""
    if extractor != "resiliparse":
        raise UserError(f"extractor is {extractor!r}; use 'resiliparse' or 'trafilatura'.")
    from resiliparse.extract.html2text import extract_plain_text

    return extract_plain_text(
        page, main_content=True, alt_texts=False, links=False, form_fields=False, noscript=False
    )


def warc_pages(
    stream: Stream, name: str, extractor: str, limit: int, problems: Problems
) -> Iterator[dict[str, Any]]:
    """Responses (their main text) and WET's conversions (as they are).

    A record is as long as it says; where that is a lie the next has no header, and the rest of the
    file is left out and counted.
    """
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    number = 0
    try:
        # The members of a .warc.gz are unpacked by our stream, which guards against bombs.
        for record in ArchiveIterator(_Readable(stream), no_record_parse=False):
            number += 1
            if record.rec_type not in ("response", "conversion"):
                continue
            where = f"{name} record {number}"
            status = record.http_headers and record.http_headers.get_statuscode()
            if status and status != "200":
                problems.add("page with an error's status", where)
                continue
            data = record.content_stream().read(limit + 1)
            if len(data) > limit:
                problems.add("document too long", where)
                continue
            if getattr(record.raw_stream, "limit", 0) > 0 or _NEXT_RECORD.search(data):
                problems.add("WARC record of another length than it says", where)
                continue
            fields = {"url": record.rec_headers.get_header("WARC-Target-URI") or name}
            if record.rec_type == "conversion":
                yield fields | {"text": decoded(data)}
                continue
            kind = record.http_headers.get_header("Content-Type") or "" if status else ""
            if "html" in kind or data.lstrip()[:1] == b"<":
                charset = _CHARSET.search(kind.encode(errors="replace"))
                declared = charset[1].decode("ascii", errors="replace") if charset else None
                yield fields | {"text": main_text(data, declared, extractor)}
            elif kind.startswith("text/plain"):
                yield fields | {"text": decoded(data)}
    except (ArchiveLoadFailed, EOFError, ValueError) as error:
        problems.add("damaged WARC record", f"{name} record {number + 1}: {str(error)[:120]}")


class _Readable:
    """Of a stream, what warcio wants."""

    def __init__(self, stream: Stream):
        self._stream = stream

    def read(self, size: int) -> bytes:
        return self._stream.read(size)

    def close(self) -> None:
        pass


# ------------------------------------------------------------------------------- Wikipedia's dumps


def wikipedia_pages(
    stream: Stream, name: str, limit: int, problems: Problems
) -> Iterator[dict[str, Any]]:
    """Articles of a pages-articles.xml dump as plain text; redirects and other pages are left out.

    Read with expat a block at a time, so that memory is one page's. Entities that a document
    defines itself (billion laughs) are refused by expat's own limits.
    """
    pages: list[dict[str, str]] = []
    page: dict[str, str] = {}
    state: dict[str, Any] = {"element": "", "size": 0, "base": "", "wiki": False}
    parts: list[str] = []

    def start(element: str, attributes: dict) -> None:
        state["element"], state["size"] = element, 0
        parts.clear()
        if element == "mediawiki":
            state["wiki"] = True
        elif element == "page":
            page.clear()
        elif element == "redirect":
            page["redirect"] = "yes"

    def characters(data: str) -> None:
        state["size"] += len(data)
        if state["size"] <= limit:
            parts.append(data)

    def end(element: str) -> None:
        value = "".join(parts)
        if element in ("title", "ns", "text"):
            if state["size"] > limit:
                problems.add("document too long", f"{name}: {page.get('title', '')}")
                value = ""
            page[element] = value
        elif element == "base":
            state["base"] = value.rpartition("/")[0]
        elif element == "page" and page.get("ns", "0") == "0" and "redirect" not in page:
            pages.append(dict(page))
        parts.clear()

    parser = xml.parsers.expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = characters
    try:
        while block := stream.read(1 << 18):
            parser.Parse(block)
            if not state["wiki"]:
                problems.add("XML that is no MediaWiki dump", name)
                return
            for found in pages:
                text = plain_wikitext(found.get("text", ""))
                if text:
                    title = found.get("title", "").replace(" ", "_")
                    url = f"{state['base']}/{title}" if state["base"] else f"{name}#{title}"
                    yield {"text": text, "url": url, "license": "CC BY-SA"}
            pages.clear()
        parser.Parse(b"", True)
    except xml.parsers.expat.ExpatError as error:
        problems.add("damaged XML", f"{name}: {error}")


_COMMENT = re.compile(r"<!--.*?-->|<ref[^>/]*/>|<ref\b.*?</ref>", re.DOTALL)
_BLOCK_TAGS = re.compile(
    r"<(gallery|math|timeline|source|syntaxhighlight|pre)\b.*?</\1>", re.DOTALL
)
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}|\{\|(?:(?!\{\|).)*?\|\}", re.DOTALL)
_FILE_LINK = re.compile(r"\[\[(?:File|Image|Category|Datei|Bild|Kategorie|Fichier|Archivo):"
                        r"(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]", re.IGNORECASE)  # fmt: skip
_LINK = re.compile(r"\[\[(?:[^|\[\]]*\|)?([^\[\]|]*)\]\]")
_OUTER_LINK = re.compile(r"\[(?:https?:)?//[^\s\]]+\s*([^\]]*)\]")
_HEADING = re.compile(r"^(=+)\s*(.*?)\s*\1\s*$", re.MULTILINE)
_BULLET = re.compile(r"^[*#:;]+\s*", re.MULTILINE)


def plain_wikitext(text: str) -> str:
    """Wikitext without templates, tables, references, files and marks; headings stay as lines."""
    text = _BLOCK_TAGS.sub("", _COMMENT.sub("", text))
    for _ in range(12):  # templates stand in templates
        text, changed = _TEMPLATE.subn("", text)
        if not changed:
            break
    text = _FILE_LINK.sub("", text)
    text = _OUTER_LINK.sub(r"\1", _LINK.sub(r"\1", _LINK.sub(r"\1", text)))
    text = re.sub(r"'{2,}|__[A-Z]+__|</?\w[^<>]*>", "", text)
    text = html.unescape(_BULLET.sub("", _HEADING.sub(r"\2", text)))
    return re.sub(r"\n{3,}", "\n\n", text).strip()
