"""From raw documents to the dataset, read top to bottom: plan, clean, compare, write, finish.

Every stage keeps what it finished in the work folder, so a run that is started again goes on where
it was; the dataset appears under its name in one step at the end.
"""

import dataclasses
import functools
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from t5x_lite.corpus import beam, card, comparing, dataset, stages
from t5x_lite.corpus.opening import Problems
from t5x_lite.corpus.readers import find_inputs
from t5x_lite.corpus.settings import Corpus
from t5x_lite.corpus.store import MOST_BUCKETS, Layout, read_json, write_json
from t5x_lite.corpus.tally import Tally
from t5x_lite.corpus.tokenizer import train_and_report
from t5x_lite.errors import UserError

_FILES_IN_UNIT = 5000
_BUCKETS = 256  # at least
_UNITS_IN_PART = 16  # of 64 MB: keys and edges of some million documents


def build(corpus: Corpus, say: Callable[[str], None] = print) -> Path:
    """Makes the dataset, or goes on making it, and returns its folder.

    Raises:
      UserError: the folder of an unfinished run has other settings or input; there are no files,
        or nothing is left of them.
    """
    work, target = corpus.work, corpus.target
    if (target / "dataset_info.json").exists():
        _check_same(corpus, read_json(target / "data_card.json"), target)
        say(
            f"{target} is finished; nothing to do (for files that came since: another "
            "Corpus.version, or delete it)"
        )
        return target
    units, layout = plan(corpus)
    say(f"{sum(map(len, units)):,} files in {len(units):,} units")
    run = functools.partial(_run, corpus, layout, say)

    # ---- clean
    run("clean", stages.clean_unit, list(enumerate(units)), lambda i, _: f"clean/{i:05d}.json")

    # ---- compare
    _compare(corpus, layout, run, say)

    # ---- write
    shards = _once(work / "shards.json", lambda: _size_up(corpus, layout))
    every = [(split, i, number) for split, number in shards.items() for i in range(number)]
    run("write", stages.write_shard, every, lambda split, i, _: f"shards/{split}-{i:05d}.json")

    # ---- finish
    return _finish(corpus, layout, shards, say)


def _run(
    corpus: Corpus, layout: Layout, say: Callable, name: str, function: Callable,
    tasks: list[tuple], output: Callable[..., str],
) -> None:  # fmt: skip
    """function(corpus, layout, *task) for each task whose output isn't there yet."""
    todo = [task for task in tasks if not (corpus.work / output(*task)).exists()]
    done = f", {len(tasks) - len(todo):,} are done already" if len(todo) < len(tasks) else ""
    counted = beam.for_each(corpus, name, functools.partial(function, corpus, layout), todo)
    time = counted.pop("milliseconds", 0) / 1000
    shown = [card.size(n) if key == "bytes" else f"{n:,} {key}" for key, n in counted.items()]
    measured = "".join(f", {text}" for text in [*shown, f"{time:,.1f} processor s"] if todo)
    say(f"{name}: {len(todo):,} tasks{done}{measured}")


def _compare(corpus: Corpus, layout: Layout, run: Callable, say: Callable) -> None:
    """From keys to decisions."""
    parts = [(part,) for part in range(layout.parts)]
    if corpus.compares_documents:
        run("compare", comparing.find_edges, parts, lambda part: f"edges/0/{part:05d}")

        def join(round_: int) -> None:
            tasks = [(round_, part) for part in range(layout.parts)]
            run(f"join round {round_}", comparing.join, tasks,
                lambda round_, part: f"edges/{round_ + 1}/{part:05d}.json")  # fmt: skip

        joined = corpus.work / "edges/joined.json"
        _once(joined, lambda: comparing.join_rounds(corpus, layout, join))
    run("decide", comparing.decide_documents, parts, lambda part: f"left/{part:05d}.json")
    if corpus.duplicates is not None and corpus.duplicates.lines:
        units = [(unit,) for unit in range(layout.units)]
        run("lines", comparing.line_keys, units, lambda unit: f"lines/{unit:05d}.keys")
        run("compare lines", comparing.find_lines, parts, lambda part: f"lines/{part:05d}.later")
        run("decide on lines", comparing.decide_lines, parts, lambda part: f"lines/{part:05d}.json")
    if corpus.duplicates is not None and corpus.duplicates.substrings:
        say("compare substrings, in this process")
        _once(corpus.work / "spans.done", lambda: comparing.decide_substrings(corpus, layout))


