"""Cleaning a corpus: against datatrove on the same filters, against plants, and as it grows.

  python benchmarks/corpus.py prepare --folder=F [--mb=50]    # text of this machine, with plants
  python benchmarks/corpus.py ours --folder=F                 # filters and MinHash, one process
  DATATROVE_ENV/bin/python benchmarks/corpus.py datatrove --folder=F
  python benchmarks/corpus.py compare --folder=F              # who kept what, each difference
  python benchmarks/corpus.py pipeline --folder=F --workers=2 # the whole command, with plants

`prepare` takes the text files that the system's packages and Python's bring along; what isn't there
is skipped. datatrove (in an environment of its own: datatrove[processing]) splits words with our
pattern, so that the filters are compared and not the splitters. Times are processor seconds.
"""

import argparse
import json
import os
import random
import re
import resource
import sys
import sysconfig
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from t5x_lite.corpus.text import words  # needs nothing installed

FIELDS = (b"john.smith@mail.org", b"+1 415 555 2671", b"4111 1111 1111 1111")


def prepare(folder: Path, megabytes: float) -> None:
    """raw.jsonl, a document a line with its number; plants.json, {plant: numbers}."""
    roots = ["/usr/share/doc", "/usr/share/perl", sysconfig.get_path("stdlib")]
    roots += [sysconfig.get_path("purelib")]
    rng, texts, size = random.Random(0), [], 0
    for root in filter(os.path.isdir, roots):
        for path in sorted(Path(root).rglob("*")):
            if path.suffix not in (".txt", ".md", ".rst", ".pod", ".py") or not path.is_file():
                continue
            text = path.read_text(encoding="utf-8", errors="ignore")
            if path.suffix == ".py":  # its prose
                text = "\n\n".join(re.findall(r'"""(.+?)"""', text, flags=re.DOTALL))
            if 300 < len(text) < 200_000:
                texts.append(text)
                size += len(text)
            if size > megabytes * 1e6:
                break
    rng.shuffle(texts)
    plants: dict[str, list[int]] = {}
    for kind in ("exact", "near", "personal", "mojibake"):
        for original in rng.sample(range(len(texts)), max(1, len(texts) // 50)):
            text = texts[original]
            if kind == "near":
                parts = text.split(" ")
                for _ in range(max(1, len(parts) // 200)):
                    parts[rng.randrange(len(parts))] = "changed"
                text = " ".join(parts)
            elif kind == "personal":
                text = f"{text[::-1]}\n{rng.choice(FIELDS).decode()}\n"
            elif kind == "mojibake":
                text = f"{text[::-1]}\n" + "naïve café, größer: ".encode().decode("latin-1")
            plants.setdefault(kind, []).append(len(texts))
            texts.append(text)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "raw.jsonl", "w", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            row = {"text": text, "url": str(number)}
            file.write(json.dumps(row) + "\n")
    (folder / "plants.json").write_text(json.dumps(plants))
    print(f"{len(texts):,} documents, {sum(map(len, texts)) / 1e6:.1f} MB")


def read(folder: Path) -> list[str]:
    with open(folder / "raw.jsonl", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def report(folder: Path, who: str, texts: list[str], results: dict[str, tuple]) -> None:
    """results: {filter: (seconds, {number: reason} of what was dropped)}."""
    size = sum(len(t.encode()) for t in texts) / 1e6
    for name, (seconds, dropped) in results.items():
        print(f"{who:10} {name:20} {seconds:8.2f} processor s {len(texts) / seconds:9,.0f} docs/s "
              f"{size / seconds:7.2f} MB/s dropped {len(dropped):,}")  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{who:10} peak memory {peak:,.0f} MiB")
    rows = {name: dropped for name, (_, dropped) in results.items()}
    (folder / f"{who}.json").write_text(json.dumps(rows))


def timed(function, texts: list[str]) -> tuple[float, dict[int, str]]:
    start = time.process_time()
    found = {i: reason for i, text in enumerate(texts) if (reason := function(text))}
    return time.process_time() - start, found


def ours(folder: Path) -> None:
    import numpy as np

    from t5x_lite.corpus.c4 import C4
    from t5x_lite.corpus.duplicates import Duplicates, groups, repeats
    from t5x_lite.corpus.fineweb import FineWeb
    from t5x_lite.corpus.gopher import GopherQuality, GopherRepetition

    texts, c4 = read(folder), C4(end_marks=None)
    results = {
        "gopher_repetition": timed(GopherRepetition().broken, texts),
        "gopher_quality": timed(GopherQuality().broken, texts),
        "c4": timed(lambda text: c4.clean(text)[1], texts),
        "fineweb": timed(FineWeb().broken, texts),
    }
    start, settings = time.process_time(), Duplicates(exact=False)
    keys = np.stack([settings.keys(text) for text in texts])
    numbers = np.arange(len(texts), dtype=np.uint64)
    pairs = np.concatenate([np.stack(repeats(column, numbers), 1) for column in keys.T])
    members, smallest = groups(pairs[:, 0], pairs[:, 1])
    gone = {int(n): f"of {s}" for n, s in zip(members, smallest, strict=True) if n != s}
    results["minhash"] = (time.process_time() - start, gone)
    report(folder, "ours", texts, results)


def datatrove(folder: Path) -> None:
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Ours(WordTokenizer):
        def word_tokenize(self, text):
            return words(text)

        def sent_tokenize(self, text):
            return [text[begin:end] for begin, end in self.span_tokenize(text)]

        def span_tokenize(self, text):
            ends = [m.end() for m in re.finditer(r"[.!?]+(?=\s|$)", text)]
            ends += [len(text)] if not ends or text[ends[-1] :].strip() else []
            return list(zip([0, *ends], ends, strict=False))

    texts, language = read(folder), Ours()

    def run(filter_):
        def reason(text):
            found = filter_.filter(Document(text=text, id="0"))
            return None if found is True else str(found[1] if isinstance(found, tuple) else found)

        return timed(reason, texts)

    results = {
        "gopher_repetition": run(GopherRepetitionFilter(language=language)),
        "gopher_quality": run(GopherQualityFilter(language=language)),
        "c4": run(C4QualityFilter(filter_no_terminal_punct=False, language=language)),
        "fineweb": run(FineWebQualityFilter(language=language)),
    }
    config = MinhashConfig(num_buckets=14, hashes_per_bucket=8, n_grams=5,
                           hash_config=HashConfig(precision=64))  # fmt: skip
    step = MinhashDedupSignature(output_folder=str(folder / "sigs"), config=config,
                                 language=language)  # fmt: skip
    start, seen, gone = time.process_time(), [{} for _ in range(14)], {}
    parent = list(range(len(texts)))

    def root(x):
        while parent[x] != x:
            x = parent[x]
        return x

    for number, text in enumerate(texts):
        shingles = step.get_shingles(text)
        if not len(shingles):
            continue
        for bucket, band in enumerate(step.get_signature(shingles)):
            first = seen[bucket].setdefault(tuple(band), number)
            low, high = sorted((root(first), root(number)))
            parent[high] = low
    gone = {n: f"of {root(n)}" for n in range(len(texts)) if root(n) != n}
    results["minhash"] = (time.process_time() - start, gone)
    report(folder, "datatrove", texts, results)


def compare(folder: Path) -> None:
    """Each document that only one of the two drops, by filter."""
    texts = read(folder)
    a, b = (json.loads((folder / f"{who}.json").read_text()) for who in ("ours", "datatrove"))
    for name in a:
        only_a, only_b = set(a[name]) - set(b[name]), set(b[name]) - set(a[name])
        both = len(set(a[name]) & set(b[name]))
        print(f"{name}: both drop {both:,}, only ours {len(only_a)}, only datatrove {len(only_b)}")
        for who, numbers, rows in (("ours", only_a, a[name]), ("datatrove", only_b, b[name])):
            for number in sorted(numbers, key=int)[:20]:
                text = texts[int(number)][:60].encode("unicode_escape").decode()
                print(f"  {who} {number} {rows[number]}: {text}")


def pipeline(folder: Path, workers: int, mb_unit: float) -> None:
    """Processor seconds and peak memory of all processes, and what became of the plants."""
    from t5x_lite.corpus.limits import Repair
    from t5x_lite.corpus.pii import Pii
    from t5x_lite.corpus.pipeline import build
    from t5x_lite.corpus.settings import Corpus

    start = time.monotonic()
    made = build(
        Corpus(
            str(folder / "raw.jsonl"), str(folder / f"out{workers}"), "bench",
            steps=(Repair(), Pii()), workers=workers, unit_bytes=int(mb_unit * 1e6),
        )
    )  # fmt: skip
    wall = time.monotonic() - start
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(u.ru_utime + u.ru_stime for u in used)
    size = (folder / "raw.jsonl").stat().st_size / 1e6
    print(f"{size:.1f} MB in {wall:.1f} s, {cpu:.1f} processor s ({size / cpu:.2f} MB/s); peak "
          f"{max(u.ru_maxrss for u in used) / 1024:,.0f} MiB a process")  # fmt: skip
    from t5x_lite.corpus.dataset import read as read_dataset

    kept = {r["url"]: r["text"] for split in ("train", "validation")
            for r in read_dataset(made, split)}  # fmt: skip
    plants = json.loads((folder / "plants.json").read_text())
    planted = {str(n) for kind in ("exact", "near") for n in plants[kind]}
    dropped = {str(n) for n in range(len(read(folder)))} - set(kept)
    for kind in ("exact", "near"):
        found = sum(str(n) in dropped for n in plants[kind])
        print(f"{kind}: {found} of {len(plants[kind])} plants dropped")
    print(f"dropped and not planted: {len(dropped - planted)} (copies that were there before)")
    left = sum(any(f.decode() in kept.get(str(n), "") for f in FIELDS) for n in plants["personal"])
    print(f"personal data: {left} of {len(plants['personal'])} plants left")
    mended = sum("naïve café, größer" in kept.get(str(n), "") for n in plants["mojibake"])
    print(f"mojibake: {mended} of {len(plants['mojibake'])} plants mended")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("prepare", "ours", "datatrove", "compare", "pipeline"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--mb", type=float, default=50)
    parser.add_argument("--unit_mb", type=float, default=16)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.what == "prepare":
        prepare(args.folder, args.mb)
    elif args.what == "pipeline":
        pipeline(args.folder, args.workers, args.unit_mb)
    else:
        {"ours": ours, "datatrove": datatrove, "compare": compare}[args.what](args.folder)


if __name__ == "__main__":
    main()
