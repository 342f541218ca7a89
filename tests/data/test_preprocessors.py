import gin
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite import config
from t5x_lite.data import tasks
from t5x_lite.data.objectives.lm import CausalLM, TextToText
from t5x_lite.data.preprocessors import (
    Chunk,
    Concatenate,
    FewShot,
    Fields,
    Filter,
    FlatMap,
    Rekey,
    Strip,
    Truncate,
)
from t5x_lite.data.sources import InMemory
from t5x_lite.data.tasks import Task
from t5x_lite.data.vocabulary import ByteVocabulary
from t5x_lite.errors import UserError

VOCABULARY = ByteVocabulary()


def test_each_on_a_record():
    record = {"a": " x ", "b": "y\n", "n": 3}
    assert Strip()(record) == {"a": "x", "b": "y", "n": 3}
    assert Strip(["b"])(record) == {"a": " x ", "b": "y", "n": 3}
    assert Fields({"text": "{a}|{n}"})(record) == {"text": " x |3"}
    assert tasks.Fields is Fields
    joined = Concatenate(["b", "none", "a"], separator="+")(record)
    assert joined == {**record, "text": "y\n+ x "}
    assert record == {"a": " x ", "b": "y\n", "n": 3}  # never changed in place


def test_filter():
    texts = ["", "ab", "abc", "abcd", "http://a"]
    kept = {
        Filter(min_characters=3): ["abc", "abcd", "http://a"],
        Filter(max_characters=3): ["", "ab", "abc"],
        Filter(matching="^a.*c"): ["abc", "abcd"],
        Filter(without=r"\w+://"): ["", "ab", "abc", "abcd"],
        Filter(matching="a", without="d", max_characters=3): ["ab", "abc"],
    }
    for function, expected in kept.items():
        found = [function({"text": text}) for text in texts]
        assert [record["text"] for record in found if record] == expected
    with pytest.raises(UserError, match=r"Filter.matching is '\(', no regular expression"):
        Filter(matching="(")


@given(st.text(max_size=30), st.integers(1, 20))
def test_truncate(text, length):
    for side, cut in (("right", slice(length)), ("left", slice(-length, None))):
        assert Truncate("t", length, side)({"t": text, "u": 1}) == {"t": text[cut], "u": 1}
        tokens = VOCABULARY.encode(text)[cut]
        shorter = Truncate("t", length, side, VOCABULARY)({"t": text})["t"]
        assert shorter == VOCABULARY.decode(tokens)
    with pytest.raises(UserError, match="Did you mean 'left'"):
        Truncate("t", 3, "lefft")
    with pytest.raises(UserError, match="length is 0"):
        Truncate("t", 0)


SHOTS = [{"inputs": f"q{i}", "targets": f"a{i}"} for i in range(5)]


def test_few_shot_prompts():
    everything = FewShot(SHOTS[:2])({"inputs": "q", "targets": "a"})
    assert everything == {"inputs": "q0\na0\n\nq1\na1\n\nq\n", "targets": "a"}
    chosen = FewShot(InMemory(SHOTS), count=2, shot="{inputs}={targets}", query="{inputs}=",
                     separator=";")  # fmt: skip
    prompts = {i: chosen({"inputs": f"q{i}", "targets": f"a{i}"})["inputs"] for i in range(40)}
    assert prompts[7] == chosen({"inputs": "q7", "targets": "a7"})["inputs"]
    assert len({prompt.rpartition(";")[0] for prompt in prompts.values()}) > 10
    for i, prompt in prompts.items():
        *shots, query = prompt.split(";")
        assert query == f"q{i}=" and len(set(shots)) == 2
        assert set(shots) <= {f"q{k}=a{k}" for k in range(5) if k != i}  # never itself
    other = FewShot(SHOTS, count=2, seed=1, shot="{inputs}={targets}", query="{inputs}=")
    assert other({"inputs": "q7", "targets": "a7"})["inputs"] != prompts[7]
    short = FewShot([SHOTS[0], SHOTS[0]], count=2)(SHOTS[0])
    assert short["inputs"] == "q0\n"  # nothing but the record itself to choose
    with pytest.raises(UserError, match="count is 6, but there are 5"):
        FewShot(SHOTS, count=6)


