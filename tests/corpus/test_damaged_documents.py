"""Nothing that a file holds is raised: whole files of every format with random damage.

benchmarks/corpus_fuzz.py does the same to any number of them.
"""

import importlib.util
import random
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("warcio", reason="needs the extra `corpus`")
pytest.importorskip("resiliparse", reason="needs the extra `corpus`")
pytest.importorskip("brotli", reason="needs the extra `corpus`")

from t5x_lite.corpus.cleaning import clean_file
from t5x_lite.corpus.encodings import decoded, html_charset
from t5x_lite.corpus.html_limits import limited
from t5x_lite.corpus.limits import Limits, Repair
from t5x_lite.corpus.opening import Problems
from t5x_lite.corpus.readers import Reader
from t5x_lite.corpus.settings import Corpus
from t5x_lite.corpus.wikipedia import plain_wikitext

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "corpus_fuzz.py"
spec = importlib.util.spec_from_file_location("corpus_fuzz", PROGRAM)
corpus_fuzz = importlib.util.module_from_spec(spec)
spec.loader.exec_module(corpus_fuzz)
SEEDS = corpus_fuzz.seeds()
OTHERS = [data for _, data in SEEDS]
MANY = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def test_whole_files_are_read_without_problems(tmp_path):
    for name, data in SEEDS:
        (tmp_path / "file").write_bytes(data)
        problems = Problems()
        texts = [d["text"] for d in Reader().read(str(tmp_path / "file"), name, "s", problems)]
        expected = {"no JSON with a text": 1} if name == "a.tar" else {}
        assert texts and dict(problems.counts) == expected, (name, problems.examples)


@MANY
@given(st.sampled_from(SEEDS), st.integers(0, 2**32))
def test_damaged_files(seed, number):
    name, data = seed
    data = corpus_fuzz.damaged(data, OTHERS, random.Random(number))
    problems, start = Problems(), time.process_time()
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        for document in Reader().read(file.name, name, "s", problems):
            document["text"].encode()
    assert time.process_time() - start < 5 + len(data) / 1e5


@MANY
@given(st.binary(max_size=400), st.sampled_from([None, "utf-8", "shift_jis", "x", "iso-2022-jp"]))
def test_any_bytes_are_decoded(data, declared):
    assert isinstance(decoded(data, declared), str)
    html_charset(data)


@MANY
@given(st.text(alphabet=st.sampled_from("<>/div abpli=\"'{}[]|&!-\n:#*\u4e00"), max_size=300))
def test_any_markup(text):
    assert isinstance(limited(text * 9), str)
    assert isinstance(plain_wikitext(text), str)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300))
def test_any_text_goes_through_the_first_steps(text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.txt"
        path.write_bytes(text.encode(errors="replace"))
        corpus = Corpus(str(path), f"{folder}/out", steps=(Repair(), Limits()), max_seconds=None,
                        duplicates=None)  # fmt: skip
        for batch in clean_file(corpus, "s", str(path), "a.txt"):
            assert batch.position <= 0
