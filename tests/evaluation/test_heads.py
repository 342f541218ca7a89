"""Heads of an encoder: what is made of a task's labels, the loss, and texts out of logits."""

import dataclasses
import json
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

import t5x_lite as tl
from t5x_lite.data.features import model_features, pad_example
from t5x_lite.data.huggingface import HuggingFaceVocabulary
from t5x_lite.data.objectives.heads import Classes, Span, Tags, fitting, located, number_bits
from t5x_lite.data.templates import AnswerQuestion, Classify, Rate, TagWords
from t5x_lite.errors import UserError
from t5x_lite.evaluation.heads import answer, best_span, examples_of, log_softmax
from t5x_lite.evaluation.metrics.answers import squad
from t5x_lite.evaluation.metrics.classification import accuracy
from t5x_lite.evaluation.metrics.correlation import pearson
from t5x_lite.evaluation.metrics.tagging import entity_f1
from t5x_lite.parallel.mesh import MeshConfig
from t5x_lite.parallel.rules import use_mesh
from t5x_lite.programs.heads import answer_records
from t5x_lite.programs.held_out import HeldOut
from t5x_lite.training.build import build
from t5x_lite.training.head_losses import HeadLoss
from t5x_lite.training.optimizers import AdamW
from t5x_lite.training.schedules import constant
from t5x_lite.training.setup import set_up

BYTES = tl.ByteVocabulary()
CLASS, EOS = BYTES.sentinel(BYTES.num_sentinels - 1), BYTES.eos_id
LENGTHS = {"inputs": 64, "types": 64, "label": 1, "tags": 64, "span": 2}
CONTEXT = "The Broncos, of Denver, won it (again) in 2016; the Panthers lost. " * 3


def example(objective, record, **lengths):
    tokens = objective.tokens(record, BYTES)
    return objective(tokens, np.random.default_rng(0), BYTES, LENGTHS | lengths)


def test_texts_stand_apart_and_the_longest_is_cut_first():
    record = {"texts": ["ab", "c" * 9], "labels": ["no", "yes"], "targets": "yes"}
    made = example(Classes(), record)
    a, b = BYTES.encode("ab"), BYTES.encode("c" * 9)
    assert made["inputs"].tolist() == [CLASS, *a, EOS, *b, EOS]
    assert made["types"].tolist() == [0] * 4 + [1] * 10 and made["label"].tolist() == [2]
    short = example(Classes(), record, inputs=9, types=9)
    assert short["inputs"].tolist() == [CLASS, *a, EOS, *b[:4], EOS]
    assert example(Classes(), record | {"targets": "<unk>"})["label"].tolist() == [0]
    with pytest.raises(UserError, match="target 'maybe' is none of the labels no, yes"):
        example(Classes(), record | {"targets": "maybe"})
    with pytest.raises(UserError, match="wants 'texts' of a record, which has 'inputs'"):
        example(Classes(), {"inputs": "x"})


@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.integers(-1, 60))
def test_parts_are_cut_to_the_room(sizes, room):
    kept = fitting(sizes, room)
    assert sum(kept) == min(sum(sizes), max(room, 0))
    cut = [k for k, size in zip(kept, sizes, strict=True) if k < size]
    assert all(k <= size for k, size in zip(kept, sizes, strict=True))
    assert not cut or max(kept) - min(cut) <= 1


@given(st.floats(width=32, allow_nan=False))
def test_a_number_comes_back_from_its_bits(value):
    bits = number_bits(value)
    assert bits.dtype == np.int32 and bits[0] != 0 and bits.view(np.float32)[0] == value


def test_tags_are_on_the_first_token_of_each_word():
    record = {"words": ["EU", "says"], "tags": ["B", "O"], "labels": ["O", "B"]}
    made = example(Tags(), record)
    assert made["inputs"].tolist() == [CLASS, *BYTES.encode("EU says"), EOS]
    assert made["tags"].tolist() == [0, 2, 0, 1, 0, 0, 0, 0, 0]


@pytest.fixture(scope="module")
def word_pieces(tmp_path_factory) -> HuggingFaceVocabulary:
    pytest.importorskip("tokenizers", reason="the extra hf isn't installed")
    folder = tmp_path_factory.mktemp("pieces")
    golden = Path(__file__).parent.parent / "golden/encoders/wordpiece.zip"
    with zipfile.ZipFile(golden) as file:
        file.extract("vocab.txt", folder)
    return HuggingFaceVocabulary(folder / "vocab.txt")


