import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.data.objectives.base import finish_example, split_documents
from t5x_lite.data.objectives.lm import CausalLM, PrefixLM, TextToText, random_prefix_mask
from t5x_lite.data.objectives.span import (
    SpanCorruption,
    _random_edges,
    noise_counts,
    noise_span_to_unique_sentinel,
    nonnoise_span_to_unique_sentinel,
    random_spans_helper,
    random_spans_noise_mask,
)
from t5x_lite.data.vocabulary import ByteVocabulary
from t5x_lite.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
SPANS = json.loads((GOLDEN / "span_corruption.json").read_text())
DATASET = json.loads((GOLDEN / "span_corruption_dataset.json").read_text())


class T5Vocabulary:
    size, num_sentinels = 32_100, 100


def ints(values):
    return np.array(values, np.int32)


def runs(mask):
    """(is_noise, lengths) of the runs of a mask."""
    edges = np.flatnonzero(np.diff(mask)) + 1
    starts = np.concatenate([[0], edges])
    return mask[starts].astype(int), np.diff(np.append(starts, len(mask)))


def recombine(inputs, targets, lowest_sentinel=32_000):
    """The text and mask behind a pair of features (no EOS): each fills the other's sentinels."""

    def spans(tokens):
        found, last = {}, None
        for token in tokens.tolist():
            if token >= lowest_sentinel:
                found[last := token] = []
            else:
                found.setdefault(last, []).append(token)
        return found

    noise, text, mask = spans(targets), [], []
    for sentinel, kept in spans(inputs).items():
        dropped = noise[sentinel] if sentinel is not None else []
        text += dropped + kept
        mask += [True] * len(dropped) + [False] * len(kept)
    return ints(text), np.array(mask, bool)


# --- T5's own numbers -----------------------------------------------------------------------------


def test_spans_helper_is_t5s():
    assert len(SPANS["helper"]) == 128
    for case in SPANS["helper"]:
        arguments = [case[k] for k in ("inputs_length", "noise_density", "mean_noise_span_length")]
        expected = (case["tokens_length"], case["targets_length"])
        assert random_spans_helper(*arguments) == expected, arguments


@pytest.mark.parametrize("case", SPANS["cases"], ids=lambda c: f"{c['length']}-{c['seed']}")
def test_span_functions_are_t5s(case):
    tokens, mask = ints(case["tokens"]), np.array(case["mask"], bool)
    first = SPANS["first_sentinel"]
    inputs = noise_span_to_unique_sentinel(tokens, mask, first)
    targets = nonnoise_span_to_unique_sentinel(tokens, mask, first)
    assert inputs.dtype == targets.dtype == np.int32
    assert inputs.tolist() == case["inputs"]
    assert targets.tolist() == case["targets"]


@pytest.mark.parametrize("case", SPANS["cases"], ids=lambda c: f"{c['length']}-{c['seed']}")
def test_masks_have_t5s_structure(case):
    density, mean = case["noise_density"], case["mean_noise_span_length"]
    rng = np.random.default_rng(5)
    mask = random_spans_noise_mask(case["length"], density, rng, mean)
    is_noise, lengths = runs(mask)
    assert mask.dtype == bool and mask.shape == (case["length"],)
    assert mask.sum() == sum(case["mask"])
    assert is_noise.tolist() == case["run_is_noise"]
    assert len(lengths) == len(case["run_lengths"])
    if case["length"] > 1:
        assert noise_counts(case["length"], density, mean) == (
            sum(case["mask"]),
            sum(case["run_is_noise"]),
        )


def test_dataset_segments_and_examples_are_t5s():
    lengths = DATASET["lengths"]
    segment_length = SpanCorruption().segment_length(lengths)
    documents = [ints(d) for d in DATASET["documents"]]
    segments = list(split_documents(documents, 128, segment_length))
    assert [s.tolist() for s in segments] == DATASET["segments"]
    assert all(s.dtype == np.int32 for s in segments)
    for segment, expected in zip(segments, DATASET["examples"], strict=True):
        # T5's mask, read off its features, gives its features again, EOS and all.
        text, mask = recombine(ints(expected["inputs"][:-1]), ints(expected["targets"][:-1]))
        assert text.tolist() == segment.tolist()
        features = {
            "inputs": noise_span_to_unique_sentinel(segment, mask, 32_099),
            "targets": nonnoise_span_to_unique_sentinel(segment, mask, 32_099),
        }
        finished = finish_example(features, lengths, append_eos=True)
        assert {k: v.tolist() for k, v in finished.items()} == expected
        # Our own mask makes features of the same lengths.
        ours = SpanCorruption()(segment, np.random.default_rng(0), T5Vocabulary, lengths)
        ours = finish_example(ours, lengths, append_eos=True)
        assert {k: len(v) for k, v in ours.items()} == {k: len(v) for k, v in expected.items()}


