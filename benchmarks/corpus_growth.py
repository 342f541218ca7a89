"""Time and memory of `t5x_lite corpus` as its input grows: what `corpus.py growth` does."""

import json
import random
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = Path(__file__).with_name("corpus.py")
_DOCUMENTS_IN_FILE = 250


def grow(folder: Path, texts: list[str], megabytes: float, times: int) -> None:
    """folder/TIMES/: the texts, again and again in other words.

    In each copy every word of four letters or more is another of the text's words, the same one
    throughout, so that a copy repeats itself as the original does, but not the original.
    """
    rng, size, chosen = random.Random(0), 0.0, []
    for text in texts:
        if size < megabytes * 1e6:
            chosen.append(text)
            size += len(text)
    word = re.compile(r"[a-z]{4,}")
    known = sorted({w for text in chosen for w in word.findall(text)})
    (folder / str(times)).mkdir(parents=True, exist_ok=True)
    for copy in range(times):
        other = dict(zip(known, known if copy == 0 else rng.sample(known, len(known)), strict=True))
        for begin in range(0, len(chosen), _DOCUMENTS_IN_FILE):
            name = f"{copy:03d}.{begin:06d}.jsonl"
            with open(folder / str(times) / name, "w", encoding="utf-8") as file:
                for number, text in enumerate(chosen[begin : begin + _DOCUMENTS_IN_FILE], begin):
                    changed = word.sub(lambda m, other=other: other[m[0]], text)
                    file.write(json.dumps({"text": changed, "url": f"{copy}/{number}"}) + "\n")


def grown(folder: Path, times: int, workers: int, unit_mb: float) -> None:
    """One size in a process of its own, whose memory is then its own, too; prints JSON."""
    from t5x_lite import config
    from t5x_lite.corpus.pipeline import build
    from t5x_lite.corpus.settings import Corpus

    given = [f"INPUT='{folder}/{times}'", f"OUTPUT='{folder}/grown'", f"NAME='times{times}'",
             "GopherQuality.by_spaces=True"]  # fmt: skip
    config.parse(["corpus/web_en.gin"], given, (), "Corpus")
    unit, said = int(unit_mb * 1e6), []
    start = time.monotonic()
    build(Corpus(workers=workers, unit_bytes=unit, shard_bytes=unit // 2), said.append)
    wall = time.monotonic() - start
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({
        "times": times, "MB": sum(p.stat().st_size for p in (folder / str(times)).iterdir()) / 1e6,
        "processor s": sum(u.ru_utime + u.ru_stime for u in used), "wall s": wall,
        "MiB, first process": used[0].ru_maxrss / 1024, "MiB, a worker": used[1].ru_maxrss / 1024,
        "said": said,
    }))  # fmt: skip


def growth(
    folder: Path, texts: list[str], megabytes: float, sizes: list[int], workers: int, unit_mb: float
) -> None:
    """Each size in a process of its own; writes growth.json and prints its table."""
    rows = []
    for times in sizes:
        grow(folder, texts, megabytes, times)
        command = [sys.executable, str(PROGRAM), "grown", f"--folder={folder}", f"--times={times}",
                   f"--workers={workers}", f"--unit_mb={unit_mb}"]  # fmt: skip
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print("\n".join(rows[-1]["said"]), flush=True)
    (folder / "growth.json").write_text(json.dumps(rows, indent=1))
    show_growth(rows)


def show_growth(rows: list[dict]) -> None:
    """Processor seconds of all, and, by Beam's counters, of the tasks without start-up."""
    columns = ("times", "MB", "processor s", "wall s", "MiB, first process", "MiB, a worker")
    print(f"| {' | '.join(columns)} | s/MB | of the first | in tasks, s/MB | of the first |")
    print("|---" * (len(columns) + 4) + "|")
    first: list[float] = []
    for row in rows:
        tasks = sum(float(x.replace(",", "")) for line in row["said"]
                    for x in re.findall(r"([\d.,]+) processor s", line))  # fmt: skip
        rates = [row["processor s"] / row["MB"], tasks / row["MB"]]
        first = first or rates
        cells = [f"{row[c]:,.{int(c == 'MB')}f}" for c in columns]
        cells += [f"{x:.2f}" for r, f in zip(rates, first, strict=True) for x in (r, r / f)]
        print(f"| {' | '.join(cells)} |")
