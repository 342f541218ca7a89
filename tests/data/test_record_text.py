"""What a field is as text: texts and numbers, and never the words None, nan or ['a', 'b']."""

import datetime
import decimal
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.data.loader import BatchLoader
from t5x_lite.data.objectives.lm import CausalLM, TextToText
from t5x_lite.data.open_files import open_files
from t5x_lite.data.preprocessors import (
    Chunk,
    Concatenate,
    FewShot,
    Fields,
    Filter,
    FlatMap,
    Strip,
    Truncate,
)
from t5x_lite.data.record_text import as_text, fill
from t5x_lite.data.sources import InMemory
from t5x_lite.data.tasks import Task
from t5x_lite.data.templates import (
    AnswerQuestion,
    Choose,
    Classify,
    Cloze,
    EachAnswer,
    LastWord,
    MarkSpans,
    Rate,
    TagWords,
)
from t5x_lite.data.text_files import ParallelFiles
from t5x_lite.data.vocabulary import ByteVocabulary
from t5x_lite.errors import UserError

NO_TEXT = [
    (None, "null"),
    (float("nan"), "NaN"),
    (np.float32("nan"), "NaN"),
    (decimal.Decimal("NaN"), "NaN"),
    (float("inf"), "the number inf"),
    (["a", "b"], "a list of 2"),
    ([], "a list of 0"),
    (("a",), "a list of 1"),
    (np.array(["a", "b"]), "a list of 2"),
    ({"a": 1}, r"an object \(its fields: 'a'\)"),
    ({}, "an object"),
    (b"\xff", "bytes that are not UTF-8"),
    (object(), "object"),
]
TEXTS = [
    ("", ""), ("a", "a"), (3, "3"), (-1, "-1"), (3.5, "3.5"), (np.int64(4), "4"), (1e22, "1e+22"),
    (np.array(5), "5"), (np.str_("s"), "s"), (True, "True"), (np.bool_(False), "False"),
    (b"caf\xc3\xa9", "café"), (decimal.Decimal("1.50"), "1.50"), ("None", "None"),
    (datetime.date(2024, 2, 29), "2024-02-29"), (10**30, "1" + "0" * 30),
]  # fmt: skip


@pytest.mark.parametrize("value, text", TEXTS)
def test_texts(value, text):
    assert as_text(value, "f") == text == fill("{f}", {"f": value})


@pytest.mark.parametrize("value, kind", NO_TEXT)
def test_what_is_no_text_is_named(value, kind):
    with pytest.raises(UserError, match=f"^field 'f' is {kind}"):
        as_text(value, "f")
    for step in (
        Fields({"text": "a {f}"}),
        FewShot([{"f": "x"}], shot="{f}", query="{f}"),
        FewShot([{"f": value}], shot="{f}", query="x"),
        Choose("{f}", ["g", "h"]),
    ):
        with pytest.raises(UserError, match=f"field 'f' is {kind}"):
            step({"f": value, "g": "x", "h": "y", "label": 0, "id": 1})


GOOD: list = [
    (Classify("p", ["a", "b"], ["no", "yes"], group="g/n"),
     dict(a="x", b="y", label=1, g={"n": 7})),
    (Rate("p", ["a"]), dict(a="x", label=3.4)),
    (MarkSpans(), dict(text="a b c", span1_text="a", span1_index=0, span2_text="c", span2_index=2,
                      label=1)),
    (EachAnswer(), dict(answers=["a"])),
    (Cloze(), dict(passage="p", query="q", entities=["e"], answers=["e"],
                  idx={"passage": 1, "query": 2})),
    (AnswerQuestion(),
     dict(question="q", context="c", answers={"text": ["c"], "answer_start": [0]})),
    (Choose("{q}", "c/text", names="c/label"), dict(q="x", label="B",
                                                   c={"text": ["x", "y"], "label": ["A", "B"]})),
    (Choose("{q}", ["a", "b"]), dict(q="x", label=1, a="x", b="y")),
    (TagWords("p", ["O", "B"]), dict(tokens=["a", "b"], ner=[0, 1])),
    (LastWord(), dict(passage="some words")),
    (Strip(["a"]), dict(a="x")),
    (Filter("a"), dict(a="x")),
    (Truncate("a", 3), dict(a="x")),
    (Chunk(3, key="a"), dict(a="x")),
]  # fmt: skip


