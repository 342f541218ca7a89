"""Encoders in the one training loop: they learn, are evaluated, shown and asked."""

import dataclasses

import numpy as np
import pytest
import tiny

import t5x_lite as tl
from t5x_lite.data.objectives import DropoutPairs, NextSentence
from t5x_lite.errors import UserError
from t5x_lite.interop.pretrained import restore_params
from t5x_lite.programs.embed import embed_records
from t5x_lite.programs.setup import set_up
from t5x_lite.programs.train import train
from t5x_lite.training.state import abstract_params

BERT = tl.TransformerConfig(
    vocab_size=384, embed_dim=32, num_heads=4, head_dim=8, mlp_dim=64, num_decoder_layers=0,
    num_encoder_layers=1, architecture="encoder_only", norm="layer", norm_placement="post",
    embedding_norm=True, positions="learned", max_positions=64, token_types=2, use_bias=True,
    scale_attention=True, tied_embeddings=True, scale_tied_logits=False, init_std=0.05,
    mlp_activations=("gelu_exact",), encoder_heads=("masked_lm", "pooler", "next_sentence"),
    dropout_rate=0.1, dtype="float32",
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
