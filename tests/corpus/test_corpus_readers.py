"""Files of every kind, whole and damaged: what is read, what is counted, how much memory."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import tracemalloc
import zlib

import pytest

from t5x_lite.corpus.opening import Problems, Stream, Torn, decoded, is_binary
from t5x_lite.corpus.readers import Reader, find_inputs
from t5x_lite.corpus.wikipedia import plain_wikitext
from t5x_lite.errors import UserError

MB = 1 << 20


def read(path, reader=None):
    """(texts, documents, problems by kind) of one file."""
    problems = Problems()
    found = list((reader or Reader()).read(str(path), path.name, "s", problems))
    return [d["text"] for d in found], found, dict(problems.counts)


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_text_and_its_documents(tmp_path):
    path = write(tmp_path / "a.txt", "one\ntwo\n\nthree\n")
    texts, (found,), problems = read(path)
    assert texts == ["one\ntwo\n\nthree\n"] and problems == {}
    assert found["source"] == "s" and found["url"] == "a.txt" and len(found["id"]) == 20
    assert read(path, Reader(document="paragraph"))[0] == ["one\ntwo", "three"]
    assert read(path, Reader(document="line"))[0] == ["one", "two", "three"]


@pytest.mark.parametrize("suffix, pack", [(".gz", gzip.compress), (".bz2", bz2.compress),
                                          (".xz", lzma.compress), (".zst", None)])  # fmt: skip
def test_packed_files(tmp_path, suffix, pack):
    if pack is None:
        pack = pytest.importorskip("zstandard").compress
    path = write(tmp_path / f"a.jsonl{suffix}", pack(b'{"text": "one"}\n') + pack(b'{"text": "2"}'))
    assert read(path)[0] == ["one", "2"]


def test_json_lines(tmp_path):
    rows = [{"text": "a", "url": "http://x/", "license": "mit"}, {"no": 1}, [1], {"text": 3}]
    lines = [json.dumps(r) for r in rows] + ["", "{broken", '{"text": "b", "language": "de"}']
    texts, found, problems = read(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert texts == ["a", "b"]
    assert (found[0]["url"], found[0]["license"], found[1]["language"]) == (
        "http://x/",
        "mit",
        "de",
    )
    assert problems == {"no JSON with a text": 4}
    assert found[0]["id"] != found[1]["id"]


def test_half_characters_are_replaced(tmp_path):
    path = write(tmp_path / "a.jsonl", r'{"text": "a\ud800b", "url": "\udfff"}')
    assert read(path)[0] == ["a?b"] and read(path)[1][0]["url"] == "?"


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    import pyarrow.parquet as parquet

    table = pyarrow.table({"text": ["a", None, "b"], "url": ["u", "v", "w"], "x": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "a.parquet")
    texts, found, problems = read(tmp_path / "a.parquet")
    assert texts == ["a", "b"] and found[1]["url"] == "w" and problems == {"no text": 1}
    assert read(write(tmp_path / "b.parquet", b"PAR1 no"))[2] == {"damaged Parquet file": 1}
    assert read(tmp_path / "a.parquet", Reader(text_field="t"))[2] == {"no text column": 1}


PAGE = """<html><head><meta charset="iso-8859-1"><title>T</title></head><body>
<nav><a href="/">Home</a> <a href="/x">Products</a></nav>
<article><h1>Bees</h1><p>Bees are \u00e9tonnantes insects that live in large colonies together.</p>
<p>They make honey, which people have eaten for many thousands of years.</p></article>
<footer>Copyright Example Inc.</footer></body></html>"""


def test_html_without_its_frame(tmp_path):
    pytest.importorskip("resiliparse")
    ((text,), _, problems) = read(write(tmp_path / "a.html", PAGE.encode("latin-1")))
    assert "\u00e9tonnantes" in text and "honey" in text and problems == {}
    assert "Products" not in text and "Copyright" not in text


def record(kind, uri, body, length=None, http=True):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" if http else b""
    body = head + body
    fields = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {uri}\r\n"
        "WARC-Record-ID: <urn:uuid:1>\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
        f"Content-Type: {'application/http; msgtype=response' if http else 'text/plain'}\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    return fields.encode() + body + b"\r\n\r\n"


def warc(*records):
    return b"".join(gzip.compress(r) for r in records)


@pytest.fixture
def pages():
    pytest.importorskip("warcio")
    pytest.importorskip("resiliparse")
    return [record("response", f"http://x.org/{i}", PAGE.encode()) for i in range(3)]


def test_warc_and_wet(tmp_path, pages):
    texts, found, problems = read(write(tmp_path / "a.warc.gz", warc(*pages)))
    assert len(texts) == 3 and "honey" in texts[2] and problems == {}
    assert found[1]["url"] == "http://x.org/1"
    assert len(read(write(tmp_path / "b.warc", b"".join(pages)))[0]) == 3
    wet = record("conversion", "http://y.org/", "caf\u00e9".encode(), http=False)
    assert read(write(tmp_path / "c.wet.gz", warc(wet)))[0] == ["caf\u00e9"]


def test_a_warc_record_that_lies_about_its_length(tmp_path, pages):
    """Too long: it swallows the next. Too short: the next has no header. Never half a page."""
    for name, length in (("long", 900), ("short", 50), ("endless", 10**12)):
        liar = record("response", "http://liar.org/", PAGE.encode(), length)
        path = write(tmp_path / f"{name}.warc", pages[0] + liar + b"".join(pages[1:]))
        texts, found, problems = read(path)
        assert found[0]["url"] == "http://x.org/0"
        assert sum(problems.values()) >= 1, (name, problems)
        honest = [d for d in found if "liar" not in d["url"]]
        assert all("honey" in d["text"] for d in honest)
        assert all("WARC/1.0" not in text for text in texts)


DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/"><siteinfo>
<base>https://en.wikipedia.org/wiki/Main_Page</base></siteinfo>
<page><title>Bee</title><ns>0</ns><revision><text>'''Bees''' are [[insect]]s.{{cite|{{x}}}}
== Life ==
* in [[beehive|hives]]&lt;ref&gt;a source&lt;/ref&gt; [http://x.org here]
[[File:Bee.jpg|thumb|a [[bee]]]]</text></revision></page>
<page><title>Talk</title><ns>1</ns><revision><text>no</text></revision></page>
<page><title>Wasp</title><ns>0</ns><redirect title="Bee"/>
<revision><text>#R</text></revision></page>
</mediawiki>"""


