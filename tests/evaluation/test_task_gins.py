"""Every task that is shipped, on mock data of its schema: prompts, and a step of training.

The models are tiny and compiled once for each architecture: all tasks get the same lengths.
"""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import tiny

from t5x_lite import config, gin_files
from t5x_lite.data.loader import BatchLoader
from t5x_lite.data.objectives.heads import Classes, Span, Tags
from t5x_lite.data.source import Source
from t5x_lite.data.templates import Classify, space_punctuation
from t5x_lite.data.tfds_source import Tfds
from t5x_lite.errors import UserError
from t5x_lite.models.model import Model
from t5x_lite.parallel.mesh import MeshConfig
from t5x_lite.training.build import build
from t5x_lite.training.optimizers import AdamW
from t5x_lite.training.schedules import constant
from t5x_lite.training.setup import set_up
from t5x_lite.training.state import init_state

LENGTHS = {"inputs": 96, "targets": 32}
NLI = {"premise": "It rains.", "hypothesis": "It is wet.", "label": 0, "idx": 3}
PAIR = {"sentence1": "A man eats.", "sentence2": "One eats.", "label": 1, "idx": 3}
SQUAD = {
    "id": "x", "title": "t", "context": "Denver (Broncos) won in '16.", "question": "Who won?",
    "answers": {"text": ["Denver (Broncos)", "Denver"], "answer_start": [0, 0]},
}  # fmt: skip
ARC = {
    "id": "x", "question": "What is wet?", "answerKey": 1,
    "choices": {"text": ["Sand", "Water", "Dust"], "label": [0, 1, 2]},
}  # fmt: skip
WMT = {"en": "A dog.", "de": "Ein Hund.", "fr": "Un chien.", "ro": "Un c\u00e2ine."}
# task: (record, inputs, targets, and what more there is for the metrics)
TASKS = {
    "glue/cola": ({"sentence": "He go.", "label": 0}, "cola sentence: He go.", "unacceptable"),
    "glue/sst2": ({"sentence": "fun", "label": 1}, "sst2 sentence: fun", "positive"),
    "glue/mrpc": (PAIR, "mrpc sentence1: A man eats. sentence2: One eats.", "equivalent"),
    "glue/qqp": (
        {"question1": "Why?", "question2": "How?", "label": 0},
        "qqp question1: Why? question2: How?",
        "not_duplicate",
    ),
    "glue/stsb": (
        PAIR | {"label": 3.3}, "stsb sentence1: A man eats. sentence2: One eats.", "3.2"
    ),
    "glue/mnli": (NLI, "mnli hypothesis: It is wet. premise: It rains.", "entailment"),
    "glue/mnli_mismatched": (
        NLI | {"label": 2}, "mnli hypothesis: It is wet. premise: It rains.", "contradiction"
    ),
    "glue/ax": (NLI | {"label": -1}, "mnli hypothesis: It is wet. premise: It rains.", "<unk>"),
    "glue/qnli": (
        {"question": "Who?", "sentence": "I.", "label": 1},
        "qnli question: Who? sentence: I.",
        "not_entailment",
    ),
    "glue/rte": (PAIR, "rte sentence1: A man eats. sentence2: One eats.", "not_entailment"),
    "glue/wnli": (PAIR, "wnli sentence1: A man eats. sentence2: One eats.", "entailment"),
    "super_glue/boolq": (
        {"question": "is it", "passage": "It is.", "label": 1},
        "boolq passage: It is. question: is it",
        "True",
    ),
    "super_glue/cb": (NLI | {"label": 1}, "cb hypothesis: It is wet. premise: It rains.",
                      "contradiction"),
    "super_glue/copa": (
        {"choice1": "a", "choice2": "b", "premise": "c", "question": "effect", "label": 1},
        "copa choice1: a choice2: b premise: c question: effect",
        "choice2",
    ),
    "super_glue/multirc": (
        {"paragraph": "<b>One</b><br>two.", "question": "How many?", "answer": "2", "label": 1,
         "idx": {"paragraph": 4, "question": 5, "answer": 6}},
        "multirc question: How many? answer: 2 paragraph: One two.",
        "True",
        {"group": "4/5"},
    ),
    "super_glue/record": (
        {"passage": "It is Ann.\n@highlight\nBob too\n@highlight\nno", "query": "@placeholder?",
         "entities": ["Ann", "Bob"], "answers": ["Ann", "Bob"], "idx": {"passage": 1, "query": 2}},
        "record query: @placeholder? entities: Ann, Bob passage: It is Ann. Bob too. no",
        "Ann",
        {"references": ["Ann", "Bob"], "group": "1/2"},
    ),
    "super_glue/rte": (NLI, "rte hypothesis: It is wet. premise: It rains.", "entailment"),
    "super_glue/wic": (
        {"word": "w", "sentence1": "a w", "sentence2": "b w", "label": 0, "start1": 2},
        "wic sentence1: a w sentence2: b w word: w",
        "False",
    ),
    "super_glue/wsc": (
        {"text": "This is a test sentence .", "span1_text": "test", "span1_index": 3,
         "span2_text": "This", "span2_index": 0, "label": 0},
        "wsc text: # This # is a * test * sentence .",
        "False",
    ),
    "super_glue/axb": (PAIR, "rte hypothesis: One eats. premise: A man eats.", "not_entailment"),
    "super_glue/axg": (NLI, "rte hypothesis: It is wet. premise: It rains.", "entailment"),
    "squad": (
        SQUAD,
        "question: Who won ? context: Denver ( Broncos ) won in ' 16 . ",
        "Denver ( Broncos ) ",
        {"references": ["Denver ( Broncos ) ", "Denver"]},
    ),
    "squad_v2": (
        SQUAD | {"answers": {"text": [], "answer_start": []}},
        "question: Who won ? context: Denver ( Broncos ) won in ' 16 . ",
        "",
        {"references": [""]},
    ),
    "cnn_dailymail": ({"article": "Long.", "highlights": "L ."}, "summarize: Long.", "L ."),
    "xsum": ({"document": "Long.", "summary": "L."}, "summarize: Long.", "L."),
    "samsum": ({"dialogue": "A: b", "summary": "L.", "id": "1"}, "summarize: A: b", "L."),
    "wmt_en_de": (WMT, "translate English to German: A dog.", "Ein Hund."),
    "wmt_en_fr": (WMT, "translate English to French: A dog.", "Un chien."),
    "wmt_en_ro": (WMT, "translate English to Romanian: A dog.", "Un c\u00e2ine."),
    "ag_news": (
        {"title": "T", "description": "d", "label": 3},
        "ag_news title: T description: d",
        "Sci/Tech",
    ),
    "conll2003": (
        {"tokens": ["EU", "says"], "ner": [3, 0], "pos": [1, 2]},
        "conll2003 sentence: EU says",
        "B-ORG O",
    ),
    "boolq": (
        {"question": "is it", "passage": "It is.", "answer": True, "title": "t"},
        "boolq passage: It is. question: is it",
        "yes",
        {"choices": ["no", "yes"]},
    ),
    "arc_easy": (ARC, "Question: What is wet?\nAnswer:", "Water",
                 {"choices": ["Sand", "Water", "Dust"]}),
    "arc_challenge": (ARC, "Question: What is wet?\nAnswer:", "Water",
                      {"choices": ["Sand", "Water", "Dust"]}),
    "hellaswag": (
        {"context": "He", "endings": ["goes.", "sings."], "activity_label": "Music", "label": 1},
        "Music: He",
        "sings.",
        {"choices": ["goes.", "sings."]},
    ),
    "piqa": (
        {"goal": "Open it.", "sol1": "Pull.", "sol2": "Sing.", "label": 0},
        "Question: Open it.\nAnswer:",
        "Pull.",
        {"choices": ["Pull.", "Sing."]},
    ),
    "lambada": ({"passage": "He saw the dog\n"}, "He saw the", "dog"),
    "text_pairs": ({"inputs": "a", "targets": "b"}, "a", "b"),
}  # fmt: skip
HEADS = {name: "classes" for name in TASKS if name.startswith(("glue/", "super_glue/"))}
HEADS = {k: v for k, v in HEADS.items() if k not in ("super_glue/copa", "super_glue/record")}
HEADS |= {"ag_news": "classes", "conll2003": "tags", "squad": "span", "squad_v2": "span"}
MIXTURES = {"glue": 8, "super_glue": 8}
LANGUAGE_MODELS = ("wikitext", "tiny_shakespeare", "python_library_lm")
# Pretraining, which has tests of its own; supervised.gin is a part of the others.
OTHERS = {"c4_span_corruption", "python_library_span_corruption", "text", "supervised"}


