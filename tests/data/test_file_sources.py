"""One real file of every kind, and everything that can be wrong with one."""

import bz2
import csv
import gzip
import json
import lzma
import os
import pickle
import struct
import sys

import gin
import numpy as np
import pytest

from t5x_lite import config
from t5x_lite.data import file_bytes, files
from t5x_lite.data.hub_source import HuggingFace
from t5x_lite.data.open_files import open_files
from t5x_lite.data.parquet import Parquet
from t5x_lite.data.record_files import ArrayRecords, TfRecords
from t5x_lite.data.sources import FromFunction
from t5x_lite.data.tables import Delimited, JsonLines
from t5x_lite.data.text_files import ParallelFiles, TextFiles
from t5x_lite.data.tf_example import masked_crc, parse_example
from t5x_lite.data.tfds_source import Tfds
from t5x_lite.errors import UserError

TEXTS = [f"document {i}: é" + "x" * (i % 5) for i in range(40)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path / "cache"))


def zstd(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").compress(data)


def json_lines(texts=TEXTS):
    lines = (json.dumps({"text": t, "n": {"i": i}}) + "\n" for i, t in enumerate(texts))
    return "".join(lines).encode()


def varint(n: int) -> bytes:
    out = b""
    while n >= 0x80:
        out, n = out + bytes([n & 0x7F | 0x80]), n >> 7
    return out + bytes([n])


def message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def tf_example(**features) -> bytes:
    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            feature = message(1, message(1, value))
        elif isinstance(value, float):
            feature = message(2, message(1, struct.pack("<f", value)))
        else:
            feature = message(3, message(1, b"".join(varint(v % (1 << 64)) for v in value)))
        entries += message(1, message(1, name.encode()) + message(2, feature))
    return message(1, entries)


def frame(data: bytes) -> bytes:
    size = struct.pack("<Q", len(data))
    return size + struct.pack("<I", masked_crc(size)) + data + struct.pack("<I", masked_crc(data))


def write_array_record(path, records):
    module = pytest.importorskip("array_record.python.array_record_module")
    writer = module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def write_parquet(path, columns, **options):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table(columns), path, **options)


def write(folder, name):
    """A file of TEXTS, of the kind that its name says."""
    path = folder / name
    base = name.removesuffix(".gz").removesuffix(".zst")
    match base.rsplit(".", 1)[1]:
        case "txt":
            data = "\n\n".join(TEXTS).encode()
        case "jsonl":
            data = json_lines()
        case "csv":
            with open(path, "w", newline="") as f:
                csv.writer(f).writerows([("id", "text"), *enumerate(TEXTS)])
            data = path.read_bytes()
        case "tsv":
            data = "".join(f"{i}\t{t}\n" for i, t in [("id", "text"), *enumerate(TEXTS)]).encode()
        case "tfrecord":
            data = b"".join(frame(tf_example(text=t.encode(), n=[1, 2])) for t in TEXTS)
        case "parquet":
            return write_parquet(path, {"text": TEXTS, "n": list(range(40))}, row_group_size=7)
        case "array_record":
            return write_array_record(path, [t.encode() for t in TEXTS])
    pack = gzip.compress if name.endswith(".gz") else zstd if name.endswith(".zst") else bytes
    path.write_bytes(pack(data))


