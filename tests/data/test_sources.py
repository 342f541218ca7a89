import gzip
import json
import pickle
import subprocess
import sys
import zlib
from pathlib import Path

import gin
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite import config
from t5x_lite.data import file_bytes
from t5x_lite.data.source import hash64, held_out_mask
from t5x_lite.data.sources import InMemory, PythonLibrary
from t5x_lite.data.text_files import TextFiles, cut_documents, find_documents
from t5x_lite.data.tfds_source import Tfds
from t5x_lite.errors import UserError


def texts(source):
    return [record["text"] for record in source]


def assert_split(source):
    """Every record is in one of the two splits, in order; equal ones in the same."""
    train, validation = texts(source.split("train")), texts(source.split("validation"))
    assert sorted(train + validation) == sorted(texts(source))
    assert not set(train) & set(validation)
    return train, validation


# ---- holding out


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50), st.floats(0.001, 0.999))
def test_held_out_mask(hashes, fraction):
    hashes = np.array(hashes, np.uint64)
    mask = held_out_mask(hashes, fraction)
    if len(set(hashes.tolist())) > 1:
        assert mask.any() and not mask.all()
    else:
        assert not mask.any()
    assert not set(hashes[mask].tolist()) & set(hashes[~mask].tolist())
    assert not held_out_mask(hashes, 0.0).any()


def test_held_out_share_and_stability():
    hashes = np.array([hash64(str(i).encode()) for i in range(20000)], np.uint64)
    mask = held_out_mask(hashes, 0.05)
    assert 0.045 < mask.mean() < 0.055
    # A document stays on its side when others come.
    np.testing.assert_array_equal(held_out_mask(hashes[:9000], 0.05), mask[:9000])


def test_in_memory():
    source = InMemory(["a", {"text": "bé", "lang": "xx"}, "c", "a"], held_out=0.3)
    train, validation = assert_split(source)
    assert len(train) + len(validation) == 4 and validation
    assert source[1] == {"text": "bé", "lang": "xx"}
    assert source.describe()["bytes"] == 1 + 3 + 2 + 1 + 1
    given = InMemory(["a", "b"], validation=["c"])
    assert texts(given.split("train")) == ["a", "b"]
    assert texts(given.split("validation")) == ["c"]
    assert len({source.fingerprint, given.fingerprint, InMemory(["a", "b"]).fingerprint}) == 3
    assert InMemory(["a", "b"]).fingerprint == InMemory(["a", "b"]).fingerprint


def test_split_errors():
    with pytest.raises(UserError, match="no split 'valid'; it has train, validation.*validation"):
        InMemory(["a"]).split("valid")
    with pytest.raises(UserError, match="held_out is 1.5"):
        InMemory(["a"], held_out=1.5)


# ---- Python's library


def test_python_library(tmp_path):
    files = {
        "a.py": b"x = 1\n",
        "pkg/b.py": "# -*- coding: latin-1 -*-\ny = 'é'\n".encode("latin-1"),
        "pkg/bad.py": b"z = '\xff'\n",
        "empty.py": b"",
        "notes.txt": b"no",
        "test/test_a.py": b"assert True\n",
        "site-packages/c.py": b"no = 1\n",
    }
    for path, data in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    source = PythonLibrary(root=str(tmp_path))
    assert source.paths == ["a.py", "pkg/b.py", "pkg/bad.py"]
    assert source[1] == {"text": "# -*- coding: latin-1 -*-\ny = 'é'\n", "path": "pkg/b.py"}
    assert source[2]["text"] == "z = 'ÿ'\n"
    assert len(PythonLibrary(include_tests=True, root=str(tmp_path))) == 4
    assert_split(source)
    described = source.describe()
    assert described["files"] == described["records"] == 3
    assert described["bytes"] == sum(len(files[p]) for p in source.paths)

    before = source.fingerprint
    (tmp_path / "a.py").write_bytes(b"x = 2\n")
    assert PythonLibrary(root=str(tmp_path)).fingerprint != before
    with pytest.raises(UserError, match="No .py files"):
        _ = PythonLibrary(root=str(tmp_path / "nowhere")).paths


def test_this_pythons_library():
    source = PythonLibrary()
    assert "argparse.py" in source.paths and not any("site-packages" in p for p in source.paths)
    assert 0 < len(source.split("validation")) < 0.1 * len(source)
    record = source[source.paths.index("argparse.py")]
    import argparse

    assert record["text"] == Path(argparse.__file__).read_text()


