"""What clients ask for, read from JSON; and what is wrong with it, as OpenAI says it."""

import dataclasses
import json
from typing import Any

from t5x_lite.errors import did_you_mean
from t5x_lite.inference.slots import TOP

_OFF = (None, 0, 0.0)
# Parameters of OpenAI's that would change the answer and aren't implemented here: only the values
# with which they change nothing are accepted.
_NEUTRAL: dict[str, tuple] = {
    "best_of": (None, 1),
    "frequency_penalty": _OFF,
    "presence_penalty": _OFF,
    "logit_bias": (None, {}),
    "suffix": (None, ""),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "reasoning_effort": (None, "none"),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
    "dimensions": (None,),
}
# Parameters of OpenAI's that change no answer: accounting, caching, hints for speed.
_HARMLESS = ("model", "user", "metadata", "store", "service_tier", "safety_identifier",
             "prompt_cache_key", "prompt_cache_retention", "prediction",
             "parallel_tool_calls")  # fmt: skip
_SAMPLING = ("max_tokens", "temperature", "top_k", "top_p", "n", "seed", "stop", "stream",
             "stream_options", "logprobs")  # fmt: skip
_STREAM_OPTIONS = ("include_usage", "include_obfuscation")
_COMPLETION = ("prompt", "echo", *_SAMPLING)
_CHAT = ("messages", "max_completion_tokens", "top_logprobs", *_SAMPLING)
_EMBEDDING = ("input", "encoding_format")
# What other servers call it.
_OTHER_NAMES = {"max_new_tokens": "max_tokens", "max_length": "max_tokens", "stop_strings": "stop",
                "stop_sequences": "stop", "num_return_sequences": "n"}  # fmt: skip
_STOPS = 4  # as many as OpenAI takes
_LARGEST_SEED = 2**32
_LARGEST_INT32 = 2**31 - 1


class Refused(Exception):
    """A request that isn't served: an HTTP status, and OpenAI's words for it."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str = ""):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code or None

    @property
    def body(self) -> dict[str, Any]:
        kind = {401: "authentication_error", 429: "rate_limit_error", 503: "overloaded_error"}
        kind = kind.get(self.status, "invalid_request_error")
        if self.status == 500:
            kind = "server_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


@dataclasses.dataclass(frozen=True)
class Asked:
    """One request for texts. prompts: texts or token ids; messages: of a chat, instead.

    log_probs: None: not wanted; else how many alternatives are.
    seed: None: every text is another, as clients expect.
    """

    prompts: list[str | list[int]]
    messages: list[dict[str, str]] | None
    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    n: int
    seed: int | None
    stop: tuple[str, ...]
    stream: bool
    stream_usage: bool
    echo: bool
    log_probs: int | None


def read_json(body: bytes) -> dict[str, Any]:
    """The object in a body. Raises Refused for what is none, and for text that UTF-8 can't hold."""
    try:
        found = json.loads(body.decode("utf-8-sig"))
        # Half a character, as "\\ud83d" alone is, could be neither read nor written back.
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise Refused(
            400, f"the body holds half a character, {half}: send both halves, or the character"
        ) from None
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise Refused(400, f"the body is {_kind(found)}, expected an object")
    return found


def _check_names(body: dict[str, Any], known: tuple[str, ...]) -> None:
    """Refuses parameters that this server doesn't know, or can't do: all of them in one message."""
    wrong, said = [], []
    for name, value in body.items():
        if name in known or name in _HARMLESS:
            continue
        wrong.append(name)
        if name not in _NEUTRAL:
            other = _OTHER_NAMES.get(name)
            hint = f" Did you mean {other!r}?" if other in known else did_you_mean(name, known)
            said.append(f"unknown parameter {name!r:.60}.{hint}")
        elif any(value == neutral for neutral in _NEUTRAL[name]):
            wrong.pop()
        else:
            said.append(f"{name} is not supported by this server.")
    if wrong:
        raise Refused(400, " ".join(said), param=wrong[0])


def read_completion(body: dict[str, Any]) -> Asked:
    _check_names(body, _COMPLETION)
    prompts = _prompts(body)
    log_probs = _whole(body, "logprobs", None, 0, TOP)
    echo = _flag(body, "echo")
    if echo and log_probs is not None:
        raise Refused(400, "echo with logprobs is not supported: score texts with `t5x_lite eval`",
                      param="echo")  # fmt: skip
    return _asked(body, prompts=prompts, messages=None, echo=echo, log_probs=log_probs,
                  max_tokens=_whole(body, "max_tokens", None, 1, None))  # fmt: skip


