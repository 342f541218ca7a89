"""Damaged files of every format: does any end the reading, and how long and large does it get?

  python benchmarks/corpus_fuzz.py --count=100000 [--seed=0] [--seconds=600]

Whole WARC, HTML, JSON, CSV, Wikipedia, notebook, archive, book and text files in many encodings are
damaged at random: bytes changed, cut out, doubled, moved, put in from another file, beginnings and
ends cut off, pieces said a thousand times. Each is read as the pipeline reads it. Prints how many
documents and problems came of them, and the slowest; ends with status 1 if anything was raised.
"""

import argparse
import bz2
import contextlib
import gzip
import io
import json
import random
import resource
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from t5x_lite.corpus.opening import Problems
from t5x_lite.corpus.readers import Reader

TEXT = (
    "The old mill stands by the river, at the entrance of the village. Größe, été, žluťoučký. "
    "Старая мельница стоит у реки. 古い水車は川のそばにあります。古老的水车在河边。 "
    "الطاحونة القديمة "
    "पुरानी चक्की नदी के किनारे। "
    "Write to a.b@mail.example.org or call +1 415 555 2671.\n"
)
PAGE = (
    "<!DOCTYPE html><html lang=en><head><meta charset=utf-8><title>Mill</title><script>var a='<p>'"
    f"</script></head><body><nav><a href=/>Home</a></nav><main><h1>Mill</h1><p>{TEXT}</p><ul><li>a"
    f"<li>b</ul><table><tr><td>x</table><!-- no --><p title='a > b'>{TEXT}</p></main></body></html>"
)
WIKI = (
    "<mediawiki xml:lang='ar'><siteinfo><base>https://ar.wikipedia.org/wiki/M</base><namespaces>"
    "<namespace key='6'>ملف</namespace></namespaces></siteinfo><page><title>T</title><ns>0</ns>"
    "<revision><text>[[ملف:A|thumb|[[x]]]] '''T''' {{lang|fr|a {{b}}}} &lt;ref&gt;y&lt;/ref&gt; "
    "{| class=x\n| a\n|}\n== H ==\n* [[b|c]] [http://x.org d]</text></revision></page></mediawiki>"
)


MARKS = (b"\0", b"\xff", b"\xfe\xff", b"\x1b$B", b"\r", b"<div>" * 999, b"[" * 9999)


def warc() -> bytes:
    record = b""
    for number, (body, more) in enumerate((
        (PAGE.encode(), ""), (gzip.compress(PAGE.encode()), "Content-Encoding: gzip\r\n"),
        (PAGE.encode("koi8-r", "replace"), "X: y\r\n"), (TEXT.encode(), ""),
    )):  # fmt: skip
        http = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n{more}\r\n".encode()
        head = (
            f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://x.org/{number}\r\n"
            "WARC-Record-ID: <urn:uuid:1>\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
            "Content-Type: application/http; msgtype=response\r\n"
            f"Content-Length: {len(http + body)}\r\n\r\n"
        )
        record += head.encode() + http + body + b"\r\n\r\n"
    return record