# ---- text files: where documents are


def reference_documents(text, document):
    if document == "file":
        return [text] if text.strip() else []
    documents, open_ = [], []
    for line in [*text.split("\n"), ""]:
        if line.strip():
            open_.append(line)
        elif open_:
            documents.append("\n".join(open_))
            open_ = []
        if document == "line" and open_:
            documents.append(open_.pop())
    return [d.strip("\r\n") for d in documents]


plain_text = st.text(st.sampled_from("ab é\n\r\t字"), max_size=60)


@settings(deadline=None)
@given(plain_text, st.sampled_from(["line", "paragraph", "file"]), st.sampled_from([5, 1 << 24]))
def test_find_documents(text, document, block):
    # Bytes beyond space are what makes a line visible, in any script.
    data = text.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_bytes, "BLOCK_BYTES", block)
        spans = find_documents(data, document)
    assert spans.dtype == np.int64 and spans.shape[1:] == (2,)
    found = [data[a:b].decode() for a, b in spans.tolist()]
    if document != "file":
        found = [f.strip("\r\n") for f in found]
    assert found == reference_documents(text, document)


def test_a_byte_order_mark_is_no_text():
    assert find_documents(b"\xef\xbb\xbf\r\nabc", "line").tolist() == [[5, 8]]
    assert find_documents(b"\xef\xbb\xbfabc", "file").tolist() == [[3, 6]]
    assert find_documents(b"\xef\xbb\xbf \n", "file").tolist() == []


@given(st.text(st.sampled_from("ab \n字é😀"), min_size=1, max_size=200), st.integers(16, 40))
def test_cut_documents(text, limit):
    data = text.encode()
    pieces = [data[a:b] for a, b in cut_documents(data, np.array([[0, len(data)]]), limit).tolist()]
    assert all(0 < len(p) <= limit for p in pieces)
    # Only blank pieces may be missing, and no character is cut.
    assert "".join(p.decode() for p in pieces).split() == text.split() or " " not in text
    assert b"".join(b"".join(pieces).split()) == b"".join(data.split())


def test_text_files(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo \xc3\xa9\nlast")
    with gzip.open(tmp_path / "a.txt.gz", "wb") as f:
        f.write(b"zip one\n\nzip two\n")
    source = TextFiles([str(tmp_path / "*.txt"), str(tmp_path / "*.gz")])
    assert texts(source) == ["zip one", "zip two", "one", "two é", "last"]
    assert source[3]["path"] == str(tmp_path / "b.txt")
    paragraphs = TextFiles(str(tmp_path / "*.txt"), document="paragraph")
    assert texts(paragraphs) == ["one", "two é\nlast"]
    whole = TextFiles(str(tmp_path / "b.txt"), document="file")
    assert texts(whole) == ["one\r\n\r\ntwo é\nlast"]
    assert whole.describe() == {
        "kind": "TextFiles",
        "files": 1,
        "records": 1,
        "bytes": 18,
        "splits": {"train": 1, "validation": 0},
    }
    copy = pickle.loads(pickle.dumps(source))
    assert texts(copy) == texts(source) and copy.fingerprint == source.fingerprint


def test_text_files_hold_out_copies_together(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"line {i % 150}\n" for i in range(300)))
    source = TextFiles(str(tmp_path / "a.txt"), held_out=0.1)
    train, validation = assert_split(source)
    assert len(train) > 200 and 4 < len(validation) < 70
    again = tmp_path / "elsewhere"
    again.mkdir()
    (again / "z.txt").write_bytes((tmp_path / "a.txt").read_bytes())
    assert TextFiles(str(again / "z.txt"), held_out=0.1).fingerprint == source.fingerprint
    assert TextFiles(str(again / "z.txt"), held_out=0.2).fingerprint != source.fingerprint


def test_validation_files_are_not_trained_on(tmp_path):
    for name in ("a", "b", "valid"):
        (tmp_path / f"{name}.txt").write_text(f"text {name}\n")
    everything, valid = str(tmp_path / "*.txt"), str(tmp_path / "valid.txt")
    source = TextFiles(everything, validation_files=valid)
    assert texts(source.split("train")) == ["text a", "text b"]
    assert texts(source.split("validation")) == ["text valid"]
    with pytest.raises(UserError, match="none is left to train on"):
        TextFiles(valid, validation_files=everything)


