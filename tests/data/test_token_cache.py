import json
import os

import numpy as np
import pytest

from t5x_lite.data import token_cache
from t5x_lite.data.loader import BatchLoader, eval_batches
from t5x_lite.data.objectives.lm import CausalLM, TextToText
from t5x_lite.data.objectives.span import SpanCorruption
from t5x_lite.data.preprocessors import Fields, Filter
from t5x_lite.data.sources import InMemory
from t5x_lite.data.tasks import Task
from t5x_lite.data.token_cache import CachedTokens, write_cache
from t5x_lite.data.vocabulary import ByteVocabulary
from t5x_lite.errors import UserError

pytest.importorskip("array_record")

VOCABULARY = ByteVocabulary()
TEXTS = [f"document {i} " + "y" * (7 * i % 40) for i in range(50)]
PAIRS = [{"a": f"question {i}", "b": "ja" * (i % 4) + "."} for i in range(50)]


def text_task(objective=SpanCorruption(), texts=TEXTS, **kwargs):  # noqa: B008
    return Task("text", InMemory([*texts, " "], held_out=0.1), objective, VOCABULARY, **kwargs)


def pair_task():
    steps = [Filter("a", without="7"), Fields({"inputs": "ask: {a}", "targets": "{b}"})]
    return Task("pairs", InMemory(PAIRS, held_out=0.1), TextToText(), VOCABULARY, steps)


def cached(task, folder, **kwargs):
    source = CachedTokens(str(folder), **kwargs)
    return Task(task.name, source, task.objective, task.vocabulary, task.preprocessors)


CASES = {
    "span corruption": (text_task(), "encoder_decoder", {"inputs": 24, "targets": 12}),
    "language model": (text_task(CausalLM()), "decoder_only", {"targets": 32}),
    "dropped": (text_task(preprocessors=[Filter(without="3")]), "encoder_decoder",
                {"inputs": 24, "targets": 12}),
    "pairs": (pair_task(), "encoder_decoder", {"inputs": 24, "targets": 12}),
}  # fmt: skip


def write(task, folder, **kwargs):
    return write_cache(task, folder, say=lambda line: None, **kwargs)


