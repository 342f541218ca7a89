"""Translations and summaries against references: BLEU and chrF by sacrebleu, ROUGE by rouge-score.

Each gives a note, "..._signature", that says how it was computed: values with different ones can't
be compared.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from t5x_lite.evaluation.metrics.base import Target, Values, library, metric, references
from t5x_lite.ranges import Count


@metric(needs="sacrebleu")
def bleu(
    targets: Sequence[Target],
    predictions: Sequence[str],
    tokenize: str = "13a",
    lowercase: bool = False,
) -> Values:
    """Corpus BLEU, 0 to 100. tokenize: "13a" is WMT's, "intl" is what T5 was reported with."""
    return _sacrebleu("BLEU", targets, predictions, tokenize=tokenize, lowercase=lowercase)


@metric(needs="sacrebleu")
def chrf(targets: Sequence[Target], predictions: Sequence[str], word_order: Count = 0) -> Values:
    """Corpus chrF2, 0 to 100; with word_order=2 chrF++."""
    return _sacrebleu("CHRF", targets, predictions, word_order=word_order)


def _sacrebleu(kind: str, targets, predictions, **options: Any) -> Values:
    scorer = getattr(library("sacrebleu", "metrics"), kind)(**options)
    rows = [references(t) for t in targets]
    # sacrebleu's references are columns, with None where a row has fewer.
    columns = [
        [row[i] if i < len(row) else None for row in rows] for i in range(max(map(len, rows)))
    ]
    score = scorer.corpus_score(list(predictions), columns).score
    name = kind.lower()
    return {name: float(score), f"{name}_signature": str(scorer.get_signature())}


@metric(needs="rouge-score")
def rouge(
    targets: Sequence[Target],
    predictions: Sequence[str],
    stemmer: bool = False,
    sentence_end: str = " . ",
) -> Values:
    """Mean F1 of ROUGE-1, -2, -L and -Lsum, 0 to 100; the best over the references.

    stemmer: compare Porter stems (Hugging Face's default, not T5's).
    sentence_end: where sentences end, besides newlines; ROUGE-Lsum goes by sentences.
    """
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = library("rouge-score", "rouge_scorer").RougeScorer(kinds, stemmer)

    def lines(text: str) -> str:
        return text.replace(sentence_end, f"{sentence_end.rstrip()}\n") if sentence_end else text

    found = [
        scorer.score_multi([lines(r) for r in references(t)], lines(p))
        for t, p in zip(targets, predictions, strict=True)
    ]
    values: Values = {k: 100 * float(np.mean([f[k].fmeasure for f in found])) for k in kinds}
    note = f"rouge-score, {'with' if stemmer else 'no'} stemmer, sentences end at {sentence_end!r}"
    return values | {"rouge_signature": note}
