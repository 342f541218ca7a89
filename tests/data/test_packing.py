import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.data.features import pack_examples, padding_share
from t5x_lite.data.loader import BatchLoader
from t5x_lite.data.objectives.lm import CausalLM, PrefixLM, TextToText
from t5x_lite.data.objectives.span import SpanCorruption
from t5x_lite.data.packing import assign_rows, document_segments, pack_window
from t5x_lite.data.sources import InMemory
from t5x_lite.data.tasks import Mixture, Task
from t5x_lite.data.vocabulary import ByteVocabulary
from t5x_lite.errors import UserError

VOCABULARY = ByteVocabulary()
LENGTHS = {"inputs": 12, "targets": 8}
sizes = st.lists(st.tuples(st.integers(0, 14), st.integers(1, 10)), max_size=40)


def make_examples(sizes):
    """Every example has tokens of its own."""
    return [
        {"inputs": np.full(i, 3 + 2 * n, np.int32), "targets": np.full(t, 4 + 2 * n, np.int32)}
        for n, (i, t) in enumerate(sizes)
    ]


def test_rules():
    room, examples = [10], np.array([[6], [7], [3], [2], [1], [4]])
    assert assign_rows(examples, room, "first_fit").tolist() == [0, 1, 0, 1, 0, 2]
    assert assign_rows(examples, room, "best_fit").tolist() == [0, 1, 1, 0, 0, 2]
    both = assign_rows(np.array([[1, 9], [9, 1], [1, 5], [1, 1]]), [10, 10], "first_fit")
    assert both.tolist() == [0, 0, 1, 1]  # row 0 is full on the second feature


@given(sizes, st.sampled_from(["first_fit", "best_fit"]), st.booleans())
@settings(max_examples=80, deadline=None)
def test_windows_hold_every_example_whole(sizes, rule, joined):
    architecture = "decoder_only" if joined else "encoder_decoder"
    examples = make_examples(sizes)
    rows = pack_window(examples, LENGTHS, architecture, rule)
    found = {}
    for row in rows:
        for name in ("targets",) if joined else ("inputs", "targets"):
            tokens, ids = row[name], row[f"{name}_segment_ids"]
            assert tokens.shape == ids.shape == (20 if joined else LENGTHS[name],)
            for segment in range(1, ids.max() + 1):
                where = np.flatnonzero(ids == segment)
                assert (np.diff(where) == 1).all()
                assert row[f"{name}_positions"][where].tolist() == [*range(len(where))]
                for token, count in zip(*np.unique(tokens[where], return_counts=True), strict=True):
                    assert token not in found
                    found[token] = count
            order = tokens[tokens > 0]
            if not joined:
                assert (np.diff(order) >= 0).all()  # as they came
    wanted = {}
    for n, (i, t) in enumerate(sizes):
        wanted |= {3 + 2 * n: min(i, 12)} if i else {}
        wanted[4 + 2 * n] = min(t, 8)
    assert found == wanted
    assert len(rows) <= len(list(pack_examples(examples, LENGTHS, architecture)))


@given(st.lists(st.integers(0, 3), max_size=30))
def test_document_segments(tokens):
    tokens = np.array(tokens, np.int32)
    tokens = np.concatenate([tokens[tokens > 0], tokens[tokens == 0]])  # padding at the end
    ids, positions = document_segments(tokens, eos_id=1)
    segment, position = 1, 0
    for i, token in enumerate(tokens):
        expected = (segment, position) if token else (0, 0)
        assert (ids[i], positions[i]) == expected
        position += 1
        if token == 1:
            segment, position = segment + 1, 0


def records(n=60, seed=0):
    lengths = np.random.default_rng(seed).integers(1, 30, n)
    return [{"inputs": f"<{i}>" + "x" * k, "targets": "y" * (k % 9)} for i, k in enumerate(lengths)]


PAIRS = Task("pairs", InMemory(records()), TextToText(), VOCABULARY)
TEXT = InMemory([f"{i}" + "z" * (i * 13 % 40) for i in range(50)])
MIXTURE = Mixture("m", [PAIRS, Task("prefix", TEXT, PrefixLM(), VOCABULARY)], [2, 1])
CASES = {
    "pairs": (PAIRS, "encoder_decoder", {"inputs": 40, "targets": 20}),
    "pairs, joined": (PAIRS, "decoder_only", {"inputs": 40, "targets": 20}),
    "spans": (Task("s", TEXT, SpanCorruption(), VOCABULARY), "encoder_decoder",
              {"inputs": 24, "targets": 12}),
    "mixture": (MIXTURE, "encoder_decoder", {"inputs": 40, "targets": 40}),
}  # fmt: skip


