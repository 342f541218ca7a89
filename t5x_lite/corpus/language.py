"""Which language a text is in: py3langid, whose model is in its package (97 languages, no network).

Its probabilities are surer than they should be; thresholds of fastText's lid.176 don't carry over.
"""

import dataclasses
import functools

import gin

from t5x_lite.corpus.steps import Document, Step, rule


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class Language(Step):
    """Sets `language` and its score, and drops what is in another language or in none surely.

    Documents that have a language already (source code, say) keep it.

    languages: ISO 639-1 codes that are kept; None keeps all.
    """

    SCORES = ("language",)
    SOURCE = "FineWeb: 0.65 of fastText's lid.176; ROOTS: 0.6 to 0.95 by language"

    languages: tuple[str, ...] | None = None
    min_score: float = rule(0.65, "uncertain", "probability, at least")
    sample: int = 4000  # characters looked at, from the middle

    def __call__(self, document: Document) -> str | None:
        if document.get("language"):
            document["scores"].setdefault("language", 1.0)
        else:
            language, score = identify(document["text"], self.sample)
            document["language"], document["scores"]["language"] = language, score
        if self.languages is not None and document["language"] not in self.languages:
            return "Language/other"
        return "Language/uncertain" if document["scores"]["language"] < self.min_score else None


def identify(text: str, sample: int = 4000) -> tuple[str, float]:
    """(ISO 639-1 code, probability), from `sample` characters in the middle of the text."""
    begin = max(0, (len(text) - sample) // 2)
    label, score = _identifier().classify(text[begin : begin + sample])
    return str(label), float(score)


@functools.cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