def same(ones, others, count):
    for _ in range(count):
        one, other = next(ones), next(others)
        np.testing.assert_array_equal(one.position, other.position)
        for name in one.features:
            np.testing.assert_array_equal(one.features[name], other.features[name], err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_batches_are_those_of_the_text(tmp_path, case):
    task, architecture, lengths = CASES[case]
    write(task, tmp_path, shards=3)
    again = cached(task, tmp_path, source=task.source)
    assert again.fingerprint == task.fingerprint
    assert (again.num_examples, again.num_bytes) == (task.num_examples, task.num_bytes)
    arguments = dict(lengths=lengths, batch_size=4, architecture=architecture)
    loaders = [BatchLoader(t, seed=5, **arguments) for t in (task, again)]
    same(*loaders, 25)  # several epochs
    position = loaders[0].position
    for loader in loaders:
        loader.restore(position)
    same(*loaders, 3)
    evaluations = [list(eval_batches(t, **arguments)) for t in (task, again)]
    assert len(evaluations[0]) == len(evaluations[1])
    for one, other in zip(*evaluations, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_manifest(tmp_path):
    task = text_task()
    cache = write(task, tmp_path, shards=2)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    train = manifest["splits"]["train"]
    assert [shard["file"] for shard in train["shards"]] == [
        "train-00000-of-00002.array_record", "train-00001-of-00002.array_record"
    ]  # fmt: skip
    assert train["documents"] == task.num_examples == len(cache)
    texts = [task.source.split("train")[i]["text"] for i in range(len(cache))]
    assert train["tokens"] == sum(len(t.encode()) for t in texts)
    assert manifest["source"] == task.source.fingerprint
    assert manifest["vocabulary"] == VOCABULARY.fingerprint and manifest["dtype"] == "<u2"
    assert VOCABULARY.decode(cache[3]["text"]) == texts[3] and cache[3]["text"].dtype == np.int32
    assert cache.describe()["tokens"]["train"] == train["tokens"]


def test_an_interrupted_cache_is_continued(tmp_path, monkeypatch):
    task, made, real = text_task(), [], token_cache._write_shard

    def dying(task, split, first, last, path):
        if len(made) == 2:
            (tmp_path / f".{os.path.basename(path)}.half").write_bytes(b"torn")
            raise KeyboardInterrupt
        made.append(os.path.basename(path))
        return real(task, split, first, last, path)

    monkeypatch.setattr(token_cache, "_write_shard", dying)
    with pytest.raises(KeyboardInterrupt):
        write(task, tmp_path, shards=4)
    with pytest.raises(UserError, match="an unfinished cache; run t5x_lite data cache, it cont"):
        len(CachedTokens(str(tmp_path)))
    first = {name: (tmp_path / name).stat().st_mtime_ns for name in made}
    monkeypatch.setattr(token_cache, "_write_shard", real)
    lines = []
    write_cache(task, tmp_path, shards=9, say=lines.append)  # it keeps to its plan of 4
    assert "continuing, 2 of 5 files are there" in lines[0]
    assert first == {name: (tmp_path / name).stat().st_mtime_ns for name in made}
    assert len(list(tmp_path.glob("train-*.array_record"))) == 4
    assert not list(tmp_path.glob(".*"))
    whole = tmp_path / "whole"
    write(task, whole, shards=4)
    assert (tmp_path / "manifest.json").read_text() == (whole / "manifest.json").read_text()
    write_cache(task, tmp_path, say=lines.append)
    assert "whole already, checksums are right" in lines[-1]


def test_worker_processes_write_the_same(tmp_path):
    write(text_task(), tmp_path / "one", shards=3)
    write(text_task(), tmp_path / "two", shards=3, num_workers=2)
    one, two = ((tmp_path / n / "manifest.json").read_text() for n in ("one", "two"))
    assert one == two


def test_a_stale_cache_is_refused(tmp_path):
    task = text_task()
    write(task, tmp_path)
    lengths = dict(lengths={"inputs": 24, "targets": 12}, batch_size=2, seed=0,
                   architecture="encoder_decoder")  # fmt: skip
    other = text_task(texts=TEXTS[1:]).source
    fingerprints = f"{task.source.fingerprint}.*{other.fingerprint}"
    with pytest.raises(UserError, match=f"source of fingerprint {fingerprints}"):
        BatchLoader(cached(task, tmp_path, source=other), **lengths)
    with pytest.raises(UserError, match=f"cache of another source: fingerprint {fingerprints}"):
        write(text_task(texts=TEXTS[1:]), tmp_path)
    small = Task("text", CachedTokens(str(tmp_path)), SpanCorruption(), ByteVocabulary(60))
    fingerprints = f"{VOCABULARY.fingerprint}.*{small.vocabulary.fingerprint}"
    with pytest.raises(UserError, match=f"vocabulary of fingerprint {fingerprints}"):
        BatchLoader(small, **lengths)
    steps = Task("text", CachedTokens(str(tmp_path)), SpanCorruption(), VOCABULARY, [Filter()])
    with pytest.raises(UserError, match="with the preprocessors .*, task 'text' has .*Filter"):
        BatchLoader(steps, **lengths)
    with pytest.raises(UserError, match="holds no cache; run t5x_lite data cache"):
        len(CachedTokens(str(tmp_path / "nowhere")))


def test_a_damaged_cache_is_found(tmp_path):
    cache = write(text_task(), tmp_path)
    path = tmp_path / "train-00000-of-00001.array_record"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="train-00000-of-00001.array_record is damaged: its checks"):
        cache.verify()
    path.write_bytes(data[:-5])
    with pytest.raises(UserError, match=rf"has {len(data) - 5:,} bytes, expected {len(data):,}"):
        _ = CachedTokens(str(tmp_path))[0]