def test_wikipedia(tmp_path):
    texts, found, problems = read(write(tmp_path / "w.xml.bz2", bz2.compress(DUMP.encode())))
    assert texts == ["Bees are insects.\nLife\nin hives here"] and problems == {}
    assert found[0]["url"] == "https://en.wikipedia.org/wiki/Bee"
    cut = read(write(tmp_path / "cut.xml", DUMP[: DUMP.index("<page><title>Wasp")]))
    assert cut[0] == texts and cut[2] == {"damaged XML": 1}
    assert read(write(tmp_path / "rss.xml", "<rss>hi</rss>"))[2] == {
        "XML that is no MediaWiki dump": 1
    }
    assert plain_wikitext("{| class=x\n| a\n|}\nText") == "Text"


def test_entities_that_multiply_are_refused(tmp_path):
    names = ["<!ENTITY a0 'ha'>"]
    names += [f"<!ENTITY a{i} '{f'&a{i - 1};' * 10}'>" for i in range(1, 12)]
    bomb = f"<!DOCTYPE mediawiki [{''.join(names)}]><mediawiki><page><title>&a11;</title></page>"
    texts, _, problems = read(write(tmp_path / "a.xml", bomb))
    assert texts == [] and problems == {"damaged XML": 1}


def test_source_trees(tmp_path):
    (tmp_path / "src").mkdir()
    write(tmp_path / "src" / "m.py", "x = 1\n")
    write(tmp_path / "src" / "logo.png", b"\x89PNG\0")
    problems = Problems()
    found = [
        d for path, name, _ in find_inputs(str(tmp_path), problems)
        for d in Reader().read(path, name, "s", problems)
    ]  # fmt: skip
    assert [(d["url"], d["language"], d["text"]) for d in found] == [
        ("src/m.py", "python", "x = 1\n")
    ]
    assert problems.examples == {"unknown kind of file": ["src/logo.png"]}
    assert read(tmp_path / "src" / "m.py", Reader(code=False))[2] == {"unknown kind of file": 1}