# --- Span corruption ------------------------------------------------------------------------------

texts = st.integers(0, 700).map(lambda n: np.arange(n, dtype=np.int32) % 900 + 3)
densities = st.floats(0.01, 0.95)
span_lengths = st.floats(1, 20)
seeds = st.integers(0, 2**32)


@given(texts, densities, span_lengths, seeds)
@settings(max_examples=150, deadline=None)
def test_inputs_and_targets_recombine(tokens, density, mean, seed):
    mask = random_spans_noise_mask(len(tokens), density, np.random.default_rng(seed), mean)
    inputs = noise_span_to_unique_sentinel(tokens, mask, 32_099)
    targets = nonnoise_span_to_unique_sentinel(tokens, mask, 32_099)
    text, found = recombine(inputs, targets, lowest_sentinel=32_099 - 800)
    assert text.tolist() == tokens.tolist()
    assert found.tolist() == mask.tolist()


@given(st.integers(2, 700), densities, span_lengths, seeds)
@settings(max_examples=150, deadline=None)
def test_masks_have_the_noise_asked_for(length, density, mean, seed):
    mask = random_spans_noise_mask(length, density, np.random.default_rng(seed), mean)
    noise, spans = noise_counts(length, density, mean)
    is_noise, lengths = runs(mask)
    assert mask.sum() == noise and is_noise.sum() == spans
    assert len(lengths) == 2 * spans and not mask[0] and mask[-1]
    if 1 <= length * density <= length - 1:
        assert abs(noise - length * density) <= 0.5 + 1e-4
    again = random_spans_noise_mask(length, density, np.random.default_rng(seed), mean)
    assert (mask == again).all()


def test_masks_differ_and_cover_every_place():
    masks = np.stack(
        [random_spans_noise_mask(100, 0.15, np.random.default_rng(seed)) for seed in range(2000)]
    )
    assert len(np.unique(masks, axis=0)) > 1990
    share = masks.mean(axis=0)  # even, but for the ends: the first token is kept, the last is not
    assert share[0] == 0 and share[-1] == 1
    assert abs(share[10:80].mean() - 0.14) < 0.02 and share[10:80].std() < 0.02


def test_partitions_are_uniform():
    rng = np.random.default_rng(0)
    found = [tuple(np.diff(_random_edges(5, 3, rng)).tolist()) for _ in range(6000)]
    counts = {parts: found.count(parts) for parts in set(found)}
    assert set(counts) == {(1, 1, 3), (1, 3, 1), (3, 1, 1), (1, 2, 2), (2, 1, 2), (2, 2, 1)}
    assert all(abs(n - 1000) < 150 for n in counts.values())


@given(st.integers(3, 600), densities, span_lengths, seeds)
@settings(max_examples=100, deadline=None)
def test_features_fit_the_lengths_and_waste_little(inputs, density, mean, seed):
    objective = SpanCorruption(density, mean)
    lengths = {"inputs": inputs, "targets": 10**6}
    tokens = np.full(objective.segment_length(lengths), 7, np.int32)
    vocabulary = ByteVocabulary(extra_ids=10_000)
    example = objective(tokens, np.random.default_rng(seed), vocabulary, lengths)
    assert all(v.dtype == np.int32 for v in example.values())
    assert len(example["inputs"]) + 1 <= inputs
    needed = len(example["targets"]) + 1
    assert objective.segment_length({"inputs": inputs, "targets": needed}) == len(tokens)
    with pytest.raises(UserError, match=f"set targets to {needed}"):
        objective.segment_length({"inputs": inputs, "targets": needed - 1})


@pytest.mark.parametrize("seed", range(5))
def test_568_tokens_fill_512_and_114(seed):
    lengths, objective = {"inputs": 512, "targets": 114}, SpanCorruption()
    assert objective.segment_length(lengths) == 568
    tokens = ints(np.random.default_rng(seed).integers(3, 32_000, 568))
    example = objective(tokens, np.random.default_rng(seed), T5Vocabulary, lengths)
    example = finish_example(example, lengths, objective.append_eos)
    assert {k: v.shape for k, v in example.items()} == {"inputs": (512,), "targets": (114,)}
    assert example["inputs"][-1] == example["targets"][-1] == 1
    assert example["targets"][0] == 32_099
    text, _ = recombine(example["inputs"][:-1], example["targets"][:-1])
    assert text.tolist() == tokens.tolist()


