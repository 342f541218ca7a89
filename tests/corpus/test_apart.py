"""A document that fails, takes too long, or ends its process costs itself alone, and is named."""

import dataclasses
import gzip
import json
import os
import re
import time

import pytest

pytest.importorskip("apache_beam", reason="needs the extra `corpus`")
pytest.importorskip("tensorflow_datasets", reason="needs the extra `corpus`")

from t5x_lite.corpus import card
from t5x_lite.corpus.apart import batches
from t5x_lite.corpus.opening import Problems
from t5x_lite.corpus.pipeline import build
from t5x_lite.corpus.settings import Corpus
from t5x_lite.corpus.steps import Document, Step
from t5x_lite.errors import UserError


@dataclasses.dataclass(frozen=True)
class Fragile(Step):
    """Does to a document what its text says."""

    def __call__(self, document: Document) -> str | None:
        text = document["text"]
        if "raise" in text:
            raise KeyError("x")
        if "recursion" in text:
            return self(document)
        if "long" in text:
            while True:
                pass
        if "backtrack" in text:
            re.match(r"(a+)+$", "a" * 64 + "b")
        if "memory" in text:
            _ = bytearray(3 << 30)
        if "exit" in text:
            os._exit(3)
        if "signal" in text:
            os.kill(os.getpid(), 11)
        if "user" in text:
            raise UserError("a list is missing")
        return None


def corpus(tmp_path, texts, **settings):
    (tmp_path / "in").mkdir(exist_ok=True)
    lines = "\n".join(json.dumps({"text": text}) for text in texts)
    (tmp_path / "in" / "a.jsonl").write_text(lines)
    given = dict(max_seconds=1, max_megabytes=1000, steps=(Fragile(),), duplicates=None)
    return Corpus(str(tmp_path / "in"), str(tmp_path / "out"), **given | settings)


def cleaned(tmp_path, texts, **settings):
    """(texts kept, what was dropped, problems) of a file of these."""
    made = corpus(tmp_path, texts, **settings)
    kept, dropped, problems = [], {}, Problems()
    for batch in batches(made, "in", str(tmp_path / "in" / "a.jsonl"), "a.jsonl"):
        kept += [document["text"] for document, _ in batch.kept]
        problems.merge(*batch.problems)
        dropped |= batch.tally.get("tables", {}).get("dropped documents", {})
    return kept, dropped, problems.examples


def test_errors_of_a_step(tmp_path):
    kept, dropped, problems = cleaned(tmp_path, ["one", "raise", "two", "recursion", "three"])
    assert kept == ["one", "two", "three"] and problems == {}
    assert dropped == {"Fragile/error: KeyError": 1, "Fragile/error: RecursionError": 1}
    with pytest.raises(UserError, match="a list is missing"):  # of the settings, not of a document
        cleaned(tmp_path, ["one", "user"])


@pytest.mark.parametrize("how, problem", [
    ("long", "document that takes more than 1 s"),
    ("backtrack", "document that takes more than 1 s"),  # in C, which nothing within can stop
    ("exit", "document that ends the process (status 3)"),
    ("signal", "document that ends the process (SIGSEGV)"),
])  # fmt: skip
def test_documents_that_end_their_process(tmp_path, how, problem):
    texts = [f"good {i}" for i in range(100)]
    texts[70] = texts[71] = f"{how} this"
    kept, dropped, problems = cleaned(tmp_path, texts)
    assert kept == texts[:70] + texts[72:] and dropped == {}
    assert problems == {problem: ["a.jsonl item 71", "a.jsonl item 72"]}


def test_memory_is_bounded(tmp_path):
    kept, dropped, _ = cleaned(tmp_path, ["one", "memory", "two"])
    assert kept == ["one", "two"] and dropped == {"Fragile/error: MemoryError": 1}


def test_without_limits_there_is_no_process_of_its_own(tmp_path):
    kept, dropped, _ = cleaned(tmp_path, ["one", "raise", "two"], max_seconds=None)
    assert kept == ["one", "two"] and dropped == {"Fragile/error: KeyError": 1}


def test_a_whole_run_names_what_it_left_out_and_keeps_what_was_dropped(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "deep.html").write_text("<div>" * 200_000 + "deep" + "</div>" * 200_000)
    with open(os.fsencode(tmp_path / "in") + b"/bad\xff\xfe.txt", "w") as file:
        file.write("a text in a file whose name is no text")
    made = corpus(
        tmp_path, ["one", "raise", "long", "two"], keep_dropped=True, workers=1, held_out=0.0
    )
    start = time.monotonic()
    folder = build(made, lambda line: None)
    card = json.loads((folder / "data_card.json").read_text())
    assert card["tables"]["result"]["documents"] == 4
    assert card["not read"] == {"document that takes more than 1 s": ["a.jsonl item 3"]}
    assert card["tables"]["dropped documents"] == {"Fragile/error: KeyError": 1}
    assert "bad\\\\xff\\\\xfe.txt" not in json.dumps(card["not read"])
    (file,) = [f for f in (folder / "dropped").iterdir() if f.stat().st_size > 60]
    (row,) = map(json.loads, gzip.decompress(file.read_bytes()).splitlines())
    assert row["text"] == "raise" and row["reason"] == "Fragile/error: KeyError"
    assert time.monotonic() - start < 120


def test_the_output_stands_apart_from_the_input(tmp_path):
    (tmp_path / "in" / "out").mkdir(parents=True)
    for output in ("in", "in/out", "in/out/new", "in/../in/out"):
        with pytest.raises(UserError, match="is inside of the input"):
            Corpus(str(tmp_path / "in"), str(tmp_path / output))
    assert Corpus(str(tmp_path / "in"), str(tmp_path / "input"))
    with pytest.raises(UserError, match="is inside of the input"):  # by its name
        Corpus(str(tmp_path / "in"), str(tmp_path), name="in")
    assert Corpus(str(tmp_path / "in"), str(tmp_path), name="other")


def test_a_place_where_no_dataset_can_appear_is_refused_first(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "file").write_text("text")
    for output in ("file", "file/below"):
        with pytest.raises(UserError, match="file is a file; give a folder"):
            Corpus(str(tmp_path / "in"), str(tmp_path / output))
    mine = tmp_path / "out" / "mine" / "1.0.0"
    mine.mkdir(parents=True)
    settings = dict(inputs=str(tmp_path / "in"), output=str(tmp_path / "out"), name="mine")
    assert Corpus(**settings)  # empty: the dataset takes its place
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something that is no dataset"):
        Corpus(**settings)


def test_the_card_names_languages_in_the_users_order():
    tables = {"language: documents": {"en": 9, "de": 5, "fr": 7, "xx": 8}}
    found = {"name": "n", "version": "1", "description": "", "tables": tables, "samples": {},
             "not read": {}, "settings": {}, "versions": {}, "limits": [],
             "languages": ["de", "fr", "en"]}  # fmt: skip
    page = card.page(found)
    places = [page.index(f"<td>{language}</td>") for language in ("de", "fr", "en", "xx")]
    assert places == sorted(places)
    assert "Not read" not in page and "Samples" not in page  # nothing to show under them
