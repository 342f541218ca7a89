"""The whole way, on Beam: what comes out, on one and two processes, after a kill, by name."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("apache_beam", reason="needs the extra `corpus`")
pytest.importorskip("tensorflow_datasets", reason="needs the extra `corpus`")
pytest.importorskip("rensa", reason="needs the extra `corpus`")
pytest.importorskip("phonenumbers", reason="needs the extra `corpus`")

from waiting import wait_until

import t5x_lite
from t5x_lite.corpus.c4 import C4
from t5x_lite.corpus.duplicates import Duplicates
from t5x_lite.corpus.limits import Limits
from t5x_lite.corpus.mixing import Mix
from t5x_lite.corpus.pii import Pii
from t5x_lite.corpus.pipeline import build
from t5x_lite.corpus.settings import Corpus
from t5x_lite.corpus.store import BucketWriter, bucket_of, read_rows
from t5x_lite.corpus.tokenizer import Tokenizer
from t5x_lite.data.tfds_source import Tfds
from t5x_lite.data.vocabulary import SentencePieceVocabulary
from t5x_lite.errors import UserError

ROOT = str(Path(t5x_lite.__file__).parent.parent)
LINE = "the sea was calm and every boat lay still near a long grey wall where gulls sat"
WORDS = LINE.split()


def sentence(rng):
    return " ".join(rng.choice(WORDS) for _ in range(12)).capitalize() + "."


def raw(folder, number=40, seed=0):
    """Documents, some of them again in b/, and one that is short, private or binary."""
    rng = random.Random(seed)
    (folder / "b").mkdir(parents=True)
    texts = ["\n".join(sentence(rng) for _ in range(8)) for _ in range(number)]
    for i, text in enumerate(texts):
        (folder / f"doc{i:03d}.txt").write_text(text)
    for i in (3, 5, 7):
        (folder / "b" / f"exact{i}.txt").write_text(texts[i].upper() + "!")
        near = texts[i + 10].split()
        near[4] = "lighthouse"
        (folder / "b" / f"near{i}.txt").write_text(" ".join(near))
    (folder / "z_short.txt").write_text("Hi.")
    (folder / "z_mail.txt").write_text(f"{texts[0][::-1]} Write to ann.lee@mail.org today.")
    (folder / "z_bin.txt").write_bytes(b"\0\1\2")


def corpus(tmp_path, **settings):
    defaults = dict(
        inputs=str(tmp_path / "raw"), output=str(tmp_path / "out"), name="mine",
        steps=(Limits(min_characters=5), Pii()), workers=1, unit_bytes=8000, shard_bytes=6000,
        held_out=0.2,
    )  # fmt: skip
    return Corpus(**defaults | settings)


def files_of(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(folder).iterdir()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("made")
    raw(tmp_path / "raw")
    said = []
    folder = build(corpus(tmp_path), said.append)
    return tmp_path, folder, said


def records(folder):
    source = Tfds("mine", str(folder.parents[1]), held_out=0)
    return {name: [source.split(name)[i] for i in range(len(source.split(name)))]
            for name in source.splits}  # fmt: skip


def test_what_comes_out(made):
    tmp_path, folder, _ = made
    splits = records(folder)
    assert set(splits) == {"train", "validation"}
    found = splits["train"] + splits["validation"]
    kept = {r["url"] for r in found}
    dropped = {f"doc{i:03d}.txt" for i in (3, 5, 7, 13, 15, 17)}  # b/ comes before doc
    inputs = {str(p.relative_to(tmp_path / "raw")) for p in (tmp_path / "raw").rglob("*.txt")}
    assert inputs - kept == dropped | {"z_short.txt", "z_bin.txt"}
    mail = next(r for r in found if r["url"] == "z_mail.txt")
    assert "email@example.com" in mail["text"] and mail["source"] == "raw"
    assert len({r["id"] for r in found}) == len(found)
    assert sorted(p.name for p in folder.iterdir() if "train" in p.name)[0] == (
        "mine-train.array_record-00000-of-00003"
    )
    assert not list(folder.parent.glob(".*"))  # the work folder is gone


def test_the_card_adds_up(made):
    _, folder, said = made
    card = json.loads((folder / "data_card.json").read_text())
    tables = card["tables"]
    assert tables["dropped documents"] == {
        "Limits/short": 1, "Duplicates/exact": 3, "Duplicates/near": 3,
    }  # fmt: skip
    assert tables["input"]["documents"] == 40 + 6 + 2
    left = tables["input"]["documents"] - sum(tables["dropped documents"].values())
    found = [r for rows in records(folder).values() for r in rows]
    assert tables["result"]["documents"] == left == len(found)
    assert tables["result"]["bytes"] == sum(len(r["text"].encode()) for r in found)
    assert tables["personal data"] == {"email": 1}
    assert tables["not read"] == {"binary file with a text's name": 1}
    assert tables["duplicate groups by size"] == {"2": 6}
    assert sum(tables["split: documents"].values()) == left
    page = (folder / "data_card.html").read_text()
    assert "Duplicates/near" in page and "ann.lee@mail.org" not in page
    assert "ann.lee" not in (folder / "data_card.json").read_text()
    assert "wrote 41 documents" in said[-1]


def test_a_text_is_in_the_same_split_whatever_else_there_is(made, tmp_path):
    _, folder, _ = made
    raw(tmp_path / "raw", number=20)
    other = records(build(corpus(tmp_path, duplicates=None), lambda line: None))
    before = {r["text"]: name for name, rows in records(folder).items() for r in rows}
    after = {r["text"]: name for name, rows in other.items() for r in rows}
    shared = set(before) & set(after)
    assert len(shared) > 15 and all(before[t] == after[t] for t in shared)


def test_a_finished_dataset_is_left_alone(made):
    tmp_path, folder, _ = made
    before, said = files_of(folder), []
    assert build(corpus(tmp_path), said.append) == folder
    assert files_of(folder) == before and "nothing to do" in said[0]
    with pytest.raises(UserError, match="was made with steps"):
        build(corpus(tmp_path, steps=()), said.append)


def test_two_processes_make_the_same(made):
    """And it is Beam's multi-process runner that is used."""
    tmp_path, folder, _ = made
    two = corpus(tmp_path, output=str(tmp_path / "two"), workers=2)
    other = build(two, lambda line: None)
    assert files_of(other) == files_of(folder)