NAMES = ["a.txt", "a.txt.gz", "a.txt.zst", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.csv", "a.tsv",
         "a.tsv.gz", "a.parquet", "a.array_record", "a.tfrecord", "a.tfrecord.gz"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("on_disk", [False, True])
def test_every_kind_of_file(tmp_path, monkeypatch, name, on_disk):
    if on_disk:  # as large corpora are: unpacked and indexed in the cache folder
        monkeypatch.setattr(file_bytes, "MEMORY_BYTES", 0)
        monkeypatch.setattr(files, "INDEX_BYTES", 0)
    write(tmp_path, name)
    source = open_files(str(tmp_path / name), held_out=0.2)
    assert [record["text"] for record in source] == TEXTS
    train, validation = source.split("train"), source.split("validation")
    assert len(train) + len(validation) == 40 and 1 <= len(validation) < 20
    assert source.describe()["files"] == 1 and source.num_bytes >= sum(map(len, TEXTS))
    copy = pickle.loads(pickle.dumps(source))
    assert copy[7] == source[7] and copy.fingerprint == source.fingerprint
    again = type(source)(source.paths, held_out=0.2) if name[2:5] != "txt" else source
    assert again.fingerprint == source.fingerprint and again[39] == source[39]


def test_a_folder_and_files_of_two_kinds(tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep", "a.jsonl")
    write(tmp_path, "b.jsonl.gz")
    assert len(open_files(str(tmp_path))) == 80
    assert open_files(str(tmp_path)) is open_files(str(tmp_path))
    write(tmp_path, "c.csv")
    with pytest.raises(UserError, match=r"b.jsonl.gz \(JsonLines\) and .*c.csv \(Delimited\)"):
        len(open_files(str(tmp_path)))
    missing = open_files(str(tmp_path / "*.txt"))  # no error before it is used
    with pytest.raises(UserError, match="No file is or matches"):
        _ = missing.fingerprint


def test_urls(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for i in range(2):
        write(tmp_path, "a.jsonl.gz")
        memory.pipe(f"/bucket/part-{i}.jsonl.gz", (tmp_path / "a.jsonl.gz").read_bytes())
    memory.pipe("/bucket/plain.txt", b"one\ntwo\n")
    source = open_files("memory://bucket/*.jsonl.gz")
    assert [record["text"] for record in source] == TEXTS * 2
    assert source.paths[1].startswith("memory://") and source.paths[1].endswith("part-1.jsonl.gz")
    assert [r["text"] for r in TextFiles("memory://bucket/plain.txt")] == ["one", "two"]
    memory.pipe("/bucket/plain.txt", b"other\n")  # another file of the same name
    assert [r["text"] for r in TextFiles("memory://bucket/plain.txt")] == ["other"]
    with pytest.raises(UserError, match="memory://bucket/none-"):
        TextFiles("memory://bucket/none-*")
    with pytest.raises(UserError, match="gopher://x/y can't be opened.*gcsfs"):
        TextFiles("gopher://x/y")


# ---- fields


def test_keys_of_json_lines(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines())
    path = str(tmp_path / "a.jsonl")
    assert JsonLines(path, keys={"inputs": "text", "targets": "n/i"})[3]["targets"] == 3
    assert JsonLines(path, keys=None)[3] == {"text": TEXTS[3], "n": {"i": 3}}


def test_csv_with_quotes_and_a_header_of_its_own(tmp_path):
    rows = [("a", 'x "y"\nz'), ("b, c", ""), ("é", "1\r\n2")]
    with open(tmp_path / "a.csv", "w", newline="") as f:
        csv.writer(f).writerows(rows)
    source = Delimited(str(tmp_path / "a.csv"), keys=None, columns=["one", "two"])
    assert [tuple(r.values()) for r in source] == rows
    assert source[1] == {"one": "b, c", "two": ""}
    (tmp_path / "b.data").write_text("p;q\n1;2\n")
    source = Delimited(str(tmp_path / "b.data"), keys={"text": "q"}, delimiter=";", quoting=False)
    assert list(source) == [{"text": "2"}]


def test_parallel_files(tmp_path):
    (tmp_path / "a.en.gz").write_bytes(gzip.compress(b"one\n\nthree\n"))
    (tmp_path / "a.de").write_text("eins\nzwei\ndrei")
    sides = {"en": str(tmp_path / "a.en.gz"), "de": str(tmp_path / "a.de")}
    source = ParallelFiles(sides, validation_files=sides)
    expected = [("one", "eins"), ("", "zwei"), ("three", "drei")]
    assert [(r["en"], r["de"]) for r in source] == expected
    assert len(source.split("train")) == len(source.split("validation")) == 3
    (tmp_path / "a.de").write_text("eins\n")
    with pytest.raises(UserError, match=r"numbers of lines: .*a.en.gz 3, .*a.de 1"):
        len(ParallelFiles(sides))
    with pytest.raises(UserError, match="has en, expected de, en"):
        ParallelFiles(sides, validation_files={"en": "x"})


def test_tf_examples():
    data = tf_example(text="é".encode(), many=[1, -2, 1 << 40], score=0.5)
    assert parse_example(data) == {"text": "é".encode(), "many": [1, -2, 1 << 40], "score": 0.5}
    with pytest.raises(ValueError, match="no tf.Example"):
        parse_example(b"hello there")
    # The check value of CRC-32C (RFC 3720), masked as TFRecord files do.
    assert masked_crc(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) % 2**32


def test_records_as_json(tmp_path):
    write_array_record(tmp_path / "a.array_record", json_lines().splitlines())
    source = ArrayRecords(str(tmp_path / "a.array_record"), keys={"text": "text", "i": "n/i"})
    assert source[5] == {"text": TEXTS[5], "i": 5}
    with pytest.raises(UserError, match="a.array_record record 0: .*expected tf.Example"):
        len(ArrayRecords(str(tmp_path / "a.array_record"), record_format="tf.Example"))


def test_functions():
    made = FromFunction(lambda i: f"record {i}", length=1000, held_out=0.1)
    assert made[7] == {"text": "record 7"} and len(made.split("train")) == 900
    assert made.split("validation")[0] == {"text": "record 900"}
    listed = FromFunction(lambda: ({"text": str(i)} for i in range(5)))
    assert len(listed) == 5 and listed.split("validation")[0] == {"text": "4"}
    assert FromFunction(len, length=9, version="2").fingerprint != FromFunction(len, 9).fingerprint


def test_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets")
    # With a fingerprint given: to make one, some versions pickle what can't be pickled.
    table = datasets.table.InMemoryTable.from_pydict({"text": TEXTS})
    datasets.Dataset(table, fingerprint="f").save_to_disk(str(tmp_path / "d"))
    source = HuggingFace(str(tmp_path / "d"), held_out=0.1)
    assert [r["text"] for r in source.split("train")] == TEXTS[:36]
    assert [r["text"] for r in source.split("validation")] == TEXTS[36:]
    with pytest.raises(UserError, match="no column 'body', found text"):
        HuggingFace(str(tmp_path / "d"), keys="body").split("train")


def test_hugging_face_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 't5x_lite.datasets.'"):
        len(HuggingFace("wikitext"))


def test_from_gin(tmp_path):
    write(tmp_path, "a.jsonl")
    write(tmp_path, "a.tsv")
    with gin.unlock_config():
        gin.parse_config(
            f"open_files.files = '{tmp_path}/a.jsonl'\nDelimited.files = '{tmp_path}/a.tsv'\n"
            "Delimited.keys = {'text': 'text', 'id': 'id'}"
        )
    try:
        assert config.call("open_files")[3]["text"] == TEXTS[3]
        assert config.call("Delimited")[3] == {"text": TEXTS[3], "id": "3"}
    finally:
        gin.clear_config()


# ---- bad data: named with file and position, or counted

GOOD = json_lines()
TORN = gzip.compress(np.random.default_rng(0).bytes(9000).hex().encode() + b"\n")
BAD = {
    "truncated gz": (JsonLines, "a.jsonl.gz", gzip.compress(GOOD)[:-20], "or damaged gzip file"),
    "truncated zst": (JsonLines, "a.jsonl.zst", lambda: zstd(GOOD)[:-20], "or damaged zstd"),
    "torn text": (TextFiles, "a.txt.gz", TORN[: len(TORN) // 2], "damaged gzip file .* after"),
    "not UTF-8": (JsonLines, "a.jsonl", GOOD + b'{"text": "caf\xe9"}\n',
                  "a.jsonl line 41 .byte [0-9]+.: not UTF-8, byte 0xe9 at offset"),
    "text not UTF-8": (TextFiles, "a.txt", b"fine\ncaf\xe9\nmore\n", "0xe9 at offset 8"),
    "no field": (JsonLines, "a.jsonl", GOOD + b'\n{"body": "x"}\n',
                 "line 42 .byte [0-9]+.: no field 'text', found 'body'; set JsonLines.keys"),
    "null": (JsonLines, "a.jsonl", GOOD + b'{"text": null}\n', "line 41 .*'text' is null"),
    "number": (JsonLines, "a.jsonl", GOOD + b'{"text": 7}\n', "'text' is int, expected text"),
    "no JSON": (JsonLines, "a.jsonl", GOOD + b"{'a': 1}\n", "line 41 .*no JSON .*character 1"),
    "a JSON array": (JsonLines, "a.jsonl", GOOD + b"[1, 2]\n", "a JSON list, expected one object"),
    "empty": (JsonLines, "a.jsonl", b"", "a.jsonl is empty"),
    "empty text": (TextFiles, "a.txt", b"", "a.txt is empty"),
    "fields": (Delimited, "a.tsv", b"id\ttext\n1\ta\n2\tb\tc\n", "line 3 .byte 12.: 3 fields, exp"),
    "column": (Delimited, "a.tsv", b"id\tbody\n1\ta\n", "line 1: no column 'text', found 'id', 'b"),
    "torn TFRecord": (TfRecords, "a.tfrecord", frame(b"text") + frame(b"more")[:-2],
                      "frame at byte 20, after 1 records"),
    "no array_record": (ArrayRecords, "a.array_record", b"nonsense" * 100, "no array_record file"),
    "no Parquet": (Parquet, "a.parquet", b"nonsense" * 100, "a.parquet is no Parquet file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_named_or_counted(tmp_path, name):
    kind, file, data, pattern = BAD[name]
    if kind is ArrayRecords:
        pytest.importorskip("array_record")
    if kind is Parquet:
        pytest.importorskip("pyarrow")
    (tmp_path / file).write_bytes(data() if callable(data) else data)
    with pytest.raises(UserError, match=pattern) as caught:
        len(kind(str(tmp_path / file)))
    assert "\n" not in str(caught.value) and str(tmp_path / file) in str(caught.value)
    tolerant = kind(str(tmp_path / file), max_bad_records=5)
    whole = len(tolerant)
    assert tolerant.bad_records >= 1 and len(tolerant.bad_messages) >= 1
    assert tolerant.describe()["bad_records"] == tolerant.bad_records
    records = list(tolerant)
    assert len(records) == whole and all(isinstance(r["text"], str) for r in records)
    if file == "a.jsonl" and data:
        assert [r["text"] for r in records] == TEXTS


def test_one_bad_record_too_many(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"{}\n" * 4)
    assert len(JsonLines(str(tmp_path / "a.jsonl"), max_bad_records=4)) == 40
    with pytest.raises(UserError, match=r"line 44 .*\(4 bad records, max_bad_records is 3\)"):
        len(JsonLines(str(tmp_path / "a.jsonl"), max_bad_records=3))
    with pytest.raises(UserError, match="max_bad_records is -1"):
        JsonLines(str(tmp_path / "a.jsonl"), max_bad_records=-1)


@pytest.mark.parametrize("kind", [TextFiles, JsonLines])
def test_50_megabytes_on_one_line(tmp_path, kind):
    line = b'{"text": "' + b"x" * 50_000_000 + b'"}\n'
    (tmp_path / "a.jsonl").write_bytes(GOOD + line)
    with pytest.raises(UserError, match=rf"a.jsonl .*byte {len(GOOD)}.*50,000,01\d bytes, exp"):
        len(kind(str(tmp_path / "a.jsonl")))
    assert len(kind(str(tmp_path / "a.jsonl"), max_bad_records=1)) == 40


def test_a_parquet_file_with_another_schema(tmp_path):
    write(tmp_path, "a.parquet")
    write_parquet(tmp_path / "b.parquet", {"body": ["x", "y"]})
    with pytest.raises(UserError, match="b.parquet: no column 'text', found body"):
        len(Parquet(str(tmp_path / "*.parquet")))
    assert len(Parquet(str(tmp_path / "*.parquet"), max_bad_records=2)) == 40
    write_parquet(tmp_path / "b.parquet", {"text": [1, 2]})
    with pytest.raises(UserError, match="column 'text' is integer, expected string as in .*a.parq"):
        len(Parquet(str(tmp_path / "*.parquet")))
    write_parquet(tmp_path / "b.parquet", {"text": ["x", None]})
    with pytest.raises(UserError, match="b.parquet row 1: 'text' is null"):
        len(Parquet(str(tmp_path / "*.parquet")))


@pytest.mark.parametrize(
    "content, message",
    [
        ("a line\n".encode("utf-16"), "is UTF-16 text, expected UTF-8: .*iconv -f UTF-16 -t UTF-8"),
        ("a text of a line\n".encode("utf-16-be"), "is UTF-16 text"),
        ("a text of a line\n".encode("utf-16-le"), "is UTF-16 text"),
        ("привет мир, это текст\n".encode("utf-16-le"), "is UTF-16 text"),
        ("Да — нет\r\nи снова\r\n".encode("utf-16-be"), "UTF-16 text|not UTF-8"),
        ("a,b\n".encode("utf-16-le"), "is UTF-16 text"),
        ("a line\n".encode("utf-32"), "is UTF-32 text"),
        (b"PK\x03\x04\x14\x00", "is a zip archive, expected text: unpack it"),
        (b"name\0" + bytes(252) + b"ustar\x0000", "is a tar archive"),
        (b"ARROW1\0\0\xff\xff", "is an Arrow file, expected text: save it as Parquet"),
        (b"PAR1\x15\x04", "is a Parquet file"),
        (b"\x04\x22\x4d\x18\x60\x40\x82", "not UTF-8"),  # lz4
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.tsv"])
def test_what_is_no_utf8_text_is_named(tmp_path, content, message, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        len(open_files(str(tmp_path / name)))
    if name == "a.txt":
        with pytest.raises(UserError, match=message):
            len(ParallelFiles({"en": str(tmp_path / name)}))


# ---- TFDS as TFRecord files


def test_tfds_as_tfrecord(tmp_path):
    """The files that TFDS writes with TensorFlow, read through an offset index."""
    tfds = pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.core import example_serializer

    features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "n": np.int64})
    specs = features.get_serialized_info()
    folder = tmp_path / "mine" / "1.0.0"
    folder.mkdir(parents=True)
    features.save_config(folder)
    counts = [25, 15]
    texts = iter(enumerate(TEXTS))
    for shard, count in enumerate(counts):
        serializer = example_serializer.ExampleSerializer(specs)
        records = [
            serializer.serialize_example(features.encode_example({"text": t, "n": i}))
            for i, t in (next(texts) for _ in range(count))
        ]
        name = f"mine-train.tfrecord-{shard:05}-of-00002"
        (folder / name).write_bytes(b"".join(map(frame, records)))
    split = {"name": "train", "shardLengths": [str(c) for c in counts], "numBytes": "4000",
             "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}  # fmt: skip
    info = {"name": "mine", "version": "1.0.0", "fileFormat": "tfrecord", "splits": [split]}
    (folder / "dataset_info.json").write_text(json.dumps(info))

    source = Tfds("mine", str(tmp_path), held_out=0.1)
    train, validation = source.split("train"), source.split("validation")
    assert [r["text"] for r in [*train, *validation]] == TEXTS
    assert train[30] == {"text": TEXTS[30], "n": 30} and len(validation) == 4
    some = Tfds("mine", str(tmp_path), splits={"train": "train[50%:70%]"}).split("train")
    assert [r["text"] for r in some] == TEXTS[20:28]
    assert pickle.loads(pickle.dumps(train))[26] == train[26]
    assert "tensorflow" not in sys.modules
    (folder / "mine-train.tfrecord-00001-of-00002").write_bytes(frame(b"x")[:-1])
    with pytest.raises(UserError, match="mine-train.tfrecord-00001-of-00002 is torn: .* byte 0"):
        _ = Tfds("mine", str(tmp_path)).split("train")[0]


# ---- folders


@pytest.mark.parametrize(
    "others",
    [
        ["_SUCCESS", "_committed_1", "_started_1"],
        ["README.md", "LICENSE", "NOTICE.txt", "readme.txt"],
        [".part-0.jsonl.crc", ".DS_Store", "part-0.jsonl.crc", "SHA256SUMS", "a.md5"],
        [".git/config", "_delta_log/00.json", "_temporary/0/part-9.jsonl"],
        ["part-0.jsonl~", "part-0.jsonl.bak", "#part-0.jsonl#", "part-0.jsonl.tmp"],
        ["part-1.jsonl.part", "part-2.jsonl.incomplete", "Thumbs.db", "dataset_infos.json"],
    ],
)
def test_what_is_no_data_in_a_folder_is_passed_over_and_named(tmp_path, caplog, others):
    write(tmp_path, "part-0.jsonl")
    for name in others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("about the data\n")
    assert len(open_files(str(tmp_path))) == 40
    assert len(open_files(str(tmp_path), held_out=0.0)) == 40
    assert caplog.text.count("passed over in") == 1  # once
    for name in others:
        assert (name if not name.startswith(".git") else ".git") in caplog.text


@pytest.mark.parametrize(
    "names, taken",
    [
        (["a.txt", "b.txt", "README.md", "README.txt"], 2),
        (["a.md", "deep/README.md", "README.md"], 3),  # documents are the data here
        (["README.md", "LICENSE"], 2),
        (["__init__.py", "_own.py", "a.py"], 3),
        (["part-00000", "part-00001", "_SUCCESS"], 2),
    ],
)
def test_what_is_data_in_a_folder(tmp_path, names, taken):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}\n")
    assert len(open_files(str(tmp_path), held_out=0.0)) == taken
    assert len(open_files(str(tmp_path / "**"), held_out=0.0)) == taken


def test_a_file_is_taken_once_however_it_is_spelt(tmp_path, monkeypatch):
    write(tmp_path, "a.jsonl")
    monkeypatch.chdir(tmp_path)
    spellings = ["a.jsonl", "./a.jsonl", str(tmp_path / "a.jsonl"), "*.jsonl"]
    assert len(open_files(spellings)) == 40
    assert open_files(["./a.jsonl"]).paths == ["./a.jsonl"]


def test_a_name_that_is_no_utf8(tmp_path):
    write(tmp_path, "a.jsonl")
    name = os.fsdecode(os.fsencode(tmp_path) + b"/b\xff.jsonl")
    try:
        os.rename(tmp_path / "a.jsonl", name)
    except OSError:
        pytest.skip("this file system has no such names")
    assert len(open_files(str(tmp_path), held_out=0.0)) == 40


def test_a_folder_without_data(tmp_path):
    (tmp_path / ".hidden").write_text("x")
    with pytest.raises(UserError, match="holds no files of data"):
        len(open_files(str(tmp_path)))


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress, gzip.compress, zstd])
def test_packed_files_of_several_members_and_cut_ones(tmp_path, pack):
    lines = json_lines(["one"]), json_lines(["two"])
    path = tmp_path / "a.jsonl"
    path.write_bytes(pack(lines[0]) + pack(lines[1]))
    assert [r["text"] for r in open_files(str(path), held_out=0.0)] == ["one", "two"]
    for whole in (pack(lines[0]), pack(lines[0]) + pack(lines[1])):
        path.write_bytes(whole[:-3])
        with pytest.raises(UserError, match=f"{path} is a truncated or damaged"):
            len(JsonLines(str(path)))
    path.write_bytes(pack(lines[0]) + b"more")
    with pytest.raises(UserError, match=f"{path} is a truncated or damaged"):
        len(JsonLines(str(path)))


# ---- Parquet


def test_parquet_shards_of_one_kind_of_value(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    texts = [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
    ]
    whole = [pa.int32(), pa.int64(), pa.uint8(), pa.int16()]
    parts = [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.string(), 2)]
    parts.append(parts[0])
    for i, kinds in enumerate(zip(texts, whole, parts, strict=True)):
        rows = [f"text {i}", f"more {i}"], [i, 7], [["a", "b"], ["c", "d"]]
        columns = [pa.array(*pair) for pair in zip(rows, kinds, strict=True)]
        write_parquet(
            tmp_path / f"{i}.parquet",
            dict(zip(("text", "n", "parts"), columns, strict=True)),
            row_group_size=1,
        )
    for limit in (1 << 20, 0):
        monkeypatch.setattr(file_bytes, "MEMORY_BYTES", limit)
        source = Parquet(str(tmp_path / "*.parquet"), keys=None, held_out=0.0)
        assert [r["text"] for r in source] == [
            f"{w} {i}" for i in range(4) for w in ("text", "more")
        ]
        assert [r["n"] for r in source][::2] == [0, 1, 2, 3] and source[7]["parts"] == ["c", "d"]


@pytest.mark.parametrize(
    "column, kind", [([1], "integer"), ([b"x"], "binary"), ([["x"]], "list of string"),
                     ([{"a": 1}], "struct of a: integer"), ([True], "bool"), ([1.5], "floating")]
)  # fmt: skip
def test_parquet_shards_of_other_kinds(tmp_path, column, kind):
    write_parquet(tmp_path / "a.parquet", {"text": ["x"]})
    write_parquet(tmp_path / "b.parquet", {"text": column})
    with pytest.raises(UserError, match=f"b.parquet: column 'text' is {kind}, expected string"):
        len(Parquet(str(tmp_path / "*.parquet")))


def test_a_parquet_file_whose_pages_are_damaged(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"text": [f"text {i}" for i in range(9000)]})
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[4:2000] = bytes(1996)
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(UserError, match="a.parquet can't be unpacked"):
        len(Parquet(str(tmp_path / "a.parquet")))


def test_parquet_nulls_and_empty_row_groups(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    write_parquet(tmp_path / "a.parquet", {"text": ["x"]})
    write_parquet(tmp_path / "b.parquet", {"text": pa.nulls(2)})  # a shard of nulls alone
    with pytest.raises(UserError, match="b.parquet row 0: 'text' is null"):
        len(Parquet(str(tmp_path / "*.parquet")))
    table = pa.table({"text": ["y", "z"]})
    with parquet.ParquetWriter(tmp_path / "b.parquet", table.schema) as writer:
        for part in (table.slice(0, 0), table.slice(0, 1), table.slice(0, 0), table.slice(1, 1)):
            writer.write_table(part)
    texts = [r["text"] for r in Parquet(str(tmp_path / "*.parquet"), held_out=0.0)]
    assert texts == ["x", "y", "z"]


def test_a_parquet_value_that_python_has_none_for_is_a_bad_record(tmp_path):
    pa = pytest.importorskip("pyarrow")
    latin = pa.array([b"one", b"caf\xe9", b"two"])
    text = pa.Array.from_buffers(pa.string(), 3, latin.buffers())  # what is read isn't checked
    write_parquet(tmp_path / "a.parquet", {"text": text})
    with pytest.raises(UserError, match="a.parquet row 1: 'text' is not UTF-8"):
        len(Parquet(str(tmp_path / "a.parquet")))
    kept = Parquet(str(tmp_path / "a.parquet"), max_bad_records=1, held_out=0.0)
    assert [r["text"] for r in kept] == ["one", "two"] and kept.bad_records == 1
    nanoseconds = pa.array([1000, 2**50 + 1], pa.timestamp("ns"))
    for other in (nanoseconds, pa.array([0, 2**50], pa.timestamp("ms"))):
        write_parquet(tmp_path / "b.parquet", {"text": ["x", "y"], "when": other})
        with pytest.raises(UserError, match="b.parquet row 1: 'when' can't be read .*cast"):
            len(Parquet(str(tmp_path / "b.parquet"), keys=None))
        assert len(Parquet(str(tmp_path / "b.parquet"))) == 2


def test_text_with_zeros_is_no_utf16(tmp_path):
    for i, content in enumerate((b"ab\0cd\0ef\0gh\0", b"one\0two\0three\n", b"x" * 99 + b"\0")):
        (tmp_path / f"{i}.txt").write_bytes(content)
        assert len(TextFiles([str(tmp_path / f"{i}.txt")], held_out=0.0)) == 1
