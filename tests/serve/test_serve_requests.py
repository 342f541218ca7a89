"""What clients may ask, and texts that come a few tokens at a time."""

import json
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t5x_lite.data.huggingface import HuggingFaceVocabulary
from t5x_lite.data.vocabulary import ByteVocabulary
from t5x_lite.errors import UserError
from t5x_lite.serve import requests
from t5x_lite.serve.answers import Piece, Shape, Text
from t5x_lite.serve.engine import Token
from t5x_lite.serve.requests import Refused
from t5x_lite.serve.settings import ServeConfig

CHAT = [{"role": "user", "content": "hello"}]


def refusal(read, body) -> dict:
    with pytest.raises(Refused) as caught:
        read(requests.read_json(body if isinstance(body, bytes) else json.dumps(body).encode()))
    assert caught.value.status == 400
    error = caught.value.body["error"]
    assert set(error) == {"message", "type", "param", "code"} and "\n" not in error["message"]
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize("body, param", [
    ({"prompt": 5}, "prompt"),
    ({}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "a", "max_tokens": "many"}, "max_tokens"),
    ({"prompt": "a", "max_tokens": True}, "max_tokens"),
    ({"prompt": "a", "temperature": -1}, "temperature"),
    ({"prompt": "a", "temperature": 2.1}, "temperature"),
    ({"prompt": "a", "temperature": float("nan")}, "temperature"),
    ({"prompt": "a", "top_p": -0.1}, "top_p"),
    ({"prompt": "a", "top_k": -1}, "top_k"),
    ({"prompt": "a", "top_k": 2**31}, "top_k"),
    ({"prompt": "a", "n": 0}, "n"),
    ({"prompt": "a", "n": 1.5}, "n"),
    ({"prompt": "a", "stop": [""]}, "stop"),
    ({"prompt": "a", "stop": ["a"] * 5}, "stop"),
    ({"prompt": "a", "stop": {"a": 1}}, "stop"),
    ({"prompt": "a", "stream": "yes"}, "stream"),
    ({"prompt": "a", "stream_options": 1}, "stream_options"),
    ({"prompt": "a", "logprobs": 6}, "logprobs"),
    ({"prompt": "a", "logprobs": 1, "echo": True}, "echo"),
    ({"prompt": "a", "presence_penalty": 0.5}, "presence_penalty"),
    ({"prompt": "a", "logit_bias": {"5": 1}}, "logit_bias"),
    ({"prompt": "a", "seed": "x"}, "seed"),
])  # fmt: skip
def test_a_bad_completion_is_refused_by_its_name(body, param):
    assert refusal(requests.read_completion, body)["param"] == param


@pytest.mark.parametrize("body, param", [
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": CHAT, "logprobs": True, "top_logprobs": 6}, "top_logprobs"),
    ({"messages": CHAT, "top_logprobs": 2}, "top_logprobs"),
    ({"messages": CHAT, "logprobs": False, "top_logprobs": 2}, "top_logprobs"),
    ({"messages": CHAT, "stream": True, "stream_options": {"include_usag": True}},
     "stream_options"),
    ({"messages": CHAT, "tools": [{}]}, "tools"),
    ({"messages": CHAT, "response_format": {"type": "json_object"}}, "response_format"),
])  # fmt: skip
def test_a_bad_chat_is_refused_by_its_name(body, param):
    assert refusal(requests.read_chat, body)["param"] == param


@pytest.mark.parametrize("name", ["repetition_penalty", "min_p", "stop_token_ids", "guided_json"])
def test_an_unknown_parameter_is_refused(name):
    for read, body in ((requests.read_completion, {"prompt": "a"}),
                       (requests.read_chat, {"messages": CHAT}),
                       (requests.read_embedding, {"input": "a"})):  # fmt: skip
        error = refusal(read, body | {name: 1})
        assert error["param"] == name and f"unknown parameter '{name}'" in error["message"]


def test_unknown_parameters_are_named_together_with_the_nearest():
    body = {"prompt": "a", "temprature": 1, "max_new_tokens": 5, "suffix": "b"}
    message = refusal(requests.read_completion, body)["message"]
    assert "'temprature'. Did you mean 'temperature'?" in message
    assert "'max_new_tokens'. Did you mean 'max_tokens'?" in message
    assert "suffix is not supported" in message
    assert refusal(requests.read_completion, {"prompt": "a", "messages": CHAT})["param"]
    assert refusal(requests.read_chat, {"messages": CHAT, "echo": True})["param"] == "echo"