def pdf(*contents, kids="", count=None):
    """A PDF file of so many pages."""
    pages = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(contents)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{pages} {kids}] /Count {count or len(contents)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, content in enumerate(contents):
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * i} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>".encode()
        )
        data = zlib.compress(content)
        head = f"<< /Length {len(data)} /Filter /FlateDecode >>\nstream\n"
        objects.append(head.encode() + data + b"\nendstream")
    found, places = b"%PDF-1.4\n", []
    for i, body in enumerate(objects, 1):
        places.append(f"{len(found):010d} 00000 n \n".encode())
        found += f"{i} 0 obj\n".encode() + body + b"\nendobj\n"
    size = len(objects) + 1
    table = f"xref\n0 {size}\n0000000000 65535 f \n".encode() + b"".join(places)
    end = f"trailer << /Size {size} /Root 1 0 R >>\nstartxref\n{len(found)}\n%%EOF"
    return found + table + end.encode()


def shown(text):
    return b"BT /F1 12 Tf 72 720 Td (" + text + b") Tj ET"


def test_pdf(tmp_path):
    path = write(tmp_path / "a.pdf", pdf(shown(b"First page"), shown(b"Second page")))
    assert read(path)[2] == {"unknown kind of file": 1}
    pytest.importorskip("pypdf")
    assert read(path, Reader(pdf=True))[0] == ["First page\n\nSecond page"]
    assert read(path, Reader(pdf=True, max_document_bytes=12))[2] == {"document too long": 1}
    assert Reader(pdf=True).kind("a.pdf.gz")[0] == "unknown"


def test_pdf_needs_its_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install pypdf"):
        Reader(pdf=True)


PDF_DAMAGE = {  # no page of these is read, and none takes long
    "cut": ("damaged PDF", lambda: pdf(shown(b"Hello"))[:300]),
    "noise": ("damaged PDF", lambda: b"%PDF-1.4\n" + noise(5000)),
    "pages in pages": ("damaged PDF", lambda: pdf(shown(b"a"), kids="2 0 R")),
    "bomb": ("damaged PDF", lambda: pdf(shown(b"a" * (90 * MB)))),
    "scan": ("PDF without text", lambda: pdf(b"q Q")),
    "slow": ("PDF that takes too long", lambda: pdf(b"BT " + b"(a) Tj " * 500_000 + b"ET")),
}


@pytest.mark.parametrize("name", PDF_DAMAGE)
def test_pdf_files_that_cannot_be_read(tmp_path, name):
    pytest.importorskip("pypdf")
    problem, make = PDF_DAMAGE[name]
    path = write(tmp_path / "a.pdf", make())
    seconds = 1 if name == "slow" else 60
    assert read(path, Reader(pdf=True, pdf_seconds=seconds))[2] == {problem: 1}


def test_an_encrypted_pdf(tmp_path):
    pypdf = pytest.importorskip("pypdf")
    for password, texts in (("", ["Hello"]), ("secret", [])):
        writer = pypdf.PdfWriter(io.BytesIO(pdf(shown(b"Hello"))))
        writer.encrypt(password, "owner", algorithm="RC4-128")
        writer.write(tmp_path / "a.pdf")
        found = read(tmp_path / "a.pdf", Reader(pdf=True))
        assert found[0] == texts and found[2] == ({} if texts else {"encrypted PDF": 1})


# --------------------------------------------------------------------------------------- bad input


