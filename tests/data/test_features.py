import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.data import features
from t5x_lite.data.features import NextFitPacker, feature_lengths, model_features, pack_examples
from t5x_lite.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
PACKING = json.loads((GOLDEN / "packing.json").read_text())
LENGTHS = PACKING["lengths"]


def as_arrays(example):
    return {k: np.array(v, np.int32) for k, v in example.items()}


def as_lists(row):
    assert all(v.dtype == np.int32 for v in row.values())
    return {k: v.tolist() for k, v in row.items()}


EXAMPLES = [as_arrays(e) for e in PACKING["examples"]]


# --- seqio's own numbers --------------------------------------------------------------------------


def test_packing_is_seqios():
    rows = list(pack_examples(EXAMPLES, LENGTHS))
    assert [as_lists(r) for r in rows] == PACKING["trim_and_pack_dataset"]


def test_padding_is_seqios():
    rows = [features.pad_example(e, LENGTHS) for e in EXAMPLES]
    assert [as_lists(r) for r in rows] == PACKING["trim_and_pad_dataset"]


def test_packing_of_sixty_examples_is_seqios():
    golden = np.load(GOLDEN / "packing_512_114.npz")
    sides = {}
    for side in ("inputs", "targets"):
        cuts = np.cumsum(golden[f"examples_{side}_lengths"])[:-1]
        sides[side] = np.split(golden[f"examples_{side}"], cuts)
    examples = [{"inputs": i, "targets": t} for i, t in zip(*sides.values(), strict=True)]
    assert len(examples) == 60
    rows = list(pack_examples(examples, {"inputs": 512, "targets": 114}))
    for name in rows[0]:
        np.testing.assert_array_equal(np.stack([r[name] for r in rows]), golden[name], name)
    assert {"inputs", "targets_segment_ids", "targets_positions"} <= set(rows[0])


CONVERTERS = {
    "EncDecFeatureConverter": ("encoder_decoder", LENGTHS),
    "LMFeatureConverter": ("decoder_only", {"targets": 12}),
    "PrefixLMFeatureConverter": ("decoder_only", LENGTHS),
}


@pytest.mark.parametrize("name", CONVERTERS)
@pytest.mark.parametrize("pack", [True, False], ids=["pack", "pad"])
@pytest.mark.parametrize("joined", [True, False])
def test_model_features_are_seqios(name, pack, joined):
    architecture, lengths = CONVERTERS[name]
    if pack:
        rows = list(pack_examples(EXAMPLES, lengths, *([architecture] if joined else [])))
    else:
        rows = [features.pad_example(e, lengths) for e in EXAMPLES]
    made = [as_lists(model_features(row, architecture, pack)) for row in rows]
    assert made == PACKING[f"{name}_{'pack' if pack else 'pad'}"]
    # Stacked rows give the stacked features.
    stacked = {k: np.stack([row[k] for row in rows]) for k in rows[0]}
    batch = model_features(stacked, architecture, pack)
    assert {k: v.tolist() for k, v in batch.items()} == {k: [m[k] for m in made] for k in made[0]}
    # And their shapes are known beforehand.
    shapes = feature_lengths(lengths, architecture, lengths, pack)
    assert shapes == {k: v.shape[1] for k, v in batch.items()}


# --- Properties -----------------------------------------------------------------------------------

sizes = st.lists(st.tuples(st.integers(0, 16), st.integers(0, 12)), max_size=25)


def make_examples(sizes):
    """Every token of every example is another number."""
    ends = np.cumsum(np.array(sizes, int).reshape(-1, 2).ravel()) + 3
    parts = [
        np.arange(e - n, e, dtype=np.int32) for n, e in zip(np.ravel(sizes), ends, strict=True)
    ]
    return [{"inputs": a, "targets": b} for a, b in zip(parts[::2], parts[1::2], strict=True)]


@given(sizes)
@settings(max_examples=150, deadline=None)
def test_packing_keeps_every_example_in_order_and_together(sizes):
    lengths, examples = {"inputs": 16, "targets": 12}, make_examples(sizes)
    rows = list(pack_examples(examples, lengths))
    kept = [e for e in examples if len(e["inputs"]) + len(e["targets"])]
    numbers = []
    for row in rows:
        assert all(
            v.dtype == np.int32 and v.shape == (lengths[k.split("_")[0]],) for k, v in row.items()
        )
        inside = max(row["inputs_segment_ids"].max(), row["targets_segment_ids"].max())
        numbers.append(inside)
        for i in range(1, inside + 1):
            example = kept.pop(0)
            for name in lengths:
                at = row[f"{name}_segment_ids"] == i
                assert row[name][at].tolist() == example[name].tolist()
                assert row[f"{name}_positions"][at].tolist() == list(range(at.sum()))
        for name in lengths:
            padding = row[f"{name}_segment_ids"] == 0
            assert not row[name][padding].any() and not row[f"{name}_positions"][padding].any()
            assert (np.diff(padding.astype(int)) >= 0).all()
    assert not kept and 0 not in numbers