def make_loader(case, pack, **kwargs):
    task, architecture, lengths = case
    shape = dict(lengths=lengths, batch_size=4, seed=3, architecture=architecture)
    return BatchLoader(task, pack=pack, **(shape | kwargs))


def take(loader, n):
    return [next(loader) for _ in range(n)]


def assert_equal(batches, others, rows=slice(None)):
    for batch, other in zip(batches, others, strict=True):
        assert (batch.position[rows] == other.position).all()
        for name in batch.features:
            assert (batch.features[name][rows] == other.features[name]).all(), name


@pytest.mark.parametrize("pack", ["next_fit", "first_fit", "best_fit"])
@pytest.mark.parametrize("case", CASES)
def test_any_batch_is_resumed_on_any_rows(case, pack):
    case = CASES[case]
    batches = take(make_loader(case, pack), 40)  # several windows, and epochs of the pairs
    for k in (0, 3, 17, 31):
        other = make_loader(case, pack, rows=[1, 2])
        other.restore(batches[k].position[1:3])
        assert_equal(batches[k + 1 : k + 5], take(other, 4), rows=slice(1, 3))
    if pack == "next_fit":
        assert_equal(batches[:9], take(make_loader(case, True), 9))


def test_a_window_pads_less():
    shares = {}
    for pack in (False, "next_fit", "first_fit", "best_fit"):
        batches = take(make_loader(CASES["pairs"], pack), 60)
        shares[pack] = np.mean([padding_share(batch.features) for batch in batches])
    assert shares["best_fit"] <= shares["first_fit"] < shares["next_fit"] - 0.05
    assert shares["next_fit"] < shares[False] - 0.1


def test_each_record_is_given_once_an_epoch():
    loader = make_loader(CASES["pairs"], "best_fit", batch_size=1)
    seen = []
    while len(seen) < 120:
        features = next(loader).features
        ids = features["encoder_segment_ids"][0]
        for segment in range(1, ids.max() + 1):
            seen.append(VOCABULARY.decode(features["encoder_input_tokens"][0][ids == segment]))
    # A window may reach over the end of an epoch, so the first may be late, but none is lost.
    assert {record["inputs"] for record in PAIRS.source} <= set(seen)


def test_concat_rows_are_full_and_documents_apart():
    task = Task("lm", TEXT, CausalLM(), VOCABULARY)
    case = (task, "decoder_only", {"targets": 50})
    batches, plain = take(make_loader(case, "concat"), 12), take(make_loader(case, False), 12)
    for batch, other in zip(batches, plain, strict=True):
        tokens = batch.features["decoder_target_tokens"]
        assert (tokens == other.features["decoder_target_tokens"]).all() and (tokens > 0).all()
        assert padding_share(batch.features) == 0.0
        ends = (tokens == 1).cumsum(1)
        ids = batch.features["decoder_segment_ids"]
        assert (ids[:, 1:] == 1 + ends[:, :-1]).all() and (ids[:, 0] == 1).all()
        starts = np.diff(ids, prepend=0) > 0
        assert (batch.features["decoder_input_tokens"][starts] == 0).all()
        assert (batch.features["decoder_positions"][starts] == 0).all()
    other = make_loader(case, "concat")
    other.restore(batches[6].position)
    assert_equal(batches[7:], take(other, 5))


def test_padding_share():
    features = {
        "encoder_input_tokens": np.array([[5, 5, 0, 0]]),
        "decoder_target_tokens": np.array([[5, 0]]),
        "decoder_loss_weights": np.zeros((1, 2)),
    }
    assert padding_share(features) == 0.5
    features |= {"decoder_segment_ids": np.array([[1, 1]])}
    assert padding_share(features) == 0.0


def test_errors():
    with pytest.raises(UserError, match="pack is 'bestfit'.*Did you mean 'best_fit'"):
        make_loader(CASES["pairs"], "bestfit")
    with pytest.raises(UserError, match="'concat' with features inputs, targets"):
        make_loader(CASES["pairs"], "concat")
    loader = make_loader(CASES["pairs"], "best_fit")
    with pytest.raises(UserError, match="shape .* same batch size, mixture and packing"):
        loader.restore(make_loader(CASES["pairs"], True).position)
    position = loader.position
    position[:, -1] = 99
    loader.restore(position)
    with pytest.raises(UserError, match="has given 99 rows of a window of"):
        next(loader)
