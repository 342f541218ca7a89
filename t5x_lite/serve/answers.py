"""Tokens as texts, and texts as OpenAI's JSON."""

import time
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from t5x_lite.data.vocabulary import REPLACEMENT, Vocabulary
from t5x_lite.serve.engine import Token


class Piece(NamedTuple):
    """What a choice has more than before. finish: "stop", "length" or None: it goes on."""

    text: str
    tokens: list[Token]
    finish: str | None


class Text:
    """The text of tokens that come a few at a time: in pieces that, joined, are the whole text.

    What may be the beginning of a stop, or of a character, is held back until more is known.

    Args:
      context: the tokens before, if the text goes on with them: where a token's space is kept.
      stops: texts that end it; they aren't part of it. stop_id: a token that does.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        context: Sequence[int] = (),
        stops: Sequence[str] = (),
        stop_id: int | None = None,
    ):
        self._vocabulary, self._stops, self._stop_id = vocabulary, tuple(stops), stop_id
        self._context = [int(i) for i in context][-1:]
        self._before = vocabulary.decode(self._context)
        self._ids: list[int] = []
        self._given = 0  # characters
        self.count = 0  # tokens, the one that ended it included
        self.finish: str | None = None

    def add(self, tokens: Sequence[Token], ended: str | None) -> Piece:
        """``ended``: as `Job.tell` says it. After a finish, nothing more is in what it returns."""
        taken: list[Token] = []
        if self.finish:
            return Piece("", taken, None)
        cut = None
        for token in tokens:
            taken.append(token)
            if token.id == self._stop_id:
                self.finish = "stop"
                break
            self._ids.append(token.id)
            if self._stops:
                whole = self._whole()
                found = [at for stop in self._stops if (at := whole.find(stop)) >= 0]
                if found:
                    cut, self.finish = min(found), "stop"
                    break
        whole = self._whole()[:cut]
        self.finish = self.finish or ended
        self.count += len(taken)
        end = len(whole) if self.finish else len(whole) - self._held(whole)
        piece = Piece(whole[self._given : end], taken, self.finish)
        self._given = max(self._given, end)
        return piece

    def _whole(self) -> str:
        text = self._vocabulary.decode([*self._context, *self._ids])
        if not text.startswith(self._before):  # half a character, which the first token ended
            return self._vocabulary.decode(self._ids)
        return text[len(self._before) :]

    def _held(self, text: str) -> int:
        """How many of the last characters may come to be other ones, or a stop."""
        held = len(text) - len(text.rstrip(REPLACEMENT))
        for stop in self._stops:
            for size in range(min(len(stop), len(text)), held, -1):
                if text.endswith(stop[:size]):
                    held = size
                    break
        return held


class Shape:
    """The JSON of one answer. ``chat``: of a chat, else of a completion."""

    def __init__(self, vocabulary: Vocabulary, model: str, chat: bool, log_probs: int | None):
        self._vocabulary, self._chat, self._log_probs = vocabulary, chat, log_probs
        self._kind = "chat.completion" if chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }
        self._offsets: dict[int, int] = {}

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        return self._head | {"object": self._kind, "choices": choices, "usage": usage}

    def chunk(self, choices: list[dict[str, Any]], usage: dict | None = None) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        more = {"usage": usage} if usage else {}
        return self._head | {"object": kind, "choices": choices} | more

    def choice(self, index: int, piece: Piece, delta: bool) -> dict[str, Any]:
        found: dict[str, Any] = {"index": index, "finish_reason": piece.finish}
        if not self._chat:
            found["text"] = piece.text
        elif delta:
            found["delta"] = {"content": piece.text}
        else:
            found["message"] = {"role": "assistant", "content": piece.text}
        return found | {"logprobs": self._log_probs_of(index, piece.tokens)}

    def wants(self, piece: Piece) -> bool:
        """Whether there is something to say of a piece without text."""
        return self._log_probs is not None and bool(piece.tokens)

    def opening(self, index: int) -> dict[str, Any]:
        """The first chunk of a chat's choice."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _log_probs_of(self, index: int, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if self._log_probs is None:
            return None
        texts = [self._vocabulary.decode([token.id]) for token in tokens]
        if self._chat:
            both = zip(tokens, texts, strict=True)
            return {
                "content": [
                    self._entry(text, token.log_prob)
                    | {"top_logprobs": [self._entry(t, p) for t, p in self._top(token)]}
                    for token, text in both
                ]
            }
        offsets, at = [], self._offsets.get(index, 0)
        for text in texts:
            offsets.append(at)
            at += len(text)
        self._offsets[index] = at
        return {
            "tokens": texts,
            "token_logprobs": [token.log_prob for token in tokens],
            "top_logprobs": [dict(reversed(self._top(token))) for token in tokens],
            "text_offset": offsets,
        }

    def _top(self, token: Token) -> list[tuple[str, float]]:
        """The most probable tokens; of those that look the same, a dict then keeps the first."""
        return [(self._vocabulary.decode([i]), p) for i, p in token.top[: self._log_probs or 0]]

    @staticmethod
    def _entry(text: str, log_prob: float) -> dict[str, Any]:
        return {"token": text, "logprob": log_prob, "bytes": list(text.encode())}