def read_chat(body: dict[str, Any]) -> Asked:
    _check_names(body, _CHAT)
    most = _whole(body, "max_tokens", None, 1, None)
    most = _whole(body, "max_completion_tokens", most, 1, None)
    top = _whole(body, "top_logprobs", 0, 0, TOP)
    log_probs = top if _flag(body, "logprobs") else None
    if top and log_probs is None:
        raise Refused(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    return _asked(body, prompts=[], messages=_messages(body), echo=False, log_probs=log_probs,
                  max_tokens=most)  # fmt: skip


def read_embedding(body: dict[str, Any]) -> tuple[list[str], str]:
    """Texts, and "float" or "base64"."""
    _check_names(body, _EMBEDDING)
    texts = body.get("input")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise Refused(400, "input must be a text or a list of texts", param="input")
    form = body.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise Refused(400, "encoding_format must be float or base64", param="encoding_format")
    return texts, form


def _asked(body: dict[str, Any], **more: Any) -> Asked:
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise Refused(400, "stream_options must be an object", param="stream_options")
    if unknown := [name for name in options if name not in _STREAM_OPTIONS]:
        hint = did_you_mean(unknown[0], _STREAM_OPTIONS)
        raise Refused(400, f"unknown parameter {unknown[0]!r:.60} in stream_options.{hint}",
                      param="stream_options")  # fmt: skip
    seed = _whole(body, "seed", None, None, None)
    return Asked(
        temperature=_number(body, "temperature", 1.0, 0.0, 2.0),
        top_p=_number(body, "top_p", 1.0, 0.0, 1.0),
        top_k=_whole(body, "top_k", 0, 0, _LARGEST_INT32),
        n=_whole(body, "n", 1, 1, None),
        seed=None if seed is None else seed % _LARGEST_SEED,
        stop=_stops(body),
        stream=_flag(body, "stream"),
        stream_usage=_flag(options, "include_usage"),
        **more,
    )


def _prompts(body: dict[str, Any]) -> list[str | list[int]]:
    found = body.get("prompt")
    if isinstance(found, str) or (found and _is_ids(found)):
        return [found]
    if isinstance(found, list) and found and all(isinstance(p, str) or _is_ids(p) for p in found):
        return found
    raise Refused(400, "prompt must be a text, a list of token ids, or a list of those",
                  param="prompt")  # fmt: skip


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(i) is int for i in value)


def _messages(body: dict[str, Any]) -> list[dict[str, str]]:
    found = body.get("messages")  # the template says what is wrong within
    if not isinstance(found, list) or not found:
        raise Refused(400, "messages must be a list of at least one message", param="messages")
    return found


def _stops(body: dict[str, Any]) -> tuple[str, ...]:
    found = body.get("stop") or []
    found = [found] if isinstance(found, str) else found
    good = isinstance(found, list) and len(found) <= _STOPS
    if not good or not all(isinstance(s, str) and s for s in found):
        raise Refused(400, f"stop must be a text or a list of at most {_STOPS}", param="stop")
    return tuple(found)


def _number(body: dict[str, Any], name: str, default: float, least: float, most: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    # NaN fails the comparison, too.
    if type(value) not in (int, float) or not least <= value <= most:
        raise Refused(400, f"{name} must be a number from {least:g} to {most:g}", param=name)
    return float(value)


def _whole(body: dict[str, Any], name: str, default: Any, least: int | None, most: int | None):
    value = body.get(name)
    if value is None:
        return default
    small = least is not None and type(value) is int and value < least
    large = most is not None and type(value) is int and value > most
    if type(value) is not int or small or large:
        ends = f" from {least}" * (least is not None) + f" to {most}" * (most is not None)
        raise Refused(400, f"{name} must be a whole number{ends}", param=name)
    return value


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refused(400, f"{name} must be true or false", param=name)
    return bool(value)


def _kind(value: Any) -> str:
    named: dict[type, str] = {list: "an array", str: "a text"}
    return named.get(type(value), json.dumps(value)[:20])
