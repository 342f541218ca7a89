"""UL2 and fill-in-the-middle: what their examples hold, and training batches of them."""

import gin
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite import config
from t5x_lite.data.loader import BatchLoader
from t5x_lite.data.objectives.base import finish_example
from t5x_lite.data.objectives.denoisers import UL2, Denoiser
from t5x_lite.data.objectives.fim import FillInTheMiddle, fill_in_the_middle, undo_middle
from t5x_lite.data.sources import InMemory
from t5x_lite.data.tasks import Task
from t5x_lite.data.vocabulary import ByteVocabulary
from t5x_lite.errors import UserError

VOCABULARY = ByteVocabulary()  # 125 sentinels
WIDE = ByteVocabulary(extra_ids=2000)
seeds = st.integers(0, 2**32)


def text_of(length):
    return np.arange(length, dtype=np.int32) % 256 + 3


def recombine(inputs, targets, vocabulary):
    """The text behind (inputs without mode token, targets), neither with EOS."""
    sentinels = [vocabulary.sentinel(i) for i in range(vocabulary.num_sentinels)]
    starts = np.flatnonzero(np.isin(targets, sentinels))
    spans = {targets[a]: targets[a + 1 : b] for a, b in zip(starts, [*starts[1:], None])}  # noqa: B905
    pieces = [spans.pop(t) if t in spans else np.array([t]) for t in inputs.tolist()]
    # Of a text of one token nothing is noise: its targets are a sentinel that stands for it.
    assert all(len(span) == 0 for span in spans.values())
    return np.concatenate([np.zeros(0, np.int32), *pieces])


@given(st.integers(6, 300), seeds)
@settings(max_examples=60, deadline=None)
def test_ul2_loses_nothing_and_fits(inputs_length, seed):
    objective = UL2()
    lengths = {"inputs": inputs_length, "targets": 10**6}
    length = objective.segment_length(lengths)
    needed = max(d.feature_lengths(length)[1] for d in objective.denoisers)
    assert objective.segment_length({"inputs": inputs_length, "targets": needed}) == length
    with pytest.raises(UserError, match=f"set targets to {needed}"):
        objective.segment_length({"inputs": inputs_length, "targets": needed - 1})
    tokens = text_of(length)
    for i in range(4):
        example = objective(tokens, np.random.default_rng((seed, i)), WIDE, lengths)
        assert len(example["inputs"]) < inputs_length and len(example["targets"]) < needed
        assert all(v.dtype == np.int32 for v in example.values())
        again = objective(tokens, np.random.default_rng((seed, i)), WIDE, lengths)
        assert all((example[name] == again[name]).all() for name in example)
        found = recombine(example["inputs"][1:], example["targets"], WIDE)
        assert found.tolist() == tokens.tolist()
    one = objective(tokens[:1], np.random.default_rng(seed), WIDE, lengths)
    assert recombine(one["inputs"][1:], one["targets"], WIDE).tolist() == tokens[:1].tolist()


def test_ul2_denoisers_are_the_papers():
    objective, length = UL2(), 200
    noise = {"R": [], "S": [], "X": []}
    modes = dict(zip(VOCABULARY.size - 1 - np.array([122, 123, 124]), "RSX", strict=True))
    for i in range(3000):
        example = objective(text_of(length), np.random.default_rng(i), VOCABULARY, {})
        mode = modes[example["inputs"][0]]
        spans = (example["targets"] >= VOCABULARY.sentinel(121)).sum()
        noise[mode].append((len(example["targets"]) - spans, spans))
        if mode == "S":  # one span, at the end
            assert spans == 1 and example["inputs"][-1] == VOCABULARY.sentinel(0)
    shares = {mode: len(found) / 3000 for mode, found in noise.items()}
    assert shares == pytest.approx({"R": 2 / 7, "S": 1 / 7, "X": 4 / 7}, abs=0.03)
    assert set(noise["R"]) == {(30, 10), (30, 4)}  # 15 % in spans of 3 or 8
    assert set(noise["X"]) == {(100, 33), (100, 12), (30, 1), (100, 2)}
    suffixes = np.array([size for size, _ in noise["S"]])
    assert abs(suffixes.mean() - 50) < 3 and suffixes.min() >= 1 and suffixes.max() <= 99
    assert objective.segment_length({"inputs": 512, "targets": 512}) == 510