def test_few_shots_of_the_training_split_go_through_the_same_template():
    source = InMemory([{"q": f"{i}"} for i in range(40)], held_out=0.5)
    twice = lambda r: {"inputs": f"in {r['q']}", "targets": r["q"] * 2} if r["q"] != "7" else None  # noqa: E731
    few = FewShot(source, 3, shot="{inputs}={targets}", query="{inputs}=", separator=";",
                  split="train", templates=(twice,))  # fmt: skip
    train = {r["q"] for r in source.split("train")}
    seen = set()
    for record in source:
        if (made := twice(record)) is None:
            continue
        *shots, query = few(made)["inputs"].split(";")
        assert query == f"in {record['q']}=" and len(set(shots)) == 3
        numbers = {shot.removeprefix("in ").partition("=")[0] for shot in shots}
        assert shots == [f"in {n}={n * 2}" for n in (s[3:].partition("=")[0] for s in shots)]
        assert numbers <= train - {record["q"], "7"}
        seen |= numbers
    assert seen == train - {"7"} and len(train) < 40
    assert repr(few) != repr(FewShot(source, 3, shot="{inputs}={targets}", query="{inputs}=",
                                     separator=";"))  # fmt: skip
    with pytest.raises(UserError, match="a list of shots has no splits"):
        FewShot(SHOTS, 1, split="train")
    with pytest.raises(UserError, match="no split 'trian'"):
        FewShot(source, 1, split="trian")


@given(st.text(max_size=60), st.integers(1, 12), st.data())
def test_chunks_cover_the_text(text, length, data):
    overlap = data.draw(st.integers(0, length - 1))
    chunks = [r["text"] for r in Chunk(length, overlap)({"text": text, "id": 1})]
    assert all(len(chunk) == length for chunk in chunks[:-1]) and len(chunks[-1]) <= length
    assert chunks[0] + "".join(chunk[overlap:] for chunk in chunks[1:]) == text
    assert len(chunks) == 1 or len(chunks[-1]) > overlap  # none without new text


def test_flat_map():
    texts = ["abcdefg", "", "hijk", "l"]
    source = FlatMap(InMemory(texts, held_out=0.3), Chunk(3))
    chunks = ["abc", "def", "g", "", "hij", "k", "l"]
    assert [r["text"] for r in source] == chunks and len(source) == 7
    with pytest.raises(IndexError):
        source[7]
    parts = [[r["text"] for r in source.split(name)] for name in ("train", "validation")]
    assert sorted(parts[0] + parts[1]) == sorted(chunks) and all(parts)
    assert len(FlatMap(InMemory(texts), lambda record: [])) == 0
    assert source.fingerprint != FlatMap(InMemory(texts, held_out=0.3), Chunk(4)).fingerprint
    with pytest.raises(UserError, match="overlap of 0 or more"):
        Chunk(3, 3)
    task = Task("t", FlatMap(InMemory(texts), Chunk(3)), CausalLM(), VOCABULARY)
    assert VOCABULARY.decode(task.document(task.source, 1)) == "def"


def test_in_a_task_and_its_fingerprint():
    def make(shots, length):
        steps = [Rekey({"inputs": "q", "targets": "a"}), FewShot(shots, 1),
                 Truncate("inputs", length, "left", VOCABULARY)]  # fmt: skip
        return Task("t", InMemory([{"q": "x", "a": "y"}]), TextToText(), VOCABULARY, steps)

    task = make(SHOTS, 6)
    found = task.fields(task.source, 0)
    assert VOCABULARY.decode(found["inputs"])[-4:] == "\n\nx\n" and len(found["inputs"]) == 6
    assert task.fingerprint == make(list(SHOTS), 6).fingerprint
    assert task.fingerprint not in {make(SHOTS[1:], 6).fingerprint, make(SHOTS, 7).fingerprint}
    from_source = make(InMemory(SHOTS), 6).fingerprint
    assert from_source == make(InMemory(SHOTS), 6).fingerprint


def test_from_gin():
    gin.clear_config()
    gin.parse_config("Rekey.key_map = {'boo': 'foo'}\nChunk.length = 9\nFewShot.shots = ()")
    assert config.call("Rekey")({"foo": "x"}) == {"boo": "x"}
    assert config.call("Chunk").length == 9 and config.call("FewShot").count is None
    gin.clear_config()