def test_what_changes_no_answer_passes():
    harmless = {"model": "m", "user": "u", "metadata": {"a": "b"}, "store": True,
                "service_tier": "auto", "safety_identifier": "x", "prompt_cache_key": "y"
    }  # fmt: skip
    neutral = {"frequency_penalty": 0, "logit_bias": {}, "best_of": 1}
    requests.read_completion({"prompt": "a"} | harmless | neutral)
    more = {"stream_options": {"include_obfuscation": False}, "top_logprobs": 0,
            "tool_choice": "none", "tools": [], "response_format": {"type": "text"},
            "parallel_tool_calls": True, "modalities": ["text"]}  # fmt: skip
    requests.read_chat({"messages": CHAT} | harmless | more)
    requests.read_embedding({"input": "a"} | harmless)


@pytest.mark.parametrize("body", [
    b'{"prompt": "a\\ud83d b"}',
    b'{"prompt": "a", "stop": ["\\udc00"]}',
    b'{"prompt": "a", "user": "\\ud83d"}',
    b'{"prompt": "a", "\\ud83d": 1}',
])  # fmt: skip
def test_half_a_character_is_refused(body):
    assert "half a character" in refusal(requests.read_completion, body)["message"]
    whole = requests.read_completion(requests.read_json(b'{"prompt": "a\\ud83d\\ude00"}'))
    assert whole.prompts == ["a\U0001f600"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b"\xff", b"[" * 100_000, b'"a"'])
def test_what_is_no_json_object_is_refused(body):
    assert refusal(requests.read_completion, body)["message"]


def test_what_is_asked_is_read():
    asked = requests.read_completion({
        "prompt": ["a", "b"], "max_tokens": 7, "temperature": 0, "top_p": 0.5, "top_k": 3, "n": 2,
        "seed": -1, "stop": "x", "stream": True, "stream_options": {"include_usage": True},
        "logprobs": 0, "model": "any", "user": "somebody", "best_of": 1, "presence_penalty": 0,
    })  # fmt: skip
    assert (asked.prompts, asked.max_tokens, asked.n) == (["a", "b"], 7, 2)
    assert (asked.temperature, asked.top_p, asked.top_k, asked.stop) == (0.0, 0.5, 3, ("x",))
    assert asked.seed == 2**32 - 1 and asked.stream and asked.stream_usage
    assert asked.log_probs == 0 and not asked.echo
    assert requests.read_completion({"prompt": [5, 6]}).prompts == [[5, 6]]
    chat = requests.read_chat({"messages": CHAT, "max_tokens": 5, "max_completion_tokens": 6})
    assert chat.max_tokens == 6 and chat.messages == CHAT and chat.log_probs is None
    assert requests.read_chat({"messages": CHAT}).seed is None


def test_settings_must_be_positive():
    with pytest.raises(UserError, match="ServeConfig.slots is 0"):
        ServeConfig(slots=0)
    with pytest.raises(UserError, match="max_tokens"):
        ServeConfig(max_tokens=-1)


# ------------------------------------------------------------------------------------ their texts

VOCABULARY = ByteVocabulary()


def pieces_of(ids, stops, cuts, ended="length", **options) -> tuple[list, Text]:
    text, found, at = Text(VOCABULARY, stops=stops, **options), [], 0
    for end in [*sorted(cuts), len(ids)]:
        some = [Token(int(i), -1.0, []) for i in ids[at:end]]
        found.append(text.add(some, ended if end == len(ids) else None))
        at = end
    return found, text


@settings(deadline=None)
@given(
    st.text(alphabet="ab<é字\U0001f600", max_size=20),
    st.lists(st.sampled_from(["ab", "<", "a字", "bb<"]), max_size=2),
    st.integers(0, 2**32),
)
def test_pieces_joined_are_the_text_up_to_its_stop(whole, stops, seed):
    ids, draw = VOCABULARY.encode(whole), random.Random(seed)
    cuts = sorted(draw.randint(0, len(ids)) for _ in range(4))
    found, text = pieces_of(ids, stops, cuts)
    places = [whole.find(stop) for stop in stops if stop in whole]
    wanted = whole[: min(places)] if places else whole
    assert "".join(piece.text for piece in found) == wanted
    assert text.finish == ("stop" if places else "length")
    assert sum(len(piece.tokens) for piece in found) == text.count <= len(ids)
    assert sum(piece.finish is not None for piece in found) == 1