@given(sizes)
@settings(max_examples=100, deadline=None)
def test_a_row_closes_only_on_an_example_that_does_not_fit(sizes):
    lengths = {"inputs": 16, "targets": 12}
    packer = NextFitPacker(lengths)
    used = dict.fromkeys(lengths, 0)
    for example in make_examples(sizes):
        fits = all(used[k] + len(example[k]) <= lengths[k] for k in lengths)
        assert packer.fits(example) == fits
        row = packer.add(example)
        assert (row is None) == fits
        if row is not None:
            assert {k: int((row[f"{k}_segment_ids"] > 0).sum()) for k in lengths} == used
            used = dict.fromkeys(lengths, 0)
        used = {k: used[k] + len(example[k]) for k in lengths}
    assert (packer.flush() is None) == (sum(used.values()) == 0)
    assert len(packer) == 0 and packer.flush() is None


@given(sizes)
@settings(max_examples=100, deadline=None)
def test_prefix_lm_rows_joined_before_packing_hold_the_same_examples(sizes):
    lengths, examples = {"inputs": 16, "targets": 12}, make_examples(sizes)
    whole = [[*e["inputs"], *e["targets"]] for e in examples]
    parts = [(len(e["inputs"]), len(e["targets"])) for e in examples]
    for architecture in features.ARCHITECTURES:  # rows of either kind
        found, predicted, ahead = [], 0, 0
        for row in pack_examples(examples, lengths, architecture):
            made = model_features(row, "decoder_only", pack=True)
            ids = made["decoder_segment_ids"]
            for i in range(1, ids.max() + 1):
                found.append(made["decoder_target_tokens"][ids == i].tolist())
                assert made["decoder_positions"][ids == i].tolist() == list(range((ids == i).sum()))
            predicted += made["decoder_loss_weights"].sum()
            ahead += made["decoder_causal_attention"].sum()
        assert found == [w for w in whole if w]
        assert predicted == sum(t for _, t in parts)
        assert ahead == sum(min(i + 1, i + t) for i, t in parts)


def test_joined_rows_are_never_more():
    examples = make_examples([(10, 2), (3, 7), (9, 1), (5, 12), (1, 1)] * 10)
    apart = len(list(pack_examples(examples, {"inputs": 16, "targets": 12})))
    joined = len(list(pack_examples(examples, {"inputs": 16, "targets": 12}, "decoder_only")))
    assert joined < apart


@given(sizes)
@settings(max_examples=100, deadline=None)
def test_decoder_reads_the_token_before_within_its_segment(sizes):
    for row in pack_examples(make_examples(sizes), {"inputs": 16, "targets": 12}):
        made = model_features(row, "encoder_decoder", pack=True)
        for i in range(1, made["decoder_segment_ids"].max() + 1):
            at = made["decoder_segment_ids"] == i
            read, predicted = made["decoder_input_tokens"][at], made["decoder_target_tokens"][at]
            assert read.tolist() == [0, *predicted[:-1]][: at.sum()]
        assert made["decoder_loss_weights"].tolist() == (row["targets"] > 0).astype(int).tolist()


# --- Errors ---------------------------------------------------------------------------------------


def test_errors_name_the_fix():
    with pytest.raises(UserError, match="Did you mean 'decoder_only'"):
        feature_lengths(LENGTHS, "decoder-only", ("targets",), pack=True)
    with pytest.raises(UserError, match="needs inputs too"):
        feature_lengths(LENGTHS, "encoder_decoder", ("targets",), pack=True)
    with pytest.raises(UserError, match="needs inputs too"):
        model_features({"targets": np.zeros(4, np.int32)}, "encoder_decoder", pack=False)
    with pytest.raises(UserError, match="positive length for 'inputs'"):
        feature_lengths({"targets": 3}, "encoder_decoder", ("inputs", "targets"), pack=True)
