"""Cleaning a corpus: against datatrove on the same filters, against plants, and as it grows.

  python benchmarks/corpus.py prepare --folder=F [--mb=50]    # text of this machine, with plants
  python benchmarks/corpus.py ours --folder=F                 # filters and MinHash, one process
  DATATROVE_ENV/bin/python benchmarks/corpus.py datatrove --folder=F
  python benchmarks/corpus.py compare --folder=F              # who kept what, each difference
  python benchmarks/corpus.py pipeline --folder=F --workers=2 # the whole command, with plants
  python benchmarks/corpus.py growth --folder=F [--mb=12 --times 1 4 16]  # time and memory

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

from corpus_growth import grown, growth

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from t5x_lite.corpus.text import comparable, words  # need nothing installed

# What is planted, and what only looks like it: {kind: (strings to be changed, strings to stay)}.
PLANTS = {
    "email": (["john.smith@mail.org", "a.b+c@x-y.co.uk"], ["user@localhost", "@decorator"]),
    "phone": (["+1 415 555 2671", "(415) 555-2671"], ["2024-05-17", "1,234,567.89", "v1.2.3.4"]),
    "card": (["4111 1111 1111 1111"], ["4111 1111 1111 1112", "9999999999999995"]),
    "iban": (["DE89 3704 0044 0532 0130 00"], ["DE89 3704 0044 0532 0130 01"]),
    "ip": (["8.8.8.8", "2001:4860:4860::8888"], ["192.168.0.1", "256.1.1.1", "std::string"]),
    "key": (["AKIAIOSFODNN7EXAMPLE", "ghp_" + "a1" * 18], ["AKIA", "ghp_short"]),
    "mojibake": (["naïve café, größer".encode().decode("latin-1"), "It\u00e2\u20ac\u2122s"],
                 ["naïve café, größer: 5 €", "Ã is a letter"]),
    "boilerplate": (["This site uses cookies to serve you.", "Read our privacy policy before use."],
                    ["The policy of the site is to serve.", "They baked cookies before use."]),
}  # fmt: skip


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
    plants = plant(texts, rng)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "raw.jsonl", "w", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            row = {"text": text, "url": str(number)}
            file.write(json.dumps(row) + "\n")
    (folder / "plants.json").write_text(json.dumps(plants))
    print(f"{len(texts):,} documents, {sum(map(len, texts)) / 1e6:.1f} MB")


def plant(texts: list[str], rng: random.Random) -> dict[str, list]:
    """Adds documents to `texts`; returns {kind: [(number, whether a rule should hit, string)]}."""
    originals, found = list(texts), {}

    def add(kind: str, text: str, hit: bool, string: str = "") -> None:
        found.setdefault(kind, []).append((len(texts), hit, string))
        texts.append(text)

    def changed(text: str, every: int) -> str:
        parts = text.split(" ")
        for i in range(rng.randrange(every), len(parts), every):
            parts[i] = f"changed{rng.randrange(10**6)}"
        return " ".join(parts)

    for text in rng.sample(originals, max(1, len(originals) // 50)):
        add("exact copy", text.upper() + "!", True)
        add("exact copy", text[: len(text) // 2], False)
    for text in rng.sample(originals, max(1, len(originals) // 50)):
        add("near copy", changed(text, 200), True)
        add("near copy", changed(text, 6), False)  # 5-grams alike: a quarter
    for kind, given in PLANTS.items():
        for original in rng.sample(originals, max(1, len(originals) // 100)):
            for hit, strings in zip((True, False), given, strict=True):
                parts, string = original.split(), rng.choice(strings)
                rng.shuffle(parts)  # a document of its own
                parts.insert(len(parts) // 2, f"\n{string}\n")
                add(kind, " ".join(parts), hit, string)
    return found


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
                near = f" (Jaccard {nearest(texts, int(number)):.2f})" if name == "minhash" else ""
                print(f"  {who} {number} {rows[number]}{near}: {text}")


def nearest(texts: list[str], number: int) -> float:
    """The greatest similarity of a document to one before it, by its 5-grams of words."""

    def grams(text: str) -> set:
        parts = comparable(text).split()
        return set(zip(*(parts[i:] for i in range(5)), strict=False))

    mine = grams(texts[number])
    others = (grams(text) for text in texts[:number])
    return max(len(mine & other) / max(len(mine | other), 1) for other in others)


def pipeline(folder: Path, workers: int, mb_unit: float) -> None:
    """Processor seconds and peak memory of all processes, and what became of the plants."""
    from t5x_lite.corpus.c4 import C4
    from t5x_lite.corpus.limits import Repair
    from t5x_lite.corpus.pii import Pii
    from t5x_lite.corpus.pipeline import build
    from t5x_lite.corpus.settings import Corpus

    lines = C4(
        end_marks=None, min_line_words=None, min_sentences=None, lorem_ipsum=None,
        curly_bracket=None, max_word_length=None,
    )  # fmt: skip
    start = time.monotonic()
    made = build(
        Corpus(
            str(folder / "raw.jsonl"), str(folder / f"out{workers}"), "bench",
            steps=(Repair(), lines, Pii()), workers=workers, unit_bytes=int(mb_unit * 1e6),
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
    judge(folder, kept)


def judge(folder: Path, kept: dict[str, str]) -> None:
    """Recall and precision of each rule on its plants; kept: {number: text}."""
    plants = json.loads((folder / "plants.json").read_text())
    print("| plants | to be hit | hit | recall | look-alikes | hit | precision |")
    print("|---|---|---|---|---|---|---|")
    for kind, rows in plants.items():
        hits = {True: 0, False: 0}
        for number, wanted, string in rows:
            text = kept.get(str(number))
            if "copy" in kind:
                hits[wanted] += text is None
            elif text is None:  # dropped for no reason
                hits[wanted] += not wanted
            else:
                hits[wanted] += string not in text
        number = sum(wanted for _, wanted, _ in rows)
        others = len(rows) - number
        precision = hits[True] / max(sum(hits.values()), 1)
        print(f"| {kind} | {number} | {hits[True]} | {hits[True] / number:.3f} | {others} | "
              f"{hits[False]} | {precision:.3f} |")  # fmt: skip
    planted = {number for rows in plants.values() for number, *_ in rows}
    texts = read(folder)
    gone = [n for n in range(len(texts)) if str(n) not in kept and n not in planted]
    print(f"dropped and not planted: {len(gone)}, their similarity to one before (Jaccard): "
          + ", ".join(f"{nearest(texts, n):.2f}" for n in gone[:40]))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("prepare", "ours", "datatrove", "compare",
                                         "pipeline", "growth", "grown"))  # fmt: skip
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--mb", type=float)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--unit_mb", type=float, default=8)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.what == "prepare":
        prepare(args.folder, args.mb or 50)
    elif args.what == "pipeline":
        pipeline(args.folder, args.workers, args.unit_mb)
    elif args.what == "growth":
        megabytes = args.mb or 12
        if not (args.folder / "raw.jsonl").exists():
            prepare(args.folder, 1.5 * megabytes)
        growth(args.folder, read(args.folder), megabytes, args.times, args.workers, args.unit_mb)
    elif args.what == "grown":
        grown(args.folder, args.times[0], args.workers, args.unit_mb)
    else:
        {"ours": ours, "datatrove": datatrove, "compare": compare}[args.what](args.folder)


if __name__ == "__main__":
    main()
