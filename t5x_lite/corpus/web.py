"""Pages of the web: HTML's main text, and the pages in WARC and WET files."""

import posixpath
import re
import xml.etree.ElementTree as ElementTree
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from t5x_lite.corpus.encodings import decoded, html_charset
from t5x_lite.corpus.html_limits import limited
from t5x_lite.corpus.opening import Torn
from t5x_lite.errors import UserError

_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)
_NEXT_RECORD = re.compile(rb"\r\nWARC/1\.\d\r\nWARC-")


def main_text(data: bytes, declared: str | None = None, extractor: str = "resiliparse") -> str:
    """The text of a page without navigation, headers, footers and advertisements.

    declared: the charset of HTTP's Content-Type, which comes before the page's own <meta>.
    """
    page = limited(decoded(data, declared or html_charset(data)))
    if extractor == "trafilatura":
        import trafilatura

        return trafilatura.extract(page, favor_precision=True, include_comments=False) or ""
    if extractor != "resiliparse":
        raise UserError(f"extractor is {extractor!r}; use 'resiliparse' or 'trafilatura'.")
    return _extract(page, main_content=True)


def all_text(data: bytes) -> str:
    """All visible text of a page."""
    return _extract(limited(decoded(data, html_charset(data))), main_content=False)


def _extract(page: str, main_content: bool) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    return extract_plain_text(
        page, main_content=main_content, alt_texts=False, links=False, form_fields=False,
        noscript=False,
    )  # fmt: skip


# -------------------------------------------------------------------------------------------- WARC


def warc_pages(file: Any) -> Iterator[Any]:
    """Of each record an item: a response's main text, a WET conversion as it is, or None.

    file: a `formats.Opened`. A record is as long as it says; where that is a lie the next has no
    header, and the rest of the file is left out and counted.
    """
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    number = 0
    try:
        # The members of a .warc.gz are unpacked by our stream, which guards against bombs.
        for record in ArchiveIterator(_Readable(file.stream), no_record_parse=False):
            number += 1
            yield _page(file, record, f" record {number}")
    except (ArchiveLoadFailed, EOFError, ValueError) as error:
        file.problem("damaged WARC record", f" record {number + 1}: {str(error)[:120]}")


def _page(file: Any, record: Any, where: str) -> Any:
    """A function that gives the fields of a record's page, or None."""
    if record.rec_type not in ("response", "conversion"):
        return None
    headers = record.http_headers
    status = headers and headers.get_statuscode()
    if status and status != "200":
        file.problem("page with an error's status", where)
        return None
    limit = file.reader.max_document_bytes
    data = record.raw_stream.read(limit + 1)
    if len(data) > limit:
        file.problem("document too long", where)
        return None
    if getattr(record.raw_stream, "limit", 0) > 0 or _NEXT_RECORD.search(data):
        file.problem("WARC record of another length than it says", where)
        return None
    fields = {"url": record.rec_headers.get_header("WARC-Target-URI") or file.name}
    if record.rec_type == "conversion":
        return lambda: fields | {"text": decoded(data)}

    def read() -> dict[str, Any] | None:
        try:
            page = _body(data, headers, limit)
        except Torn as error:
            file.problem("page whose encoding can't be undone", f"{where}: {error}")
            return None
        if len(page) > limit:
            file.problem("document too long", where)
            return None
        kind = (headers.get_header("Content-Type") or "" if headers else "").lower()
        found = _CHARSET.search(kind)
        declared = found[1] if found else None
        if "html" in kind or page.lstrip()[:1] == b"<":
            return fields | {"text": main_text(page, declared, file.reader.extractor)}
        if kind.startswith("text/plain"):
            return fields | {"text": decoded(page, declared)}
        file.problem("page that is neither HTML nor text", f"{where}: {kind[:60]}")
        return None

    return read