def plan(corpus: Corpus) -> tuple[list[list[tuple[str, str, str]]], Layout]:
    """Units of (source, path, name) files, and the layout; the same however often it is asked."""
    problems = Problems()
    units: list[list[tuple[str, str, str]]] = []
    size = corpus.unit_bytes
    listed: list[list[Any]] = []
    for source, root in corpus.sources.items():
        for path, name, file_bytes in find_inputs(root, problems):
            if size >= corpus.unit_bytes or len(units[-1]) >= _FILES_IN_UNIT:
                units.append([])
                size = 0
            units[-1].append((source, path, name))
            size += file_bytes
            listed.append([source, path, file_bytes])
    if not units:
        raise UserError(
            f"Corpus.inputs: no files in {', '.join(corpus.sources.values())}"
            f"{'; ' + str(problems.examples) if problems.examples else ''}"
        )
    layout = _layout(corpus, len(units), sum(size for *_, size in listed))
    for folder in ("clean", "edges/0", "left", "lines", "decisions", "shards", "dataset"):
        (corpus.work / folder).mkdir(parents=True, exist_ok=True)
    wanted = {
        "settings": corpus.describe(), "files": listed, "problems": problems.examples,
        "not read": dict(problems.counts), "layout": dataclasses.asdict(layout),
    }  # fmt: skip
    file = corpus.work / "plan.json"
    if file.exists():
        found = read_json(file)
        _check_same(corpus, found, corpus.work)
        layout = Layout(**found["layout"])  # partitions may be another number now
        if found["files"] != listed:
            raise UserError(
                f"{corpus.work} is of an unfinished run on other input files; delete it, or give "
                "another Corpus.name or Corpus.version."
            )
    else:
        write_json(file, wanted)
    return units, layout


def _layout(corpus: Corpus, units: int, file_bytes: int) -> Layout:
    """Buckets for as many shards as packed input may make, and parts of bounded size."""
    buckets = _BUCKETS
    while buckets < MOST_BUCKETS and buckets * corpus.shard_bytes < 4 * file_bytes:
        buckets *= 2
    return Layout(units, buckets, corpus.partitions or -(-units // _UNITS_IN_PART))


def _check_same(corpus: Corpus, found: dict, where: Path) -> None:
    wanted = corpus.describe()
    for name, value in found["settings"].items():
        if wanted.get(name) != value:
            raise UserError(
                f"{where} was made with {name} = {str(value)[:200]}, not "
                f"{str(wanted.get(name))[:200]}; delete it, or give another Corpus.name or "
                "Corpus.version."
            )


def _size_up(corpus: Corpus, layout: Layout) -> dict[str, int]:
    """How many files each split gets; writes the mix's copies."""
    sizes: Counter[str] = Counter()
    for part in range(layout.parts):
        sizes.update(read_json(corpus.work / "left" / f"{part:05d}.json")["left"])
    if not sizes:
        raise UserError(_nothing_left(corpus))
    copies = corpus.mix.copies(sizes) if corpus.mix else {}
    write_json(corpus.work / "mix.json", copies)
    total = sum(size * copies.get(group, 0 if corpus.mix else 1) for group, size in sizes.items())

    def files(share: float) -> int:
        return max(1, min(layout.buckets, round(total * share / corpus.shard_bytes)))

    shards = {"train": files(1 - corpus.held_out)}
    return shards | ({"validation": files(corpus.held_out)} if corpus.held_out else {})


def _nothing_left(corpus: Corpus) -> str:
    return (
        f"No document is left of {', '.join(corpus.sources.values())}; what dropped them is in "
        f"{corpus.work}/clean/*.json: mend Corpus.steps, and delete that folder."
    )


def _finish(corpus: Corpus, layout: Layout, shards: dict[str, int], say: Callable) -> Path:
    work, folder = corpus.work, corpus.work / "dataset"
    total = Tally()
    planned = read_json(work / "plan.json")
    named: dict[str, list[str]] = dict(planned["problems"])
    for kind, number in planned["not read"].items():
        total.add("not read", kind, number)
    for unit in range(layout.units):
        index = read_json(work / "clean" / f"{unit:05d}.json")
        total.merge(Tally(**index["tally"]))
        for kind, examples in index["problems"].items():
            named[kind] = [*named.get(kind, []), *examples][:20]
    splits: dict[str, list[tuple[int, int]]] = {}
    for split, number in shards.items():
        for shard in range(number):
            index = read_json(work / "shards" / f"{split}-{shard:05d}.json")
            splits.setdefault(split, []).append((index["records"], index["bytes"]))
            total.merge(Tally(**index["tally"]))
    for part in range(layout.parts):
        for size, number in read_json(work / "left" / f"{part:05d}.json")["groups"].items():
            total.add("duplicate groups by size", size, number)
    for split, rows in list(splits.items()):
        if not sum(records for records, _ in rows):  # TFDS knows no empty split
            for shard in range(len(rows)):
                name = dataset.file_name(corpus.name, split, shard, len(rows))
                (folder / name).unlink(missing_ok=True)
            del splits[split]
    if "train" not in splits:
        raise UserError(_nothing_left(corpus))
    dataset.write_metadata(
        folder, corpus.name, corpus.version, corpus.description, corpus.scores, splits
    )
    facts = card.facts(corpus, total, named)
    if corpus.tokenizer is not None:
        say("train a vocabulary")
        facts["vocabulary"] = train_and_report(corpus.tokenizer, folder, total.tables)
    write_json(folder / "data_card.json", facts)
    (folder / "data_card.html").write_text(card.page(facts), encoding="utf-8", errors="replace")
    os.rename(folder, corpus.target)  # here it appears
    shutil.rmtree(work)
    say(card.summary(facts))
    return corpus.target


def _once(file: Path, compute: Callable[[], dict]) -> dict:
    """What `compute` returned when it first came to its end."""
    if not file.exists():
        write_json(file, compute())
    return read_json(file)
