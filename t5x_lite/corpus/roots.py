"""ROOTS: BigScience's filter with one row of thresholds per language.

Laurençon et al. 2022, https://arxiv.org/abs/2303.03915; the thresholds are those of
bigscience-workshop/data-preparation, parameters_filtering.py.
"""

import dataclasses
import string
import unicodedata
from collections import Counter
from typing import NamedTuple

from t5x_lite.corpus.code_languages import is_code
from t5x_lite.corpus.steps import Document, Step, rule
from t5x_lite.corpus.text import words


class Thresholds(NamedTuple):
    """A language's row. Word and character repetition: length of the n-gram, share at most."""

    min_words: int
    max_words: int
    characters: tuple[int, float]
    words: tuple[int, float]
    special: float  # share of characters that aren't letters, at most
    stop_words: float  # share of words, at least
    flagged: float  # share of words, at most
    language: float  # probability, at least
    perplexity: float  # at most, of their model; not used by this filter


ROWS = {
    "default": Thresholds(10, 100_000, (10, 0.2), (5, 0.3), 0.4, 0.1, 0.1, 0.70, 10_000),
    "ar": Thresholds(20, 100_000, (10, 0.2), (5, 0.34), 0.3, 0.07, 0.03, 0.81, 2300),
    "bn": Thresholds(33, 100_000, (10, 0.13), (5, 0.21), 0.45, 0.002, 0.001, 0.95, 2000),
    "ca": Thresholds(15, 100_000, (10, 0.2), (5, 0.4), 0.25, 0.25, 0.1, 0.8, 2500),
    "en": Thresholds(20, 100_000, (10, 0.106), (5, 0.19), 0.4, 0.3, 0.01, 0.80, 1500),
    "es": Thresholds(16, 100_000, (10, 0.14), (5, 0.25), 0.34, 0.4, 0.01, 0.8, 1300),
    "eu": Thresholds(8, 100_000, (10, 0.2), (5, 0.4), 0.31, 0.05, 0.1, 0.70, 3000),
    "fr": Thresholds(13, 100_000, (10, 0.14), (5, 0.13), 0.34, 0.27, 0.008, 0.8, 1770),
    "hi": Thresholds(38, 100_000, (10, 0.18), (5, 0.47), 0.45, 0.01, 0.005, 0.90, 1517),
    "id": Thresholds(15, 100_000, (10, 0.15), (5, 0.2), 0.34, 0.15, 0.01, 0.7, 5000),
    "pt": Thresholds(19, 100_000, (10, 0.25), (5, 0.98), 0.35, 0.2, 0.007, 0.6, 3038),
    "ur": Thresholds(25, 100_000, (10, 0.19), (7, 0.5), 0.25, 0.01, 0.025, 0.90, 1495),
    "vi": Thresholds(30, 100_000, (10, 0.15), (5, 0.2), 0.34, 0.08, 0.005, 0.90, 1600),
    "zh": Thresholds(1, 1_000_000, (3, 0.2), (5, 0.96), 0.3, 0.1691, 0.001, 0.85, 2095),
}
LONGEST_WORD = {"ar": 25, "bn": 20, "ca": 20, "en": 25, "es": 25, "eu": 28, "fr": 45, "hi": 25,
                "id": 30, "pt": 19, "ur": 20, "vi": 25}  # fmt: skip
_NO_WORDS = ("http", "www", ".com", "href", "//")

# Function words, by us: ROOTS's own lists are longer. For other languages give `stop_words`.
STOP_WORDS = {
    "en": "a about after all also an and any are as at be because been before but by can could did "
    "do does for from had has have he her him his how i if in into is it its me more most my "
    "no not of on one only or other our out over she should so some such than that the their "
    "them then there these they this those through to under up very was we were what when "
    "where which while who will with would you your",
    "es": "a al algo alguna algunas alguno algunos algún ante antes aquel aquella aquello así "
    "aunque aún bajo bien cada casi como con contra cual cuales cualquier cualquiera cuya "
    "cuyo cuál cuándo de debe deben del dentro desde después donde durante e el ella ellas "
    "ellos en entre era eran eres es esa esas ese eso esos esta estar estas este esto estos "
    "están fue fuera fueron ha había hace hacer hacia han hasta hay haya he la las le les lo "
    "los mayor me mediante mejor menos mi mientras misma mismas mismo mismos mucha muchas "
    "mucho muchos muy más nada ni ninguna ninguno no nos nosotros nuestra nuestro o otra "
    "otras otro otros para pero poco pocos podría por porque primer primera puede pueden pues "
    "puesto que quien quién qué se sea sean según ser será serán si sido siempre siendo sin "
    "sobre solo son soy su sus suya suyo sólo tal tales también tan tanto te tener tenga "
    "tiene tienen toda todas todo todos tras tu tus u un una unas uno unos usted ustedes "
    "varios veces vez y ya yo él",
    "fr": "a afin ainsi alors après au aucun aucune aussi autre autres aux avant avec avoir bien c "
    "car ce cela celle celles celui ces cette ceux chaque comme comment d dans de des doit "
    "doivent donc dont du elle en entre est est-ce et eux faire fait fois il ils j je jusqu "
    "jusque l la le les leur lors lorsqu lorsque lui là m ma mais me mes mieux moi moins mon "
    "même mêmes n ne non nos notamment notre nous nul on ont ou où par pas peu peut peuvent "
    "plus plusieurs pour pourquoi près puis qu quand que quel quelle quelles quelque quelques "
    "quels qui quoi s sa sans sauf se selon sera seront ses seul seule si sinon soit son sont "
    "sous suivant sur t ta tant te tel telle telles tels tes toi ton tous tout toute toutes "
    "très tu un une vers voici voilà vos votre vous y à étaient était été être",
    "pt": "a ao aos as com como da das de do dos e é ela ele em entre era essa esse esta este eu "
    "foi há isso já lhe mais mas me mesmo na nas no nos não o os ou para pela pelo por quando "
    "que quem se sem ser seu sua são também te tem um uma você à",
}


