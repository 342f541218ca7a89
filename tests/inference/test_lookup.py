"""Guessing ahead gives Greedy's tokens, in fewer passes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st

from t5x_lite.errors import UserError
from t5x_lite.inference.decoding import generate
from t5x_lite.inference.lookup import Lookup, guesses
from t5x_lite.inference.prefill import prefill
from t5x_lite.inference.sampling import Greedy
from t5x_lite.models.model import Model

SMALL = {"embed_dim": 16, "num_heads": 2, "mlp_dim": 16, "vocab_size": 12}
LM = dataclasses.replace(tiny.LM, **SMALL, num_kv_heads=1, num_decoder_layers=1)
T5 = dataclasses.replace(tiny.T5, **SMALL, num_encoder_layers=1, num_decoder_layers=1)
NEW = 14


@functools.cache
def model_and_parameters(config, seed=0):
    model = Model(config)
    rng = np.random.default_rng(seed)
    draw = lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32)  # noqa: E731
    return model, jax.tree.map(draw, model.abstract_params())


prompt = st.lists(st.integers(1, 11), max_size=7)


@settings(max_examples=25, deadline=None)
@given(rows=st.tuples(prompt, prompt, prompt), seed=st.integers(0, 9))
@example(rows=([], [], []), seed=0)
@example(rows=([3, 4, 5, 3, 4, 5, 3], [3] * 7, [2, 3]), seed=1)
def test_a_language_models_tokens_are_greedys(rows, seed):
    """Rows of unequal length, that end at different places."""
    model, params = model_and_parameters(LM, seed)
    prompts = np.array([row + [0] * (7 - len(row)) for row in rows], np.int32)
    run = functools.partial(generate, model, params, {}, prompts=prompts, max_length=NEW)
    wanted, found = run(method=Greedy()), run(method=Lookup(3, 2))
    assert found.tokens.tolist() == wanted.tokens.tolist()
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-4, atol=1e-4)


def test_an_encoder_decoders_tokens_are_greedys():
    model, params = model_and_parameters(T5)
    batch = {"encoder_input_tokens": jnp.array([[3, 4, 5, 6, 1, 0], [7, 8, 9, 7, 8, 1]])}
    run = functools.partial(generate, model, params, batch, max_new_tokens=NEW, eos_id=-1)
    wanted, found = run(), run(method=Lookup(9, 1))
    assert found.tokens.tolist() == wanted.tokens.tolist()
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-4, atol=1e-4)


def test_several_eos_ids_end_a_text_where_greedy_ends_it():
    model, params = model_and_parameters(LM)
    prompts = np.random.default_rng(0).integers(2, LM.vocab_size, (4, 6))
    run = functools.partial(
        generate, model, params, {}, prompts=prompts, max_new_tokens=NEW, eos_id=(1, 7, 9, 11)
    )
    greedy, looked = run(), run(method=Lookup(3, 2))
    np.testing.assert_array_equal(looked.tokens, greedy.tokens)


def test_a_text_that_repeats_itself_takes_fewer_passes():
    config = dataclasses.replace(LM, num_decoder_layers=1)
    model, params = model_and_parameters(config)
    # Without what layers add, and with a table of orthogonal rows, the next token is the table's
    # choice: 2 -> 3 -> 4 -> 5 -> 2.
    params = jax.tree.map(jnp.zeros_like, params)
    table = np.eye(12, 16, dtype=np.float32)
    kernel = np.zeros((16, 12), np.float32)
    for one, other in ((0, 2), (2, 3), (3, 4), (4, 5), (5, 2)):
        kernel[one, other] = 1.0
    model = Model(dataclasses.replace(config, tied_embeddings=False))
    params["token_embedder"]["embedding"] = jnp.asarray(table)
    params["decoder"]["logits_dense"] = {"kernel": jnp.asarray(kernel)}
    params["decoder"]["decoder_norm"]["scale"] = jnp.ones(16)

    @functools.partial(jax.jit, static_argnums=0)
    def run(method):
        options = {"max_new_tokens": 41, "max_length": None, "bidirectional": False}
        start = prefill(
            model, params, {}, jnp.array([[2, 3]]), **options, eos_ids=(1,), ahead=method.ahead
        )
        return method.run(start)

    state = run(Lookup(4, 2))
    assert state.tokens[0, :41].tolist() == [4, 5, *[2, 3, 4, 5] * 9, 2, 3, 4]
    # 1 token comes of the prompt; 3 passes find nothing (after 4, 5 and 2); then 5 tokens each.
    assert state.passes <= 3 + -(-37 // 5)


def test_guesses_follow_the_longest_and_then_the_latest_match():
    text = jnp.array([[5, 6, 7, 8, 9, 6, 7, 4, 3, 5, 6, 7, 0, 0, 0, 0]])
    guess = lambda n, count=3: guesses(text, jnp.int32(12), count, n).tolist()  # noqa: E731
    assert guess(3) == [[8, 9, 6]]  # 5 6 7
    assert guess(2) == [[4, 3, 5]]  # 6 7, the later one
    assert guess(1) == [[4, 3, 5]]
    alone = jnp.array([[1, 2, 3, 0, 0]])
    assert guesses(alone, jnp.int32(3), 2, 2)[0, 0] == 3  # nothing found: the last once more


def test_bad_settings_are_one_clear_line():
    for build in (lambda: Lookup(guesses=0), lambda: Lookup(ngram=0)):
        with pytest.raises(UserError, match="expected 1 or more"):
            build()
