"""The examples in the doc strings of seqio and T5, as their authors wrote them.

seqio/preprocessors.py, seqio/utils.py, seqio/feature_converters.py; t5/data/preprocessors.py.
"""

import numpy as np

from t5x_lite.data.features import feature_lengths, model_features, pack_examples, pad_example
from t5x_lite.data.objectives.base import finish_example
from t5x_lite.data.preprocessors import Fields, Rekey, Truncate
from t5x_lite.data.vocabulary import ByteVocabulary


def ints(example):
    return {name: np.array(values, np.int32) for name, values in example.items()}


def converted(dataset, lengths, architecture, pack=True):
    """What the feature converter of the architecture makes of a dataset: lists."""
    examples = [ints(example) for example in dataset]
    if pack:
        rows = list(pack_examples(examples, lengths, architecture))
    else:
        rows = [pad_example(example, lengths) for example in examples]
    shapes = feature_lengths(lengths, architecture, lengths, pack)
    found = [model_features(row, architecture, pack) for row in rows]
    assert all({k: len(v) for k, v in row.items()} == shapes for row in found)
    return [{name: values.tolist() for name, values in row.items()} for row in found]


def test_rekey():
    record = {"foo": "something", "bar": "something else"}
    rekey = Rekey({"boo": "foo", "spar": "bar"})
    assert rekey(record) == {"boo": "something", "spar": "something else"}
    # "If a mapping is to an empty key name or None or it does not exist in the given mapping x, the
    # new value is set to an empty string."
    empty = Rekey({"a": "", "b": None, "c": "baz", "d": "foo"})
    assert empty(record) == {"a": "", "b": "", "c": "", "d": "something"}


def test_preprocess_tensorflow_examples():
    record = {"text": "a long story", "summary": "story"}
    fields = Fields({"inputs": "Summarize this {text}", "targets": "{summary}"})
    assert fields(record) == {"inputs": "Summarize this a long story", "targets": "story"}


def test_translate_and_summarize():
    translate = Fields({"inputs": "translate German to English: {de}", "targets": "{en}"})
    assert translate({"de": "Das ist gut.", "en": "That is good."}) == {
        "inputs": "translate German to English: Das ist gut.",
        "targets": "That is good.",
    }
    summarize = Fields({"inputs": "summarize: {article}", "targets": "{highlights}"})
    assert summarize({"article": "<article>", "highlights": "<summary>"}) == {
        "inputs": "summarize: <article>",
        "targets": "<summary>",
    }


def test_append_to_innermost_axis():
    """`_append_to_innermost_axis([1, 2, 3], -1)`, with which EOS is appended."""
    found = finish_example(ints({"x": [1, 2, 3]}), {"x": 9}, append_eos=True, eos_id=-1)
    assert found["x"].tolist() == [1, 2, 3, -1]
    # append_eos_after_trim: "trimmed to ensure they are not longer than this length once EOS is
    # added".
    found = finish_example(ints({"x": [5, 6, 7]}), {"x": 3}, append_eos=True)
    assert found["x"].tolist() == [5, 6, 1]


def test_truncate_inputs_left():
    vocabulary = ByteVocabulary()
    shorter = Truncate("inputs", 3, "left", vocabulary)({"inputs": "abcde", "targets": "abcde"})
    assert shorter == {"inputs": "cde", "targets": "abcde"}


def test_trim_and_pack_dataset():
    examples = [
        ints({"inputs": [8, 7, 1], "targets": [4, 1], "idx": [0]}),
        ints({"inputs": [2, 3, 4, 1], "targets": [5, 6, 1], "idx": [1]}),
    ]
    rows = list(pack_examples(examples, {"inputs": 10, "targets": 10}))
    assert [{k: v.tolist() for k, v in row.items()} for row in rows] == [
        {
            "inputs": [8, 7, 1, 2, 3, 4, 1, 0, 0, 0],
            "inputs_segment_ids": [1, 1, 1, 2, 2, 2, 2, 0, 0, 0],
            "inputs_positions": [0, 1, 2, 0, 1, 2, 3, 0, 0, 0],
            "targets": [4, 1, 5, 6, 1, 0, 0, 0, 0, 0],
            "targets_segment_ids": [1, 1, 2, 2, 2, 0, 0, 0, 0, 0],
            "targets_positions": [0, 1, 0, 1, 2, 0, 0, 0, 0, 0],
        }
    ]


