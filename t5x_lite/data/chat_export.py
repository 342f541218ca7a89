"""A named chat template as Jinja, for the exported folder: transformers then reads what we read."""

import json
from typing import Any

from t5x_lite.data.chat import ChatTemplate


def as_jinja(template: ChatTemplate, vocabulary: Any) -> str:
    """The text of a chat template that writes messages as ``template`` does.

    It begins with the tokenizer's start token, which a decoder's texts here begin with anyway.
    """
    jinja = template.jinja_for(vocabulary)
    if jinja is not None:
        return jinja.text
    before, _, after = str(template.assistant).partition("{content}")
    opening, before = template.opening, before[len(template.opening) :]
    closing, _, rest = after.partition("{stop}")
    stop = _quoted(template.stop) if template.stop else "eos_token"
    answer = [_quoted(before), "message['content']", _quoted(closing), stop, _quoted(rest)]
    system, user = _system_and_user(template)
    starts_itself = template.start and vocabulary.special_id(template.start) == vocabulary.pad_id
    return "".join((
        "{{ bos_token }}",
        "" if starts_itself else _said(str(template.start)),
        "{% set ns = namespace(inner='') %}" if template.system_in_user else "",
        "{% for message in messages %}{% if message['role'] == 'system' %}",
        system,
        "{% elif message['role'] == 'user' %}",
        user,
        "{% elif message['role'] == 'assistant' %}",
        _said(opening),
        f"{{{{ {' + '.join(answer)} }}}}",
        "{% else %}{{ raise_exception('expected a system, user or assistant message') }}",
        "{% endif %}{% endfor %}{% if add_generation_prompt %}",
        _said(opening),
        "{% endif %}",
    ))  # fmt: skip


def _system_and_user(template: ChatTemplate) -> tuple[str, str]:
    (before, after), (first, last) = (
        str(text).split("{content}") for text in (template.system, template.user)
    )
    if not template.system_in_user:
        return (_said(before) + "{{ message['content'] }}" + _said(after),
                _said(first) + "{{ message['content'] }}" + _said(last))  # fmt: skip
    inner = f"{_quoted(before)} + message['content'] + {_quoted(after)}"
    kept = f"{{% set ns.inner = {inner} %}}"
    user = _said(first) + "{{ ns.inner + message['content'] }}" + _said(last)
    return kept, user + "{% set ns.inner = '' %}"


def _said(text: str) -> str:
    return f"{{{{ {_quoted(text)} }}}}" if text else ""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