def test_ul2_options_and_errors():
    only_s = UL2((("S", 0, 0.25),), mode_tokens=())
    example = only_s(text_of(20), np.random.default_rng(0), VOCABULARY, {})
    assert recombine(example["inputs"], example["targets"], VOCABULARY).tolist() == [*range(3, 23)]
    named = UL2((Denoiser("X", 3, 0.5),), mode_tokens=(5, 6, "<extra_id_9>"))
    example = named(text_of(20), np.random.default_rng(0), VOCABULARY, {})
    assert example["inputs"][0] == VOCABULARY.sentinel(9)
    with pytest.raises(UserError, match="10 noise spans .* 9 sentinels left"):
        named(text_of(60), np.random.default_rng(0), VOCABULARY, {})
    with pytest.raises(UserError, match=r"'\[NLU\]', which is 5 pieces .* user_symbols"):
        UL2(mode_tokens=("[NLU]", 3, 4))(text_of(9), np.random.default_rng(0), VOCABULARY, {})
    with pytest.raises(UserError, match="needs 3 sentinels for R, S, X, the vocabulary has 2"):
        UL2()(text_of(9), np.random.default_rng(0), ByteVocabulary(extra_ids=2), {})
    short = UL2(text_length=100)
    assert short.segment_length({"inputs": 512, "targets": 68}) == 100
    for bad in (1, 511):
        with pytest.raises(UserError, match=f"text_length is {bad}, expected 2 to 510"):
            UL2(text_length=bad).segment_length({"inputs": 512, "targets": 512})
    with pytest.raises(UserError, match="too short for UL2"):
        UL2().segment_length({"inputs": 3, "targets": 90})
    for bad in [("Q", 3, 0.5), ("R", 0, 0.5), ("R", 3, 1.5), ("R", 3, 0.5, -1)]:
        with pytest.raises(UserError, match="UL2 denoiser"):
            UL2((bad,))
    with pytest.raises(UserError, match="no rate above 0"):
        UL2((("R", 3, 0.15, 0.0),))


# --- Fill-in-the-middle ---------------------------------------------------------------------------

MARKS = np.array([VOCABULARY.sentinel(i) for i in (122, 123, 124)], np.int32)


def test_forms_are_the_papers():
    parts = [np.array(part, np.int32) for part in ([3, 4], [5], [6, 7])]
    pre, suf, mid = MARKS
    psm = fill_in_the_middle(*parts, MARKS, spm=False)
    assert psm.tolist() == [pre, 3, 4, suf, 6, 7, mid, 5]
    spm = fill_in_the_middle(*parts, MARKS, spm=True)
    assert spm.tolist() == [pre, suf, 6, 7, mid, 3, 4, 5]
    for form in (psm, spm):
        assert undo_middle(form, MARKS).tolist() == [3, 4, 5, 6, 7]


@given(st.text(max_size=40), st.sampled_from(["character", "token"]), st.floats(0, 1), seeds)
@settings(max_examples=100, deadline=None)
def test_documents_lose_nothing(text, unit, spm_rate, seed):
    objective = FillInTheMiddle(rate=1.0, spm_rate=spm_rate, unit=unit)
    tokens = np.append(VOCABULARY.encode(text), np.int32(1))
    rng = np.random.default_rng(seed)
    changed = objective.document(tokens, rng, VOCABULARY)
    again = objective.document(tokens, np.random.default_rng(seed), VOCABULARY)
    assert changed.tolist() == again.tolist() and changed.dtype == np.int32
    assert len(changed) == len(tokens) + 3 * (len(tokens) > 1) and changed[-1] == 1
    assert undo_middle(changed[:-1], MARKS).tolist() == tokens[:-1].tolist()


def test_share_form_and_cuts_are_as_asked():
    objective = FillInTheMiddle(rate=0.5, spm_rate=0.25)
    tokens = np.append(VOCABULARY.encode("abcd"), np.int32(1))
    found = [objective.document(tokens, np.random.default_rng(i), VOCABULARY) for i in range(4000)]
    changed = [f for f in found if len(f) > len(tokens)]
    assert abs(len(changed) / 4000 - 0.5) < 0.03
    # An SPM form shows no prefix in its place; a PSM form with an empty prefix looks the same.
    spm = np.mean([f[1] == MARKS[1] for f in changed])
    assert abs(spm - (0.25 + 0.75 * 9 / 25)) < 0.03
    middles = [len(f) - 2 - f.tolist().index(MARKS[2]) for f in changed if f[1] != MARKS[1]]
    assert set(middles) == {0, 1, 2, 3}