def test_max_document_bytes(tmp_path):
    text = "".join(f"line number {i}\n" for i in range(500))
    (tmp_path / "a.txt").write_text(text)
    source = TextFiles(str(tmp_path / "a.txt"), document="file", max_document_bytes=200)
    assert "".join(texts(source)) == text
    assert all(len(t) <= 200 and t.endswith("\n") for t in texts(source)) and len(source) > 30
    with pytest.raises(UserError, match="max_document_bytes is 3"):
        TextFiles(str(tmp_path / "a.txt"), max_document_bytes=3)


def test_text_file_errors(tmp_path):
    (tmp_path / "input.txt").write_text("text\n")
    with pytest.raises(UserError, match=r"matches .*inptu.txt.*Did you mean 'input.txt'"):
        TextFiles(str(tmp_path / "inptu.txt"))
    with pytest.raises(UserError, match=r"matches .*\*\.json'"):
        TextFiles([str(tmp_path / "input.txt"), str(tmp_path / "*.json")])
    with pytest.raises(UserError, match=r"is a folder; give files, such as '.*\*.txt'"):
        TextFiles(str(tmp_path))
    with pytest.raises(UserError, match="list of files is empty"):
        TextFiles([])
    with pytest.raises(UserError, match="'sentence'; use 'line'"):
        TextFiles(str(tmp_path / "input.txt"), document="sentence")


@pytest.mark.parametrize("document", ["line", "paragraph", "file"])
def test_invalid_utf8_is_named_with_its_offset(tmp_path, monkeypatch, document):
    monkeypatch.setattr(file_bytes, "BLOCK_BYTES", 16)
    good = "grüße\n".encode() * 9
    (tmp_path / "bad.txt").write_bytes(good + b"caf\xe9\nmore\n")
    source = TextFiles(str(tmp_path / "bad.txt"), document=document)
    with pytest.raises(
        UserError, match=rf"bad.txt is not UTF-8: byte 0xe9 at offset {len(good) + 3}"
    ):
        len(source)
    replaced = TextFiles(str(tmp_path / "bad.txt"), document=document, invalid="replace")
    assert "caf\ufffd" in "".join(texts(replaced))


