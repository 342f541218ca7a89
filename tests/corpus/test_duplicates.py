"""Duplicates: exact, near by MinHash, and repeated runs of bytes; against the plain definitions."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.corpus.duplicates import (
    Duplicates,
    groups,
    line_key,
    mix,
    repeated_spans,
    repeats,
    without_spans,
)
from t5x_lite.errors import UserError

VOCABULARY = [f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(600)]


def union_find(pairs):
    """{number: smallest of its group}, one pair at a time."""
    parent = {}

    def root(x):
        parent.setdefault(x, x)
        while parent[x] != x:
            x = parent[x]
        return x

    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return {x: root(x) for x in parent}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40))
def test_groups_are_connected_components(pairs):
    array = np.array(pairs, np.uint64).reshape(-1, 2)
    numbers, smallest = groups(array[:, 0], array[:, 1])
    found = dict(zip(numbers.tolist(), smallest.tolist(), strict=True))
    assert found == union_find(pairs)


def test_a_long_chain_is_one_group():
    n = 3000
    order = np.random.default_rng(0).permutation(n - 1)
    numbers, smallest = groups(order.astype(np.uint64), (order + 1).astype(np.uint64))
    assert len(numbers) == n and not smallest.any()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20)), max_size=30, unique=True))
def test_repeats_point_to_the_first_of_their_key(rows):
    keys, numbers = np.array(rows, np.uint64).reshape(-1, 2).T
    first, later = repeats(keys, numbers)
    expected = set()
    for key in {k for k, _ in rows}:
        members = sorted(n for k, n in rows if k == key)
        expected |= {(members[0], n) for n in members[1:]}
    assert set(zip(first.tolist(), later.tolist(), strict=True)) == expected


def test_exact_keys_forget_case_and_marks_at_the_ends_of_words_only():
    key = Duplicates(near=False).keys
    assert key("A cat, (no. 5)")[0] == key("a CAT  no 5!")[0] != key("a cat no five")[0]
    assert key("!!!")[0] != key("???")[0]  # nothing left to compare: the text itself
    assert line_key(" Hello\n") == line_key("hello") != line_key("hello.")
    assert len(set(mix(np.arange(2000, dtype=np.uint64).reshape(-1, 2)).tolist())) == 1000


DIFFERENT = [
    ("दिन", "दान"), ("ma mà má", "ma ma ma"), ("resume", "résumé"), ("שָׁלוֹם", "שלום"),
    ("a = b + c", "a = b - c"), ("a = b", "a != b"), ("a < b", "a > b"), ("x.y", "x y"),
    ("What is 12 + 5?", "What is 3 * 71?"), ("It costs 5 €.", "It costs 6 €."), ("3.5", "35"),
    ("I use C.", "I use C++."), ("I use C.", "I use C#."), ("t is 5", "t is -5"), (".5", "5"),
    ("他今年十五歲。", "他今年十四歲。"), ("f(x, y)", "f[x, y]"), ("50 %", "50"),
]  # fmt: skip


@pytest.mark.parametrize("one, other", DIFFERENT)
def test_texts_that_differ_in_a_letter_a_mark_a_digit_or_an_operator(one, other):
    key = Duplicates(near=False).keys
    assert key(one)[0] != key(other)[0]


def test_of_source_code_everything_counts():
    duplicates = Duplicates()
    texts = [f"def f(a, b):\n    c = a {mark} b\n    return c\n" for mark in "+-*"]
    keys = np.stack([duplicates.keys(text, code=True) for text in texts])
    assert all(len(set(column)) == 3 for column in keys.T.tolist())
    case = duplicates.keys("Aa = 1", code=True)[0]
    assert case == duplicates.keys("Aa = 1  \n", code=True)[0]
    assert case != duplicates.keys("aa = 1", code=True)[0]


@pytest.mark.parametrize("letters", ["的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出",
                                     "กขคงจฉชซญดตถทธนบปผพภมยรลวศสหอฮ"])  # fmt: skip
def test_near_duplicates_of_scripts_without_spaces(letters):
    """By characters: a text with 1 % of them changed shares bands, another text none."""
    rng = random.Random(0)
    text = [rng.choice(letters) for _ in range(1000)]
    other = list(text)
    for place in range(50, 1000, 100):
        other[place] = rng.choice(letters)
    strange = [rng.choice(letters) for _ in range(1000)]
    keys = [Duplicates(exact=False).keys("".join(t)) for t in (text, other, strange)]
    assert (keys[0] == keys[1]).sum() >= 2 and not (keys[0] == keys[2]).any()


def ngrams(words):
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def test_near_duplicates_follow_the_curve():
    """Pairs at several Jaccard similarities share a band as often as 1-(1-s^8)^14 says."""
    pytest.importorskip("rensa")
    settings_, rng = Duplicates(exact=False), random.Random(0)
    assert settings_.names == [f"band {i}" for i in range(14)]
    for changed in (0.01, 0.035, 0.06, 0.1):
        hits, expected = 0, 0.0
        for _ in range(120):
            words = [rng.choice(VOCABULARY) for _ in range(150)]
            other = [rng.choice(VOCABULARY) if rng.random() < changed else w for w in words]
            shared = settings_.keys(" ".join(words)) == settings_.keys(" ".join(other))
            jaccard = len(ngrams(words) & ngrams(other)) / len(ngrams(words) | ngrams(other))
            hits += bool(shared.any())
            expected += 1 - (1 - jaccard**8) ** 14
        deviation = (expected * (1 - expected / 120)) ** 0.5
        assert abs(hits - expected) < 4 * deviation + 1
    texts = [" ".join(rng.choice(VOCABULARY) for _ in range(60)) for _ in range(200)]
    keys = np.stack([settings_.keys(text) for text in texts])
    assert all(len(set(column)) == 200 for column in keys.T.tolist())  # nothing in common


def test_bad_settings():
    with pytest.raises(UserError, match="Duplicates.bands is 0"):
        Duplicates(bands=0)


def repeated_by_definition(texts, length):
    seen, marked = set(), [set() for _ in texts]
    for number, text in enumerate(texts):
        for i in range(len(text) - length + 1):
            window = text[i : i + length]
            if window in seen:
                marked[number].update(range(i, i + length))
            seen.add(window)
    return marked


@settings(max_examples=80, deadline=None)
@given(st.lists(st.binary(max_size=40).map(lambda b: bytes(97 + x % 3 for x in b)), max_size=5),
       st.integers(1, 9))  # fmt: skip
def test_repeated_spans_by_their_definition(texts, length):
    found = [{i for span in spans for i in range(*span)} for spans in repeated_spans(texts, length)]
    assert found == repeated_by_definition(texts, length)


def test_spans_keep_characters_whole():
    shared = "gemeinsames Stück äöü"
    texts = [f"A{shared}B".encode(), f"ü{shared}ä".encode()]
    for length in range(4, 24):
        for text, spans in zip(texts, repeated_spans(texts, length), strict=True):
            for begin, stop in spans:
                text[begin:stop].decode()
            rest = without_spans(text, spans)
            assert set(rest) <= set(text.decode())
    assert without_spans(texts[1], repeated_spans(texts, 10)[1]) == "üä"