def test_tokens_are_found_again_in_the_text(word_pieces):
    for vocabulary in (BYTES, word_pieces):
        ids, places = located(CONTEXT, vocabulary)
        np.testing.assert_array_equal(ids, vocabulary.encode(CONTEXT.rstrip()))
        assert (places[1:, 0] >= places[:-1, 0]).all()
        found = {CONTEXT[a:b] for a, b in places}
        assert {"Denver", ",", "(", "again", "2016"} <= found  # cut at punctuation, as they cut
    answers = {"answers": ["again"], "starts": [CONTEXT.index("again")]}
    tokens = Span().tokens({"question": "?", "context": CONTEXT} | answers, word_pieces)
    first, last = tokens["answer"]
    assert CONTEXT[places[first, 0] : places[last, 1]] == "again"


def test_windows_hold_the_context_and_each_its_part_of_the_answer():
    objective, at = Span(stride=20, max_question=16), CONTEXT.index("Panthers")
    record = {"question": "Who lost?", "context": CONTEXT, "answers": ["Panthers"], "starts": [at]}
    tokens = objective.tokens(record, BYTES)
    windows = objective.windows(tokens, LENGTHS)
    assert {i for a, b in windows for i in range(a, b)} == set(range(len(tokens["context"])))
    assert all(b - a <= 52 for a, b in windows) and windows[1][0] - windows[0][0] == 20
    holding = 0
    for window in windows:
        made = objective.window(tokens, window, BYTES)
        assert len(made["inputs"]) <= 64
        first, last = made["span"] - 1
        if first:
            holding += 1
            assert BYTES.decode(made["inputs"][first : last + 1]).strip() == "Panthers"
        else:
            assert last == 0  # the class token
    assert 2 <= holding < len(windows)
    assert objective.window(tokens | {"answer": np.zeros(0, int)}, windows[0], BYTES)[
        "span"
    ].tolist() == [0, 0]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_the_best_span_is_that_of_trying_all(size, longest, seed):
    logits = np.random.default_rng(seed).normal(size=(size, 2))
    spans = [(i, j) for i in range(size) for j in range(i, min(i + longest, size))]
    wanted = max(spans, key=lambda s: logits[s[0], 0] + logits[s[1], 1])
    first, last, score = best_span(logits, longest)
    assert (first, last) == wanted and score == logits[first, 0] + logits[last, 1]


@pytest.mark.parametrize("surest", ["span", "nothing"])
def test_an_answer_is_the_best_of_all_windows_or_none(surest):
    objective = Span(stride=20, max_question=16, no_answers=True)
    at = CONTEXT.index("Panthers")
    record = {"question": "Who lost?", "context": CONTEXT, "answers": ["Panthers"], "starts": [at]}
    tokens = objective.tokens(record, BYTES)
    examples = examples_of(objective, tokens, BYTES, LENGTHS)
    logits = [np.zeros((64, 2)) for _ in examples]
    for each, made in zip(logits, examples, strict=True):
        each[0] = 2.5 if surest == "nothing" else 1.0
        first, last = made["span"] - 1
        if first:
            each[first, 0], each[last, 1] = 2.0, 2.0
    row = answer(objective, record, tokens, examples, logits, BYTES, LENGTHS)
    assert row["prediction"] == ("" if surest == "nothing" else "Panthers")
    assert row["references"] == ["Panthers"] and row["loss"] > 0 and row["score"] < 0
    sure = dataclasses.replace(objective, no_answers=False)
    assert (
        answer(sure, record, tokens, examples, logits, BYTES, LENGTHS)["prediction"] == "Panthers"
    )


def test_tags_of_words_that_were_cut_are_none():
    record = {"words": ["EU", "says", "so"], "tags": ["B", "O", "B"], "labels": ["O", "B"]}
    tokens = Tags().tokens(record, BYTES)
    lengths = {"inputs": 9, "tags": 9}
    examples = examples_of(Tags(), tokens, BYTES, lengths)
    logits = np.tile([0.0, 1.0], (9, 1))
    row = answer(Tags(), record, tokens, examples, [logits], BYTES, lengths)
    assert row["prediction"] == "B B O" and row["truncated"] and row["tokens"] == 2
    chances = log_softmax(np.array([0.0, 1.0]))
    np.testing.assert_allclose(row["target_score"], chances.sum())


