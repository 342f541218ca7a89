"""What `explain` makes of a model without a decoder."""

import dataclasses

import jax
import numpy as np
import tiny

import t5x_lite as tl
from t5x_lite.data.objectives.masked import MaskedLM
from t5x_lite.programs import explain
from t5x_lite.report import explain_page

BERT = dataclasses.replace(
    tiny.T5, architecture="encoder_only", num_encoder_layers=1, num_decoder_layers=0,
    encoder_heads=("masked_lm",), tied_embeddings=True,
)  # fmt: skip


def test_masked_tokens_are_what_is_predicted(tmp_path, monkeypatch):
    lengths = {"inputs": 32, "labels": 32}
    setup = tl.set_up(BERT, tiny.task(MaskedLM()), lengths, 8, pack=False)
    params = jax.jit(setup.model.init)(jax.random.key(0))
    monkeypatch.setattr(explain, "open_weights", lambda *args, **options: (setup, params))
    text = "the quick brown fox jumps"
    found = explain.explain(setup, [str(tmp_path)], text, None, top=3, attention=True)
    attention = found.pop("attention")
    length = len(found["inputs"])
    assert len(found["targets"]) == length == len(text) + 1  # the class token stands first
    assert "".join(t["text"] for t in found["targets"][1:]) == text
    masked = [i for i, t in enumerate(found["targets"]) if "log_prob" in t]
    assert 0 < len(masked) < 8
    changed = [i for i in range(length) if found["inputs"][i]["id"] != found["targets"][i]["id"]]
    assert set(changed) <= set(masked)
    assert attention["encoder"].shape == (1, 4, length, length)
    np.testing.assert_allclose(attention["encoder"].sum(-1), 1.0, rtol=1e-5)
    assert "entropy" in explain_page.render(found, attention)
