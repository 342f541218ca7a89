"""Groups of duplicates by parts and rounds: the same as one by one, however the units are cut."""

import random

import numpy as np
import pytest

pytest.importorskip("zstandard", reason="needs the extra `corpus`")

from t5x_lite.corpus import comparing, stages
from t5x_lite.corpus.duplicates import Duplicates
from t5x_lite.corpus.exchange import receive, send
from t5x_lite.corpus.settings import Corpus
from t5x_lite.corpus.store import Layout, read_json, write_json

UNITS, DOCUMENTS, COLUMNS = 7, 30, 3


def test_rows_reach_their_receivers(tmp_path):
    rng = np.random.default_rng(0)
    sent = []
    for name in "ab":
        rows, to = rng.integers(0, 2**63, (50, 2), np.uint64), rng.integers(0, 4, 50)
        send(tmp_path / name, to, rows, 5)  # the last one gets nothing
        sent.append((to, rows))
    for receiver in range(5):
        found = receive([tmp_path / "a", tmp_path / "b"], receiver, 5, 2)
        wanted = np.concatenate([rows[to == receiver] for to, rows in sent])
        assert found.tolist() == wanted.tolist()


def chain(rng):
    """Document i shares a key with i + 1 and no other: one group through all parts."""
    order = rng.sample(range(UNITS * DOCUMENTS), UNITS * DOCUMENTS)
    keys = np.zeros((UNITS * DOCUMENTS, COLUMNS), np.uint64)
    for place, number in enumerate(order):
        keys[number] = [10_000 + number, place // 2, 5_000 + (place + 1) // 2]
    return keys


def scattered(rng):
    size = (UNITS * DOCUMENTS, COLUMNS)
    return np.array([rng.randrange(400) for _ in range(size[0] * size[1])], np.uint64).reshape(size)


def one_by_one(keys):
    """{number: (smallest of its group, whether its column 0 was there before)} of later ones."""
    parent = list(range(len(keys)))

    def root(x):
        while parent[x] != x:
            x = parent[x]
        return x

    seen, exact = {}, set()
    for number, row in enumerate(keys.tolist()):
        for column, key in enumerate(row):
            first = seen.setdefault((column, key), number)
            low, high = sorted((root(first), root(number)))
            parent[high] = low
            if column == 0 and first != number:
                exact.add(number)
    return {n: (root(n), n in exact) for n in range(len(keys)) if root(n) != n}


@pytest.mark.parametrize("parts", [1, 3, 7])
@pytest.mark.parametrize("kind", [chain, scattered])
def test_groups_whatever_the_parts(tmp_path, kind, parts):
    keys = kind(random.Random(parts))
    corpus = Corpus(__file__, str(tmp_path / "out"), duplicates=Duplicates(bands=2))
    layout = Layout(UNITS, 256, parts)
    for folder in ("clean", "edges/0", "decisions", "left"):
        (corpus.work / folder).mkdir(parents=True)
    for unit in range(UNITS):
        mine = keys[unit * DOCUMENTS : (unit + 1) * DOCUMENTS]
        stages.send_keys(corpus, layout, unit, list(mine))
        rows = {"sizes": [2] * DOCUMENTS, "groups": ["a", "b"] * (DOCUMENTS // 2),
                "buckets": [n % 256 for n in range(DOCUMENTS)]}  # fmt: skip
        write_json(corpus.work / "clean" / f"{unit:05d}.sizes.json", rows)
    for part in range(parts):
        comparing.find_edges(corpus, layout, part)
    rounds = comparing.join_rounds(
        corpus, layout, lambda r: [comparing.join(corpus, layout, r, p) for p in range(parts)]
    )
    assert rounds["round"] == 1 if parts == 1 else rounds["round"] <= 9
    write_json(corpus.work / "edges/joined.json", rounds)
    for part in range(parts):
        comparing.decide_documents(corpus, layout, part)

    found, wanted = {}, one_by_one(keys)
    for unit in range(UNITS):
        file = corpus.work / "decisions" / f"{unit:05d}.dropped"
        for number, (reason, first) in stages.read_rows(file, range(256), 256):
            start = (first >> stages.UNIT_BITS) * DOCUMENTS + (first & 0xFFFFFFF)
            found[unit * DOCUMENTS + number] = (start, reason == "Duplicates/exact")
    assert found == wanted and len(wanted) > 100
    left = [read_json(corpus.work / "left" / f"{part:05d}.json") for part in range(parts)]
    assert sum(sum(row["left"].values()) for row in left) == 2 * (len(keys) - len(wanted))
    sizes = [(int(size), number) for row in left for size, number in row["groups"].items()]
    assert sum((size - 1) * number for size, number in sizes) == len(wanted)
