"""Chat templates of Hugging Face: Jinja, in a sandbox, with what transformers gives them.

A rendered conversation is text in which a special token stands between two characters that no text
has (`MARK` and `END`): "marked text". So a mark of the template stays one token wherever the text
goes, and a mark that a user has spelt stays letters. That is the one difference from transformers,
where a user's "<|im_end|>" is the special token, too.
"""

import dataclasses
import datetime
import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5x_lite.errors import UserError

Message = Mapping[str, Any]
# Noncharacters of Unicode, which are "not for interchange": around a special token; inside a mark
# that a message spells; around what {% generation %} says is learnt; between texts of two kinds.
MARK, END, _GAP, _LEARNT, _LEARNT_END, CUT = map(chr, range(0xFDD0, 0xFDD6))
MARKED = re.compile(f"{MARK}([^{MARK}{END}]*){END}")
_RESERVED = re.compile(f"[{MARK}-{CUT}]")


def clean(text: str) -> str:
    """Without the characters that marked text needs."""
    return _RESERVED.sub("\ufffd", text)


@dataclasses.dataclass(frozen=True)
class JinjaTemplate:
    """A template and the vocabulary whose special tokens are its marks.

    date: what `strftime_now` tells a template, as YYYY-MM-DD; None: today.
    """

    text: str
    vocabulary: Any
    date: str | None = None

    def prompt(self, messages: Sequence[Message]) -> str:
        """Marked text of messages, up to where the next answer begins."""
        return self._render(messages, True).replace(_LEARNT, "").replace(_LEARNT_END, "")

    def unfinished(self, messages: Sequence[Message]) -> str:
        """Marked text of messages whose last one is gone on with."""
        whole = self._plain(messages)
        last = clean(messages[-1]["content"]).strip()
        at = whole.rfind(last)
        if at < 0:
            raise UserError("the chat template changes the last message, which is to be continued.")
        return whole[: at + len(last)]

    def ids(self, text: str) -> np.ndarray:
        """int32 [tokens] of marked text."""
        return self._ids(text, ())[0]

    def encode(self, messages: Sequence[Message]) -> tuple[np.ndarray, np.ndarray]:
        """See `ChatTemplate.encode`; where tokens of answers are learnt, and what ends each.

        {% generation %} blocks say what is learnt, if the template has some.
        """
        if self.date is None and "strftime_now" in self.text:
            raise UserError(
                "the chat template asks for today's date, and a run that continues must read what "
                "it read before: set ChatTemplate.date = 'YYYY-MM-DD'."
            )
        rendered = self._render(messages, False)
        text = rendered.replace(_LEARNT, "").replace(_LEARNT_END, "")
        begins, spans = self._places(messages, text)
        if said := _generation_spans(rendered):
            if len(said) != len(spans):
                raise UserError(
                    f"the chat template has {len(said)} generation blocks for {len(spans)} answers."
                )
            spans = said
        labels = np.zeros(len(text) + 1, np.int32)  # of each character
        for number, begin in enumerate(begins, 1):
            labels[begin:] = 2 * number
        for start, end in spans:
            labels[start:end] += 1
        cuts = sorted({0, *begins, *(place for span in spans for place in span)})
        ids, starts = self._ids(text, cuts)
        return ids, labels[starts]

    @functools.cached_property
    def stop(self) -> str | None:
        """The special token that ends an answer; None if the template has none."""
        talk = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "answer"}]
        whole = self._plain(talk)
        found = MARKED.match(whole, self._end_of_text(whole, whole.rfind("answer") + 6))
        return found[1] if found else None

    # ---- text

    def _plain(self, messages: Sequence[Message]) -> str:
        return self._render(messages, False).replace(_LEARNT, "").replace(_LEARNT_END, "")

    def _render(self, messages: Sequence[Message], prompt: bool) -> str:
        special = _pattern(tuple(self.vocabulary.special_tokens))

        def spelt(text: str) -> str:
            return special.sub(lambda m: m[0][:1] + _GAP + m[0][1:], clean(text))

        given = [{**m, "content": spelt(m["content"])} for m in messages]
        try:
            found = _compiled(self.text, self.date).render(
                **self.vocabulary.named_tokens,
                messages=given,
                add_generation_prompt=prompt,
                tools=None,
                documents=None,
            )
        except Exception as error:  # raise_exception's, or any that a template's code may meet
            raise UserError(f"the chat template refuses this conversation: {error}") from None
        return special.sub(lambda m: f"{MARK}{m[0]}{END}", found).replace(_GAP, "")

    def _places(self, messages: Sequence[Message], text: str) -> tuple[list, list]:
        """Where each user's message and what belongs to it begins, and the spans of answers."""
        begins: list[int] = []
        spans: list[tuple[int, int]] = []
        at = 0
        for k, message in enumerate(messages):
            if message["role"] == "user":
                at = max(at, self._shared(messages[:k], text)[0])
                begins.append(at)
            elif message["role"] == "assistant":
                shared, whole = self._shared(messages[:k], text, True)
                at = max(at, shared)
                found, content = _shown(clean(message["content"]).strip(), text, at)
                if found < 0:
                    raise UserError(
                        f"the chat template doesn't show message {k + 1} as it is; give its text "
                        f"as the template shows it: {message['content'][:40]!r}"
                    )
                start, end = at if whole else found, found + len(content)
                stop = MARKED.match(text, self._end_of_text(text, end))
                at = stop.end() if stop else end
                spans.append((start, at))
        return begins, spans

    def _shared(self, messages: Sequence[Message], text: str, prompt: bool = False):
        """How many characters of the text are those of its first messages alone; whether all are.

        Some templates show an earlier answer otherwise than the last one, or refuse a beginning.
        """
        if not messages:
            return 0, False
        try:
            found = self.prompt(messages) if prompt else self._plain(messages)
        except UserError:
            return 0, False
        return len(os.path.commonprefix([found, text])), text.startswith(found)

    @staticmethod
    def _end_of_text(text: str, at: int) -> int:
        """Behind spaces: a template may put one between an answer and what ends it."""
        while at < len(text) and text[at].isspace():
            at += 1
        return at

    # ---- tokens

    def _ids(self, text: str, cuts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of marked text and where in it each begins. No token goes over a cut, where the
        vocabulary can't say where tokens begin.

        The start id, 0, is left out: a decoder's text begins with it anyway, and it is padding.
        """
        encode = getattr(self.vocabulary, "encode_marked", None)
        ids, starts = encode(text) if encode else self._pieces(text, cuts)
        kept = ids != self.vocabulary.pad_id
        return ids[kept], starts[kept]

    def _pieces(self, text: str, cuts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        ids: list[int] = []
        starts: list[int] = []
        marks = {m.start(): m for m in MARKED.finditer(text)}
        places = sorted({*cuts, *marks, *(m.end() for m in marks.values()), 0, len(text)})
        for start, end in zip(places, places[1:], strict=False):
            if start in marks:
                found = [self.vocabulary.special_tokens[marks[start][1]]]
            else:
                found = self.vocabulary.encode(text[start:end]).tolist()
            ids += found
            starts += [start] * len(found)
        return np.array(ids, np.int32), np.array(starts, np.int32)


def _shown(content: str, text: str, at: int) -> tuple[int, str]:
    """Where an answer is shown, and how much of it: some templates leave out the reasoning before
    it. -1: nowhere."""
    while content:
        if (found := text.find(content, at)) >= 0:
            return found, content
        content = content.partition("\n")[2].lstrip()
    return -1, content


def _generation_spans(rendered: str) -> list[tuple[int, int]]:
    spans, at, begin = [], 0, 0
    for part in re.split(f"([{_LEARNT}{_LEARNT_END}])", rendered):
        if part == _LEARNT:
            begin = at
        elif part == _LEARNT_END:
            spans.append((begin, at))
        else:
            at += len(part)
    return spans


@functools.lru_cache(64)
def _pattern(special: tuple[str, ...]) -> re.Pattern:
    longest = sorted(filter(None, special), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or "(?!)")


@functools.lru_cache(16)
def _compiled(text: str, date: str | None) -> Any:
    """With transformers' settings (`_compile_jinja_template` in its chat_template_utils)."""
    try:
        import jinja2
        import jinja2.ext
        import jinja2.sandbox
    except ImportError:
        raise UserError("a chat template needs the package jinja2: pip install 't5x_lite[hf]'.") \
            from None  # fmt: skip

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_learnt")
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _learnt(self, caller: Any) -> str:
            return f"{_LEARNT}{caller()}{_LEARNT_END}"

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    def now(form: str) -> str:
        day = datetime.datetime.fromisoformat(date) if date else datetime.datetime.now()
        return day.strftime(form)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": refuse, "strftime_now": now}
    try:
        return environment.from_string(text)
    except jinja2.TemplateError as error:
        raise UserError(f"the chat template is no Jinja: {error}") from None