def test_another_runner_makes_the_same(made, tmp_path):
    """Beam's portable runner: jobs go to a server as they would to Flink's, Spark's or Dataflow."""
    source, folder, _ = made
    port_file = tmp_path / "port"
    server = subprocess.Popen(
        [sys.executable, "-m", "apache_beam.runners.portability.local_job_service_main",
         "--port=0", f"--port_file={port_file}", f"--staging_dir={tmp_path}/staging"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: server.poll() or (port_file.exists() and port_file.read_text()))
        assert server.poll() is None
        options = ("--runner=PortableRunner", "--environment_type=LOOPBACK",
                   f"--job_endpoint=localhost:{port_file.read_text()}")  # fmt: skip
        given = dict(inputs=str(source / "raw"), output=str(tmp_path / "out"))
        said = []
        other = build(corpus(source, **given, beam_options=options), said.append)
        assert files_of(other) == files_of(folder)
        assert any("48 documents" in line for line in said)  # Beam's counters came back
    finally:
        server.terminate()
        server.wait()


@pytest.mark.parametrize("stage", ["clean", "shards"])
def test_after_a_kill_it_goes_on_and_makes_the_same(made, tmp_path, stage):
    """Killed as soon as a unit (or a file of the result) is done; then done ones aren't redone."""
    source, folder, _ = made
    given = dict(inputs=str(source / "raw"), output=str(tmp_path / "out"))
    work = corpus(source, **given).work
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r});"
        "from pathlib import Path; import test_corpus_pipeline as t, time;"
        "from t5x_lite.corpus import stages; whole = stages.write_json\n"
        "def slow(path, value):\n"
        "    whole(path, value)\n"
        f"    if path.parent.name == {stage!r} and 'sizes' not in path.name: time.sleep(600)\n"
        "stages.write_json = slow\n"
        f"t.build(t.corpus(Path('/'), **{given!r}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([ROOT, f"{ROOT}/tests"])},
    )  # fmt: skip
    wait_until(lambda: process.poll() or list((work / stage).glob("*[0-9].json")))
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    (done,) = (work / stage).glob("*[0-9].json")
    time_written = done.stat().st_mtime_ns
    assert not corpus(source, **given).target.exists()
    said = []
    with pytest.raises(UserError, match="was made with held_out = 0.2"):
        build(corpus(source, **given, held_out=0.5), said.append)
    assert done.stat().st_mtime_ns == time_written
    assert files_of(build(corpus(source, **given), said.append)) == files_of(folder)
    assert any("1 are done already" in line for line in said)


