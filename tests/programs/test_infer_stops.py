"""The score of an answer that ends at a stop which the vocabulary can only spell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import t5x_lite as tl
from t5x_lite.data.chat import ChatTemplate
from t5x_lite.data.objectives.chat import Chat
from t5x_lite.programs import infer

LENGTHS = {"targets": 128, "learnt": 128}


def test_what_is_decoded_behind_a_stop_counts_no_more():
    template = ChatTemplate("chatml")
    bytes_ = tl.ByteVocabulary()
    task = tl.Task("chat", tl.InMemory(["x"]), Chat(template), bytes_)
    setup = tl.set_up(tiny.LM, task, LENGTHS, 8, pack=False)
    params = jax.jit(setup.model.init)(jax.random.key(0))
    asked = [{"role": "user", "content": "hello"}]
    inputs = setup.reading.chat(asked, bytes_)
    answers = [("no end", -1e6), ("hi<|im_end|>\nand more", -50.0), ("hi", -2.0)]
    with tl.use_mesh(setup.mesh, setup.rules):
        found = infer._until_stop(setup, params, answers, template, inputs, asked, 128)
    ids = [*inputs, *bytes_.encode("hi<|im_end|>")]
    batch = {"decoder_input_tokens": jnp.array([[0, *ids[:-1]]]),
             "decoder_target_tokens": jnp.array([ids])}  # fmt: skip
    logits = np.asarray(setup.model.apply(params, batch)[0][0], np.float64)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = sum(logits[t, ids[t]] for t in range(len(inputs), len(ids)))
    assert [text for text, _ in found] == ["hi", "hi", "no end"]
    assert found[0] == ("hi", -2.0) and found[2] == ("no end", -1e6)
    assert found[1][1] == pytest.approx(expected, rel=1e-4)
