"""Tokens as texts, and texts as OpenAI's JSON."""

import time
import uuid
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from t5x_lite.data.vocabulary import REPLACEMENT, Vocabulary
from t5x_lite.serve.engine import Token

_CONTEXT = 8  # tokens before a text that its beginning may depend on


class Piece(NamedTuple):
    """What a choice has more than before. finish: "stop", "length" or None: it goes on.

    texts: of each token, what it adds to the text; None: unknown.
    """

    text: str
    tokens: list[Token]
    finish: str | None
    texts: list[str] | None = None


class Detokenizer:
    """Token by token, the text that each adds: joined, they are the text of all.

    A character that several tokens make up is the text of the last of them.

    Args:
      context: the tokens before, if the text goes on with them: where a token's space is kept.
    """

    def __init__(self, vocabulary: Vocabulary, context: Sequence[int] = ()):
        self._vocabulary = vocabulary
        self._context = [int(i) for i in context][-_CONTEXT:]
        self._before = vocabulary.decode(self._context)
        self._pending: list[int] = []  # tokens since the context
        self._given = 0  # characters of their text

    def add(self, i: int) -> str:
        self._pending.append(i)
        text = self._text(self._pending)
        settled = text.rstrip(REPLACEMENT)  # the rest may become a character
        new = settled[self._given :]
        self._given = max(self._given, len(settled))
        if len(settled) == len(text):
            self._go_on()
        return new

    def would_add(self, i: int) -> str:
        """What `add` would return."""
        return self._text([*self._pending, i]).rstrip(REPLACEMENT)[self._given :]

    def rest(self) -> str:
        """What is shown of a character that isn't completed: U+FFFD."""
        return self._text(self._pending)[self._given :]

    def _text(self, ids: list[int]) -> str:
        text = self._vocabulary.decode([*self._context, *ids])
        # Another beginning: the context ended in half a character, which the first token ended, or
        # the tokenizer takes bytes for broken together that weren't so alone.
        if not text.startswith(self._before):
            return self._vocabulary.decode(ids)
        return text[len(self._before) :]

    def _go_on(self) -> None:
        """A short context that ends in a visible character: spaces at a text's beginning go."""
        last = self._pending[-1:]
        shown = self._vocabulary.decode(last)
        if not shown.strip() or REPLACEMENT in shown:
            last = [*self._context, *self._pending]
            shown = self._vocabulary.decode(last)
        self._context, self._before, self._pending, self._given = last, shown, [], 0