def test_lines_and_substrings(tmp_path):
    rng = random.Random(1)
    shared = sentence(rng)
    for name in ("a", "b", "c"):
        (tmp_path / "raw").mkdir(exist_ok=True)
        own = [sentence(rng) for _ in range(4)]
        (tmp_path / "raw" / f"{name}.txt").write_text("\n".join([own[0], shared, *own[1:]]))
    (tmp_path / "raw" / "d.txt").write_text(f"{shared}\nOne more. Another one.")
    lines = Duplicates(near=False, lines=True, min_sentences=3)
    folder = build(corpus(tmp_path, duplicates=lines, held_out=0.0), lambda line: None)
    texts = {r["url"]: r["text"] for r in records(folder)["train"]}
    assert set(texts) == {"a.txt", "b.txt", "c.txt"}
    assert [name for name, text in texts.items() if shared in text] == ["a.txt"]
    card = json.loads((folder / "data_card.json").read_text())
    assert card["tables"]["lines removed"]["Duplicates/lines"] == 3
    assert card["tables"]["dropped documents"] == {"Duplicates/little_left": 1}

    runs = corpus(tmp_path, output=str(tmp_path / "runs"), held_out=0.0,
                  duplicates=Duplicates(near=False, substrings=len(shared) - 5))  # fmt: skip
    folder = build(runs, lambda line: None)
    texts = {r["url"]: r["text"] for r in records(folder)["train"]}
    assert [name for name, text in texts.items() if shared in text] == ["a.txt"]
    assert texts["d.txt"].endswith("One more. Another one.")
    with pytest.raises(UserError, match="max_substring_bytes"):
        small = Duplicates(near=False, substrings=9, max_substring_bytes=100)
        build(corpus(tmp_path, output=str(tmp_path / "small"), duplicates=small), print)


def test_sources_are_mixed_by_weight(tmp_path):
    for source, number in (("much", 200), ("little", 20)):
        raw(tmp_path / source, number, seed=number)
    sources = {"much": str(tmp_path / "much"), "little": str(tmp_path / "little")}
    mix = Mix(by="source", weights={"much": 1, "little": 1}, max_copies=2.5)
    folder = build(corpus(tmp_path, inputs=sources, mix=mix, unit_bytes=10**6), lambda line: None)
    found = [r for rows in records(folder).values() for r in rows]
    sizes = Counter()
    for record in found:
        sizes[record["source"]] += len(record["text"])
    assert 0.7 < sizes["much"] / sizes["little"] < 1.4
    copies = Counter(r["text"] for r in found if r["source"] == "little")
    assert set(copies.values()) == {2, 3} and len({r["id"] for r in found}) == len(found)