@given(st.lists(st.integers(0, 9), max_size=9), seeds)
@settings(max_examples=60, deadline=None)
def test_contexts_lose_nothing_and_fit(sizes, seed):
    objective = FillInTheMiddle(rate=0.8, level="context", documents_per_context=3)
    lengths = {"targets": 40}
    documents = [np.append(text_of(size), np.int32(1)) for size in sizes]
    tokens = np.concatenate([np.zeros(0, np.int32), *documents])
    tokens = tokens[: objective.segment_length(lengths)]
    found = objective(tokens, np.random.default_rng(seed), VOCABULARY, lengths)["targets"]
    assert len(found) <= 40
    assert finish_example({"targets": found}, lengths, False)["targets"].tolist() == found.tolist()
    pieces = np.split(found, np.flatnonzero(found == 1) + 1)
    text = []
    for piece in pieces:
        eos = piece[piece == 1]  # at the end, if anywhere
        text += [*undo_middle(piece[: len(piece) - len(eos)], MARKS), *eos]
    assert text == tokens.tolist()
    assert (found == MARKS[0]).sum() <= 3


def test_from_gin():
    gin.clear_config()
    gin.parse_config(
        """
        UL2.denoisers = (("R", 3, 0.15), ("S", 0, 0.25, 2.0))
        UL2.mode_tokens = ("[NLU]", 5, "<extra_id_3>")
        FillInTheMiddle.level = "context"
        """
    )
    ul2 = config.call("UL2")
    assert ul2.denoisers == (Denoiser("R", 3, 0.15), Denoiser("S", 0, 0.25, 2.0))
    assert ul2.mode_tokens[1] == 5 and config.call("FillInTheMiddle").level == "context"
    gin.clear_config()


def test_fim_errors():
    for bad in ({"level": "chunk"}, {"unit": "word"}, {"rate": 1.5}, {"spm_rate": -0.1}):
        with pytest.raises(UserError, match=f"FillInTheMiddle.{next(iter(bad))} is"):
            FillInTheMiddle(**bad)
    with pytest.raises(UserError, match="14 or more"):
        FillInTheMiddle(level="context").segment_length({"targets": 13})


# --- Batches --------------------------------------------------------------------------------------

SOURCE = InMemory([f"<{i}:" + "abcdefghij"[i % 10] * (i * 7 % 50) + ">" for i in range(40)])
CASES = {
    "UL2": (UL2(), "encoder_decoder", {"inputs": 40, "targets": 40}),
    "UL2, decoder-only": (UL2(), "decoder_only", {"inputs": 40, "targets": 40}),
    "FIM": (FillInTheMiddle(), "decoder_only", {"targets": 48}),
    "FIM in context": (FillInTheMiddle(level="context"), "decoder_only", {"targets": 48}),
}


@pytest.mark.parametrize("case", CASES)
def test_batches_resume(case):
    objective, architecture, lengths = CASES[case]

    def loader(**kwargs):
        task = Task("t", SOURCE, objective, VOCABULARY)
        shape = dict(lengths=lengths, batch_size=4, seed=1, architecture=architecture)
        return BatchLoader(task, **shape, **kwargs)

    batches = [next(whole) for whole in [loader()] for _ in range(12)]
    other = loader(rows=[2, 3])
    other.restore(batches[4].position[2:])
    for batch in batches[5:]:
        found = next(other)
        assert (found.position == batch.position[2:]).all()
        for name, values in batch.features.items():
            assert (found.features[name] == values[2:]).all()
    tokens = np.stack([b.features["decoder_target_tokens"] for b in batches])
    assert (tokens >= VOCABULARY.size - VOCABULARY.num_sentinels).any()
    if "FIM" in case:
        assert np.isin(MARKS, tokens).all()
    if case == "FIM":  # rows are full, and every whole document in them is one of the source
        assert (tokens > 0).all()
        row = tokens[:, 0].ravel()
        documents = np.split(row, np.flatnonzero(row == 1) + 1)[1:-1]
        texts = {VOCABULARY.decode(undo_middle(d[:-1], MARKS)) for d in documents}
        assert len(texts) > 5 and texts <= {record["text"] for record in SOURCE}
