"""Scores against T5X's `score_batch`, on padded and packed rows."""

import numpy as np
import pytest
from golden_files import load, tiny_model

from t5x_lite.inference.scoring import log_likelihood, token_log_probs


def features(case):
    arrays = load("tiny_forward.npz")
    prefix = f"{case}/batch/"
    batch = {k.removeprefix(prefix): arrays[k] for k in arrays if k.startswith(prefix)}
    return batch, arrays[f"{case}/logits"], arrays[f"{case}/score_batch"]


@pytest.mark.parametrize("case", ["padded", "packed"])
def test_log_likelihood_is_t5x(case):
    batch, _, expected = features(case)
    scores = log_likelihood(*tiny_model(), batch)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


@pytest.mark.parametrize("case", ["padded", "packed"])
def test_token_log_probs_are_those_of_the_logits(case):
    batch, logits, _ = features(case)
    logits = logits.astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = batch["decoder_target_tokens"]
    expected = np.take_along_axis(expected, targets[:, :, None], -1)[:, :, 0]
    expected *= batch["decoder_loss_weights"]
    np.testing.assert_allclose(
        token_log_probs(*tiny_model(), batch), expected, rtol=1e-4, atol=1e-5
    )


class Fixed:
    """A model whose logits [B, T, V] are its parameters."""

    def apply(self, params, batch):
        return params, {}


def test_weights_scale_and_select():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 5, 7)).astype(np.float32)
    targets = rng.integers(1, 7, (3, 5))
    targets[2, 3:] = 0
    weights = rng.uniform(0.5, 2, (3, 5)).astype(np.float32)
    weights[0, 0] = 0
    expected = np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    expected = np.take_along_axis(expected, targets[:, :, None], -1)[:, :, 0]

    batch = {"decoder_target_tokens": targets}
    scores = log_likelihood(Fixed(), logits, batch)
    np.testing.assert_allclose(scores, (expected * (targets > 0)).sum(1), rtol=1e-5)
    batch |= {"decoder_loss_weights": weights}
    scores = log_likelihood(Fixed(), logits, batch)
    np.testing.assert_allclose(scores, (expected * weights).sum(1), rtol=1e-5)
    per_token = token_log_probs(Fixed(), logits, batch)
    np.testing.assert_allclose(per_token, expected * (weights > 0), rtol=1e-5)
