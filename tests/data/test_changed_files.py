"""Files that change while they are in use: other records are never taken for those of the index."""

import gzip
import json
import os
import pickle
import time

import pytest
from test_file_sources import TEXTS, write, write_array_record, write_parquet

from t5x_lite.data import file_bytes, files
from t5x_lite.data.objectives.lm import CausalLM
from t5x_lite.data.open_files import open_files
from t5x_lite.data.sources import PythonLibrary
from t5x_lite.data.tasks import Task
from t5x_lite.data.text_files import ParallelFiles
from t5x_lite.data.token_cache import CachedTokens, write_cache
from t5x_lite.data.vocabulary import ByteVocabulary
from t5x_lite.errors import UserError

KINDS = ["a.txt", "a.jsonl", "a.csv", "a.tsv", "a.tfrecord", "a.array_record"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_bytes, "_LOOK_SECONDS", 0)


@pytest.fixture(params=KINDS)
def opened(request, tmp_path):
    """(path, source, content): indexed, and read once."""
    write(tmp_path, request.param)
    path = tmp_path / request.param
    source = open_files(str(path), held_out=0.0)
    assert source[3]["text"] == TEXTS[3]
    return path, source, path.read_bytes()


@pytest.mark.parametrize("size", [0, 100])
def test_a_file_that_was_cut_short_is_named(opened, size):
    path, source, _ = opened
    os.truncate(path, size)
    with pytest.raises(UserError, match=f"{path}.*(cut short|has changed)"):
        list(source)


def test_a_file_that_was_written_over_is_named(opened):
    path, source, content = opened
    if path.suffix == ".array_record":  # compressed; its reader has it in its buffer
        source = pickle.loads(pickle.dumps(source))
        write_array_record(path, [t.replace("t 3:", "a 3:").encode() for t in TEXTS])
    else:
        with open(path, "r+b") as f:
            f.write(content.replace(b"document 3:", b"documena 3:"))
    os.utime(path, ns=(1, 1))
    assert source[5]["text"] == TEXTS[5]  # which is what it was
    with pytest.raises(UserError, match=f"{path} has changed since it was indexed: record 3"):
        source[3]


def test_a_file_that_is_touched_or_grows_goes_on(opened):
    path, source, content = opened
    os.utime(path)
    assert [r["text"] for r in source] == TEXTS
    with open(path, "ab") as f:
        f.write(content)
    if path.suffix != ".array_record":  # its index is at its end
        assert [r["text"] for r in source] == TEXTS


def test_another_file_of_its_name_is_seen_when_it_is_opened_again(opened):
    path, source, content = opened
    other = path.with_name("other")
    if path.suffix == ".array_record":
        write_array_record(other, [t[::-1].encode() for t in TEXTS])
    else:
        other.write_bytes(content.replace(b"document", b"documena"))
    os.replace(other, path)
    worker = pickle.loads(pickle.dumps(source))
    with pytest.raises(UserError, match=f"{path} has changed since it was indexed"):
        list(worker)


@pytest.mark.parametrize("limit", [1 << 20, 0])
def test_a_parquet_file_that_a_worker_finds_changed(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(file_bytes, "MEMORY_BYTES", limit)
    path = tmp_path / "a.parquet"
    write_parquet(path, {"text": TEXTS})
    source = open_files(str(path), held_out=0.0)
    assert source[3]["text"] == TEXTS[3] and source.where(3) == f"{path} row 3"
    os.utime(path, ns=(1, 1))
    assert [r["text"] for r in pickle.loads(pickle.dumps(source))] == TEXTS
    said = f"{path} has changed since it was indexed: record 3, at row 3"
    others = {"text": TEXTS[::-1]}, {"text": TEXTS[:2]}, {"texts": TEXTS}, {"text": [1, 2, 3, 4]}
    for other in others:
        write_parquet(path, other)
        assert source[3]["text"] == TEXTS[3]  # which it holds
        with pytest.raises(UserError, match=said):
            pickle.loads(pickle.dumps(source))[3]
    os.truncate(path, 100)
    with pytest.raises(UserError, match=said):
        pickle.loads(pickle.dumps(source))[3]
    path.unlink()
    with pytest.raises(UserError, match=f"{path} can't be read now"):
        pickle.loads(pickle.dumps(source))[3]


def test_a_file_that_was_corrected_is_opened_anew(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n')
    first = open_files(str(path))
    assert first[0]["text"] == "one" and open_files(str(path)) is first
    path.write_text('{"text": "two"}\n')
    assert open_files(str(path))[0]["text"] == "two"


def test_unpacked_files_stay_what_they_were(tmp_path, monkeypatch):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress("\n\n".join(TEXTS).encode()))
    source = open_files(str(path), held_out=0.0)
    assert source[0]["text"] == TEXTS[0]
    path.write_bytes(gzip.compress("\n\n".join(TEXTS[::-1]).encode()))
    assert source[1]["text"] == TEXTS[1]
    with pytest.raises(UserError, match="has changed since it was indexed: record 1"):
        pickle.loads(pickle.dumps(source))[1]
    monkeypatch.setattr(file_bytes, "MEMORY_BYTES", 0)  # unpacked into the cache folder
    source = open_files(str(path), held_out=0.001)
    assert source[0]["text"] == TEXTS[-1]
    (unpacked,) = (tmp_path / "cache/unpacked").iterdir()
    os.truncate(unpacked, 10)
    with pytest.raises(UserError, match=f"{unpacked} .the content of {path}. was cut short"):
        list(source)


def test_a_kept_index_is_of_the_file_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "INDEX_BYTES", 0)
    path = tmp_path / "a.jsonl"
    for text in ("one", "two"):  # of one size
        path.write_text(json.dumps({"text": text}) + "\n")
        os.utime(path, ns=(len(text), time.time_ns()))
        assert [r["text"] for r in open_files(str(path), held_out=0.0 if text == "one" else 0.5)]
        source = type(open_files(str(path)))(str(path), held_out=0.0)
        assert [r["text"] for r in source] == [text]


def test_parallel_files_and_the_library(tmp_path):
    (tmp_path / "a.en").write_text("one\ntwo\n")
    (tmp_path / "a.de").write_text("eins\nzwei\n")
    source = ParallelFiles({"en": str(tmp_path / "a.en"), "de": str(tmp_path / "a.de")})
    assert source[1] == {"en": "two", "de": "zwei"}
    (tmp_path / "a.de").write_text("eins\n")
    with pytest.raises(UserError, match=r"a.de"):
        source[1]
    (tmp_path / "a.py").write_text("x = 1\n")
    library = PythonLibrary(root=str(tmp_path))
    assert library[0]["text"] == "x = 1\n"
    (tmp_path / "a.py").write_text("x\n")
    with pytest.raises(UserError, match=r"a.py has changed"):
        library[0]


def test_a_token_cache(tmp_path):
    pytest.importorskip("array_record")
    write(tmp_path, "a.txt")
    task = Task("t", open_files(str(tmp_path / "a.txt")), CausalLM(), ByteVocabulary())
    write_cache(task, tmp_path / "tokens", say=lambda _: None)
    cache = CachedTokens(str(tmp_path / "tokens"))
    first = cache[0]["text"].tolist()
    (shard,) = (tmp_path / "tokens").glob("train-*.array_record")
    os.utime(shard)
    assert cache[0]["text"].tolist() == first
    os.truncate(shard, 0)
    with pytest.raises(UserError, match=f"{shard} has changed while it was in use"):
        cache[0]
