"""Masked LM, sentence pairs, ELECTRA, XLNet, contrastive pairs: for encoder-only models."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.data.features import feature_lengths, padding_share
from t5x_lite.data.loader import BatchLoader, eval_batches
from t5x_lite.data.objectives.contrastive import DropoutPairs, GivenPairs
from t5x_lite.data.objectives.masked import (
    MaskedLM,
    NextSentence,
    ReplacedTokens,
    SentenceOrder,
    mask_tokens,
    replaced_token_detection,
)
from t5x_lite.data.objectives.permutation import (
    PermutationLM,
    permutation_masks,
    permutation_order,
    target_mapping,
)
from t5x_lite.data.sources import InMemory
from t5x_lite.data.tasks import Task
from t5x_lite.data.vocabulary import ByteVocabulary
from t5x_lite.errors import UserError

VOCABULARY = ByteVocabulary()
MASK, CLASS = VOCABULARY.sentinel(123), VOCABULARY.sentinel(124)
seeds = st.integers(0, 2**32)
texts = st.integers(0, 200).map(lambda n: np.arange(n, dtype=np.int32) % 200 + 3)
PAIR_LENGTHS = {"inputs": 40, "labels": 40, "types": 40, "pair_label": 1}


def original(example):
    return np.where(example["labels"] > 0, example["labels"], example["inputs"])


@given(texts, st.floats(0.02, 0.9), seeds)
@settings(max_examples=80, deadline=None)
def test_masked_lm_keeps_the_text(tokens, density, seed):
    objective = MaskedLM(noise_density=density)
    tokens = np.where(tokens % 37 == 0, 1, tokens).astype(np.int32)  # some EOS
    example = objective(tokens, np.random.default_rng(seed), VOCABULARY, {})
    assert all(v.dtype == np.int32 and len(v) == len(tokens) + 1 for v in example.values())
    assert original(example).tolist() == [CLASS, *tokens]
    words = (tokens != 1).sum()
    assert (example["labels"] > 0).sum() == (max(1, round(density * words)) if words else 0)
    assert not (example["labels"] == 1).any() and example["labels"][0] == 0
    again = objective(tokens, np.random.default_rng(seed), VOCABULARY, {})
    assert (again["inputs"] == example["inputs"]).all()


def test_masks_are_80_10_10():
    tokens = np.full(100_000, 7, np.int32)
    inputs, labels = mask_tokens(
        tokens,
        tokens > 0,
        np.random.default_rng(0),
        noise_density=0.15,
        mask_id=MASK,
        random_ids=(3, 259),
    )
    chosen = inputs[labels > 0]
    assert len(chosen) == 15_000
    assert abs((chosen == MASK).mean() - 0.8) < 0.01
    assert abs(((chosen != MASK) & (chosen != 7)).mean() - 0.1 * 255 / 256) < 0.01
    random = chosen[(chosen != MASK) & (chosen != 7)]
    assert random.min() == 3 and random.max() == 258
    places = np.flatnonzero(labels)
    assert abs(places.mean() - 50_000) < 1000  # anywhere


@given(st.lists(st.integers(1, 9), min_size=2, max_size=30), seeds)
@settings(max_examples=50, deadline=None)
def test_whole_words_are_masked_whole(sizes, seed):
    text = " ".join("x" * size for size in sizes)
    tokens = VOCABULARY.encode(text)
    objective = MaskedLM(noise_density=0.3, whole_words=True)
    labels = objective(tokens, np.random.default_rng(seed), VOCABULARY, {})["labels"][1:]
    found, at = [], 0
    for i, size in enumerate(sizes):
        size += i > 0  # a word takes the space in front of it along
        found.append(labels[at : at + size] > 0)
        assert found[-1].all() or not found[-1].any()
        at += size
    masked = sum(f.sum() for f in found)
    assert 0 < masked <= max(round(0.3 * len(text)), max(map(len, found)))


def test_replaced_token_detection():
    tokens = np.arange(3, 203, dtype=np.int32)
    example = ReplacedTokens()(tokens, np.random.default_rng(0), VOCABULARY, {})
    assert (example["inputs"][example["labels"] > 0] == MASK).all()
    assert original(example).tolist() == [CLASS, *tokens]
    sampled = np.where(np.arange(201) % 2, example["labels"], 9).astype(np.int32)
    row = {k: np.append(v, 0).astype(np.int32) for k, v in example.items()}  # padding
    found = replaced_token_detection(row["inputs"], row["labels"], np.append(sampled, 5))
    text = np.append(original(example), 0)
    assert ((found["inputs"] != text) == (found["replaced"] == 1)).all()
    masked = np.flatnonzero(example["labels"])
    assert (found["inputs"][masked] == sampled[masked]).all()
    assert 0 < found["replaced"].sum() < len(masked) == 30
    assert found["weights"].tolist() == [1] * 201 + [0] and found["replaced"].dtype == np.int32

    import jax

    arguments = row["inputs"], row["labels"], np.append(sampled, 5)
    on_device = jax.jit(replaced_token_detection)(*arguments)
    assert all((np.asarray(on_device[name]) == found[name]).all() for name in found)


@pytest.mark.parametrize("objective", [SentenceOrder(), NextSentence()])
def test_sentence_pairs(objective):
    length = objective.segment_length(PAIR_LENGTHS)
    assert length == 37 * (1 + isinstance(objective, NextSentence))
    tokens = np.arange(10, 10 + length, dtype=np.int32)
    labels = []
    for i in range(400):
        example = objective(tokens, np.random.default_rng(i), VOCABULARY, PAIR_LENGTHS)
        text, types = original(example), example["types"]
        assert len(text) == len(types) == 40 and example["pair_label"].shape == (1,)
        first, second = text[types == 0].tolist(), text[types == 1].tolist()
        assert first[0] == CLASS and first[-1] == second[-1] == 1
        a, b = first[1:-1], second[:-1]
        assert a == [*range(a[0], a[0] + len(a))] and b == [*range(b[0], b[0] + len(b))]
        labels.append(int(example["pair_label"][0]))
        if labels[-1] == 2:
            assert [*a, *b] == tokens[:37].tolist()
        elif isinstance(objective, SentenceOrder):
            assert [*b, *a] == tokens.tolist()
        else:
            assert b[-1] == tokens[-1] and b[0] > tokens[36]
    assert set(labels) == {1, 2} and abs(np.mean(labels) - 1.5) < 0.1
    short = dict.fromkeys(("inputs", "labels", "types"), 4)
    for wrong in ({"types": 30}, {"pair_label": 2}, short):
        with pytest.raises(UserError):
            objective.segment_length(PAIR_LENGTHS | wrong)
    for size in range(1, 5):  # the end of the text
        objective(tokens[:size], np.random.default_rng(0), VOCABULARY, PAIR_LENGTHS)


# --- XLNet ----------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.data(), seeds)
@settings(max_examples=60, deadline=None)
def test_orders_are_permutations(length, data, seed):
    predicted = data.draw(st.integers(0, length))
    order = permutation_order(length, predicted, np.random.default_rng(seed))
    assert sorted(order) == [1] * (length - predicted) + [*range(2, predicted + 2)]


def test_masks_follow_the_order():
    order = np.array([3, 1, 2, 1, 0])
    content, query = permutation_masks(order)
    assert content.tolist() == [
        [True, True, True, True, False],
        [False, True, False, True, False],
        [False, True, True, True, False],
        [False, True, False, True, False],
        [False] * 5,
    ]
    assert query[0].tolist() == [False, True, True, True, False]
    assert query[2].tolist() == [False, True, False, True, False]
    assert not query[[1, 3, 4]].any()
    apart, _ = permutation_masks(np.array([[1, 2, 1, 2]]), np.array([[1, 1, 2, 2]]))
    assert apart[0, 3].tolist() == [False, False, True, True]
    mapping = target_mapping(np.array([0, 7, 0, 8]), 3)
    assert mapping.tolist() == [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    with pytest.raises(UserError, match="2 tokens are to be predicted, expected 1"):
        target_mapping(np.array([0, 7, 0, 8]), 1)


@given(texts, st.floats(1, 20), seeds)
@settings(max_examples=60, deadline=None)
def test_permutation_lm_keeps_the_text(tokens, every, seed):
    tokens = np.where(tokens % 37 == 0, 1, tokens).astype(np.int32)
    objective = PermutationLM(every)
    example = objective(tokens, np.random.default_rng(seed), VOCABULARY, {})
    assert example["inputs"].tolist() == tokens.tolist()
    predicted = example["order"] > 1
    assert (np.where(predicted, tokens, 0) == example["labels"]).all()
    words = (tokens != 1).sum()
    assert predicted.sum() == (min(max(1, int(words / every)), words) if words else 0)
    assert not (tokens[predicted] == 1).any()


# --- Batches --------------------------------------------------------------------------------------

TEXT = InMemory([f"{i}: " + "the cat " * (i % 5) for i in range(30)], held_out=0.1)
PAIRS = InMemory([{"anchor": f"a{i}", "positive": "b" * i, "negative": "c"} for i in range(9)])
CASES = {
    "MaskedLM": (MaskedLM(), TEXT, {"inputs": 32, "labels": 32}),
    "ELECTRA": (ReplacedTokens(whole_words=True), TEXT, {"inputs": 32, "labels": 32}),
    "NextSentence": (NextSentence(), TEXT, PAIR_LENGTHS),
    "SentenceOrder": (SentenceOrder(), TEXT, PAIR_LENGTHS),
    "PermutationLM": (PermutationLM(), TEXT, {"inputs": 32, "labels": 32, "order": 32}),
    "DropoutPairs": (DropoutPairs(), TEXT, {"anchor": 32, "positive": 32}),
    "GivenPairs": (GivenPairs(True), PAIRS, {"anchor": 9, "positive": 9, "negative": 9}),
}


@pytest.mark.parametrize("pack", [False, True, "best_fit"])
@pytest.mark.parametrize("case", CASES)
def test_batches_of_encoder_features(case, pack):
    objective, source, lengths = CASES[case]
    task = Task("t", source, objective, VOCABULARY)
    arguments = dict(lengths=lengths, batch_size=4, architecture="encoder_only")
    loader = BatchLoader(task, seed=0, pack=pack, **arguments)
    sizes = feature_lengths(lengths, "encoder_only", objective.features, bool(pack))
    shapes = {name: (4, size) for name, size in sizes.items()}
    batches = [next(loader).features for _ in range(3)]
    for batch in batches:
        assert {name: x.shape for name, x in batch.items()} == shapes
        assert all(x.dtype == np.int32 for x in batch.values()) and 0 <= padding_share(batch) < 1
        if "encoder_loss_weights" in batch:
            labels = batch["encoder_target_tokens"]
            assert (batch["encoder_loss_weights"] == (labels > 0)).all() and labels.any()
        if pack and "encoder_segment_ids" in batch:
            assert ((batch["encoder_segment_ids"] > 0) == (batch["encoder_input_tokens"] > 0)).all()
    if case == "DropoutPairs":
        assert (batches[0]["encoder_anchor"] == batches[0]["encoder_positive"]).all()
    if case == "PermutationLM":
        assert ((batches[0]["encoder_order"] > 0) == (batches[0]["encoder_input_tokens"] > 0)).all()
    if source is TEXT and not pack:
        assert len(list(eval_batches(task, **arguments))) >= 1


def test_other_architectures_are_refused():
    for architecture in ("encoder_decoder", "decoder_only"):
        with pytest.raises(UserError, match="makes inputs, labels, for an encoder_only model"):
            feature_lengths({"inputs": 8, "labels": 8}, architecture, MaskedLM.features, True)
    with pytest.raises(UserError, match="set all of inputs, labels to 9"):
        MaskedLM().segment_length({"inputs": 8, "labels": 9})
    with pytest.raises(UserError, match="set all to 9"):
        PermutationLM().segment_length({"inputs": 8, "labels": 9, "order": 8})
