"""Encoders in the one training loop: they learn, are evaluated, shown and asked."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from t5x_lite.data.objectives.contrastive import DropoutPairs
from t5x_lite.data.objectives.masked import NextSentence
from t5x_lite.errors import UserError
from t5x_lite.evaluation.metrics.correlation import sts_correlation
from t5x_lite.interop.pretrained import restore_params
from t5x_lite.parallel.rules import use_mesh
from t5x_lite.programs.embed import StsEvaluation, embed_records
from t5x_lite.programs.held_out import HeldOut
from t5x_lite.programs.train import train
from t5x_lite.training.setup import set_up
from t5x_lite.training.state import abstract_params

BERT = dataclasses.replace(
    tiny.BERT, encoder_heads=("masked_lm", "pooler", "next_sentence"), dropout_rate=0.1,
    max_positions=64,
)  # fmt: skip
BODY = dataclasses.replace(BERT, encoder_heads=())


PAIRS = {"inputs": 48, "labels": 48, "types": 48, "pair_label": 1}


@pytest.mark.slow  # a whole run: 25 s
def test_bert_learns_and_a_sentence_encoder_starts_from_it(tmp_path):
    settings = dict(model=BERT, task=tiny.task(NextSentence()), lengths=PAIRS)
    train(**tiny.arguments(tmp_path, total_steps=40, num_samples=2, **settings))
    losses = list(tiny.logged(tmp_path).values())
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < 0.85 * np.mean(losses[:5])
    shown = tiny.logged(tmp_path, "eval/next_sentence_accuracy")
    assert set(shown) == {0, 40} and all(0.0 <= value <= 1.0 for value in shown.values())

    setup = set_up(BODY, tiny.task(DropoutPairs()), {"anchor": 48, "positive": 48}, 8, pack=False)
    abstract = abstract_params(setup.model, setup.mesh, setup.rules)
    body = "^(token_embedder|type_embedder|encoder)/"
    taken = restore_params(str(tmp_path), abstract, body, model=BODY)
    assert "heads" not in taken
    texts = ["a lazy dog", "the quick brown fox", "a lazy dog", "fox " * 30]
    found = list(embed_records(setup, taken, [{"input": text} for text in texts]))
    vectors = np.array([record["embedding"] for record in found])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    assert (vectors[0] == vectors[2]).all() and (vectors[0] != vectors[1]).any()
    assert [record.get("truncated") for record in found] == [None, None, None, True]


def test_infer_says_what_an_encoder_is_for():
    setup = set_up(BERT, tiny.task(NextSentence()), PAIRS, 8, pack=False)
    with pytest.raises(UserError, match="found NextSentence: set Task.objective"):
        embed_records(setup, {}, [{"input": "x"}])


def test_a_sentence_encoder_is_judged_by_what_people_find_alike(tmp_path):
    """STS during training and in `eval`, where both ask `HeldOut`."""
    rows = [("a dog", "the dog", 4.5), ("a dog", "brown fox", 1.0), ("jumps", "jumped over", 3.0)]
    (tmp_path / "sts.tsv").write_text("".join(f"{a}\t{b}\t{score}\n" for a, b, score in rows))
    body = dataclasses.replace(BODY, dropout_rate=0.0)
    setup = set_up(body, tiny.task(DropoutPairs()), {"anchor": 48, "positive": 48}, 8, pack=False)
    sts = StsEvaluation(str(tmp_path / "sts.tsv"), names=["text_a", "text_b", "score"])
    with use_mesh(setup.mesh, setup.rules):
        params = jax.jit(setup.model.init)(jax.random.key(0))
        found = HeldOut(setup, 1, sts=sts).evaluate(params)
    assert np.isfinite(found["loss"])
    texts = [{"input": text} for row in rows for text in row[:2]]
    vectors = np.array([r["embedding"] for r in embed_records(setup, params, texts)])
    wanted = sts_correlation([row[2] for row in rows], vectors[::2], vectors[1::2])
    assert {k: v for k, v in found.items() if k.startswith("sts/")} == {
        f"sts/{name}": pytest.approx(value) for name, value in wanted.items()
    }
    assert StsEvaluation().values(setup, params) == {}
    wrong = StsEvaluation(str(tmp_path / "sts.tsv"), names=["a", "b", "score"])
    with pytest.raises(UserError, match="no column 'text_a', found 'a', 'b', 'score'"):
        wrong.values(setup, params)
