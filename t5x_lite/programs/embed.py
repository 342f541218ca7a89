"""What `infer` does with an encoder: texts in, vectors out."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.evaluation.predictions import whole
from t5x_lite.models.model import Model
from t5x_lite.parallel.rules import use_mesh
from t5x_lite.training.setup import Setup

Record = dict[str, Any]


def embed_records(
    setup: Setup, params: Any, records: Sequence[Record], pooling: str = "mean"
) -> Iterator[Record]:
    """Yields each record {"input": text, ...} with "embedding"; see `embedder`."""
    return embedder(setup, params, pooling)(records)


def embedder(
    setup: Setup, params: Any, pooling: str = "mean"
) -> Callable[[Sequence[Record]], Iterator[Record]]:
    """A function that yields records with "embedding", a list of floats of length 1.

    Texts become tokens as the task's anchors do, and vectors by ``pooling``, which should be that
    of the run's `ContrastiveLoss`. One that is longer than lengths["anchor"] is cut, and says so:
    "truncated": true.
    """
    task = setup.task.leaves[0][0]
    objective = task.objective
    if "anchor" not in objective.features:
        raise UserError(
            f"infer makes embeddings with an encoder_only model, found {type(objective).__name__}: "
            f"set Task.objective = @DropoutPairs(), and a length for anchor and positive."
        )
    names = getattr(objective, "reads", objective.features)
    length, model = setup.lengths["anchor"], setup.model

    def tokens(text: str, lengths: dict[str, int]) -> np.ndarray:
        fields = dict.fromkeys(names, task.vocabulary.encode(text))
        return task.example(fields, np.random.default_rng(0), lengths)["anchor"]

    embed = _jitted(model, pooling)

    def results(records: Sequence[Record]) -> Iterator[Record]:
        for start in range(0, len(records), setup.batch_size):
            some = records[start : start + setup.batch_size]
            rows = np.zeros((setup.batch_size, length), np.int32)
            for row, record in zip(rows, some, strict=False):
                ids = tokens(record["input"], setup.lengths)
                row[: len(ids)] = ids
            with use_mesh(setup.mesh, setup.rules):
                vectors = whole(embed(params, setup.place({"ids": rows[setup.rows]})["ids"]))
            longer = {name: length + 1 for name in setup.lengths}
            for vector, record in zip(vectors, some, strict=False):
                cut = len(tokens(record["input"], longer)) > length
                more = {"truncated": True} if cut else {}
                yield record | {"embedding": vector.tolist()} | more

    return results


@functools.lru_cache(maxsize=8)
def _jitted(model: Model, pooling: str) -> Callable[[Any, jax.Array], jax.Array]:
    """The same function for the same model: each is compiled once."""
    return jax.jit(lambda p, ids: model.embed(p, {"encoder_input_tokens": ids}, pooling=pooling))


@dataclasses.dataclass(frozen=True)
class StsEvaluation:
    """Semantic textual similarity: whether near vectors are of texts that people find alike.

    table: a file of pairs with scores; None: no such evaluation. Of a sentence encoder, `train`
      and `eval` then give sts/spearman and sts/pearson, of cosines and scores, times 100.
    columns: of the two texts and the score.
    names: of the table's columns, if the first row of a .tsv or .csv file is data already.
    """

    table: str | Sequence[str] | None = None
    columns: tuple[str, str, str] = ("text_a", "text_b", "score")
    names: Sequence[str] | None = None

    @functools.cached_property
    def _rows(self) -> list[tuple[str, str, float]]:
        from t5x_lite.data.task_data import task_data

        source = task_data(
            None, self.table, None, self.names, None, None, held_out=0.0, document="line"
        )
        rows = []
        for number, record in enumerate(source.split("train"), 1):
            try:
                first, second, score = (record[name] for name in self.columns)
                rows.append((str(first), str(second), float(score)))
            except KeyError as error:
                raise UserError(
                    f"{self.table}: no column {error}, found {', '.join(map(repr, record))}; set "
                    "StsEvaluation.columns, or, if the file has no header, names."
                ) from error
            except ValueError as error:
                raise UserError(
                    f"{self.table}, record {number}: the score {score!r} is no number."
                ) from error
        if len(rows) < 2:
            raise UserError(f"{self.table} has {len(rows)} pairs of texts, expected 2 or more.")
        return rows

    def values(self, setup: Setup, params: Any, pooling: str = "mean") -> dict[str, float]:
        """{} without a table, or with a model that isn't trained on pairs."""
        if self.table is None or "anchor" not in setup.task.objective.features:
            return {}
        texts = [{"input": text} for row in self._rows for text in row[:2]]
        found = np.array([r["embedding"] for r in embedder(setup, params, pooling)(texts)])
        scores = [score for *_, score in self._rows]
        from t5x_lite.evaluation.metrics.correlation import sts_correlation

        correlations = sts_correlation(scores, found[::2], found[1::2])
        return {f"sts/{name}": float(value) for name, value in correlations.items()}