@dataclasses.dataclass(frozen=True)
class Roots(Step):
    """ROOTS' rules for the document's language, set by a `Language` step before it.

    stop_words, flagged_words: {language: "words with spaces between"}; without a list the rule
    isn't applied. rows: {language: thresholds}, in the order of `Thresholds`, instead of ROOTS'.
    """

    SOURCE = "Laurençon et al. 2022; parameters_filtering.py"

    words: bool | None = rule(True, "few_words, many_words", "see the rows")
    character_repetition: bool | None = rule(True, "character_repetition", "see the rows")
    word_repetition: bool | None = rule(True, "word_repetition", "see the rows")
    special: bool | None = rule(True, "special_characters", "see the rows")
    stop_word_ratio: bool | None = rule(True, "stop_words", "see the rows")
    flagged: bool | None = rule(True, "flagged_words", "see the rows")
    remove_odd_words: bool = True  # longer than LONGEST_WORD, or with http, www, .com, href, //
    stop_words: dict | None = None
    flagged_words: dict | None = None
    rows: dict | None = None

    def __call__(self, document: Document) -> str | None:
        if is_code(document):
            return None
        language = document.get("language") or "default"
        if self.remove_odd_words and language in LONGEST_WORD:
            document["text"] = without_odd_words(document["text"], LONGEST_WORD[language])
        broken = self.broken(document["text"], language)
        return broken and f"Roots/{broken}"

    def broken(self, text: str, language: str) -> str | None:
        """The rule that `text` breaks in a language's row, or None."""
        rows = ROWS | {k: Thresholds(*row) for k, row in (self.rows or {}).items()}
        row = rows.get(language, rows["default"])
        found = [w.lower() for w in words(text) if w[0].isalnum()]
        if self.words and len(found) < row.min_words:
            return "few_words"
        if self.words and len(found) > row.max_words:
            return "many_words"
        if (
            self.character_repetition
            and character_repetition(text, row.characters[0]) > (row.characters[1])
        ):
            return "character_repetition"
        if self.word_repetition and word_repetition(found, row.words[0]) > row.words[1]:
            return "word_repetition"
        if self.special and special_ratio(text) > row.special:
            return "special_characters"
        lists = STOP_WORDS | (self.stop_words or {})
        stop_words, flagged = lists.get(language), (self.flagged_words or {}).get(language)
        if self.stop_word_ratio and stop_words and ratio_of(found, stop_words) < row.stop_words:
            return "stop_words"
        if self.flagged and flagged and ratio_of(found, flagged) > row.flagged:
            return "flagged_words"
        return None


def without_odd_words(text: str, longest: int) -> str:
    """Without words that are too long or hold a part of a link; white space stays."""

    def odd(word: str) -> bool:
        bare = word.strip(string.punctuation)
        return len(bare) > longest or any(part in word for part in _NO_WORDS)

    lines = (
        " ".join(w for w in line.split(" ") if not w or not odd(w)) for line in text.split("\n")
    )
    return "\n".join(lines).strip()


def character_repetition(text: str, n: int) -> float:
    """Share of character n-grams that the sqrt(number of different ones) most frequent make up.

    At most as many as repeat at all; so 0 for a text without repetition.
    """
    counts = sorted(Counter(text[i : i + n] for i in range(len(text) - n + 1)).values())[::-1]
    if not counts:
        return 0.0
    repeating = len(counts) - counts.count(1)
    top = min(int(len(counts) ** 0.5), repeating)
    return sum(counts[:top]) / sum(counts)


def word_repetition(found: list[str], n: int) -> float:
    """Share of word n-grams that stand more than once."""
    counts = Counter(zip(*(found[i:] for i in range(n)), strict=False))
    return sum(c for c in counts.values() if c > 1) / max(sum(counts.values()), 1)


def special_ratio(text: str) -> float:
    """Share of characters that are digits, punctuation, white space or symbols."""
    special = sum(not (c.isalpha() or unicodedata.category(c)[0] == "M") for c in text)
    return special / max(len(text), 1)


def ratio_of(found: list[str], listed: str) -> float:
    """Share of words that are in the list."""
    members = frozenset(listed.split())
    return sum(word in members for word in found) / max(len(found), 1)
