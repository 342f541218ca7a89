"""What a model reads: decided by the objective, recorded, and taken again."""

import dataclasses
import json

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

import t5x_lite as tl
from t5x_lite.data.chat import ChatTemplate
from t5x_lite.data.objectives.base import finish_example
from t5x_lite.data.objectives.chat import Chat, LastAnswer
from t5x_lite.data.objectives.denoisers import UL2
from t5x_lite.data.objectives.fim import FillInTheMiddle
from t5x_lite.data.reading import (
    Reading,
    default_reading,
    objective_reading,
    reading_from,
    task_reading,
)
from t5x_lite.errors import UserError
from t5x_lite.training.setup import set_up

BYTES = tl.ByteVocabulary()
CAUSAL = Reading("causal", inputs_eos=False)
PREFIX = Reading("bidirectional", inputs_eos=True)
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye?"},
]


def pairs(name="pairs", **options) -> tl.Task:
    records = [{"inputs": "abc", "targets": "de"}, {"inputs": "abcdefgh", "targets": "i"}]
    return tl.Task(name, tl.InMemory(records, validation=records), tl.TextToText(**options), BYTES)


@pytest.mark.parametrize(
    ("objective", "reading"),
    [
        (tl.CausalLM(), CAUSAL),
        (Chat(), CAUSAL),
        (FillInTheMiddle(), CAUSAL),
        (tl.TextToText(), PREFIX),
        (tl.PrefixLM(), PREFIX),
        (UL2(), PREFIX),
        (tl.SpanCorruption(), PREFIX),
        (tl.TextToText(prefix="causal"), CAUSAL),
    ],
)
def test_an_objective_decides_what_a_decoder_reads(objective, reading):
    assert objective_reading(objective, "decoder_only") == reading
    if "inputs" in objective.features:
        assert objective_reading(objective, "encoder_decoder") == Reading("encoder", True)


def test_weights_of_others_have_their_familys_default():
    assert default_reading("decoder_only") == CAUSAL
    assert default_reading("encoder_decoder") == Reading("encoder", inputs_eos=True)


@pytest.mark.parametrize(
    ("reading", "limit", "wanted"),
    [
        (CAUSAL, None, [5, 6, 7, 8]),
        (CAUSAL, 2, [7, 8]),  # it is gone on with
        (PREFIX, None, [5, 6, 7, 8, 1]),
        (PREFIX, 5, [5, 6, 7, 8, 1]),
        (PREFIX, 3, [5, 6, 1]),  # EOS ends what was cut, too
        (Reading("encoder", True), 3, [5, 6, 1]),
        (Reading("bidirectional", False), 3, [5, 6, 7]),
    ],
)
def test_inputs_are_cut_as_they_are_read(reading, limit, wanted):
    found = reading.inputs([5, 6, 7, 8], 1, limit)
    assert found.tolist() == wanted and found.dtype == np.int32


@given(
    st.sampled_from([tl.TextToText(), tl.PrefixLM(), tl.CausalLM(), tl.SpanCorruption()]),
    st.lists(st.integers(3, 9), max_size=9),
    st.lists(st.integers(3, 9), max_size=9),
    st.integers(1, 8),
    st.integers(1, 8),
)
def test_an_objectives_own_reading_finishes_examples_as_training_does(
    objective, inputs, targets, first, second
):
    lengths = {"inputs": first, "targets": second}
    example = {"inputs": np.array(inputs, np.int32), "targets": np.array(targets, np.int32)}
    example = {name: example[name] for name in objective.features}
    wanted = finish_example(example, lengths, objective.append_eos, 1)
    for architecture in ("encoder_decoder", "decoder_only"):
        reading = objective_reading(objective, architecture)
        found = reading.finish(example, lengths, objective.append_eos, 1)
        assert {k: v.tolist() for k, v in found.items()} == {
            k: v.tolist() for k, v in wanted.items()
        }


def rows(task, lengths=None):
    lengths = lengths or {"inputs": 5, "targets": 4}
    [batch] = tl.eval_batches(task, lengths=lengths, batch_size=2, architecture="decoder_only")
    return {name: value.tolist() for name, value in batch.items()}


