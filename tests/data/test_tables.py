"""CSV, TSV and JSON as others read them: the same rows and content, or a named mistake."""

import csv
import json
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from t5x_lite.data import file_bytes
from t5x_lite.data.open_files import open_files
from t5x_lite.data.tables import Delimited, JsonLines
from t5x_lite.errors import UserError

NASTY = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PIECES = [
    "a",
    "bc",
    '"',
    '""',
    ",",
    "\t",
    "\n",
    "\r\n",
    "\r",
    " ",
    "\0",
    "é",
    "\u2028",
    "\x85",
    "\f",
]
FILES = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)


def rows_of(source):
    return [list(source[i].values()) for i in range(len(source))]


def read(path, **options):
    """(rows, messages of bad ones)."""
    source = Delimited(str(path), keys=None, held_out=0.0, max_bad_records=1000, **options)
    return rows_of(source), source.bad_messages


def by_csv(text, width, **options):
    """Python's strict reader, of lines that end at \\n alone; it goes on after a bad row."""
    reader = csv.reader(re.findall(r"[^\n]*\n|[^\n]+", text), strict=True, **options)
    good, bad = [], 0
    while True:
        try:
            row = next(reader, None)
        except csv.Error:
            bad += 1
            continue
        if row is None:
            return good, bad
        if row and len(row) == width:
            good.append(row)
        elif row:
            bad += 1


@NASTY
@given(FILES)
@example('A 5" pipe,1\nsecond,2\nA 7" pipe,3\n')
@example("a\rb,1\n")
@example('"a\rb",1\n"c\n",2\n')
@example('"a"b,1\nc,2\n')
@example('x,"never closed\ny,1\n')
def test_csv_rows_are_those_of_pythons_csv(tmp_path, text):
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode())
    rows, messages = read(path, columns=["one", "two"])
    good, bad = by_csv(text, 2)
    assert rows == good
    assert [f"{path} line " in m for m in messages].count(True) == min(bad, 10)


@NASTY
@given(FILES)
def test_each_character_is_in_a_row_or_in_a_bad_one(tmp_path, text):
    """Nothing of a file goes by: the rows, joined, and the bad lines hold every word in it."""
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode())
    rows, messages = read(path, columns=["one"])
    if not messages:
        kept = "".join(value for row in rows for value in row)
        assert sorted(re.findall("a|bc|é", kept)) == sorted(re.findall("a|bc|é", text))


@NASTY
@given(st.lists(st.tuples(*[st.text(st.sampled_from('ab",\n\r\t é\0\u2028\f'), max_size=6)] * 3)))
def test_what_pythons_csv_writes_is_read_again(tmp_path, rows):
    path = tmp_path / "a.csv"
    with open(path, "w", newline="", encoding="utf-8") as f:
        csv.writer(f, quoting=csv.QUOTE_ALL).writerows([("x", "y", "z"), *rows])
    if not rows:
        with pytest.raises(UserError, match="line 1: a header and no rows"):
            len(Delimited(str(path), keys=None))
        return
    assert read(path) == ([list(row) for row in rows], [])


@NASTY
@given(st.lists(st.lists(st.text(st.sampled_from('ab", é'), max_size=6), min_size=2, max_size=2)))
def test_what_pyarrow_reads_is_read(tmp_path, rows):
    arrow = pytest.importorskip("pyarrow.csv")
    path = tmp_path / "a.csv"
    with open(path, "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([("x", "y"), *rows])
    if not rows:
        return
    strings = arrow.ConvertOptions(column_types={"x": "string", "y": "string"})
    table = arrow.read_csv(path, convert_options=strings)
    assert read(path)[0] == [list(row.values()) for row in table.to_pylist()]


@NASTY
@given(FILES)
@example("\t\n \t\n\t \n")
@example('"a\tb"\n')
def test_tsv_rows_are_those_of_pythons_csv(tmp_path, text):
    text = text.replace("\r", "")  # of which Python's makes a line end, and we text
    path = tmp_path / "a.tsv"
    path.write_bytes(text.encode())
    rows, messages = read(path, columns=["one", "two"])
    good, bad = by_csv(text, 2, delimiter="\t", quoting=csv.QUOTE_NONE)
    assert rows == good
    assert [f"{path} line " in m for m in messages].count(True) == min(bad, 10)


def test_a_lone_carriage_return_in_tsv_is_text(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"x\ty\na\rb\tc\r\nd\te\n")
    assert read(tmp_path / "a.tsv") == ([["a\rb", "c"], ["d", "e"]], [])


@pytest.mark.parametrize(
    "content, message",
    [
        (b"text\na\rb\n", r"line 2 \(byte 5\): a carriage return .* in a field that isn't quoted"),
        (b'text,n\n"a"b,1\n', r"line 2 \(byte 7\): no CSV .*expected after"),
        (b'text,n\na,1\n"b,2\nc,3\n', r"line 3 \(byte 11\): a quoted field that isn't closed"),
        (b"text,n\na\n", r"line 2 .*: 1 fields, expected 2: text, n"),
        (b"text,n\na,1,2\n", r"line 2 .*: 3 fields, expected 2: text, n"),
        (b"text,n\na,1\n\xe9,2\n", r"line 3 .*: not UTF-8, byte 0xe9 at offset 11"),
        (b"text,\xe9\na,1\n", r"line 1: not UTF-8, byte 0xe9 at offset 5"),
        (b"text\n", "line 1: a header and no rows"),
        (b"n,text,n\n1,a,2\n", "line 1: two columns of the name 'n'"),
        (b'"te\nxt"x,n\na,1\n', "line 1: no CSV"),
        (b"", "is empty"),
    ],
)
def test_mistakes_of_a_csv_file(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=f"a.csv {message}"):
        len(open_files(str(tmp_path / "a.csv")))


def test_columns_without_a_name_matter_if_all_are_wanted(tmp_path):
    (tmp_path / "a.csv").write_text("text,,\na,1,2\n")
    assert Delimited(str(tmp_path / "a.csv"))[0] == {"text": "a"}
    with pytest.raises(UserError, match="two columns of the name ''"):
        len(Delimited(str(tmp_path / "a.csv"), keys=None))
    with pytest.raises(UserError, match="columns has the name 'x' twice"):
        Delimited(str(tmp_path / "a.csv"), columns=["x", "x"])
    with pytest.raises(UserError, match="delimiter is '::'; expected one character"):
        Delimited(str(tmp_path / "a.csv"), delimiter="::")


def test_an_open_quote_counts_as_all_lines_that_it_takes(tmp_path):
    (tmp_path / "a.csv").write_text('x,y\na,1\n"b,2\n' + "c,3\n" * 50)
    with pytest.raises(UserError, match="51 bad records, max_bad_records is 50"):
        len(Delimited(str(tmp_path / "a.csv"), keys=None, max_bad_records=50))
    assert rows_of(Delimited(str(tmp_path / "a.csv"), keys=None, max_bad_records=51)) == [
        ["a", "1"]
    ]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64])