@pytest.fixture(autouse=True)
def fresh_config():
    with config.fresh():
        yield


def read_task(name: str, *bindings: str, head: str | None = None):
    more = [f"heads/{head}.gin"] if head else []
    config.parse(["runs/base.gin", f"tasks/{name}.gin", *more], bindings, root="train.task")
    return config.evaluate("train.task")


def local_task(name: str, folder, record: dict, count: int = 3, head: str | None = None):
    path = folder / "mock.jsonl"
    path.write_text("".join(json.dumps(record | {"number": i}) + "\n" for i in range(count)))
    held_out = "task_data.held_out=0.0"
    bindings = ("VOCABULARY=@ByteVocabulary()", f"DATA='{path}'", held_out)
    return read_task(name, *bindings, head=head)


@functools.cache
def training(architecture: str):
    """A set-up of one device, its first state and its step."""
    if architecture == "encoder_decoder":
        model = dataclasses.replace(tiny.T5, num_encoder_layers=1, num_decoder_layers=1)
        task, lengths = dataclasses.replace(tiny.task(), objective=tiny.tl.TextToText()), LENGTHS
    elif architecture == "decoder_only":
        model = dataclasses.replace(tiny.LM, num_decoder_layers=1)
        task, lengths = tiny.task(tiny.tl.CausalLM()), {"targets": 64}
    else:
        head, labels, objective, lengths = {
            "classes": ("classes", 4, Classes(), {"inputs": 96, "types": 96, "label": 1}),
            "number": ("classes", 1, Classes(), {"inputs": 96, "types": 96, "label": 1}),
            "tags": ("tags", 9, Tags(), {"inputs": 96, "tags": 96}),
            "span": ("span", 0, Span(), {"inputs": 96, "types": 96, "span": 2}),
        }[architecture]
        heads = {"encoder_heads": (head,), "num_labels": labels}
        model = dataclasses.replace(tiny.BERT, **heads)
        task = tiny.task(objective)
    device = jax.devices()[:1]
    # The tasks have fewer labels than the model that they share here.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("t5x_lite.training.setup.check_labels", lambda *_: None)
        setup = set_up(model, task, lengths, 2, MeshConfig(), pack=False, devices=device)
    built = build(setup, AdamW(schedule=constant(rate=1e-2)))
    state = jax.device_get(init_state(Model(model), built.transform, built.abstract, 0))
    return setup, state, built.step