@pytest.mark.parametrize("head", ["classes", "number", "tags", "span"])
def test_the_loss_and_its_gradient_are_those_of_the_definition(head):
    rng = np.random.default_rng(0)
    logits = rng.normal(size={"classes": (3, 4), "number": (3, 1)}.get(head, (3, 6, 2)))
    batch, name = {"encoder_input_tokens": np.array([[5] * 6, [5] * 4 + [0] * 2, [5] * 6])}, head
    if head == "tags":
        batch["encoder_tags"] = np.array([[0, 1, 2, 0, 0, 2], [1, 0, 0, 0, 0, 0], [0] * 6])
    elif head == "span":
        batch["encoder_span"] = np.array([[2, 4], [1, 1], [0, 0]])
    elif head == "classes":
        batch["encoder_label"] = np.array([[1], [4], [0]])
    else:
        values = [number_bits(x) for x in (0.5, 0.0, None)]
        batch["encoder_label"], name = np.stack(values), "classes"

    def plain(logits) -> jax.Array:
        """A label at a time."""
        total = []
        for row in range(3):
            if head == "number":
                total += [(logits[row, 0] - (0.5, 0.0)[row]) ** 2] if row < 2 else []
            elif head == "span":
                real = int((batch["encoder_input_tokens"][row] > 0).sum())
                for i, place in enumerate(batch["encoder_span"][row]):
                    chances = jax.nn.log_softmax(logits[row, :real, i])
                    total += [-chances[place - 1]] if place else []
            else:
                labels = batch.get("encoder_tags", batch.get("encoder_label"))[row]
                scores = logits[row] if head == "tags" else logits[row][None]
                chances = jax.nn.log_softmax(scores)
                total += [-chances[i, k - 1] for i, k in enumerate(labels) if k]
        return sum(total) / len(total)

    def ours(logits) -> jax.Array:
        found = {"class_logits": logits, "tag_logits": logits, "span_logits": logits}
        placed = {k: jnp.asarray(v, jnp.int32) for k, v in batch.items()}
        normalizer, placed = HeadLoss().prepare(placed)
        losses, _ = HeadLoss().losses(found, placed, 1 if head == "number" else 4)
        return jnp.sum(losses * placed["loss_weights"]) / normalizer

    assert name in ("classes", "tags", "span")
    logits = jnp.asarray(logits, jnp.float32)
    (value, grad), (wanted, wanted_grad) = (jax.value_and_grad(f)(logits) for f in (ours, plain))
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_allclose(grad, wanted_grad, rtol=1e-5, atol=1e-7)


def task_of(objective, template, records, metrics) -> tl.Task:
    source = tl.InMemory(records, validation=records)
    return tl.Task("headed", source, objective, BYTES, [template], metrics)


TEXTS = [{"sentence": f"{i} eats", "label": i % 2, "number": i} for i in range(5)]
WORDS = [{"tokens": ["EU", "says", "so"], "ner": [1, 0, 0]} for _ in range(3)]
QUESTIONS = [{"question": "Who?", "context": CONTEXT, "answers": {"text": ["Denver"]}}] * 3
TASKS = {
    "classes": task_of(Classes(), Classify("c", ["sentence"], ["no", "yes"]), TEXTS, [accuracy]),
    "tags": task_of(Tags(), TagWords("c", ["O", "B-PER"]), WORDS, [entity_f1]),
    "span": task_of(Span(stride=24, max_question=8), AnswerQuestion(), QUESTIONS, [squad]),
}


