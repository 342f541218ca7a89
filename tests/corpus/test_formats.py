"""Formats of others: arrays, tables, archives, books, notebooks; packed bodies; every Wikipedia."""

import bz2
import gzip
import io
import json
import os
import tarfile
import time
import zipfile

import pytest

from t5x_lite.corpus.opening import Problems
from t5x_lite.corpus.readers import Reader, find_inputs
from t5x_lite.corpus.wikipedia import plain_wikitext

SENTENCE = "This is a sentence about the history of the small town and its people. "


def read(path, data=None, **settings):
    """(texts, documents, problems by kind) of a file."""
    if data is not None:
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    problems = Problems()
    found = list(Reader(**settings).read(str(path), path.name, "s", problems))
    return [d["text"] for d in found], found, dict(problems.counts)


def test_json_in_every_shape(tmp_path):
    rows = [{"text": "one"}, {"no": 1}, {"text": "two"}]
    for data in (
        json.dumps(rows), json.dumps(rows, indent=2), "\ufeff" + json.dumps(rows),
        "\n".join(json.dumps(row, indent=1) for row in rows), "\n".join(map(json.dumps, rows)),
        "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n",
    ):  # fmt: skip
        for name in ("a.json", "a.json.gz"):
            packed = gzip.compress(data.encode()) if name.endswith("gz") else data
            found = read(tmp_path / name, packed)
            assert found[0] == ["one", "two"] and found[2] == {"no JSON with a text": 1}, data
    many = json.dumps([{"text": SENTENCE * 40 + str(i)} for i in range(300)])
    assert len(read(tmp_path / "a.json", many)[0]) == 300
    cut = read(tmp_path / "a.json", many[: len(many) // 2])
    assert 140 < len(cut[0]) < 151 and cut[2] == {"no JSON with a text": 1}
    assert read(tmp_path / "a.jsonl", "\ufeff" + json.dumps(rows[0]))[0] == ["one"]
    deep = read(tmp_path / "a.json", "[" * 100_000)
    assert deep[0] == [] and sum(deep[2].values()) == 1


def test_what_datatrove_and_dolma_write(tmp_path):
    rows = [
        {"text": "a", "id": "dt-1", "metadata": {"url": "http://x.org/1", "language": "eng_Latn"}},
        {"text": "b", "id": "d-2", "source": "cc", "metadata": {"url": "http://x.org/2"}},
        {"text": "c", "metadata": {"license": "mit", "url": None}, "language": "Python"},
    ]
    found = read(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))[1]
    assert [d["id"] for d in found[:2]] == ["dt-1", "d-2"] and found[0]["language"] == "en"
    assert [d["url"] for d in found] == ["http://x.org/1", "http://x.org/2", "a.jsonl"]
    assert found[2]["license"] == "mit" and found[2]["language"] == "python" and found[2]["code"]
    assert all(d["source"] == "s" for d in found)


def test_tables(tmp_path):
    data = 'url,text\nu1,"one, two\nthree"\nu2\n\nu3,"says ""no"""\n'
    texts, found, problems = read(tmp_path / "a.csv", data)
    assert texts == ["one, two\nthree", 'says "no"'] and found[0]["url"] == "u1"
    assert problems == {"damaged row": 1}
    assert read(tmp_path / "a.tsv.bz2", bz2.compress(b"text\tx\na b\t1\n"))[0] == ["a b"]
    assert read(tmp_path / "b.csv", "a,b\n1,2\n")[2] == {"no text column": 1}
    assert read(tmp_path / "c.csv", "text\n\u00e9t\u00e9\n".encode("utf-16"))[0] == [
        "\u00e9t\u00e9"
    ]


def test_arrow_files_and_streams(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"text": ["a", None, "b"], "id": ["1", "2", "3"]})
    for make in (pyarrow.ipc.new_file, pyarrow.ipc.new_stream):
        with make(str(tmp_path / "a.arrow"), table.schema) as writer:
            writer.write_table(table)
        texts, found, problems = read(tmp_path / "a.arrow")
        assert texts == ["a", "b"] and found[1]["id"] == "3" and problems == {"no text": 1}
    assert read(tmp_path / "b.arrow", b"ARROW1 no")[2] == {"damaged Arrow file": 1}