def test_a_causal_model_reads_pairs_without_eos_or_a_mask():
    a, b, c, d, e, f, g, h, i = (n + 100 for n in range(9))
    own = rows(pairs())
    assert own["decoder_target_tokens"][0] == [a, b, c, 1, d, e, 1, 0, 0]
    assert own["decoder_causal_attention"][0] == [1, 1, 1, 1, 1, 0, 0, 0, 0]
    for task in (pairs().read_as(CAUSAL), pairs(prefix="causal")):
        found = rows(task)
        assert "decoder_causal_attention" not in found
        assert found["decoder_target_tokens"] == [
            [a, b, c, d, e, 1, 0, 0, 0],
            [d, e, f, g, h, i, 1, 0, 0],  # the end of a long prompt
        ]
        assert found["decoder_loss_weights"][0] == [0, 0, 0, 1, 1, 1, 0, 0, 0]
    again = pairs(prefix="causal").read_as(PREFIX)  # weights of a prefix LM
    assert rows(again) == own


def test_packed_rows_read_alike():
    loaders = {
        prefix: tl.BatchLoader(
            pairs(prefix=prefix), lengths={"inputs": 9, "targets": 9}, batch_size=1, seed=0,
            architecture="decoder_only",
        )
        for prefix in ("bidirectional", "causal")
    }  # fmt: skip
    batches = {prefix: next(loader).features for prefix, loader in loaders.items()}
    assert "decoder_causal_attention" in batches["bidirectional"]
    assert "decoder_causal_attention" not in batches["causal"]
    first = batches["causal"]["decoder_segment_ids"][0] == 1
    learnt = batches["causal"]["decoder_loss_weights"][0][first]
    tokens = batches["causal"]["decoder_target_tokens"][0][first]
    assert BYTES.decode(tokens[learnt == 0]) + BYTES.decode(tokens[learnt == 1]) in (
        "abcde", "abcdefghi",
    )  # fmt: skip
    assert loaders["causal"].fingerprint != loaders["bidirectional"].fingerprint


def test_a_mixture_reads_in_one_way():
    both = tl.Mixture("both", [pairs("a"), pairs("b")], [1, 1])
    read = both.read_as(CAUSAL)
    assert [task.reading for task, _ in read.leaves] == [CAUSAL, CAUSAL]
    assert [task.reading for task, _ in both.leaves] == [None, None]
    assert task_reading(read, "decoder_only") == CAUSAL
    mixed = tl.Mixture("mixed", [pairs("a"), pairs("b", prefix="causal")], [1, 1])
    with pytest.raises(UserError, match=r"'b' causal; set TextToText.prefix alike"):
        mixed.leaves  # noqa: B018


def test_mistakes_are_told():
    with pytest.raises(UserError, match=r"expected one of encoder, bidirectional, causal"):
        Reading("bidirectonal", True)
    with pytest.raises(UserError, match=r"TextToText.prefix is 'casual'.*Did you mean 'causal'"):
        tl.TextToText(prefix="casual")
    with pytest.raises(UserError, match="has 'colour', unknown here"):
        reading_from(PREFIX.record() | {"colour": "red"})
    with pytest.raises(UserError, match=r"prefix = \"causal\" is for decoder_only models"):
        set_up(tiny.T5, pairs(prefix="causal"), {"inputs": 8, "targets": 8}, 8)


def test_the_record_is_json_and_comes_back():
    own = ChatTemplate("plain", user="<{content}>\n")
    for reading in (CAUSAL, PREFIX, dataclasses.replace(CAUSAL, template=own, marks=False)):
        assert reading_from(json.loads(json.dumps(reading.record()))) == reading


def test_conversations_are_read_by_their_tasks_template():
    template = ChatTemplate("plain")
    task = tl.Task("chat", tl.InMemory(["x"]), Chat(template), BYTES)
    reading = task_reading(task, "decoder_only")
    assert (reading.template, reading.marks) == (template, True)
    asked = reading.chat(TALK, BYTES)
    np.testing.assert_array_equal(asked, template.prompt_ids(TALK, BYTES))
    answer = reading.targets("See you.", BYTES, TALK)
    ids, turns = template.encode([*TALK, {"role": "assistant", "content": "See you."}], BYTES)
    np.testing.assert_array_equal(ids[: len(asked)], asked)
    np.testing.assert_array_equal(ids[turns == turns.max()], answer)
    assert answer.tolist() == [*BYTES.encode(" See you."), 1]
    last = tl.Task("last", tl.InMemory(["x"]), tl.TextToText(), BYTES, [LastAnswer(template)])
    plain = task_reading(last, "encoder_decoder")
    assert not plain.marks
    np.testing.assert_array_equal(plain.chat(TALK, BYTES), BYTES.encode(template.prompt(TALK)))
    assert plain.targets("Bye", BYTES, TALK).tolist() == [*BYTES.encode("Bye"), 1]
