"""Conversations as text: messages, the template that marks who speaks, and what is learnt of them.

A message is {"role": "system" | "user" | "assistant", "content": text}: perhaps a system message,
then users and assistants in turns. An exchange is a user's message and the answer to it.
"""

import dataclasses
import datetime
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from t5x_lite.data.chat_jinja import CUT, END, MARK, MARKED, JinjaTemplate, clean
from t5x_lite.errors import UserError, did_you_mean

Message = dict[str, str]
ROLES = ("system", "user", "assistant")
_SHARE_GPT = {"system": "system", "human": "user", "gpt": "assistant"}
# Fields of a message that would change what is read or learnt, with the values that don't.
_NOT_READ: dict[str, tuple] = {
    "tool_calls": (None, []),
    "function_call": (None,),
    "audio": (None,),
    "weight": (None, 1),  # of the loss, in OpenAI's files for fine-tuning
}
# What may be a special token of a vocabulary, in the text of a template.
SPECIAL = re.compile(r"(<[^<>\s]+>|\[[A-Z_/]+\])")
_CHATML = "<|im_start|>{}\n{{content}}{}\n"
_LLAMA3 = "<|start_header_id|>{}<|end_header_id|>\n\n{{content}}{}"
_GEMMA = "<start_of_turn>{}\n{{content}}{}\n"
TEMPLATES: dict[str, dict[str, Any]] = {
    "chatml": dict(
        system=_CHATML.format("system", "<|im_end|>"),
        user=_CHATML.format("user", "<|im_end|>"),
        assistant=_CHATML.format("assistant", "{stop}"),
        stop="<|im_end|>",
    ),
    "llama2": dict(
        system="<<SYS>>\n{content}\n<</SYS>>\n\n",
        user="<s>[INST] {content} [/INST]",
        assistant=" {content} {stop}",
        system_in_user=True,
    ),
    "llama3": dict(
        start="<|begin_of_text|>",
        system=_LLAMA3.format("system", "<|eot_id|>"),
        user=_LLAMA3.format("user", "<|eot_id|>"),
        assistant=_LLAMA3.format("assistant", "{stop}"),
        stop="<|eot_id|>",
    ),
    "gemma": dict(
        start="<bos>",
        system="{content}\n\n",
        user=_GEMMA.format("user", "<end_of_turn>"),
        assistant=_GEMMA.format("model", "{stop}"),
        stop="<end_of_turn>",
        system_in_user=True,
    ),
    "plain": dict(
        system="{content}\n\n",
        user="User: {content}\n\n",
        assistant="Assistant: {content}{stop}\n\n",
    ),
}


def messages_of(record: Mapping[str, Any]) -> list[Message]:
    """The messages of {"messages": [{"role", "content"}, ...]}, or of ShareGPT's
    {"conversations": [{"from", "value"}, ...]}.

    Raises:
      UserError: neither is there, or `check_messages` finds something.
    """
    found = record.get("messages")
    if found is None and isinstance(shared := record.get("conversations"), list):
        found = [
            {**m, "role": _SHARE_GPT.get(m.get("from"), m.get("from")), "content": m.get("value")}
            if isinstance(m, Mapping) else m for m in shared
        ]  # fmt: skip
    if found is None:
        raise UserError(f'no "messages" (or "conversations"), found {", ".join(record) or "none"}')
    return check_messages(found)