def archive() -> tuple[bytes, bytes, bytes]:
    """(zip, tar, epub)"""
    zipped, tarred, book = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.txt", TEXT)
        file.writestr("b/p.html", PAGE)
    with tarfile.open(fileobj=tarred, mode="w") as file:
        for name, data in (("a.txt", TEXT.encode()), ("j.jsonl.gz", gzip.compress(b'{"text":1}'))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    with zipfile.ZipFile(book, "w") as file:
        file.writestr("META-INF/container.xml", "<c><rootfile full-path='a.opf'/></c>")
        file.writestr("a.opf", "<p><item id='i' href='c.xhtml' media-type='text/html'/>"
                               "<itemref idref='i'/></p>")  # fmt: skip
        file.writestr("c.xhtml", PAGE)
    return zipped.getvalue(), tarred.getvalue(), book.getvalue()


def seeds() -> list[tuple[str, bytes]]:
    """(name, whole bytes) of a file of each kind."""
    rows = [{"text": TEXT, "metadata": {"url": "http://x.org"}, "id": "1"}] * 3
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    notebook = json.dumps({"cells": [{"source": ["# a\n"]}, {"source": "x = 1"}]})
    zipped, tarred, book = archive()
    found = [
        ("a.warc", warc()), ("b.warc.gz", gzip.compress(warc())), ("a.html", PAGE.encode()),
        ("b.html", PAGE.replace("utf-8", "koi8-r").encode("koi8-r", "replace")),
        ("a.jsonl", lines.encode()), ("b.json", json.dumps(rows).encode()),
        ("c.json", json.dumps(rows, indent=1).encode()),
        ("d.jsonl.gz", gzip.compress(lines.encode())),
        ("e.jsonl.bz2", bz2.compress(lines.encode())),
        ("a.csv", f'url,text\nu,"{TEXT}"\n'.encode()),
        ("a.xml", WIKI.encode()), ("a.ipynb", notebook.encode()), ("a.zip", zipped),
        ("a.tar", tarred), ("a.epub", book), ("a.py", b"x = 1\n" * 9), ("a.wet", warc()),
    ]  # fmt: skip
    for encoding in ("utf-8", "cp1252", "koi8-r", "euc_jp", "cp932", "iso2022_jp", "gb18030",
                     "big5", "cp949", "cp1256", "utf-16", "utf-16-be", "utf-32"):  # fmt: skip
        found.append((f"{encoding}.txt", TEXT.encode(encoding, errors="ignore")))
    return found


def damaged(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """A few random changes."""
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        if not data:
            return data
        at = rng.randrange(len(data))
        size = rng.choice((1, 1, 2, 7, 60, 400))
        piece = data[at : at + size]
        kind = rng.randrange(9)
        if kind == 0:
            data = data[:at] + rng.randbytes(min(size, 60)) + data[at + size :]
        elif kind == 1:
            data = data[:at] + data[at + size :]
        elif kind == 2:
            data = data[:at] + piece * rng.choice((2, 10, 1000)) + data[at:]
        elif kind == 3:
            data = data[:at]
        elif kind == 4:
            data = data[at:]
        elif kind == 5:
            other = rng.choice(others)
            begin = rng.randrange(len(other))
            data = data[:at] + other[begin : begin + size] + data[at:]
        elif kind == 6:
            data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        elif kind == 7:
            digits = str(rng.choice((0, -1, 10**6, 10**12, 2**63))).encode()
            data = data[:at] + digits + data[at:]
        else:
            data = data[:at] + rng.choice(MARKS) + data[at:]
    return data[: 4 << 20]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600, help="stop after so much time")
    given = parser.parse_args()
    rng, whole, reader = random.Random(given.seed), seeds(), Reader()
    others = [data for _, data in whole]
    counts: Counter = Counter()
    kinds: Counter = Counter()
    slowest: list[tuple[float, str, int, int]] = []
    start = time.monotonic()
    # warcio writes what it makes of damaged records to standard error, with their bytes.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()) as said:
        path = Path(folder) / "file"
        for number in range(given.count):
            if time.monotonic() - start > given.seconds:
                break
            name, data = rng.choice(whole)
            data = damaged(data, others, rng)
            path.write_bytes(data)
            problems, began = Problems(), time.process_time()
            try:
                for document in reader.read(str(path), name, "s", problems):
                    counts["documents"] += 1
                    document["text"].encode()
            except Exception:
                counts["raised"] += 1
                print(traceback.format_exc())
                print(f"seed {given.seed}, input {number}: {name}, {len(data):,} bytes")
            said.seek(0)
            said.truncate()
            took = time.process_time() - began
            slowest = sorted([*slowest, (took, name, number, len(data))])[-5:]
            counts["inputs"] += 1
            counts["with problems"] += bool(problems.counts)
            kinds.update(problems.counts)
    print(dict(counts))
    for kind, number in kinds.most_common():
        print(f"{number:8,}  {kind}")
    for took, name, number, size in reversed(slowest):
        print(f"{took:8.3f} s  {name} of {size:,} bytes (input {number})")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")
    return int(counts["raised"] > 0)


if __name__ == "__main__":
    sys.exit(main())