STOPS = [
    "né",
    "café",
    "漢字",
    " 漢",
    "é t",
    "e \U0001f600",
    "é",
    "\U0001f600\U0001f600",
    "aé\U0001f600",
]


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(["café ", "né", "漢字", "\U0001f600", " t", "a", "\x80", "é\U0001f600"])
    ),
    st.lists(st.sampled_from(STOPS), min_size=1, max_size=3),
    st.integers(0, 3),
    st.lists(st.integers(1, 8), min_size=1, max_size=12),
)
def test_a_stop_never_shows_not_even_its_beginning(parts, stops, less, sizes):
    """However a character is split between slices, and when a limit cuts one."""
    ids = VOCABULARY.encode("".join(parts)).tolist()
    ids = ids[: len(ids) - less]
    whole = VOCABULARY.decode(ids)
    places = [whole.find(stop) for stop in stops if stop in whole]
    cuts = [at for at in np.cumsum(sizes).tolist() if at < len(ids)]
    found, text = pieces_of(ids, stops, cuts)
    assert "".join(piece.text for piece in found) == (whole[: min(places)] if places else whole)
    texts = [text for piece in found for text in piece.texts]
    assert "".join(texts) == "".join(piece.text for piece in found)
    assert len(texts) == text.count


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    from t5x_lite.data.sentencepiece_training import train_sentencepiece

    texts = ["the cat is true until true dog", "a cat until the dog", "is it  true"] * 40
    path = tmp_path_factory.mktemp("v") / "v.model"
    return train_sentencepiece(texts, str(path), 276, lossless=False, extra_ids=0)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """Hugging Face's tokenizers, byte-level, with merges."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(["the café 漢字 is true"] * 9, 300, special_tokens=["<pad>", "</s>"])
    path = tmp_path_factory.mktemp("h") / "tokenizer.json"
    made.save(str(path))
    return HuggingFaceVocabulary(str(path))


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)
@given(st.data())
@pytest.mark.parametrize("name", ["bytes", "pieces", "byte_level"])
def test_tokens_joined_are_the_text_and_their_bytes_too(name, request, data):
    vocabulary = VOCABULARY if name == "bytes" else request.getfixturevalue(name)
    if data.draw(st.booleans()):
        words = st.sampled_from(["the", " café", "漢字", " is", "  ", "true", "\U0001f600"])
        ids = vocabulary.encode("".join(data.draw(st.lists(words, max_size=8)))).tolist()
    else:  # whatever a model may write
        ids = data.draw(st.lists(st.integers(3, vocabulary.size - 1), max_size=12))
    tokens = [Token(i, -1.0, [(i, -1.0), (5, -2.0)]) for i in ids]
    for chat in (False, True):
        shape, text, found = Shape(vocabulary, "m", chat, 2), Text(vocabulary), []
        cut = data.draw(st.integers(0, len(ids)))
        for some, ended in ((tokens[:cut], None), (tokens[cut:], "length")):
            found.append(shape.choice(0, text.add(some, ended), delta=False))
        logs = [choice["logprobs"] for choice in found]
        if chat:
            whole = "".join(choice["message"]["content"] for choice in found)
            entries = [entry for log in logs for entry in log["content"]]
            names = [entry["token"] for entry in entries]
            assert bytes(b for e in entries for b in e["bytes"]).decode(errors="replace") == whole
        else:
            whole = "".join(choice["text"] for choice in found)
            names = [token for log in logs for token in log["tokens"]]
            tops = [top for log in logs for top in log["top_logprobs"]]
            assert [len(top) for top in tops] == [1 if i == 5 else 2 for i in ids]
        if cut < len(ids):
            assert "".join(names) == whole
            if name != "pieces":
                assert whole == vocabulary.decode(ids)


def test_two_tokens_of_equal_text_both_stay():
    shape = Shape(VOCABULARY, "m", False, 3)
    half = VOCABULARY.encode("é").tolist()[0]
    token = Token(1, -0.5, [(half, -0.1), (1, -0.5), (ord("a") + 3, -2.0)])  # EOS has no text
    found = shape.choice(0, Piece("", [token], "stop"), False)["logprobs"]
    assert found["top_logprobs"] == [{f"token_id:{half}": -0.1, "": -0.5, "a": -2.0}]
    assert found["tokens"] == [""]


def test_half_a_character_is_held_back_until_the_end():
    ids = VOCABULARY.encode("a字")
    found, _ = pieces_of(ids, [], [2, 3])
    assert [piece.text for piece in found] == ["a", "", "字"]
    found, _ = pieces_of(ids[:2], [], [])
    assert found[0].text == "a�"


def test_a_stop_token_ends_a_text_and_is_not_in_it():
    ids = VOCABULARY.encode("hey you")
    found, text = pieces_of(ids, [], [2], stop_ids=[int(ids[3])])
    assert "".join(piece.text for piece in found) == "hey" and text.finish == "stop"


class Spaced:
    """Like SentencePiece: the space before a text's first word isn't in the text."""

    def decode(self, ids):
        return "".join(" " + chr(i) for i in ids)[1:]


def test_a_text_goes_on_where_its_prompt_ends():
    text = Text(Spaced(), [ord("a"), ord("b")])
    first = text.add([Token(ord("c"), 0.0, [])], None)
    second = text.add([Token(ord("d"), 0.0, [])], "stop")
    assert (first.text, second.text) == (" c", " d")
    assert Text(Spaced()).add([Token(ord("c"), 0.0, [])], None).text == "c"