def test_make_autoregressive_inputs():
    row = ints(
        {
            "targets": [3, 8, 1, 9, 1, 5, 4, 1, 0, 0],
            "targets_segment_ids": [1, 1, 1, 2, 2, 3, 3, 3, 0, 0],
            "targets_positions": [0, 1, 2, 0, 1, 0, 1, 2, 0, 0],
        }
    )
    found = model_features(row, "decoder_only", True)["decoder_input_tokens"]
    assert found.tolist() == [0, 3, 8, 0, 9, 0, 5, 4, 0, 0]


PAIRS = [
    {"inputs": [7, 8, 5, 1], "targets": [3, 9, 1]},
    {"inputs": [8, 4, 9, 3, 1], "targets": [4, 1]},
]


def test_enc_dec_feature_converter():
    assert converted(PAIRS, {"inputs": 10, "targets": 7}, "encoder_decoder") == [
        {
            "encoder_input_tokens": [7, 8, 5, 1, 8, 4, 9, 3, 1, 0],
            "encoder_segment_ids": [1, 1, 1, 1, 2, 2, 2, 2, 2, 0],
            "encoder_positions": [0, 1, 2, 3, 0, 1, 2, 3, 4, 0],
            "decoder_target_tokens": [3, 9, 1, 4, 1, 0, 0],
            "decoder_input_tokens": [0, 3, 9, 0, 4, 0, 0],
            "decoder_loss_weights": [1, 1, 1, 1, 1, 0, 0],
            "decoder_segment_ids": [1, 1, 1, 2, 2, 0, 0],
            "decoder_positions": [0, 1, 2, 0, 1, 0, 0],
        }
    ]


def test_lm_feature_converter():
    dataset = [{"targets": [3, 9, 1]}, {"targets": [4, 1]}]
    assert converted(dataset, {"targets": 6}, "decoder_only") == [
        {
            "decoder_target_tokens": [3, 9, 1, 4, 1, 0],
            "decoder_input_tokens": [0, 3, 9, 0, 4, 0],
            "decoder_loss_weights": [1, 1, 1, 1, 1, 0],
            "decoder_positions": [0, 1, 2, 0, 1, 0],
            "decoder_segment_ids": [1, 1, 1, 2, 2, 0],
        }
    ]


def test_prefix_lm_feature_converter():
    found = converted(PAIRS, {"inputs": 7, "targets": 8}, "decoder_only")
    # The doc string's weights are those of loss_on_targets_only=False; by default, as here, they
    # leave out the inputs.
    weights = [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0]
    assert found == [
        {
            "decoder_target_tokens": [7, 8, 5, 1, 3, 9, 1, 8, 4, 9, 3, 1, 4, 1, 0],
            "decoder_input_tokens": [0, 7, 8, 5, 1, 3, 9, 0, 8, 4, 9, 3, 1, 4, 0],
            "decoder_loss_weights": weights,
            "decoder_positions": [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0],
            "decoder_segment_ids": [1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 0],
            "decoder_causal_attention": [1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0],
        }
    ]


def test_prefix_lm_feature_converter_without_packing():
    dataset = [{"inputs": [9, 4, 6, 1], "targets": [3, 9, 1]}]
    (found,) = converted(dataset, {"inputs": 5, "targets": 4}, "decoder_only", pack=False)
    assert found["decoder_target_tokens"] == [9, 4, 6, 1, 3, 9, 1, 0, 0]
    assert found["decoder_causal_attention"] == [1, 1, 1, 1, 1, 0, 0, 0, 0]
    assert found["decoder_loss_weights"] == [0, 0, 0, 0, 1, 1, 1, 0, 0]


def test_encoder_feature_converter():
    """Mask 9, class 8. Ours keep only what is predicted in the target tokens."""
    dataset = [
        {"inputs": [8, 9, 9, 3, 4, 1], "labels": [0, 7, 4, 0, 0, 0]},
        {"inputs": [8, 3, 9, 1], "labels": [0, 0, 6, 0]},
    ]
    (found,) = converted(dataset, {"inputs": 11, "labels": 11}, "encoder_only")
    theirs = [8, 7, 4, 3, 4, 1, 8, 3, 6, 1, 0]
    weights = [0, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0]
    assert found == {
        "encoder_input_tokens": [8, 9, 9, 3, 4, 1, 8, 3, 9, 1, 0],
        "encoder_target_tokens": [t * w for t, w in zip(theirs, weights, strict=True)],
        "encoder_segment_ids": [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 0],
        "encoder_positions": [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 0],
        "encoder_loss_weights": weights,
    }