def check_messages(messages: Any, empty: bool = False) -> list[Message]:
    """The messages, their contents as text (a list of parts {"type": "text", "text"} is joined).

    empty: whether a content may be empty.

    Raises:
      UserError: no list of messages, an unknown role, no content, or a role out of turn.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError(f"messages are {messages!r:.60}, expected a list of one or more")
    made: list[Message] = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, Mapping) else message
            hint = did_you_mean(str(role), ROLES)
            raise UserError(
                f"message {number} has the role {role!r:.40}, expected one of "
                f"{', '.join(ROLES)}.{hint}"
            )
        role, content = message["role"], message.get("content")
        for name, neutral in _NOT_READ.items():
            if message.get(name) not in neutral:
                raise UserError(
                    f"message {number}, of the {role}, has {name}, which isn't read here: "
                    "leave it out, or put what it says into the content"
                )
        if isinstance(content, list):
            parts = [p.get("text") if _is_text(p) else None for p in content]
            content = "".join(parts) if all(isinstance(p, str) for p in parts) else None
        if not isinstance(content, str) or not (empty or content.strip()):
            raise UserError(f"message {number}, of the {role}, has no text as its content")
        before = made[-1]["role"] if made else None
        wanted = {None: ("system", "user"), "user": ("assistant",)}.get(before, ("user",))
        if role not in wanted:
            raise UserError(
                f"message {number} is of the {role}, expected {' or '.join(wanted)}: after a "
                "system message, if there is one, user and assistant take turns"
            )
        made.append({"role": role, "content": content})
    return made


class Piece(NamedTuple):
    """A part of a conversation's text. `text` is None for the vocabulary's EOS."""

    text: str | None
    markup: bool  # of the template: it may hold special tokens
    learnt: bool
    exchange: int  # from 1; 0 for what is before the first


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """How messages become text: one that has a `name`, and what is changed of it.

    name: "tokenizer": the chat_template in the tokenizer's own files; "chatml", "llama2", "llama3",
      "gemma"; "plain" (User: ... Assistant: ..., for a vocabulary without marks of its own); or
      "auto": the tokenizer's own if it has one, else "chatml".
    start: before all else. system, user: with "{content}" where the message goes.
    assistant: with "{content}" and, behind it, "{stop}". What is learnt goes from the content to
      the stop.
    stop: the text that ends an answer; "" is the vocabulary's EOS.
    system_in_user: whether a system message is put in front of the first user's content.
    file: of a Jinja template as transformers has them, in the place of a name; `jinja`: its text.
    date: what such a template's `strftime_now` tells, as YYYY-MM-DD; None: today.

    The start token (id 0) is read once, at the beginning of all: within a conversation, where Llama
    2's template has it again, it is left out, as id 0 is padding.
    """

    name: str = "auto"
    start: str | None = None
    system: str | None = None
    user: str | None = None
    assistant: str | None = None
    stop: str | None = None
    system_in_user: bool | None = None
    file: str | None = None
    jinja: str | None = None
    date: str | None = None

    def __post_init__(self):
        names = ("auto", "tokenizer", *TEMPLATES)
        if self.name not in names:
            raise UserError(
                f"ChatTemplate.name is {self.name!r}, expected one of {', '.join(names)}."
                + did_you_mean(str(self.name), names)
            )
        defaults = TEMPLATES["chatml" if self.name in names[:2] else self.name]
        for field, default in (
            {"start": "", "stop": "", "system_in_user": False} | defaults
        ).items():
            if getattr(self, field) is None:
                object.__setattr__(self, field, default)
            elif self.name == "auto" and getattr(self, field) != default:
                object.__setattr__(self, "name", "chatml")  # changed, so chosen
        if self.file is not None and self.jinja is None:
            object.__setattr__(self, "jinja", _read(self.file))
        if self.date is not None and not _is_date(self.date):
            raise UserError(f"ChatTemplate.date is {self.date!r}, expected YYYY-MM-DD.")
        for field in ("system", "user", "assistant"):
            if getattr(self, field).count("{content}") != 1:
                raise UserError(
                    f"ChatTemplate.{field} is {getattr(self, field)!r}, expected one {{content}}."
                )
        if "{stop}" not in str(self.assistant).partition("{content}")[2]:
            raise UserError(
                f"ChatTemplate.assistant is {self.assistant!r}, expected {{stop}} at its end."
            )

    def jinja_for(self, vocabulary: Any) -> JinjaTemplate | None:
        """The Jinja template, with a vocabulary's marks; None: the pieces of this class are used.

        Raises UserError if the tokenizer's own is wanted, and it has none.
        """
        text = self.jinja
        if text is None and self.name in ("auto", "tokenizer"):
            text = vocabulary.chat_template
        if text is None and self.name == "tokenizer":
            raise UserError(
                "ChatTemplate.name is 'tokenizer', and the files of this vocabulary have no "
                f"chat_template: give a ChatTemplate.file, or one of {', '.join(TEMPLATES)}."
            )
        return None if text is None else JinjaTemplate(text, vocabulary, self.date)

    def identity(self, vocabulary: Any) -> str:
        """Another one for each template that makes other tokens with this vocabulary."""
        jinja = self.jinja_for(vocabulary)
        said = f"{jinja.text}\0{jinja.date}" if jinja else repr(self)
        return f"ChatTemplate {hashlib.sha256(said.encode()).hexdigest()[:16]}"

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text of messages up to where the assistant's next answer begins, by a named template.

        Of earlier answers, an EOS is left out. A model reads `prompt_ids`, in which what a user
        wrote can't be taken for the template's marks.

        Raises:
          UserError: as `check_messages`; the last message isn't a user's; the template is Jinja.
        """
        if self.jinja is not None or self.name == "tokenizer":
            raise UserError(
                "a conversation as plain text (LastAnswer) needs a template without marks of its "
                f"own: set ChatTemplate.name to one of {', '.join(TEMPLATES)}."
            )
        return "".join(p.text for p in self._prompt(_asked(messages)) if p.text is not None)

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]], vocabulary: Any) -> np.ndarray:
        """int32 [tokens]: as in training, without a start token. Errors as of `prompt`."""
        if jinja := self.jinja_for(vocabulary):
            return jinja.ids(jinja.prompt(_asked(messages)))
        return self._encode(self._prompt(_asked(messages)), vocabulary)[0]

    def marked(self, messages: Sequence[Mapping[str, Any]], vocabulary: Any) -> str:
        """`prompt_ids` as text, for what takes text alone: `encode_marked` gives the same ids, with
        more text behind it, too. If the last message is the assistant's, it is to be gone on with.
        """
        checked = check_messages(messages, empty=True)  # of the harness, whose questions may be
        unfinished = checked[-1]["role"] == "assistant"
        if jinja := self.jinja_for(vocabulary):
            return jinja.unfinished(checked) if unfinished else jinja.prompt(checked)
        pieces = self._unfinished(checked) if unfinished else self._prompt(checked)
        return _marked(pieces, vocabulary) + CUT * (not unfinished)

    def encode_marked(self, text: str, vocabulary: Any) -> np.ndarray:
        """int32 [tokens] of what `marked` gave, and of what was put behind it."""
        if jinja := self.jinja_for(vocabulary):
            return jinja.ids(text)
        return self._encode(_pieces_of(text), vocabulary)[0]

    def stop_ids(self, vocabulary: Any) -> tuple[int, ...]:
        """The tokens of which each ends an answer: of the stop, if it is one, and every EOS."""
        if jinja := self.jinja_for(vocabulary):
            own = [i for t, i in vocabulary.special_tokens.items() if t == jinja.stop]
        else:
            ids = self._encode([Piece(self.stop or None, True, True, 1)], vocabulary)[0].tolist()
            own = ids if len(ids) == 1 else []
        return tuple(dict.fromkeys((*own, *vocabulary.eos_ids)))

    def stop_texts(self, vocabulary: Any) -> tuple[str, ...]:
        """What ends an answer and is no token of its own: a stop that the vocabulary spells."""
        if not self.stop or self.jinja_for(vocabulary):  # a Jinja template's is always a token
            return ()
        ids = self._encode([Piece(self.stop, True, True, 1)], vocabulary)[0]
        return () if len(ids) == 1 else (self.stop,)

    def answer(self, text: str, vocabulary: Any = None) -> str:
        """What was said, of the text that a model made: up to the stop."""
        jinja = None if vocabulary is None else self.jinja_for(vocabulary)
        stop = jinja.stop if jinja else self.stop
        return (text.partition(stop)[0] if stop else text).strip()

    def encode(self, messages: Sequence[Message], vocabulary: Any) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of checked messages, and 2 * exchange + 1 where they are learnt, + 0 elsewhere.

        Both int32 [tokens]. A text is tokenized with what is before it, up to a special token; a
        message that spells one of these, letter by letter, if the vocabulary can.
        """
        if jinja := self.jinja_for(vocabulary):
            return jinja.encode(messages)
        return self._encode(self.pieces(messages), vocabulary)

    def _unfinished(self, messages: Sequence[Message]) -> list[Piece]:
        """The pieces of messages whose last one is an answer to be gone on with."""
        *before, last = messages
        pieces = self._prompt(before)
        opening = str(self.assistant).partition("{content}")[0][len(self.opening) :]
        return [*pieces, Piece(opening + last["content"], False, True, pieces[-1].exchange)]

    def _prompt(self, messages: Sequence[Message]) -> list[Piece]:
        pieces = self.pieces(messages)
        opening = Piece(self.opening, True, False, pieces[-1].exchange)
        return [*pieces, opening] if self.opening else pieces

    @property
    def opening(self) -> str:
        """What is before an answer, without spaces: those are the answer's, as tokens begin so."""
        return str(self.assistant).partition("{content}")[0].rstrip(" ")

    def pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """The parts of a conversation's text, in order."""
        found = [Piece(self.start, True, False, 0)]
        exchange, inner = 0, ""
        for message in messages:
            role, content = message["role"], message["content"]
            before, _, after = getattr(self, role).partition("{content}")
            exchange += role == "user"
            if role == "system" and self.system_in_user:
                inner = before + content + after
            elif role != "assistant":
                own, inner = (before, inner + content), ""
                found.append(Piece(own[0], True, False, exchange))
                found.append(Piece(own[1], False, False, exchange))
                found.append(Piece(after, True, False, exchange))
            else:
                opening = self.opening
                closing, _, rest = after.partition("{stop}")
                found.append(Piece(opening, True, False, exchange))
                text = before[len(opening) :] + content + closing
                found.append(Piece(text, False, True, exchange))
                found.append(Piece(self.stop or None, True, True, exchange))
                found.append(Piece(rest, True, False, exchange))
        return [
            piece._replace(text=piece.text and clean(piece.text))
            for piece in found if piece.text != ""
        ]  # fmt: skip

    def _encode(self, pieces: Sequence[Piece], vocabulary: Any) -> tuple[np.ndarray, np.ndarray]:
        ids: list[int] = []
        labels: list[int] = []
        context, known, pending, label = "", [], "", 0

        def end_text() -> None:
            nonlocal context, known, pending
            if not pending:
                return
            whole = vocabulary.encode(context + pending).tolist()
            if context and whole[: len(known)] == known:
                new, context, known = whole[len(known) :], context + pending, whole
            else:
                new = vocabulary.encode(pending).tolist() if context else whole
                context, known = pending, new
            ids.extend(new)
            labels.extend([label] * len(new))
            pending = ""

        for piece in pieces:
            if (now := 2 * piece.exchange + piece.learnt) != label:
                end_text()
                label = now
            parts = SPECIAL.split(piece.text) if piece.markup and piece.text else [piece.text]
            for part in parts:
                special = vocabulary.special_id(part) if piece.markup and part else None
                if part is None:
                    special = vocabulary.eos_id
                if special is None:
                    pending += part
                    continue
                end_text()
                if special != vocabulary.pad_id:  # the start token: a decoder's text has it anyway
                    ids.append(special)
                    labels.append(label)
                context, known = "", []
        end_text()
        return np.array(ids, np.int32), np.array(labels, np.int32)


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type", "text") == "text"