def train_a_step(task, architecture: str = "encoder_decoder", lengths=None) -> None:
    setup, state, step = training(architecture)
    loader = BatchLoader(
        task, lengths=lengths or setup.lengths, batch_size=2, seed=0, pack=False,
        architecture=setup.architecture,
    )  # fmt: skip
    placed = jax.device_put(state, jax.devices()[0])
    after, metrics = step(placed, setup.place(next(loader).features))
    assert np.isfinite(metrics["loss"]) and metrics["target_tokens"] > 0
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.params, after.params)
    assert max(jax.tree.leaves(moved)) > 0


def test_every_task_is_tested():
    shipped = {
        name.removeprefix("tasks/").removesuffix(".gin")
        for name in gin_files.gin_files_under(gin_files.shipped_gin_configs())
        if name.startswith("tasks/")
    }
    assert shipped == {*TASKS, *MIXTURES, *LANGUAGE_MODELS, *OTHERS, "multi30k_en_de", "chat"}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_writes_its_prompts_and_trains(name, tmp_path):
    record, inputs, targets, *more = TASKS[name]
    task = local_task(name, tmp_path, record)
    records = task.source.split("train")
    assert task.record(records, 0) == {"inputs": inputs, "targets": targets} | dict(*more)
    assert task.metrics and all(hasattr(metric, "uses") for metric in task.metrics)
    train_a_step(task)


@pytest.mark.parametrize("name", HEADS)
def test_a_task_with_a_head_learns_its_labels(name, tmp_path):
    record = TASKS[name][0]
    if name == "glue/ax":
        record = record | {"label": 1}  # it has no labels of its own
    task = local_task(name, tmp_path, record, head=HEADS[name])
    made = task.record(task.source.split("train"), 0)
    assert made.items() >= {"inputs": TASKS[name][1]}.items()
    train_a_step(task, "number" if name == "glue/stsb" else HEADS[name])


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_that_of_tfds_without_files(name):
    task = read_task(name, "VOCABULARY=@ByteVocabulary()", "TFDS_DATA_DIR='nowhere'")
    source = getattr(task.source, "source", task.source)
    if name == "text_pairs":
        with pytest.raises(UserError, match="set DATA"):
            task.source.split("train")
        return
    assert isinstance(source, Tfds) and source.data_dir == "nowhere"


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_holds_its_tasks(name):
    mixture = read_task(
        name, "VOCABULARY=@ByteVocabulary()", f"{name}/Mixture.rates=[{'1, ' * MIXTURES[name]}]"
    )
    names = {task.name for task, _ in mixture.leaves}
    assert len(names) == MIXTURES[name] and all(n.startswith(f"{name}_") for n in names)


def test_a_task_behind_a_recipe_takes_the_place_of_its_own(tmp_path):
    """And what is written down of it can be read again."""
    files = ["recipes/finetune_classes.gin", "tasks/conll2003.gin", "heads/tags.gin"]
    config.parse(files, ["DATA='x'", "VOCABULARY=@ByteVocabulary()"], root="train")
    (tmp_path / "config.gin").write_text(text := config.config_text())
    assert "cola" not in text and "conll2003/Task.name" in text
    config.parse([str(tmp_path / "config.gin")], root="train")
    assert config.evaluate("train.task").name == "conll2003"
    assert config.evaluate("train.model").encoder_heads == ("tags",)