def noise(size):
    return random.Random(0).randbytes(size)


def test_a_broken_member_of_a_gzip_file(tmp_path):
    first, second = (gzip.compress(b'{"text": "%d"}\n' % i * 50) for i in (1, 2))
    broken = second[:20] + b"\xff" * 8 + second[28:]
    texts, _, problems = read(write(tmp_path / "a.jsonl.gz", first + broken + first))
    assert set(texts) == {"1"} and len(texts) == 50
    assert problems == {"torn packed file": 1}
    cut = gzip.compress(noise(300_000).hex().encode())
    texts, _, problems = read(write(tmp_path / "b.txt.gz", cut[: len(cut) // 2]))
    assert texts == [] and problems == {"torn packed file": 1}  # half a document is none
    with open(tmp_path / "b.txt.gz", "rb") as file:
        stream = Stream(file, "b.txt.gz")
        for _ in range(2):
            with pytest.raises(Torn):
                while stream.read(MB):
                    pass


def test_an_endless_line_takes_little_memory(tmp_path):
    path = tmp_path / "a.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"text": "before"}\n' * 500)
        file.seek(1 << 30, os.SEEK_CUR)  # a hole: a line of 1 GB of zeros
        file.write(b'\n{"text": "after"}\n')
    tracemalloc.start()
    texts, _, problems = read(path, Reader(max_document_bytes=MB))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert texts == ["before"] * 500 + ["after"] and problems == {"line too long": 1}
    assert peak < 16 * MB


def test_a_file_that_unpacks_to_far_too_much(tmp_path):
    bomb = gzip.compress(b" " * (80 * MB))
    tracemalloc.start()
    for name in ("a.jsonl.gz", "a.txt.gz"):
        texts, _, problems = read(write(tmp_path / name, bomb), Reader(max_document_bytes=100 * MB))
        assert texts == [] and problems == {"packed too tight": 1}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * MB  # of the 100 MB that a document may have


def test_a_binary_file_with_a_texts_name(tmp_path):
    assert read(write(tmp_path / "a.txt", noise(5000)))[2] == {"binary file with a text's name": 1}
    assert read(write(tmp_path / "b.txt", b"ELF\0\1"))[2] == {"binary file with a text's name": 1}
    assert read(write(tmp_path / "c.txt", "gr\u00fcn".encode("utf-16")))[0] == ["gr\u00fcn"]
    assert not is_binary("日本語\n\ttab".encode())


def test_encodings():
    pytest.importorskip("charset_normalizer")
    german = "Die Straße ist größer als üblich, sagen die Bürger der Stadt Köln. " * 3
    assert decoded(german.encode("latin-1"), "iso-8859-1") == german
    assert "Straße" in decoded(german.encode("cp1252"))
    russian = "Это предложение написано по-русски и говорит о погоде в городе. " * 3
    assert decoded(russian.encode("cp1251")) == russian
    assert decoded(b"\xef\xbb\xbfa") == "a"


def test_folders_and_files_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    write(tmp_path / "open.txt", "text")
    os.mkfifo(tmp_path / "pipe.txt")  # reading it would wait for ever
    os.symlink("/nowhere", tmp_path / "dangling.txt")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root, who may run this, is never refused
    problems = Problems()
    found = find_inputs(str(tmp_path), problems)
    assert [name for _, name, _ in found] == ["open.txt"]
    assert problems.examples == {
        "unreadable folder": ["closed: Permission denied"],
        "no regular file": ["dangling.txt", "pipe.txt"],
    }
    gone = Problems()
    assert list(Reader().read(str(tmp_path / "none.txt"), "none.txt", "s", gone)) == []
    assert dict(gone.counts) == {"unreadable": 1}


def test_documents_that_are_too_long_are_passed_over(tmp_path):
    path = write(tmp_path / "a.txt", "a" * 101)
    assert read(path, Reader(max_document_bytes=100))[2] == {"document too long": 1}
    assert read(path, Reader(max_document_bytes=101))[0] == ["a" * 101]
