"""XLNet's positions and masks by definition; configurations that contradict themselves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import t5x_lite as tl
from t5x_lite.data.objectives.permutation import permutation_masks
from t5x_lite.errors import UserError
from t5x_lite.models.xlnet import shifted, sinusoids, stream_masks

BERT = tl.TransformerConfig(
    vocab_size=16, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=8, num_decoder_layers=0,
    num_encoder_layers=1, architecture="encoder_only", positions="learned", max_positions=8,
    tied_embeddings=True, encoder_heads=("pooler",), dtype="float32",
)  # fmt: skip


def test_scores_by_distance_become_scores_by_key():
    length = 5
    scores = np.random.default_rng(0).normal(size=(2, 3, length, 2 * length)).astype(np.float32)
    found = np.asarray(shifted(jnp.asarray(scores)))
    for i in range(length):
        for j in range(length):  # the distance i - j is the (length - (i - j))-th
            np.testing.assert_array_equal(found[..., i, j], scores[..., i, length - (i - j)])


def test_sinusoids_are_of_distances():
    table = np.asarray(sinusoids(6, 4))
    assert table.shape == (12, 4)
    for row, distance in enumerate(range(6, -6, -1)):
        angles = distance * np.array([1.0, 10_000.0**-0.5])
        np.testing.assert_allclose(table[row], [*np.sin(angles), *np.cos(angles)], atol=1e-6)


def test_masks_are_those_that_the_objective_tells_of():
    rng = np.random.default_rng(1)
    order, segments = rng.integers(1, 6, (4, 12)), np.repeat([[1, 1, 2, 0]], 3, 1).repeat(4, 0)
    order *= segments > 0
    expected = permutation_masks(order, segments)
    for ours, theirs in zip(stream_masks(order, segments), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    content, _ = stream_masks(None, jnp.asarray(segments))
    np.testing.assert_array_equal(content[0, 0], segments[0] == 1)


def test_pooling():
    model = tl.Model(BERT)
    params = model.init(jax.random.key(0))
    ids = jnp.array([[3, 4, 5, 0], [6, 0, 0, 0]])
    batch = {"encoder_input_tokens": ids}
    found, _ = model.encoded(params, batch)
    encoded = np.asarray(found["encoded"])
    wanted = {
        "mean": np.stack([encoded[0, :3].mean(0), encoded[1, 0]]),
        "cls": encoded[:, 0],
        "pooler": np.asarray(found["pooled"]),
    }
    for pooling, vectors in wanted.items():
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        got = model.embed(params, batch, pooling=pooling)
        np.testing.assert_allclose(got, vectors, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="has no output layer"):
        model.apply(params, batch)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_decoder_layers": 2}, "set it to 0"),
        ({"num_encoder_layers": 0}, "num_encoder_layers = 0"),
        ({"encoder_heads": ("masked",)}, "Did you mean 'masked_lm'"),
        ({"encoder_heads": ("next_sentence",)}, "'pooler' where there is 'next_sentence'"),
        ({"encoder_heads": ("lm",), "tied_embeddings": False}, "set tied_embeddings = True"),
        ({"positions": "transformer_xl"}, "norm_placement = 'pre' with positions"),
        ({"architecture": "decoder_only", "num_encoder_layers": 0, "num_decoder_layers": 1},
         "are for the architecture 'encoder_only'"),
        ({"norm_placement": "behind"}, "norm_placement = 'behind'"),
        ({"use_bias": "out"}, "'qkv' or 'mlp'"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(changes, said):
    with pytest.raises(UserError) as error:
        dataclasses.replace(BERT, **changes)
    assert said in str(error.value)
