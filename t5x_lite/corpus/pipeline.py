"""From raw documents to the dataset, read top to bottom: plan, clean, compare, write, finish.

Every stage keeps what it finished in the work folder, so a run that is started again goes on where
it was; the dataset appears under its name in one step at the end.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from t5x_lite.corpus import beam, card, dataset, stages
from t5x_lite.corpus.opening import Problems
from t5x_lite.corpus.readers import find_inputs
from t5x_lite.corpus.settings import Corpus
from t5x_lite.corpus.store import BUCKETS, write_json
from t5x_lite.corpus.tally import Tally
from t5x_lite.corpus.tokenizer import train_and_report
from t5x_lite.errors import UserError

_FILES_IN_UNIT = 5000


def build(corpus: Corpus, say: Callable[[str], None] = print) -> Path:
    """Makes the dataset, or goes on making it, and returns its folder.

    Raises:
      UserError: the folder of an unfinished run has other settings or input; there are no files,
        or nothing is left of them.
    """
    work, target = corpus.work, corpus.target
    if (target / "dataset_info.json").exists():
        _check_same(corpus, json.loads((target / "data_card.json").read_bytes()), target)
        say(f"{target} is finished; nothing to do")
        return target
    units = plan(corpus)
    say(f"{sum(map(len, units)):,} files in {len(units):,} units")

    # ---- clean
    todo = [(i, unit) for i, unit in enumerate(units) if not _has(work, f"clean/{i:05d}.json")]
    say(f"clean: {len(todo):,} units, {len(units) - len(todo):,} are done already")
    beam.for_each(corpus, "clean", stages.clean_unit, todo)

    # ---- compare
    _once(work / "documents.done", lambda: _compare_documents(corpus, len(units), say))
    _once(work / "lines.done", lambda: _compare_lines(corpus, len(units), say))

    # ---- write
    shards = _once(work / "shards.json", lambda: _size_up(corpus, len(units)))
    todo = [
        (split, shard, number, len(units))
        for split, number in shards.items()
        for shard in range(number)
        if not _has(work, f"shards/{split}-{shard:05d}.json")
    ]
    say(f"write: {len(todo):,} files, {sum(shards.values()) - len(todo):,} are done already")
    beam.for_each(corpus, "write", stages.write_shard, todo)

    # ---- finish
    return _finish(corpus, len(units), shards, say)


def plan(corpus: Corpus) -> list[list[tuple[str, str, str]]]:
    """Units of (source, path, name) files; the same however often it is asked."""
    problems = Problems()
    units: list[list[tuple[str, str, str]]] = []
    size = corpus.unit_bytes
    listed = []
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
    for folder in ("clean", "decisions", "shards", "dataset"):
        (corpus.work / folder).mkdir(parents=True, exist_ok=True)
    wanted = {
        "settings": corpus.describe(), "files": listed, "problems": problems.examples,
        "not read": dict(problems.counts),
    }  # fmt: skip
    file = corpus.work / "plan.json"
    if file.exists():
        _check_same(corpus, json.loads(file.read_bytes()), corpus.work)
        if json.loads(file.read_bytes())["files"] != listed:
            raise UserError(
                f"{corpus.work} is of an unfinished run on other input files; delete it, or give "
                "another Corpus.name or Corpus.version."
            )
    else:
        write_json(file, wanted)
    return units


def _check_same(corpus: Corpus, found: dict, where: Path) -> None:
    wanted = corpus.describe()
    for name, value in found["settings"].items():
        if wanted.get(name) != value:
            raise UserError(
                f"{where} was made with {name} = {str(value)[:200]}, not "
                f"{str(wanted.get(name))[:200]}; delete it, or give another Corpus.name or "
                "Corpus.version."
            )


def _compare_documents(corpus: Corpus, units: int, say: Callable) -> dict:
    if corpus.duplicates is not None and (corpus.duplicates.exact or corpus.duplicates.near):
        say("compare documents: " + ", ".join(corpus.duplicates.names[:2]) + ", ...")
        beam.compare(
            corpus, "documents", stages.unit_keys, stages.decide_documents, units
        )  # fmt: skip
    return {}


def _compare_lines(corpus: Corpus, units: int, say: Callable) -> dict:
    if corpus.duplicates is not None and corpus.duplicates.lines:
        say("compare lines")
        beam.compare(corpus, "lines", stages.unit_line_keys, stages.decide_lines, units)
    if corpus.duplicates is not None and corpus.duplicates.substrings:
        say("compare substrings, in this process")
        stages.decide_substrings(corpus, units)
    return {}


def _size_up(corpus: Corpus, units: int) -> dict[str, int]:
    """How many files each split gets; writes the mix's copies."""
    sizes: Counter[str] = Counter()
    for unit in range(units):
        index = json.loads((corpus.work / "clean" / f"{unit:05d}.json").read_bytes())
        gone = stages.decisions(corpus, unit)["dropped"]
        for i, (size, group) in enumerate(zip(index["sizes"], index["groups"], strict=True)):
            if str(i) not in gone:
                sizes[group] += size
    if not sizes:
        raise UserError(_nothing_left(corpus))
    copies = corpus.mix.copies(sizes) if corpus.mix else {}
    write_json(corpus.work / "mix.json", copies)
    total = sum(size * copies.get(group, 0 if corpus.mix else 1) for group, size in sizes.items())

    def files(share: float) -> int:
        return max(1, min(BUCKETS, round(total * share / corpus.shard_bytes)))

    shards = {"train": files(1 - corpus.held_out)}
    return shards | ({"validation": files(corpus.held_out)} if corpus.held_out else {})


def _nothing_left(corpus: Corpus) -> str:
    return (
        f"No document is left of {', '.join(corpus.sources.values())}; what dropped them is in "
        f"{corpus.work}/clean/*.json: mend Corpus.steps, and delete that folder."
    )


def _finish(corpus: Corpus, units: int, shards: dict[str, int], say: Callable) -> Path:
    work, folder = corpus.work, corpus.work / "dataset"
    total = Tally()
    planned = json.loads((work / "plan.json").read_bytes())
    named: dict[str, list[str]] = dict(planned["problems"])
    for kind, number in planned["not read"].items():
        total.add("not read", kind, number)
    for unit in range(units):
        index = json.loads((work / "clean" / f"{unit:05d}.json").read_bytes())
        total.merge(Tally(**index["tally"]))
        for kind, examples in index["problems"].items():
            named[kind] = [*named.get(kind, []), *examples][:20]
    splits: dict[str, list[tuple[int, int]]] = {}
    for split, number in shards.items():
        for shard in range(number):
            index = json.loads((work / "shards" / f"{split}-{shard:05d}.json").read_bytes())
            splits.setdefault(split, []).append((index["records"], index["bytes"]))
            total.merge(Tally(**index["tally"]))
    if (work / "groups.json").exists():
        for size, number in json.loads((work / "groups.json").read_bytes()).items():
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
        sizes = total.tables["language: bytes"]
        facts["vocabulary"] = train_and_report(corpus.tokenizer, folder, sizes)
    write_json(folder / "data_card.json", facts)
    (folder / "data_card.html").write_text(card.page(facts), encoding="utf-8", errors="replace")
    os.rename(folder, corpus.target)  # here it appears
    shutil.rmtree(work)
    say(card.summary(facts))
    return corpus.target


def _has(work: Path, name: str) -> bool:
    return (work / name).exists()


def _once(file: Path, compute: Callable[[], dict]) -> dict:
    """What `compute` returned when it first came to its end."""
    if not file.exists():
        write_json(file, compute())
    return json.loads(file.read_bytes())
