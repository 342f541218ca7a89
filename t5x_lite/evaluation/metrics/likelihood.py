"""How well a model predicts text: perplexity and bits, by units that no vocabulary decides on."""

import math
import re
from collections.abc import Sequence

from t5x_lite.evaluation.metrics.base import Values, metric, references


@metric("target_scores")
def perplexity(
    targets: Sequence[str], predictions: Sequence[str], *, target_scores: Sequence[float]
) -> Values:
    """Perplexity per word and per byte, bits per byte and per character, of the target texts.

    target_scores: the log-probability of each text. Words (between white space), bytes and
    characters are those of the text itself, before it was cut into tokens, so that models with
    different vocabularies can be compared; sums are divided by sums, not means averaged. As
    lm-evaluation-harness has them.
    """
    texts = [references(t)[0] for t in targets]
    nats = -math.fsum(target_scores)
    words = sum(len(re.split(r"\s+", text)) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    characters = sum(map(len, texts))
    return {
        "word_perplexity": _exp(nats / words),
        "byte_perplexity": _exp(nats / max(size, 1)),
        "bits_per_byte": nats / math.log(2) / max(size, 1),
        "bits_per_character": nats / math.log(2) / max(characters, 1),
    }


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))
