"""A vocabulary trained on a weighted sample of the result, and how well it serves each language."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from t5x_lite.corpus.text import words
from t5x_lite.errors import UserError
from t5x_lite.ranges import Count, Positive

FILE = "vocabulary.model"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """SentencePiece on text of the training split.

    Args:
      size: number of ids, sentinels included; fewer if the text can't fill so many.
      model_type: "unigram" or "bpe".
      extra_ids: number of sentinels.
      sample_bytes: of text that is used.
      temperature: the languages' shares of it are their bytes to this power; 0.3 favours small
        ones.
      weights: {language: share} instead.
      report_documents: of each language, that the report is made on (held-out ones if there are).
    """

    size: int = 32_000
    model_type: str = "unigram"
    extra_ids: Count = 100
    sample_bytes: Positive = 50_000_000
    temperature: float = 1.0
    weights: Mapping[str, float] | None = None
    report_documents: int = 200

    def budgets(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """Bytes of each language's sample, from the languages' bytes."""
        shares = self.weights or {k: v**self.temperature for k, v in sizes.items()}
        total = sum(shares.values())
        return {k: self.sample_bytes * share / total for k, share in shares.items()}

    def sample(
        self, records: Iterable[Mapping[str, str]], sizes: Mapping[str, int]
    ) -> Iterator[str]:
        """Texts, in the dataset's random order, until each language's budget is used up."""
        left = self.budgets(sizes)
        for record in records:
            language = record["language"] or "unknown"
            if left.get(language, 0) > 0:
                left[language] -= len(record["text"].encode(errors="replace"))
                yield record["text"]
            if all(value <= 0 for value in left.values()):
                return

    def train(self, records: Iterable, sizes: Mapping[str, int], path: Path) -> None:
        """Writes the model. Raises UserError if there is too little text."""
        from t5x_lite.data.sentencepiece_training import train_sentencepiece

        texts = list(self.sample(records, sizes))
        given: Any = dict(model_type=self.model_type, extra_ids=self.extra_ids,
                     max_bytes=self.sample_bytes)  # fmt: skip
        try:
            train_sentencepiece(texts, path, self.size, **given)
        except UserError as error:
            if not (fits := re.search(r"too few pieces for \d+ ids: at most (\d+)", str(error))):
                raise
            train_sentencepiece(texts, path, int(fits[1]), **given)

    def report(self, records: Iterable, path: Path, by: str) -> dict[str, dict[str, float]]:
        """{group: documents, tokens per word, unknown tokens, bytes per token}.

        by: "language" or "source".
        """
        from t5x_lite.data.vocabulary import SentencePieceVocabulary

        vocabulary = SentencePieceVocabulary(str(path))
        counted: dict[str, Counter] = {}
        for record in records:
            row = counted.setdefault(record[by] or "unknown", Counter())
            if row["documents"] >= self.report_documents:
                continue
            ids = vocabulary.encode(record["text"])
            row["documents"] += 1
            row["tokens"] += len(ids)
            row["unknown"] += int((ids == vocabulary.unk_id).sum())
            row["words"] += sum(word[0].isalnum() for word in words(record["text"]))
            row["bytes"] += len(record["text"].encode(errors="replace"))
        return {
            group: {
                "documents": row["documents"],
                "tokens per word": row["tokens"] / max(row["words"], 1),
                "unknown tokens": row["unknown"] / max(row["tokens"], 1),
                "bytes per token": row["bytes"] / max(row["tokens"], 1),
            }
            for group, row in sorted(counted.items())
        }


def train_and_report(
    tokenizer: Tokenizer, folder: Path, tables: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """Trains on the dataset in `folder`, writes the model there, and returns its report.

    tables: bytes of the result, as "language: bytes" and "source: bytes". A group that no document
    of the split is of has no row, and its tokens are estimated by all that have one.
    """
    from t5x_lite.corpus.dataset import read

    (folder / FILE).unlink(missing_ok=True)  # of a run that was killed here
    tokenizer.train(read(folder, "train"), tables["language: bytes"], folder / FILE)
    found: dict[str, Any] = {}
    for by in ("language", "source"):
        for split in ("validation", "train"):
            rows = tokenizer.report(read(folder, split), folder / FILE, by)
            if rows:
                break
        mean = sum(row["bytes per token"] for row in rows.values()) / len(rows)
        tokens = {
            group: round(size / (rows.get(group, {}).get("bytes per token") or mean))
            for group, size in tables[f"{by}: bytes"].items()
        }
        found |= {"split": split, by: {"measured": rows, "estimated tokens": tokens}}
    return found