def _body(data: bytes, headers: Any, limit: int) -> bytes:
    """The body of a response without its transfer and content encodings; at most limit + 1 bytes.

    Some crawlers store bodies unpacked and keep the header, so what isn't packed passes. Raises
    Torn for bodies that are damaged, or packed in a way that isn't known.
    """
    if not headers:
        return data
    if "chunked" in (headers.get_header("Transfer-Encoding") or "").lower():
        data = _dechunked(data)
    encodings = (headers.get_header("Content-Encoding") or "").lower().split(",")
    for encoding in reversed([name.strip() for name in encodings]):
        if encoding in ("", "identity", "none", "utf-8"):
            continue
        try:
            data = _unpacked(data, encoding, limit)
        except Torn:
            if not data.lstrip()[:1] == b"<":
                raise
    return data


def _dechunked(data: bytes) -> bytes:
    parts, begin = [], 0
    while match := _CHUNK.match(data, begin):
        size = int(match[1], 16)
        if not size:
            return b"".join(parts)
        parts.append(data[match.end() : match.end() + size])
        begin = match.end() + size
    return b"".join(parts) if parts else data  # cut off, or stored without its chunks


_CHUNK = re.compile(rb"(?:\r\n)?([0-9A-Fa-f]{1,8})[^\r\n]*\r\n")


def _unpacked(data: bytes, encoding: str, limit: int) -> bytes:
    if encoding in ("gzip", "x-gzip", "deflate"):
        raw = encoding == "deflate" and data[:1] and data[0] & 0x0F != 8
        unpacker = zlib.decompressobj(wbits=-15 if raw else 47)
        try:
            found = unpacker.decompress(data, limit + 1)
        except zlib.error as error:
            raise Torn(f"{encoding}: {error}") from None
        if not unpacker.eof and len(found) <= limit:
            raise Torn(f"{encoding} ends early")
        return found
    if encoding == "br":
        import brotli

        try:
            unpacker, parts = brotli.Decompressor(), []
            parts.append(unpacker.process(data, output_buffer_limit=limit + 1))
            while not unpacker.can_accept_more_data() and sum(map(len, parts)) <= limit:
                parts.append(unpacker.process(b"", output_buffer_limit=limit + 1))
            found = b"".join(parts)
        except brotli.error as error:
            raise Torn(f"br: {error}") from None
        if not unpacker.is_finished() and len(found) <= limit:
            raise Torn("br ends early")
        return found
    if encoding == "zstd":
        import zstandard

        try:
            unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 27)
            with unpacker.stream_reader(data) as reader:
                return reader.read(limit + 1)
        except zstandard.ZstdError as error:
            raise Torn(f"zstd: {error}") from None
    raise Torn(f"{encoding[:40]} isn't known")


class _Readable:
    """Of a stream, what warcio wants."""

    def __init__(self, stream: Any):
        self._stream = stream

    def read(self, size: int) -> bytes:
        return self._stream.read(size)

    def close(self) -> None:
        pass


# -------------------------------------------------------------------------------------------- EPUB


def spine(book: zipfile.ZipFile) -> list[str]:
    """The members of an EPUB that hold its chapters, in their order.

    Raises KeyError, ValueError or ElementTree.ParseError for a damaged book.
    """
    container = ElementTree.fromstring(book.read("META-INF/container.xml"))
    rootfile = container.find(".//{*}rootfile")
    if rootfile is None:
        raise ValueError("META-INF/container.xml names no package")
    package = rootfile.attrib["full-path"]
    root = ElementTree.fromstring(book.read(package))
    folder = posixpath.dirname(package)
    files = {item.attrib["id"]: item.attrib for item in root.iterfind(".//{*}item")}
    found = []
    for reference in root.iterfind(".//{*}itemref"):
        item = files[reference.attrib["idref"]]
        if "html" in item.get("media-type", ""):
            found.append(posixpath.normpath(posixpath.join(folder, unquote(item["href"]))))
    return found