def test_span_corruption_errors_name_the_fix():
    objective = SpanCorruption()
    with pytest.raises(UserError, match=r"inputs of 512 .* targets of 100: set targets to 114"):
        objective.segment_length({"inputs": 512, "targets": 100})
    with pytest.raises(UserError, match="too short"):
        objective.segment_length({"inputs": 2, "targets": 100})
    with pytest.raises(UserError, match="'targets'"):
        objective.segment_length({"inputs": 512})
    with pytest.raises(UserError, match=r"28 noise spans, the vocabulary has 20 sentinels"):
        tokens, rng = np.full(568, 5, np.int32), np.random.default_rng(0)
        objective(tokens, rng, ByteVocabulary(extra_ids=20), {})
    with pytest.raises(UserError, match="noise_density"):
        SpanCorruption(noise_density=1.5)
    with pytest.raises(UserError, match="mean_span_length"):
        SpanCorruption(mean_span_length=0.5)


def test_no_noise_without_density():
    assert not random_spans_noise_mask(9, 0.0, np.random.default_rng(0)).any()


# --- The other objectives -------------------------------------------------------------------------


def test_causal_lm_keeps_the_text():
    objective = CausalLM()
    assert objective.segment_length({"targets": 64}) == 64
    assert objective.document_eos and not objective.append_eos
    example = objective([5, 6, 7], None, None, {"targets": 64})
    assert example["targets"].dtype == np.int32 and example["targets"].tolist() == [5, 6, 7]


@given(st.integers(0, 40), seeds)
def test_prefix_lm_cuts_in_two(length, seed):
    tokens, objective = np.arange(3, 3 + length, dtype=np.int32), PrefixLM()
    example = objective(tokens, np.random.default_rng(seed), None, {})
    assert np.concatenate([example["inputs"], example["targets"]]).tolist() == tokens.tolist()
    if length > 1:
        assert 1 <= len(example["inputs"]) <= length - 1
    again = objective(tokens, np.random.default_rng(seed), None, {})
    assert len(again["inputs"]) == len(example["inputs"])


def test_prefix_lengths_are_uniform():
    rng = np.random.default_rng(1)
    lengths = [random_prefix_mask(6, rng).sum() for _ in range(5000)]
    counts = np.bincount(lengths, minlength=7)
    assert counts[0] == counts[6] == 0
    assert (abs(counts[1:6] - 1000) < 150).all()


def test_prefix_lm_needs_targets_as_long_as_inputs():
    assert PrefixLM().segment_length({"inputs": 32, "targets": 32}) == 32
    with pytest.raises(UserError, match="set targets to 32"):
        PrefixLM().segment_length({"inputs": 32, "targets": 31})


def test_text_to_text_keeps_both_sides():
    objective = TextToText()
    assert objective.segment_length({"inputs": 4, "targets": 4}) is None
    tokens = {"inputs": [3, 4, 5, 6, 7], "targets": [8]}
    example = objective(tokens, None, None, {})
    finished = finish_example(example, {"inputs": 4, "targets": 4}, append_eos=True)
    assert finished["inputs"].tolist() == [3, 4, 5, 1] and finished["targets"].tolist() == [8, 1]
    with pytest.raises(UserError, match="'inputs'"):
        objective.segment_length({"targets": 4})


# --- Cutting documents ----------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 30), max_size=20),
    st.integers(1, 12),
    st.sampled_from([1, 2, 3, 128, None]),
)
def test_split_documents_loses_nothing(sizes, segment_length, merge):
    ends = np.cumsum(sizes, dtype=int)
    documents = [np.arange(e - n, e, dtype=np.int32) + 3 for n, e in zip(sizes, ends, strict=True)]
    segments = list(split_documents(documents, merge, segment_length))
    assert np.concatenate([ints([]), *segments]).tolist() == list(range(3, 3 + sum(sizes)))
    real = [n for n in sizes if n]
    group = merge or len(sizes) or 1
    groups = [sum(real[i : i + group]) for i in range(0, len(real), group)]
    expected = [min(segment_length, n - at) for n in groups for at in range(0, n, segment_length)]
    assert [len(s) for s in segments] == expected


def test_finish_example_trims():
    example = {"targets": np.arange(3, 13, dtype=np.int32)}
    kept = finish_example(example, {"targets": 4}, append_eos=False)
    ended = finish_example(example, {"targets": 4}, append_eos=True)
    assert kept["targets"].tolist() == [3, 4, 5, 6] and ended["targets"].tolist() == [3, 4, 5, 1]
    assert ended["targets"].dtype == np.int32
