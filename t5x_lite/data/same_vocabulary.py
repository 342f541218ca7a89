"""Whether two vocabularies mean the same by the same ids: weights are bound to one."""

from typing import NamedTuple

from t5x_lite.data.vocabulary import Vocabulary

# Texts that tokenizers are known to cut differently.
_PROBES = (
    "Hello, World! It's 12:30 on 2024-05-06.\nA second  line,\twith a tab.",
    "Straße, naïve café, Ünïcödé ﬁne, 日本語のテキスト, Привет, العربية 🙂",
    "def f(x): return x**2 + 1  # CamelCase snake_case",
)


class Difference(NamedTuple):
    """What two vocabularies differ in; all empty or 0: nothing.

    ids: how many ids, of those that both have, stand for another text. example: one of them, in
    words. more, fewer: ids that only the second, or only the first has. texts: a text that they
    cut into other tokens, although the ids agree.
    """

    ids: int = 0
    example: str = ""
    more: int = 0
    fewer: int = 0
    texts: str = ""

    def __bool__(self) -> bool:
        return bool(self.ids or self.more or self.fewer or self.texts)


def difference(first: Vocabulary, second: Vocabulary) -> Difference:
    """What `second` has otherwise than `first`. Nothing if their fingerprints are equal."""
    if first.fingerprint == second.fingerprint:
        return Difference()
    shared = min(first.size, second.size)
    other, example = 0, ""
    for i in range(shared):
        if i == first.unk_id == second.unk_id:
            continue  # everybody shows what can't be encoded in another way
        texts = [vocabulary.decode([i]) for vocabulary in (first, second)]
        if texts[0] != texts[1]:
            other += 1
            example = example or f"id {i} is {texts[0]!r:.30} there and {texts[1]!r:.30} here"
    cut = ""
    if not other:
        same = lambda t: first.encode(t).tolist() == second.encode(t).tolist()  # noqa: E731
        cut = next((text for text in _PROBES if not same(text)), "")
    more, fewer = second.size - shared, first.size - shared
    return Difference(other, example, more, fewer, cut)