def members(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.table({"text": ["in a table"]}), tmp_path / "t")
    return {
        "a/one.txt": b"one", "two.jsonl.gz": gzip.compress(b'{"text": "two"}\n'),
        "t.parquet": (tmp_path / "t").read_bytes(), "m.py": b"x = 1\n", "logo.png": b"\x89PNG",
        "broken.jsonl.gz": gzip.compress(b'{"text": "3"}' * 99)[:40], "inner.zip": b"PK",
    }  # fmt: skip


def test_archives(tmp_path):
    given = members(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in given.items():
            archive.writestr(name, data)
    for mode, name in (("w:gz", "a.tar.gz"), ("w:xz", "a.txz"), ("w", "a.tar")):
        with tarfile.open(tmp_path / name, mode) as archive:
            for member, data in given.items():
                info = tarfile.TarInfo(f"./{member}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
    for name in ("a.zip", "a.tar.gz", "a.txz", "a.tar"):
        texts, found, problems = read(tmp_path / name)
        assert sorted(texts) == ["in a table", "one", "two", "x = 1\n"], (name, problems)
        assert f"{name}/a/one.txt" in {d["url"] for d in found}
        assert problems == {"unknown kind of file": 1, "archive in an archive": 1,
                            "torn packed file": 1}, name  # fmt: skip
    assert read(tmp_path / "a.zip", max_members=2)[2]["archive with too many members"] == 1
    assert read(tmp_path / "b.zip", (tmp_path / "a.zip").read_bytes()[:300])[2] == {
        "damaged zip file": 1
    }
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", b" " * (80 << 20))
    assert read(tmp_path / "bomb.zip")[2] == {"packed too tight": 1}
    cut = (tmp_path / "a.tar.gz").read_bytes()
    assert sum(read(tmp_path / "cut.tar.gz", cut[: len(cut) // 2])[2].values()) >= 1


def test_books(tmp_path):
    pytest.importorskip("resiliparse")
    page = "<html xmlns='http://www.w3.org/1999/xhtml'><body><p>{}</p></body></html>"
    with zipfile.ZipFile(tmp_path / "a.epub", "w") as book:
        book.writestr("mimetype", "application/epub+zip")
        book.writestr(
            "META-INF/container.xml",
            "<container xmlns='urn:oasis:names:tc:opendocument:xmlns:container'><rootfiles>"
            "<rootfile full-path='OPS/a.opf'/></rootfiles></container>",
        )
        items = "".join(
            f"<item id='c{i}' href='c%20{i}.xhtml' media-type='application/xhtml+xml'/>"
            for i in (1, 2)
        )
        book.writestr(
            "OPS/a.opf",
            f"<package xmlns='http://www.idpf.org/2007/opf'><manifest>{items}</manifest>"
            "<spine><itemref idref='c2'/><itemref idref='c1'/></spine></package>",
        )
        for i in (1, 2):
            book.writestr(f"OPS/c {i}.xhtml", page.format(f"Chapter {i} is here."))
    assert read(tmp_path / "a.epub")[0] == ["Chapter 2 is here.\n\nChapter 1 is here."]
    with zipfile.ZipFile(tmp_path / "b.epub", "w") as book:
        book.writestr("mimetype", "x")
    assert read(tmp_path / "b.epub")[2] == {"page that fails": 1}


def test_source_trees_and_notebooks(tmp_path):
    cells = [{"cell_type": "markdown", "source": ["# A\n", "b"]}, {"source": "x = 1"}, {}]
    notebook = json.dumps({"cells": cells})
    texts, found, _ = read(tmp_path / "a.ipynb", notebook)
    assert texts == ["# A\nb\n\nx = 1"] and found[0]["language"] == "jupyter"
    assert read(tmp_path / "b.ipynb", '{"cells": 3}')[2] == {"notebook without cells": 1}
    for name, data, language in (
        ("package.json", '{"name": "x"}', "json"), ("a.html", "<p>x</p>", "html"),
        ("README.md", "# x", "markdown"), ("Makefile", "all:\n", "makefile"),
        ("run", "#!/bin/sh\nls\n", "shell"), ("a.tex", "\\begin", "tex"), ("LICENSE", "MIT", ""),
    ):  # fmt: skip
        (one,) = read(tmp_path / name, data, tree=True)[1]
        assert (one["text"], one["language"]) == (data, language)
        assert bool(one.get("code")) == bool(language)
    assert read(tmp_path / "README.md", "# x")[1][0]["language"] == ""  # a document


def test_links_to_folders_are_named(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a")
    os.symlink(tmp_path, tmp_path / "in" / "back")
    problems = Problems()
    assert [name for _, name, _ in find_inputs(str(tmp_path / "in"), problems)] == ["a.txt"]
    assert problems.examples == {"link to a folder, not followed": ["back"]}


# -------------------------------------------------------------------------------------------- WARC


def warc(tmp_path, *bodies):
    """A .warc.gz of pages with (body, headers)."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    path = tmp_path / "a.warc.gz"
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for number, (body, headers) in enumerate(bodies):
            kind = ("Content-Type", "text/html")
            http = StatusAndHeaders("200 OK", [kind, *headers], protocol="HTTP/1.1")
            record = writer.create_warc_record(
                f"http://x.org/{number}", "response", payload=io.BytesIO(body), http_headers=http
            )
            writer.write_record(record)
    return path


def page(word):
    return f"<html><body><main><h1>{word}</h1><p>{SENTENCE * 6}</p></main></body></html>".encode()


def packed_bodies():
    brotli = pytest.importorskip("brotli")
    zstandard = pytest.importorskip("zstandard")
    raw = __import__("zlib").compressobj(wbits=-15)
    yield "br", brotli.compress(page("x")), True
    yield "zstd", zstandard.compress(page("x")), True
    yield "gzip, gzip", gzip.compress(gzip.compress(page("x"))), True
    yield "br, gzip", gzip.compress(brotli.compress(page("x"))), True
    yield "deflate", __import__("zlib").compress(page("x")), True
    yield "deflate", raw.compress(page("x")) + raw.flush(), True
    yield "GZIP", gzip.compress(page("x")), True
    yield "gzip", page("x"), True  # stored unpacked
    yield "gzip", gzip.compress(page("x"))[:-40], False
    yield "br", b"\xff" * 90, False
    yield "zstd", b"\xff" * 90, False
    yield "snappy", b"\xff" * 90, False


def test_bodies_in_every_encoding(tmp_path):
    pytest.importorskip("warcio")
    for encoding, body, readable in packed_bodies():
        header = [("Content-Encoding", encoding)]
        path = warc(tmp_path, (page("one"), []), (body, header), (page("two"), []))
        texts, found, problems = read(path)
        assert len(texts) == 2 + readable and all("sentence about" in t for t in texts), encoding
        assert problems == ({} if readable else {"page whose encoding can't be undone": 1})
        assert found[-1]["url"] == "http://x.org/2"
    chunks = b"5\r\n<html\r\n" + b"%x\r\n" % (len(page("x")) - 5) + page("x")[5:] + b"\r\n0\r\n\r\n"
    assert "sentence" in read(warc(tmp_path, (chunks, [("Transfer-Encoding", "chunked")])))[0][0]
    bomb = gzip.compress(b"<p>" + b" " * (30 << 20))
    texts, _, problems = read(warc(tmp_path, (bomb, [("Content-Encoding", "gzip")])))
    assert texts == [] and problems == {"document too long": 1}


# -------------------------------------------------------------------------------------------- HTML

SHAPES = {
    "nested": lambda n: "<div>" * n + SENTENCE + "</div>" * n,
    "never closed": lambda n: "<div>" * n + SENTENCE,
    "forms": lambda n: "<form><div>" * n + SENTENCE,
    "italics": lambda n: "<i><div>" * n + SENTENCE,
    "fonts": lambda n: "".join(f"<font a={i}><p>x" for i in range(n)) + SENTENCE,
    "attributes": lambda n: f"<div {' '.join(f'a{i}=1' for i in range(n))}>{SENTENCE}</div>",
    "articles": lambda n: "<ARTICLE>" * n + SENTENCE,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_html_takes_time_in_proportion(tmp_path, shape):
    pytest.importorskip("resiliparse")
    took = []
    for n in (4000, 16_000):
        start = time.process_time()
        (text,), _, _ = read(tmp_path / "a.html", SHAPES[shape](n))
        took.append(time.process_time() - start)
        assert SENTENCE.strip() in text
    assert took[1] < 8 * took[0] + 0.2  # 16 times, and more, for a square


# --------------------------------------------------------------------------------------- Wikipedia


def dump(language, namespaces, *pages):
    listed = "".join(f"<namespace key='{k}'>{v}</namespace>" for k, v in namespaces.items())
    shown = "".join(
        f"<page><title>{title}</title><ns>{ns}</ns><revision><model>wikitext</model>"
        f"<text>{body}</text></revision></page>"
        for title, ns, body in pages
    )
    return (
        f"<mediawiki xml:lang='{language}'><siteinfo><base>https://{language}.wikipedia.org/wiki/M"
        f"</base><namespaces>{listed}</namespaces></siteinfo>{shown}</mediawiki>"
    )


@pytest.mark.parametrize("language, file, category", [
    ("ar", "ملف", "تصنيف"), ("zh", "文件", "分类"), ("ru", "Файл", "Категория"),
    ("th", "ไฟล์", "หมวดหมู่"),
    ("hi", "चित्र", "श्रेणी"), ("eo", "Dosiero", "Kategorio"), ("ko", "파일", "분류"),
])  # fmt: skip
def test_a_dump_says_what_its_namespaces_are_called(tmp_path, language, file, category):
    body = (
        f"[[{file}:A.jpg|thumb|a [[b]] [http://x.org c]]]'''T''' is text.\n[[{category}:T]]\n"
        "[[en:Other]]\n[[File:B.jpg]]"
    )
    pages = (("T", 0, body), ("R", 0, f"#{category} [[T]]"), ("U", 2, "user"), ("V", 0, "two"))
    data = dump(language, {6: file, 14: category}, *pages)
    texts, found, problems = read(tmp_path / "a.xml", data)
    assert texts == ["T is text.", "two"] and problems == {}
    assert {d["language"] for d in found} == {language}


def test_templates_that_show_text():
    for wikitext, shown in (
        ("{{lang|fr|un texte}} a", "un texte a"),
        ("{{convert|5|to|8|km|mi}} long", "5 to 8 km long"),
        ("{{convert|1,200|m|ft|abbr=on}}", "1,200 m"), ("{{lang-de|Haus}}", "Haus"),
        ("{{nowrap|a {{frac|1|2}} b}}", "a 1/2 b"), ("{{formatnum:12345}} x", "12345 x"),
        ("a{{spaced ndash}}b", "a \u2013 b"), ("{{infobox|a=b}}text", "text"),
        ("-{zh-hans:软件; zh-hant:軟體}-", "软件"), ("a<!-- b", "a"),
        ("== H ==\n* x\n:; y", "H\nx\ny"),
        ("a <ref name=x/> b <ref>c</ref> d", "a  b  d"), ("[[:Category:X|y]] z", "y z"),
        ("<math>x</math><nowiki>y</nowiki>", "y"),
    ):  # fmt: skip
        assert plain_wikitext(wikitext) == shown


@pytest.mark.parametrize(
    "piece", ["{{", "[[", "<!--", "<ref>", "[[File:", "=", "{|", "<math>", "''"]
)
def test_wikitext_takes_time_in_proportion(piece):
    start = time.process_time()
    plain_wikitext(piece * 40_000 + "text")
    assert time.process_time() - start < 3
