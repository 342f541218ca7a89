"""A named chat template as Jinja, for the exported folder: transformers then reads what we read."""

import json
from typing import Any

from t5x_lite.data.chat import SPECIAL, ChatTemplate


def as_jinja(template: ChatTemplate, vocabulary: Any) -> str:
    """The text of a chat template that writes messages as ``template`` does.

    It begins with the tokenizer's start token, which a decoder's texts here begin with anyway.
    Elsewhere that token isn't read here (see `ChatTemplate`), and isn't written.
    """
    jinja = template.jinja_for(vocabulary)
    if jinja is not None:
        return jinja.text

    def quoted(text: str) -> str:
        parts = SPECIAL.split(text)
        kept = [part for part in parts if vocabulary.special_id(part) != vocabulary.pad_id]
        return json.dumps("".join(kept), ensure_ascii=False)

    before, _, after = str(template.assistant).partition("{content}")
    opening, inner = quoted(template.opening), quoted(before[len(template.opening) :])
    closing, _, rest = after.partition("{stop}")
    stop = quoted(template.stop) if template.stop else "eos_token"
    answer = f"{opening} + {inner} + message['content'] + {quoted(closing)} + {stop}"
    system = _around(template.system, quoted)
    first, last = (quoted(part) for part in str(template.user).split("{content}"))
    if template.system_in_user:
        system = f"{{% set ns.system = {system} %}}"
        user = f"{{{{ {first} + ns.system + message['content'] + {last} }}}}"
        user += "{% set ns.system = '' %}"
    else:
        system, user = f"{{{{ {system} }}}}", f"{{{{ {_around(template.user, quoted)} }}}}"
    return "".join((
        f"{{{{ bos_token }}}}{{{{ {quoted(str(template.start))} }}}}",
        "{% set ns = namespace(system='') %}" if template.system_in_user else "",
        "{% for message in messages %}{% if message['role'] == 'system' %}",
        system,
        "{% elif message['role'] == 'user' %}",
        user,
        "{% elif message['role'] == 'assistant' %}",
        f"{{{{ {answer} + {quoted(rest)} }}}}",
        "{% else %}{{ raise_exception('expected a system, user or assistant message') }}",
        "{% endif %}{% endfor %}{% if add_generation_prompt %}",
        f"{{{{ {opening} }}}}{{% endif %}}",
    ))  # fmt: skip


def _around(text: str | None, quoted: Any) -> str:
    before, after = str(text).split("{content}")
    return f"{quoted(before)} + message['content'] + {quoted(after)}"