class Text:
    """The text of tokens that come a few at a time: in pieces that, joined, are the whole text.

    What may be the beginning of a stop, or of a character, is held back until more is known.

    Args:
      context: as of `Detokenizer`.
      stops: texts that end it; they aren't part of it. stop_ids: tokens that do.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        context: Sequence[int] = (),
        stops: Sequence[str] = (),
        stop_ids: Collection[int] = (),
    ):
        self._tokens, self._stops, self._stop_ids = (
            Detokenizer(vocabulary, context),
            stops,
            stop_ids,
        )
        self._longest = max(map(len, stops), default=0)
        self._whole = ""  # without half a character at its end
        self._given = 0  # characters
        self._waiting: list[tuple[Token, int, int]] = []  # tokens, and where their text is
        self.count = 0  # tokens, the one that ended it included
        self.finish: str | None = None

    def add(self, tokens: Sequence[Token], ended: str | None) -> Piece:
        """``ended``: as `Job.tell` says it. After a finish, nothing more is in what it returns."""
        if self.finish:
            return Piece("", [], None, [])
        for token in tokens:
            before = len(self._whole)
            if token.id in self._stop_ids:
                self.finish = "stop"
            else:
                self._append(self._tokens.add(token.id))
            self._waiting.append((token, before, len(self._whole)))
            self.count += 1
            if self.finish:
                break
        if ended or self.finish:
            self._end(ended)
        end = len(self._whole) if self.finish else len(self._whole) - self._held()
        # A token whose text is held back waits with it: logprobs mustn't show a stop either.
        ready = sum(self.finish is not None or stop <= end for _, _, stop in self._waiting)
        given, self._waiting = self._waiting[:ready], self._waiting[ready:]
        texts = [self._whole[start:stop] for _, start, stop in given]
        piece = Piece(self._whole[self._given : end], [t for t, _, _ in given], self.finish, texts)
        self._given = max(self._given, end)
        return piece

    def _end(self, ended: str | None) -> None:
        """The last token shows what is left of a character, unless a stop has cut the text."""
        if self.finish is None or self._waiting[-1][0].id in self._stop_ids:
            self._append(self._tokens.rest())
        self.finish = self.finish or ended
        if self._waiting:
            token, start, _ = self._waiting[-1]
            self._waiting[-1] = token, start, len(self._whole)

    def _append(self, new: str) -> None:
        """Adds to the text, up to a stop."""
        start = max(0, len(self._whole) - self._longest + 1)
        self._whole += new
        found = [at for stop in self._stops if (at := self._whole.find(stop, start)) >= 0]
        if found:
            self._whole, self.finish = self._whole[: min(found)], "stop"

    def _held(self) -> int:
        """How many of the last characters may be the beginning of a stop."""
        return max(
            (size for stop in self._stops for size in range(1, len(stop))
             if self._whole.endswith(stop[:size])), default=0,
        )  # fmt: skip


class Shape:
    """The JSON of one answer.

    chat: of a chat, else of a completion. log_probs: see `Asked`. contexts: as of `Detokenizer`,
    of each choice.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        model: str,
        chat: bool,
        log_probs: int | None,
        contexts: Sequence[Sequence[int]] = (),
    ):
        self._vocabulary, self._chat, self._log_probs = vocabulary, chat, log_probs
        self._contexts = contexts
        self._readers: dict[int, Detokenizer] = {}
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
        return found | {"logprobs": self._log_probs_of(index, piece)}

    def wants(self, piece: Piece) -> bool:
        """Whether there is something to say of a piece without text."""
        return self._log_probs is not None and bool(piece.tokens)

    def opening(self, index: int) -> dict[str, Any]:
        """The first chunk of a chat's choice."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _log_probs_of(self, index: int, piece: Piece) -> dict[str, Any] | None:
        if self._log_probs is None:
            return None
        tokens = piece.tokens
        if index not in self._readers:
            context = self._contexts[index] if index < len(self._contexts) else ()
            self._readers[index] = Detokenizer(self._vocabulary, context)
        reader = self._readers[index]
        found = [self._read(reader, token) for token in tokens]
        texts = piece.texts if piece.texts is not None else [own.text for own, _ in found]
        if self._chat:
            return {
                "content": [
                    self._entry(own._replace(text=text))
                    | {"top_logprobs": [self._entry(other) for other in top]}
                    for text, (own, top) in zip(texts, found, strict=True)
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
            "top_logprobs": [_by_text(own, top) for own, top in found],
            "text_offset": offsets,
        }

    def _read(self, reader: Detokenizer, token: Token) -> tuple["_Shown", list["_Shown"]]:
        """A token and its alternatives, as they go on with the text before."""
        top = [self._shown(i, log_prob, reader.would_add(i))
               for i, log_prob in token.top[: self._log_probs or 0]]  # fmt: skip
        return self._shown(token.id, token.log_prob, reader.add(token.id)), top

    def _shown(self, i: int, log_prob: float, text: str) -> "_Shown":
        # Of a part of a character, the token's own bytes; else those of its text, which at a
        # text's beginning may lack the token's space.
        own = self._vocabulary.token_bytes(i) or self._vocabulary.decode([i]).encode()
        shown = text.encode()
        return _Shown(i, text, log_prob, shown if shown == own.removeprefix(b" ") else own)

    @staticmethod
    def _entry(shown: "_Shown") -> dict[str, Any]:
        return {"token": shown.text, "logprob": shown.log_prob, "bytes": list(shown.data)}


class _Shown(NamedTuple):
    id: int
    text: str
    log_prob: float
    data: bytes


def _by_text(chosen: _Shown, top: list[_Shown]) -> dict[str, float]:
    """{text: log-probability}. Of several ids with equal text, the chosen one or else the most
    probable keeps it, the others are "token_id:N"."""
    keeps: dict[str, int] = {chosen.text: chosen.id} if chosen.id in [t.id for t in top] else {}
    for shown in top:
        keeps.setdefault(shown.text, shown.id)
    return {t.text if keeps[t.text] == t.id else f"token_id:{t.id}": t.log_prob for t in top}
