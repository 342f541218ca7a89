"""What clients may ask, and texts that come a few tokens at a time."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.data.vocabulary import ByteVocabulary
from t5x_lite.errors import UserError
from t5x_lite.serve import requests
from t5x_lite.serve.answers import Text
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
    ({"prompt": "a", "top_p": 0}, "top_p"),
    ({"prompt": "a", "top_k": -1}, "top_k"),
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
    ({"messages": CHAT, "top_logprobs": 6}, "top_logprobs"),
    ({"messages": CHAT, "tools": [{}]}, "tools"),
    ({"messages": CHAT, "response_format": {"type": "json_object"}}, "response_format"),
])  # fmt: skip
def test_a_bad_chat_is_refused_by_its_name(body, param):
    assert refusal(requests.read_chat, body)["param"] == param


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
    seeds = {requests.read_chat({"messages": CHAT}).seed for _ in range(4)}
    assert len(seeds) > 1


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


def test_half_a_character_is_held_back_until_the_end():
    ids = VOCABULARY.encode("a字")
    found, _ = pieces_of(ids, [], [2, 3])
    assert [piece.text for piece in found] == ["a", "", "字"]
    found, _ = pieces_of(ids[:2], [], [])
    assert found[0].text == "a�"


def test_a_stop_token_ends_a_text_and_is_not_in_it():
    ids = VOCABULARY.encode("hey you")
    found, text = pieces_of(ids, [], [2], stop_id=int(ids[3]))
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