def _asked(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    checked = check_messages(messages)
    if checked[-1]["role"] != "user":
        raise UserError(f"the last message is of the {checked[-1]['role']}, expected the user")
    return checked


def _marked(pieces: Sequence[Piece], vocabulary: Any) -> str:
    """Pieces as marked text (see chat_jinja.py): special tokens between MARK and END, EOS as an
    empty one, and CUT where a text ends that was tokenized apart."""
    made, label = "", 0
    for piece in pieces:
        if (now := 2 * piece.exchange + piece.learnt) != label:
            made, label = made + CUT, now
        for part in SPECIAL.split(piece.text or "") if piece.markup else [piece.text]:
            special = piece.markup and part and vocabulary.special_id(part) is not None
            made += f"{MARK}{part}{END}" if special or piece.text is None else part
    return made


def _pieces_of(text: str) -> list[Piece]:
    """The reverse of `_marked`, as far as `_encode` is concerned."""
    pieces = []
    for number, part in enumerate(text.split(CUT)):
        for place, inner in enumerate(MARKED.split(part)):
            if place % 2:
                pieces.append(Piece(inner or None, True, False, number))
            elif inner:
                pieces.append(Piece(inner, False, False, number))
    return pieces


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't read ChatTemplate.file {path}: {error}.") from None


def _is_date(text: str) -> bool:
    try:
        datetime.date.fromisoformat(text)
    except (TypeError, ValueError):
        return False
    return True
