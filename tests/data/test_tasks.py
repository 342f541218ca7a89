import gin
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite import config
from t5x_lite.data.objectives.lm import CausalLM, TextToText
from t5x_lite.data.objectives.span import SpanCorruption
from t5x_lite.data.sources import InMemory
from t5x_lite.data.tasks import Fields, Mixture, Task
from t5x_lite.data.vocabulary import ByteVocabulary
from t5x_lite.errors import UserError

VOCABULARY = ByteVocabulary()


def make(name="t", n=4, objective=None, **kwargs):
    source = InMemory([f"{name} {i}" for i in range(n)])
    return Task(
        name, source, objective or CausalLM(), kwargs.pop("vocabulary", VOCABULARY), **kwargs
    )


def test_document_and_fields():
    task = make(preprocessors=[lambda r: {"text": r["text"].upper()}])
    tokens = task.document(task.source, 2)
    assert tokens.dtype == np.int32 and tokens.tolist() == [*VOCABULARY.encode("T 2"), 1]
    assert make(objective=SpanCorruption()).document(task.source, 0)[-1] != 1
    blank = Task("b", InMemory([""]), CausalLM(), VOCABULARY)
    assert blank.document(blank.source, 0).tolist() == []  # not even EOS
    dropped = make(preprocessors=[lambda r: None, lambda r: 1 / 0])
    assert dropped.document(dropped.source, 0).tolist() == []

    pairs = Task(
        "p",
        InMemory([{"en": "a dog", "de": "ein Hund"}]),
        TextToText(),
        VOCABULARY,
        [Fields({"inputs": "translate: {en}", "targets": "{de}"})],
    )
    fields = pairs.fields(pairs.source, 0)
    assert {k: VOCABULARY.decode(v) for k, v in fields.items()} == {
        "inputs": "translate: a dog",
        "targets": "ein Hund",
    }
    rng = np.random.default_rng(0)
    example = pairs.example(fields, rng, {"inputs": 30, "targets": 5})
    assert VOCABULARY.decode(example["targets"]) == "ein " and example["targets"][-1] == 1
    assert len(example["targets"]) == 5 and len(example["inputs"]) == len("translate: a dog") + 1


@pytest.mark.parametrize(
    ("record", "preprocessors", "message"),
    [
        ({"txt": "a"}, (), r"Task 'x': record 0 has the keys 'txt', expected 'text'.*'txt'\?"),
        ({"text": 3}, (), "'text' of record 0 is int, expected str"),
        (
            {"a": "b"},
            [Fields({"text": "{c}"})],
            "preprocessor Fields.* wants the key 'c' .*has 'a'",
        ),
        ({"a": "b"}, [lambda r: {"text": r["c"]}], "preprocessor <lambda> wants the key 'c'"),
        (
            {"a": "b"},
            [lambda r: "text"],
            "<lambda> returned str for record 0; it must return a dict",
        ),
    ],
)
def test_record_errors(record, preprocessors, message):
    task = Task("x", InMemory([record]), CausalLM(), VOCABULARY, preprocessors)
    with pytest.raises(UserError, match=message):
        task.document(task.source, 0)


def shares(mixture):
    assert sum(share for _, share in mixture.leaves) == pytest.approx(1)
    return {task.name: pytest.approx(share) for task, share in mixture.leaves}


def test_rates():
    a, b, c = make("a", 10), make("b", 30), make("c", 1000)
    assert a.leaves == ((a, 1.0),)
    assert shares(Mixture("m", [a, b], [1, 3])) == {"a": 0.25, "b": 0.75}
    assert shares(Mixture("m", [a, b, c], [1, 0, 1])) == {"a": 0.5, "c": 0.5}
    assert shares(Mixture("m", [a, b])) == {"a": 0.25, "b": 0.75}
    assert shares(Mixture("m", [a, b, c], maximum=40)) == {"a": 1 / 8, "b": 3 / 8, "c": 4 / 8}
    two = Mixture("m", [a, c], temperature=2)
    assert shares(two) == {"a": 1 / 11, "c": 10 / 11}


@given(
    st.lists(st.integers(1, 10**6), min_size=1, max_size=6),
    st.none() | st.integers(1, 10**6),
    st.floats(1, 8),
)
def test_rates_are_t5s(sizes, maximum, temperature):
    """seqio's mixing_rate_num_examples and mixing_rate_num_characters."""

    class Sized(InMemory):
        def __init__(self, size):
            super().__init__([])
            self.size = size

        def __len__(self):
            return self.size

        num_bytes = property(lambda self: self.size)

        def split(self, name):
            return self

    tasks = [Task(f"t{i}", Sized(n), CausalLM(), VOCABULARY) for i, n in enumerate(sizes)]
    rates = np.array(sizes, float)
    if maximum:
        rates = np.minimum(rates, maximum)
    rates **= 1.0 / temperature
    for kind in ("examples", "bytes"):
        mixture = Mixture("m", tasks, kind, maximum, temperature)
        found = [share for _, share in mixture.leaves]
        np.testing.assert_allclose(found, rates / rates.sum(), rtol=1e-9)