@pytest.mark.parametrize("head", TASKS)
def test_predictions_of_a_model_are_texts(head, tmp_path):
    """In `train` and `eval` (HeldOut) and in `infer`, which say the same."""
    task = TASKS[head]
    labels = {"classes": 2, "tags": 2, "span": 0}[head]
    model = dataclasses.replace(tiny.BERT, encoder_heads=(head,), num_labels=labels)
    lengths = {name: LENGTHS[name] for name in task.objective.features}
    device = jax.devices()[:1]
    setup = set_up(model, task, lengths, 4, MeshConfig(), pack=False, devices=device)
    held_out = HeldOut(setup, None)
    with use_mesh(setup.mesh, setup.rules):
        params = jax.jit(setup.model.init)(jax.random.key(0))
        result, rows = held_out.judge_texts(params)
        samples = held_out.samples(params, 2)
    assert len(rows) == len(task.source.split("validation"))
    assert all(name.startswith("text/") for name in result["values"]) and result["values"]
    assert samples[0] == {key: rows[0][key] for key in ("input", "target", "prediction")}
    assert json.dumps(rows) and all(row["score"] < 0 for row in rows)
    asked = {
        "classes": [{"input": record["sentence"]} for record in TEXTS],
        "tags": [{"input": "EU says so"}] * 3,
        "span": [{"input": "Who?", "context": CONTEXT}] * 3,
    }[head]
    answers = list(answer_records(setup, params, asked))
    for found, row in zip(answers, rows, strict=True):
        assert found["prediction"] == row["prediction"]
        np.testing.assert_allclose(found["score"], row["score"], rtol=1e-6)
    if head == "span":
        assert all(row["prediction"] in CONTEXT for row in rows)
        with pytest.raises(UserError, match='no "context" beside the question'):
            answer_records(setup, params, [{"input": "Who?"}])
    if head == "classes":
        made = task.fields(task.source.split("validation"), 1)
        padded = pad_example(task.example(made, np.random.default_rng(0), lengths), lengths)
        batch = model_features({k: v[None] for k, v in padded.items()}, "encoder_only", False)
        logits = jax.jit(setup.model.encoded)(params, batch)[0]["class_logits"][0]
        np.testing.assert_allclose(rows[1]["choice_scores"], log_softmax(logits), rtol=1e-4)


def test_numbers_are_judged_as_they_are():
    record = {"sentence1": "a", "sentence2": "b", "label": 3.3}
    template = Rate("stsb", ["sentence1", "sentence2"], for_heads=True)
    made = template(record)
    assert made["targets"] == "3.2" and made["value"] == 3.3
    tokens = Classes().tokens(made, BYTES)
    examples = examples_of(Classes(), tokens, BYTES, LENGTHS)
    row = answer(Classes(), made, tokens, examples, [np.array([3.1])], BYTES, LENGTHS)
    assert row["prediction"] == "3.1000" and row["target"] == "3.3"
    assert abs(row["loss"] - 0.04) < 1e-9 and pearson(["1", "2"], ["3", "5"])["pearson"] > 99


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"encoder_heads": ("tags",)}, r"for the head 'classes'; encoder_heads = \('tags',\)"),
        ({"num_labels": 3}, "has the labels no, yes, and the model num_labels = 3: set .* = 2"),
        ({"num_labels": 0}, "num_labels = 0 with encoder_heads"),
        ({"encoder_heads": ("classes", "span")}, "only one of 'classes', 'tags' and 'span'"),
        ({"token_types": 0}, "token_types = 0, and the objective makes two"),
    ],
)
def test_a_model_that_does_not_suit_is_refused(change, said):
    heads = {"encoder_heads": ("classes",), "num_labels": 2}
    lengths = {"inputs": 64, "types": 64, "label": 1}
    with pytest.raises(UserError, match=said):
        model = dataclasses.replace(tiny.BERT, **(heads | change))
        setup = set_up(model, TASKS["classes"], lengths, 8, pack=False)
        build(setup, AdamW(schedule=constant(rate=1e-2)))


def test_packing_is_for_tags_alone():
    model = dataclasses.replace(tiny.BERT, encoder_heads=("classes",), num_labels=2)
    lengths = {"inputs": 64, "types": 64, "label": 1}
    setup = set_up(model, TASKS["classes"], lengths, 8, pack=True)
    with pytest.raises(UserError, match="set PACK = False"):
        build(setup, AdamW(schedule=constant(rate=1e-2)))
    tagged = dataclasses.replace(tiny.BERT, encoder_heads=("tags",), num_labels=2)
    setup = set_up(tagged, TASKS["tags"], {"inputs": 64, "tags": 64}, 8, pack=True)
    HeadLoss().check(setup.model, setup.feature_lengths, 1)
    assert "encoder_segment_ids" in setup.feature_lengths