def test_steps_that_change_lines_are_counted(tmp_path):
    raw(tmp_path / "raw", 20)
    (tmp_path / "raw" / "menu.txt").write_text("Home\n" + (tmp_path / "raw/doc000.txt").read_text())
    folder = build(corpus(tmp_path, steps=(C4(),), duplicates=None), lambda line: None)
    card = json.loads((folder / "data_card.json").read_text())
    assert card["tables"]["lines removed"]["C4/no_end_mark"] >= 1
    assert card["samples"]["C4/too_few_sentences"][0][1]


def test_a_vocabulary_with_its_report(made, tmp_path):
    source, _, _ = made
    given = corpus(source, output=str(tmp_path / "out"), tokenizer=Tokenizer(size=400, extra_ids=5))
    folder = build(given, lambda line: None)
    made_vocabulary = SentencePieceVocabulary(str(folder / "vocabulary.model"))
    report = json.loads((folder / "data_card.json").read_text())["vocabulary"]
    texts = [r["text"] for r in records(folder)["validation"]]
    tokens = sum(len(made_vocabulary.encode(text)) for text in texts)
    row = report["language"]["measured"]["unknown"]
    assert row["documents"] == len(texts) and row["unknown tokens"] == 0
    assert row["bytes per token"] == pytest.approx(sum(map(len, texts)) / tokens)
    assert made_vocabulary.num_sentinels == 5
    every = [r["text"] for rows in records(folder).values() for r in rows]
    estimated = report["source"]["estimated tokens"]["raw"]
    assert estimated == pytest.approx(sum(len(made_vocabulary.encode(t)) for t in every), rel=0.1)
    assert Tokenizer(sample_bytes=10, temperature=0).budgets({"a": 9, "b": 1}) == {"a": 5, "b": 5}
    rows = [{"language": "a", "text": "x" * 4}] * 9 + [{"language": "b", "text": "y"}] * 2
    sample = list(Tokenizer(sample_bytes=10, temperature=0).sample(rows, {"a": 36, "b": 2}))
    assert sample == ["xxxx", "xxxx", "y", "y"]


@pytest.mark.parametrize("buckets", [256, 4096])
def test_rows_are_written_in_buckets(tmp_path, monkeypatch, buckets):
    monkeypatch.setattr("t5x_lite.corpus.store._PART_BYTES", 1000)  # so that it spills
    texts, file = [f"text {i} \ud800" for i in range(100)], tmp_path / "rows"
    writer = BucketWriter(file, buckets)
    for i, text in enumerate(texts):
        writer.write(bucket_of(text, buckets)[0], i, text)
    assert not file.exists()
    writer.close()
    assert [p.name for p in tmp_path.iterdir()] == ["rows"]
    half = buckets // 2
    halves = [list(read_rows(file, r, buckets)) for r in (range(half), range(half, buckets))]
    assert all(halves) and all(bucket_of(texts[n], buckets)[0] < half for n, _ in halves[0])
    assert sorted(n for half in halves for n, _ in half) == list(range(100))
    assert dict(halves[0] + halves[1])[7] == "text 7 ?"
    assert list(read_rows(tmp_path / "none", range(3), buckets)) == []


def test_mistakes_are_named_before_anything_runs(tmp_path):
    raw(tmp_path / "raw", 20)
    for settings, message in (
        (dict(inputs=str(tmp_path / "rwa")), "isn't there"),
        (dict(output="gs://bucket/x"), "mount a bucket"),
        (dict(name="My Corpus"), "lower_case"),
        (dict(version="1"), "expected one such as '1.0.0'"),
        (dict(held_out=1.0), "share"),
        (dict(steps=("Pii",)), "expected steps"),
    ):
        with pytest.raises(UserError, match=message):
            corpus(tmp_path, **settings)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no files in"):
        build(corpus(tmp_path, inputs=str(tmp_path / "empty")), print)
    with pytest.raises(UserError, match="No document is left"):
        build(corpus(tmp_path, steps=(Limits(min_characters=10**6),)), print)