@pytest.mark.parametrize("damage", ["truncate", "corrupt", "header"])
def test_damaged_gzip_is_named(tmp_path, damage):
    data = bytearray(gzip.compress(np.random.default_rng(0).bytes(4000).hex().encode()))
    if damage == "truncate":
        data = data[: len(data) // 2]
    elif damage == "corrupt":
        data[len(data) // 2] ^= 0xFF
    else:
        data = data[:5]
    with pytest.raises((EOFError, gzip.BadGzipFile, zlib.error)):
        gzip.decompress(bytes(data))
    (tmp_path / "torn.txt.gz").write_bytes(data)
    with pytest.raises(UserError, match="torn.txt.gz is a truncated or damaged gzip"):
        len(TextFiles(str(tmp_path / "torn.txt.gz")))


def test_gin(tmp_path):
    (tmp_path / "a.txt").write_text("a\nb\n")
    with gin.unlock_config():
        gin.parse_config(f"TextFiles.files = '{tmp_path}/a.txt'\nTextFiles.document = 'file'")
    try:
        assert texts(config.call("TextFiles")) == ["a\nb\n"]
    finally:
        gin.clear_config()


# ---- TFDS


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """`tiny_text` with a train and a test split, prepared as array_record."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    if sys.modules.get("tensorflow"):
        pytest.skip("something else imported tensorflow")

    with tfds.core.registered.skip_registration():

        class TinyText(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                pair = tfds.features.Translation(("en", "de"))
                features = {"text": tfds.features.Text(), "pair": pair, "number": np.int64}
                features = tfds.features.FeaturesDict(features)
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, _):
                return {"train": self._generate_examples(60), "test": self._generate_examples(5)}

            def _generate_examples(self, n):
                for i in range(n):
                    pair = {"en": f"en {i}", "de": f"über {i}"}
                    yield i, {"text": f"doc {i} of {n} é", "pair": pair, "number": i}

    folder = tmp_path_factory.mktemp("tfds")
    TinyText(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_tfds(tfds_dir):
    source = Tfds("tiny_text", str(tfds_dir), held_out=0.1)
    assert set(source.splits) == {"train", "validation", "test"}
    train, validation = texts(source.split("train")), texts(source.split("validation"))
    assert len(train) == 54 and len(validation) == 6
    assert set(train) | set(validation) == {f"doc {i} of 60 é" for i in range(60)}
    assert len(source.split("test")) == 5
    record = source[0]
    assert set(record) == {"text", "pair", "number"} and isinstance(record["pair"]["de"], str)
    described = source.describe()
    assert described["files"] == 2 and described["records"] == 54 and described["bytes"] > 1000
    assert described["splits"] == {"train": 54, "validation": 6, "test": 5}
    assert "tensorflow" not in sys.modules

    version_dir = tfds_dir / "tiny_text" / "1.0.0"
    assert texts(Tfds("tiny_text", str(version_dir), held_out=0.1)) == train


def test_tfds_keys_and_splits(tfds_dir):
    source = Tfds(
        "tiny_text:1.0.0",
        str(tfds_dir),
        keys={"inputs": "pair/en", "targets": "pair/de"},
        splits={"train": "train[:50%]", "validation": "test"},
    )
    assert len(source) == 30 and len(source.split("validation")) == 5
    for record in source:
        assert record["targets"] == record["inputs"].replace("en", "über")
    assert set(Tfds("tiny_text", str(tfds_dir), keys="text")[0]) == {"text"}
    assert len({source.fingerprint, Tfds("tiny_text", str(tfds_dir)).fingerprint}) == 2


def test_tfds_errors(tfds_dir, tmp_path):
    where = str(tfds_dir)
    with pytest.raises(UserError, match="no feature 'txt'.*found number, pair, text.*'text'"):
        Tfds("tiny_text", where, keys="txt").split("train")
    with pytest.raises(UserError, match="no feature 'pair/fr'.*found de, en"):
        Tfds("tiny_text", where, keys={"text": "pair/fr"}).split("train")
    with pytest.raises(UserError, match="no split 'training'; it has train, test"):
        Tfds("tiny_text", where, splits={"train": "training"}).split("train")
    with pytest.raises(UserError, match="finds no dataset 'tiny_txet_x', neither prepared in"):
        len(Tfds("tiny_txet_x", where))
    with pytest.raises(UserError, match="is not prepared; set Tfds.download"):
        len(Tfds("squad/v1.1", str(tmp_path)))


def test_tfds_as_parquet_is_refused(tfds_dir, tmp_path, stored="parquet"):
    version_dir = tmp_path / "tiny_text" / "1.0.0"
    version_dir.mkdir(parents=True)
    original = tfds_dir / "tiny_text" / "1.0.0"
    info = json.loads((original / "dataset_info.json").read_text()) | {"fileFormat": stored}
    (version_dir / "dataset_info.json").write_text(json.dumps(info))
    (version_dir / "features.json").write_bytes((original / "features.json").read_bytes())
    with pytest.raises(UserError, match="as parquet .*loses records.*expected array_record"):
        len(Tfds("tiny_text", str(tmp_path)))
    assert "tensorflow" not in sys.modules


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def blocking(*packages):
    """Code after which these packages fail on import, whether they are installed or not."""
    return f"""
import importlib.machinery, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name in {packages}:
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        raise ModuleNotFoundError(f"No module named {{spec.name!r}}", name=spec.name)
    def exec_module(self, module):
        pass
sys.meta_path.insert(0, Block())
"""


def test_tfds_where_tensorflow_and_h5py_cannot_be_imported(tfds_dir, tmp_path):
    """Without h5py, TFDS's own look-up stops before it reaches the text datasets."""
    code = f"""
from t5x_lite.data.tfds_source import Tfds
from t5x_lite.errors import UserError
assert not [m for m in ("jax", "grain", "tensorflow_datasets") if m in sys.modules]
assert len(Tfds("tiny_text", {str(tfds_dir)!r})) == 59
for name in ("glue/cola", "c4/en"):
    try:
        len(Tfds(name, {str(tmp_path)!r}))
    except UserError as e:
        assert "not prepared" in str(e), e
    else:
        raise AssertionError(name)
try:
    len(Tfds("super_glue", {str(tmp_path)!r}))
except UserError as e:
    assert "needs a package that isn't here" in str(e), e
assert "jax" not in sys.modules
"""
    done = run_python(blocking("tensorflow", "h5py") + code)
    assert done.returncode == 0, done.stderr


def test_tfds_not_installed():
    code = """
from t5x_lite.data.tfds_source import Tfds
from t5x_lite.errors import UserError
try:
    len(Tfds("c4/en"))
except UserError as e:
    assert "pip install 't5x_lite[tfds]'" in str(e), e
else:
    raise AssertionError
"""
    done = run_python(blocking("tensorflow_datasets") + code)
    assert done.returncode == 0, done.stderr