def test_multi30k_from_its_folder(tmp_path):
    for split in ("train", "val", "test_2016_flickr"):
        for language in ("en", "de"):
            (tmp_path / f"{split}.{language}").write_text(f"{language} {split}\n" * 2)
    bindings = ("VOCABULARY=@ByteVocabulary()", f"DATA='{tmp_path}'")
    task = read_task("multi30k_en_de", *bindings)
    assert task.record(task.source.split("train"), 0) == {
        "inputs": "translate English to German: en train",
        "targets": "de train",
    }
    train_a_step(task)
    assert task.source.splits == ("train", "validation", "test_2016_flickr")
    assert task.source.split("validation")[0]["de"] == "de val"
    test = task.source.split("test_2016_flickr")
    assert len(test) == 2 and test[1] == {k: f"{k} test_2016_flickr" for k in ("en", "de")}
    with pytest.raises(UserError, match="no split 'test'; it has train, validation, test_2016"):
        task.source.split("test")
    wrong = read_task("multi30k_en_de", *bindings, "parallel_folder.train='training'")
    with pytest.raises(UserError, match=r"no training.en or .* which holds test_2016_flickr.de"):
        wrong.source.split("train")


def test_conversations_train_a_language_model(tmp_path):
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    (tmp_path / "talks.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    task = read_task(
        "chat", "VOCABULARY=@ByteVocabulary()", f"DATA='{tmp_path}/talks.jsonl'",
        "conversations.held_out=0.0", "TEMPLATE='plain'",
    )  # fmt: skip
    lengths = {"targets": 64, "learnt": 64}
    train_a_step(task, "decoder_only", lengths)
    tokens = task.objective.tokens({"messages": talk}, task.vocabulary)
    example = task.example(tokens, np.random.default_rng(0), lengths)
    learnt = example["targets"][example["learnt"] > 0]
    assert task.vocabulary.decode(learnt).strip() == "Hello." and learnt[-1] == 1


def test_language_models_from_their_files(tmp_path):
    text = "First Citizen:\nBefore we proceed any further, hear me speak.\n\n" * 20
    (tmp_path / "input.txt").write_text(text)
    (tmp_path / "valid.txt").write_text(text[:100])
    shakespeare = read_task("tiny_shakespeare", f"DATA='{tmp_path}/input.txt'")
    parts = {s: [r["text"] for r in shakespeare.source.split(s)] for s in ("train", "validation")}
    end = int(len(text) * 0.9)
    assert "".join(parts["train"]) == text[:end] and parts["validation"] == [text[end:]]
    wikitext = read_task(
        "wikitext", "VOCABULARY=@ByteVocabulary()", f"DATA='{tmp_path}/input.txt'",
        f"VALIDATION_DATA='{tmp_path}/valid.txt'",
    )  # fmt: skip
    assert [r["text"] for r in wikitext.source.split("validation")] == [text[:100]]
    train_a_step(shakespeare, "decoder_only")
    train_a_step(wikitext, "decoder_only")


def test_labels_in_their_forms_and_what_is_wrong_with_others():
    template = Classify("cola", ["sentence"], ["unacceptable", "acceptable"])
    for label in (1, np.int64(1), "1", " 1", True, "True", "acceptable", b"acceptable"):
        assert template({"sentence": "x", "label": label})["targets"] == "acceptable"
    with pytest.raises(UserError, match=r"label 'acceptible' .*Did you mean 'acceptable'"):
        template({"sentence": "x", "label": "acceptible"})
    with pytest.raises(UserError, match="label 2 of a record is none of the 2 classes"):
        template({"sentence": "x", "label": 2})
    assert space_punctuation("d'\u00e9t\u00e9, a_b  3.5") == "d ' \u00e9t\u00e9 , a_b 3 . 5"


def test_columns_name_the_fields_of_a_table_without_a_header(tmp_path):
    (tmp_path / "train.tsv").write_text("gj04\t1\t\tThe sailors rode.\ngj04\t0\t*\tHe go.\n")
    task = read_task(
        "glue/cola", "VOCABULARY=@ByteVocabulary()", f"DATA='{tmp_path}/train.tsv'",
        'COLUMNS=["source", "label", "mark", "sentence"]', "cola/task_data.held_out=0.0",
    )  # fmt: skip
    assert isinstance(task.source, Source)
    assert [task.record(task.source, i)["targets"] for i in range(2)] == [
        "acceptable",
        "unacceptable",
    ]
