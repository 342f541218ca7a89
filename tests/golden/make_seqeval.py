"""Writes seqeval.json: tags and what seqeval makes of them. Needs seqeval 1.2.2 and scikit-learn.

Run in an environment of its own: python tests/golden/make_seqeval.py
"""

import json
import random
import warnings
from pathlib import Path

from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2

warnings.filterwarnings("ignore")
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
MORE = [*TAGS, "E-PER", "S-LOC", "B-X-Y", "I-X-Y"]


def case(rng: random.Random, tags: list[str]) -> dict:
    lengths = [rng.randint(1, 8) for _ in range(rng.randint(1, 4))]
    true = [[rng.choice(tags) for _ in range(n)] for n in lengths]
    found = [[t if rng.random() < 0.6 else rng.choice(tags) for t in row] for row in true]
    lenient = {
        "precision": precision_score(true, found, zero_division=0),
        "recall": recall_score(true, found, zero_division=0),
        "f1": f1_score(true, found, zero_division=0),
        "f1_macro": f1_score(true, found, average="macro", zero_division=0),
        "entities": [[list(e) for e in get_entities(row)] for row in true],
    }
    made = {"true": true, "found": found, "lenient": lenient}
    if tags is TAGS:
        options = dict(mode="strict", scheme=IOB2, zero_division=0)
        made["strict"] = {
            "precision": precision_score(true, found, **options),
            "recall": recall_score(true, found, **options),
            "f1": f1_score(true, found, **options),
        }
    return made


if __name__ == "__main__":
    rng = random.Random(0)
    cases = [case(rng, TAGS) for _ in range(60)] + [case(rng, MORE) for _ in range(30)]
    text = "[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n"
    Path(__file__).with_name("seqeval.json").write_text(text)