def test_rows_across_the_edges_of_blocks(tmp_path, monkeypatch, block):
    monkeypatch.setattr(file_bytes, "BLOCK_BYTES", block)
    rows = [['a "quoted"\n\nfield, é', "1"], ["", ""], ["x" * 20, "\r\n"], ["\ufeff", "2"]]
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8-sig") as f:
        csv.writer(f).writerows([("x", "y"), *rows])
    assert read(tmp_path / "a.csv") == (rows, [])
    texts = ["a\rb", "\u2028c\x85", "d" * 30]
    lines = "".join(json.dumps({"text": t}, ensure_ascii=False) + "\r\n" for t in texts)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert rows_of(JsonLines(str(tmp_path / "a.jsonl"), held_out=0.0)) == [[t] for t in texts]


def test_a_field_longer_than_pythons_limit(tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "x" * 300_000 + '\n"' + "y" * 300_000 + '"\n')
    csv.field_size_limit(131_072)
    source = Delimited(str(tmp_path / "a.csv"), held_out=0.0)
    csv.field_size_limit(131_072)
    assert [len(r["text"]) for r in (source[0], source[1])] == [300_000] * 2
    with pytest.raises(
        UserError, match="line 2 .*: a record of 300,001 bytes, expected at most 99"
    ):
        len(Delimited(str(tmp_path / "a.csv"), max_record_bytes=99))


# ---- JSON

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@NASTY
@given(
    st.lists(st.dictionaries(st.text(max_size=4), VALUES), min_size=1),
    st.sampled_from([None, 2, "\t"]),
    st.booleans(),
    st.sampled_from([("utf-8", ""), ("utf-8-sig", "\r\n"), ("utf-8", " \n\n")]),
)
def test_a_list_of_objects_in_a_file(tmp_path, records, indent, escaped, form):
    encoding, end = form
    text = json.dumps(records, indent=indent, ensure_ascii=escaped)
    try:
        (tmp_path / "a.json").write_bytes((text + end).encode(encoding))
    except UnicodeEncodeError:  # a lone surrogate
        return
    source = JsonLines(str(tmp_path / "a.json"), keys=None, held_out=0.0)
    assert [source[i] for i in range(len(source))] == records


@pytest.mark.parametrize(
    "content, message",
    [
        ('[{"text": "a"},\n{"text": "b"}', r"line 2: no JSON list of objects \(Expecting ','"),
        ('[{"text": "a"},\n]', "line 2: no JSON list of objects"),
        ('[{"text": "a"}]\n[{"text": "b"}]', r"line 2: no JSON list of objects \(Text after"),
        ('[\n{"text": "a"},\n"b"]', r"line 3 \(byte 17\): a JSON str, expected one object"),
        ('{"text": "a"}\n{"text": "b", "text": "c"}', "line 2 .*: two fields of the name 'text'"),
        ('{"text": "a: b", "n": {"k" : 1, "k": 2}}', "line 1 .*: two fields of the name 'k'"),
        ('{"text": "a"} {"text": "b"}', r"line 1 .*no JSON \(Extra data at character 13\)"),
        ('{"text": "a"}\n\ufeff{"text": "b"}', "line 2 .*: no JSON"),
        ("[]", "holds no records"),
        ("\n \n", "holds no records"),
    ],
)
def test_mistakes_of_a_json_file(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=f"a.json {message}"):
        len(JsonLines(str(tmp_path / "a.json"), keys=None))
