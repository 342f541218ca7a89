"""Global batches are the same for any hosts, workers and resumes, from every kind of storage."""

import json
import os
import time

import numpy as np
import pytest
from waiting import wait_until

from t5x_lite.data.loader import BatchLoader, prefetch
from t5x_lite.data.objectives.lm import PrefixLM
from t5x_lite.data.objectives.span import SpanCorruption
from t5x_lite.data.open_files import open_files
from t5x_lite.data.sources import FromFunction, InMemory
from t5x_lite.data.tables import JsonLines
from t5x_lite.data.tasks import Mixture, Task
from t5x_lite.data.token_cache import CachedTokens, write_cache
from t5x_lite.data.vocabulary import ByteVocabulary
from t5x_lite.errors import UserError

VOCABULARY = ByteVocabulary()
TEXTS = [f"document {i} " + "z" * (11 * i % 30) for i in range(20)]
BATCH, STEPS = 8, 14  # 8 * 14 rows of 20 tokens: several epochs of 20 documents


def numbered(i):
    return f"number {i}"


def exploding(i):
    if i == 13:
        raise UserError("record 13 is broken")
    return TEXTS[i]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("order")
    os.environ["T5X_LITE_CACHE"] = str(folder / "cache")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (folder / "a.jsonl").write_text(lines)
    (folder / "a.txt").write_text("\n\n".join(TEXTS))
    try:
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table({"text": TEXTS}), folder / "a.parquet")
    except ImportError:
        pass
    return folder


def make_task(folder, kind):
    if kind == "function":
        source = FromFunction(numbered, length=30)
    elif kind == "cache":
        pytest.importorskip("array_record")
        task = Task("t", InMemory(TEXTS, held_out=0.1), SpanCorruption(), VOCABULARY)
        write_cache(task, folder / "tokens", shards=2, say=lambda line: None)
        source = CachedTokens(str(folder / "tokens"))
    elif kind == "mixture":
        task = make_task(folder, "cache")
        prefix = Task("p", JsonLines(str(folder / "a.jsonl")), PrefixLM(), VOCABULARY)
        return Mixture("m", [task, prefix], [2, 1])
    elif kind == "parquet":
        pytest.importorskip("pyarrow")
        source = open_files(str(folder / "a.parquet"), held_out=0.1)
    else:
        source = open_files(str(folder / f"a.{kind}"), held_out=0.1)
    return Task("t", source, SpanCorruption(), VOCABULARY)


def loader(task, **kwargs):
    return BatchLoader(task, lengths={"inputs": 20, "targets": 24}, batch_size=BATCH, seed=7,
                       architecture="encoder_decoder", **kwargs)  # fmt: skip


def take(loader, n):
    return [next(loader) for _ in range(n)]


def check(parts, whole):
    """The hosts' parts, put together, are the whole batches."""
    for batches, expected in zip(zip(*parts, strict=True), whole, strict=True):
        for name, value in expected.features.items():
            found = np.concatenate([b.features[name] for b in batches])
            np.testing.assert_array_equal(found, value, err_msg=name)
        positions = np.concatenate([b.position for b in batches])
        np.testing.assert_array_equal(positions, expected.position)


def rows(hosts):
    return np.split(np.arange(BATCH), hosts)


@pytest.mark.parametrize("kind", ["jsonl", "txt", "parquet", "function", "cache", "mixture"])
def test_hosts_and_resumes(folder, kind):
    task = make_task(folder, kind)
    whole = take(loader(task), STEPS)
    documents = sum(len(leaf.source.split("train")) for leaf, _ in task.leaves)
    drawn = whole[-1].position[:, 1::2].sum()
    assert drawn > 2 * documents, "the test must cross epochs"
    for hosts in (2, 4):
        check([take(loader(task, rows=part), STEPS) for part in rows(hosts)], whole)
    saved = [take(loader(task, rows=part), 5)[-1].position for part in rows(4)]
    saved, parts = np.concatenate(saved), []
    for part in rows(2):
        host = loader(task, rows=part)
        host.restore(saved[part])
        parts.append(take(host, STEPS - 5))
    check(parts, whole[5:])


@pytest.mark.parametrize("kind", ["jsonl", "mixture"])
def test_workers(folder, kind):
    task = make_task(folder, kind)
    whole = take(loader(task), STEPS)
    worked = loader(task, num_workers=3)
    check([take(worked, 6)], whole[:6])
    worked.restore(whole[2].position)
    check([take(worked, 3)], whole[3:6])
    worked.close()
    check([take(worked, 2)], whole[6:8])  # started again, where it left off
    worked.close()
    half = loader(task, num_workers=1, rows=rows(2)[1])
    half.restore(whole[1].position[rows(2)[1]])
    [batch] = take(half, 1)
    np.testing.assert_array_equal(batch.position, whole[2].position[rows(2)[1]])
    half.close()


def test_what_goes_wrong_in_a_worker_comes_out():
    source = FromFunction(exploding, length=20, held_out=0.0)
    worked = loader(Task("t", source, SpanCorruption(), VOCABULARY), num_workers=2)
    with pytest.raises(UserError, match="record 13 is broken"):
        take(worked, 20)
    worked.close()
    unsendable = FromFunction(lambda i: "x", length=20)
    worked = loader(Task("t", unsendable, SpanCorruption(), VOCABULARY), num_workers=2)
    with pytest.raises(UserError, match="can't be sent to worker processes.*num_workers = 0"):
        next(worked)
    with pytest.raises(UserError, match="num_workers is -1"):
        loader(Task("t", source, SpanCorruption(), VOCABULARY), num_workers=-1)


def test_a_killed_worker_is_named(folder):
    worked = loader(make_task(folder, "function"), num_workers=2)
    next(worked)
    worked._workers._processes[1].kill()
    worked._workers._processes[1].join()
    with pytest.raises(RuntimeError, match=r"data worker 1 ended by itself \(exit code -9\)"):
        take(worked, 500)  # more than it had sent
    worked.close()


def test_time_waited_for_data_is_counted(folder):
    made = []

    def slow():
        time.sleep(0.1)
        for i in range(3):
            yield i
            made.append(i)  # asked for the one after it, so this one has been handed over

    with prefetch(slow()) as items:
        assert next(items) == 0 and items.seconds_waited > 0.05
        wait_until(lambda: 1 in made)
        before = items.seconds_waited
        assert next(items) == 1 and items.seconds_waited == before
    worked = loader(make_task(folder, "function"), num_workers=2)
    with prefetch(worked) as batches:
        next(batches)
    assert not worked._workers._processes  # closed with the prefetch
