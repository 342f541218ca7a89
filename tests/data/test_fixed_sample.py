import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import t5x_lite as tl
from t5x_lite.data.fixed_sample import apportion, fixed_sample, sample_order


@settings(max_examples=50, deadline=None)
@given(length=st.integers(0, 300), limit=st.integers(0, 320), dropped=st.sets(st.integers(0, 299)))
def test_a_sample_is_a_part_of_the_whole_in_its_order(length, limit, dropped):
    def make(index):
        return None if index in dropped else index

    whole = list(fixed_sample(length, None, make))
    assert whole == [i for i in range(length) if i not in dropped]
    found = list(fixed_sample(length, limit, make))
    assert found == sorted(set(found)) and set(found) <= set(whole)
    assert len(found) == min(limit, len(whole))
    more = list(fixed_sample(length, limit + 7, make))
    assert set(found) <= set(more)  # a larger one goes on with the same


def test_the_order_is_a_fixed_permutation_that_begins_anywhere():
    order = list(sample_order(1000))
    assert sorted(order) == list(range(1000)) and order == list(sample_order(1000))
    assert 300 < np.mean(order[:50]) < 700 and min(order[:50]) < 200 and max(order[:50]) > 800


@settings(max_examples=50, deadline=None)
@given(count=st.integers(0, 1000), shares=st.lists(st.floats(0.01, 10), min_size=1, max_size=9))
def test_apportioned_by_shares(count, shares):
    parts = apportion(count, shares)
    assert sum(parts) == count
    for part, share in zip(parts, shares, strict=True):
        assert abs(part - count * share / sum(shares)) < 1


def files(folder, texts):
    """Files a.jsonl, b.jsonl, ... of one record for each text, half of them held out."""
    paths = []
    for name, several in texts.items():
        paths.append(folder / f"{name}.jsonl")
        paths[-1].write_text("".join(json.dumps({"text": text}) + "\n" for text in several))
    return tl.open_files([str(path) for path in paths], held_out=0.5)


def letters(source, max_batches, batch_size=8, length=64):
    task = tl.Task("t", source, tl.CausalLM(), tl.ByteVocabulary())
    batches = tl.eval_batches(task, lengths={"targets": length}, batch_size=batch_size,
                              architecture="decoder_only", max_batches=max_batches)  # fmt: skip
    rows = np.concatenate([batch["decoder_target_tokens"] for batch in batches])
    return rows, {name: int((rows == ord(name) + 3).sum()) for name in "abc"}


def test_a_limited_evaluation_is_of_all_files(tmp_path):
    source = files(tmp_path, {n: [n * 40 + str(i) for i in range(400)] for n in "abc"})
    rows, counts = letters(source, 15)
    assert all(0.2 < n / sum(counts.values()) < 0.47 for n in counts.values()), counts
    other, _ = letters(source, 30, batch_size=4)
    np.testing.assert_array_equal(other, rows)  # as many examples in batches of another size


@pytest.mark.parametrize("documents", [2, 8])
def test_a_few_long_documents_are_all_in_the_sample(tmp_path, documents):
    texts = {n: [n * (20_000 + i) for i in range(documents)] for n in "abc"}
    source = files(tmp_path, texts)
    _, everything = letters(source, None)
    _, counts = letters(source, 20)
    for name, count in counts.items():
        assert (
            abs(count / sum(counts.values()) - everything[name] / sum(everything.values())) < 0.15
        )


def test_a_sample_of_segments_is_a_part_of_all_of_them(tmp_path):
    source = files(tmp_path, {"a": [f"text number {i} of many" for i in range(40)]})
    whole, _ = letters(source, None, batch_size=1)
    some, _ = letters(source, 3, batch_size=1)
    places = [int(np.flatnonzero((whole == row).all(axis=1))[0]) for row in some]
    assert places == sorted(set(places)) and places != [0, 1, 2]
    all_of_them, _ = letters(source, len(whole) + 5, batch_size=1)
    np.testing.assert_array_equal(all_of_them, whole)


def test_each_task_of_a_mixture_has_its_share(tmp_path):
    tasks = [
        tl.Task(name, tl.InMemory([name * 63] * 400, held_out=0.0, validation=[name * 63] * 400),
                tl.CausalLM(), tl.ByteVocabulary())
        for name in "abc"
    ]  # fmt: skip
    mixture = tl.Mixture("m", tasks, rates=[1, 2, 5])
    batches = tl.eval_batches(mixture, lengths={"targets": 64}, batch_size=8,
                              architecture="decoder_only", max_batches=4)  # fmt: skip
    rows = np.concatenate([batch["decoder_target_tokens"] for batch in batches])
    assert [int((rows[:, 0] == ord(name) + 3).sum()) for name in "abc"] == [4, 8, 20]
    assert batches.examples == 32