def test_rates_by_bytes():
    short, long = make("s", 10), Task("l", InMemory(["x" * 300]), CausalLM(), VOCABULARY)
    assert short.num_bytes == 30
    assert shares(Mixture("m", [short, long], "bytes")) == {"s": 1 / 11, "l": 10 / 11}
    assert Mixture("m", [short, long]).num_bytes == 330
    nested = Mixture("o", [Mixture("m", [short, long], "bytes"), make("c", 110)], "bytes")
    assert nested.num_bytes == 330 + sum(len(f"c {i}") for i in range(110))


def test_nested():
    a, b, c = make("a", 10), make("b", 30), make("c", 60)
    inner = Mixture("inner", [a, b], [1, 1])
    assert inner.num_examples == 40
    assert shares(Mixture("m", [inner, c], [0.5, 0.5])) == {"a": 0.25, "b": 0.25, "c": 0.5}
    assert shares(Mixture("m", [inner, c])) == {"a": 0.2, "b": 0.2, "c": 0.6}
    # A task met twice is one task.
    assert shares(Mixture("m", [inner, a], [1, 1])) == {"a": 0.75, "b": 0.25}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda a: Mixture("m", []), "has no tasks"),
        (lambda a: Mixture("m", [a], [1, 2]), "1 tasks and 2 rates"),
        (lambda a: Mixture("m", [a], [0]), "not all 0"),
        (lambda a: Mixture("m", [a, a], [1, -1]), "must be 0 or more"),
        (lambda a: Mixture("m", [a], [float("nan")]), "must be 0 or more"),
        (lambda a: Mixture("m", [a], "size"), "rates are 'size'; use 'examples'"),
        (lambda a: Mixture("m", [a], temperature=0), "temperature is 0"),
        (lambda a: Mixture("m", [a, make("a")]).leaves, "different tasks of the name 'a'"),
        (
            lambda a: Mixture("m", [a, make("b", objective=SpanCorruption())]).leaves,
            "'a' makes 'targets' and 'b' 'inputs', 'targets'",
        ),
        (
            lambda a: Mixture("m", [a, make("b", vocabulary=ByteVocabulary(10))]).leaves,
            "'a' and 'b' have different vocabularies",
        ),
    ],
)
def test_mixture_errors(build, message):
    with pytest.raises(UserError, match=message):
        build(make("a"))


def test_fingerprints():
    def upper(record):
        return {"text": record["text"].upper()}

    variants = [
        make(),
        make("u"),
        make(n=5),
        make(objective=SpanCorruption()),
        make(vocabulary=ByteVocabulary(10)),
        make(preprocessors=[upper]),
        make(preprocessors=[Fields({"text": "{text}"})]),
        make(preprocessors=[Fields({"text": "{text}."})]),
        Mixture("m", [make("t"), make("u")], [1, 1]),
        Mixture("m", [make("t"), make("u")], [1, 2]),
    ]
    assert len({v.fingerprint for v in variants}) == len(variants)
    assert make().fingerprint == make().fingerprint


def test_gin():
    text = """
        hello/InMemory.records = ["hello", "world", "wide"]
        hello/Task.name = "hello"
        hello/Task.source = @hello/InMemory()
        hello/Task.objective = @SpanCorruption()
        hello/Task.vocabulary = @ByteVocabulary()
        Fields.templates = {"text": "say {text}"}
        hello/Task.preprocessors = [@Fields()]
        other/Task.name = "other"
        other/Task.source = @hello/InMemory()
        other/Task.objective = @SpanCorruption()
        other/Task.vocabulary = @ByteVocabulary()
        SpanCorruption.noise_density = 0.3
        Mixture.name = "both"
        Mixture.tasks = [@hello/Task(), @other/Task()]
        Mixture.rates = [1, 3]
    """
    with gin.unlock_config():
        gin.parse_config(text)
    try:
        mixture = config.call("Mixture")
    finally:
        gin.clear_config()
    assert shares(mixture) == {"hello": 0.25, "other": 0.75}
    task = mixture.tasks[0]
    assert VOCABULARY.decode(task.document(task.source, 2)) == "say wide"
    assert task.objective.noise_density == 0.3
