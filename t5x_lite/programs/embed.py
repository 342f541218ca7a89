"""What `infer` does with an encoder: texts in, vectors out."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.parallel.rules import use_mesh
from t5x_lite.programs.setup import Setup
from t5x_lite.training.pair_losses import ContrastiveLoss

Record = dict[str, Any]


def embed_records(setup: Setup, params: Any, records: Sequence[Record]) -> Iterator[Record]:
    """Yields each record {"input": text, ...} with "embedding", a list of floats of length 1.

    Texts become tokens as the task's anchors do, and vectors as `ContrastiveLoss` is configured to
    make them. One that is longer than lengths["anchor"] is cut, and says so: "truncated": true.
    """
    task, pooling = setup.task.leaves[0][0], ContrastiveLoss().pooling
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

    @jax.jit
    def embed(params: Any, ids: jax.Array) -> jax.Array:
        return model.embed(params, {"encoder_input_tokens": ids}, pooling=pooling)

    def results() -> Iterator[Record]:
        for start in range(0, len(records), setup.batch_size):
            some = records[start : start + setup.batch_size]
            rows = np.zeros((setup.batch_size, length), np.int32)
            for row, record in zip(rows, some, strict=False):
                ids = tokens(record["input"], setup.lengths)
                row[: len(ids)] = ids
            with use_mesh(setup.mesh, setup.rules):
                vectors = np.asarray(embed(params, setup.place({"ids": rows[setup.rows]})["ids"]))
            longer = {name: length + 1 for name in setup.lengths}
            for vector, record in zip(vectors, some, strict=False):
                cut = len(tokens(record["input"], longer)) > length
                more = {"truncated": True} if cut else {}
                yield record | {"embedding": vector.tolist()} | more

    return results()