def paths(value, path=()):
    """Where a value is that can be replaced, of a nested record."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from paths(value[key], (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    changed = value.copy()
    changed[path[0]] = replaced(value[path[0]], path[1:], new)
    return changed


CHANGES = [(step, record, path) for step, record in GOOD for path in paths(record)]


@pytest.mark.parametrize("new", [None, float("nan"), {"other": 1}, [["a"], ["b"]]], ids=repr)
@pytest.mark.parametrize("step, record, path", CHANGES, ids=lambda x: type(x).__name__)
def test_each_field_of_each_template_is_checked(step, record, path, new):
    """A wrong value in any place is an error that names its field; it is never made text of."""
    assert step(record)
    if (
        path[0] == "answers"
        and path[-1] == "answer_start"
        or path == ("answers", "answer_start", 0)
    ):
        return  # only heads read these
    with pytest.raises((UserError, KeyError)) as error:
        step(replaced(record, path, new))
    assert str(path[0]) in str(error.value)


def test_concatenate():
    step = Concatenate(["a", "b", "c"], separator="+")
    assert step({"a": "x", "b": None})["text"] == "x"
    assert step({"a": "x", "b": "", "c": 3})["text"] == "x+3"
    for wrong in (["y"], float("nan"), {}):
        with pytest.raises(UserError, match="field 'b' is"):
            step({"a": "x", "b": wrong})


def test_numbers_of_labels():
    classify = Classify("p", ["a"], ["no", "yes"])
    assert classify({"a": "x", "label": 1.0})["targets"] == "yes"
    assert classify({"a": "x", "label": -1})["targets"] == "<unk>"
    with pytest.raises(UserError, match=r"field 'label' is 0\.5, expected a whole number"):
        classify({"a": "x", "label": 0.5})
    rate = Rate("p", ["a"])
    assert rate({"a": "x", "label": "3.33"})["targets"] == "3.4"
    for wrong in ("high", "nan", "inf", True, None):
        with pytest.raises(UserError, match="field 'label' is"):
            rate({"a": "x", "label": wrong})


@pytest.mark.parametrize(
    "template, record, text",
    [
        ("{a} and {{b}}", {"a": 1}, "1 and {b}"),
        ("{a|default(none)}", {"a": None}, "none"),
        ("{a|default(none)}", {}, "none"),
        ("{a|default()}.", {"a": float("nan")}, "."),
        ("{a|default(n: !)}", {"a": None}, "n: !"),
        ("{a|default(none)}", {"a": ""}, ""),
        ("{a|join( )}", {"a": ["x", 2]}, "x 2"),
        ("{a|join(, )}", {"a": np.array(["x", "y"])}, "x, y"),
        ("{a|join(\n)|default(-)}", {"a": None}, "-"),
        ("{a|join( )}", {"a": []}, ""),
        ("{a[b][0]}", {"a": {"b": ["x"]}}, "x"),
        ("{a/b}", {"a": {"b": "x"}}, "x"),
        ("{a/b}", {"a/b": "y", "a": {"b": "x"}}, "y"),
        ("{a.b}", {"a.b": "x"}, "x"),
        ("{a:.2f}|{b:>3}", {"a": 1.234, "b": "x"}, "1.23|  x"),
        ("{a!r}", {"a": None}, "None"),  # it says so
        ("{first name}", {"first name": "x"}, "x"),
    ],
)
def test_templates(template, record, text):
    assert fill(template, record) == text


@pytest.mark.parametrize(
    "template, message",
    [
        ("{a", "single '{'; write '{{'"),
        ("a}", "single '}'"),
        ("{}", r"expected \{NAME\}"),
        ("{a|defalt(x)}", "Did you mean 'default'"),
        ("{a|upper}", r"expected \{NAME\}, \{NAME\|default\(TEXT\)\} or \{NAME\|join\(TEXT\)\}"),
        ("{a|join( )}", r"field 'a\[1\]' is null"),
        ("{b|join( )}", "field 'b' is int 3, expected a list of texts"),
        ("{b:.2q}", "field 'b' is 3, and the format '.2q'"),
        ("{c.upper}", "field 'c.upper' is builtin_function"),
        ("{a[2]}", r"field 'a\[2\]' isn't there.*write \{a\[2\]\|default\(TEXT\)\}"),
    ],
)
def test_mistakes_in_templates(template, message):
    with pytest.raises(UserError, match=message):
        fill(template, {"a": ["x", None], "b": 3, "c": "x"})


@pytest.mark.parametrize("template", ["{b}", "{a[b]}", "{a[-1]}", "{a/b}", "{a.b}", "{0}"])
def test_a_field_that_is_not_there(template):
    with pytest.raises(KeyError):
        fill(template, {"a": ["x"]})


@given(st.dictionaries(st.sampled_from("abc"), st.text() | st.integers(), min_size=3), st.text())
def test_as_pythons_format_for_texts_and_numbers(record, around):
    around = around.replace("{", "{{").replace("}", "}}")
    template = around + "{a}-{b}" + around + "{c!s:>5}"
    assert fill(template, record) == template.format_map(record)


def test_a_bad_record_is_named_before_the_first_batch(tmp_path):
    lines = [{"text": "a film", "stars": i} for i in range(50)]
    lines[37]["stars"] = None
    path = tmp_path / "films.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    fields = Fields({"inputs": "{text}", "targets": "{stars}"})
    source = open_files(str(path), keys=None, held_out=0.0)
    task = Task("films", source, TextToText(), ByteVocabulary(), [fields])
    options = dict(lengths={"inputs": 9, "targets": 9}, batch_size=2, seed=0,
                   architecture="encoder_decoder")  # fmt: skip
    with pytest.raises(
        UserError, match=r"'films': record 37 \(.*films.jsonl line 38\): field 'stars'"
    ):
        BatchLoader(task, **options)
    fields = Fields({"inputs": "{text}", "targets": "{stars|default(unknown)}"})
    next(BatchLoader(Task("films", source, TextToText(), ByteVocabulary(), [fields]), **options))
    keep = open_files(str(path), keys={"text": "text", "stars": "stars"}, max_bad_records=1)
    assert keep.bad_records == 1 and len(keep) == 49


def test_a_record_whose_list_is_short_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "x", "answers": ["y"]}\n{"q": "x", "answers": []}\n{"answers": ["y"]}\n')
    source = open_files(str(path), keys=None, held_out=0.0)
    fields = Fields({"inputs": "{q}", "targets": "{answers[0]}"})
    task = Task("questions", source, TextToText(), ByteVocabulary(), [fields])
    assert task.record(source, 0)["targets"] == "y"
    with pytest.raises(UserError, match=r"a.jsonl line 2\): field 'answers\[0\]' isn't there"):
        task.record(source, 1)
    with pytest.raises(UserError, match=r"'q' of record 2 \(.*a.jsonl line 3\), which has"):
        task.record(source, 2)


def test_a_bad_record_is_named_where_it_comes_from(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "answers": ["y"]}\n{"text": "x"}\n')
    source = open_files(str(tmp_path / "a.jsonl"), keys=None, held_out=0.0)
    made = FlatMap(source, Chunk(3, 0, "text"))
    assert made.where(1).endswith("a.jsonl line 2")
    (tmp_path / "a.jsonl").write_text('{"answers": ["y"]}\n{"answers": null}\n')
    source = open_files(str(tmp_path / "a.jsonl"), keys=None, held_out=0.0)
    with pytest.raises(UserError, match="a.jsonl line 2: field 'answers' is null, expected a list"):
        len(FlatMap(source, EachAnswer()))
    for name in ("a.en", "a.de"):
        (tmp_path / name).write_text("one\ntwo\n")
    pair = ParallelFiles({"en": str(tmp_path / "a.en"), "de": str(tmp_path / "a.de")})
    assert pair.where(1) == f"{tmp_path}/a.en byte 4 and {tmp_path}/a.de byte 4"


def test_what_the_objective_reads_is_text():
    source = InMemory([{"text": "x"}, {"text": 3}])
    task = Task("t", source, CausalLM(), ByteVocabulary(), [lambda record: record])
    with pytest.raises(UserError, match="'text' of record 1 is int, expected str"):
        BatchLoader(task, lengths={"targets": 9}, batch_size=1, seed=0, architecture="decoder_only")
