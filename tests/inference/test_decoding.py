"""Searches against brute force on a small Markov model, and against T5X on its tiny T5."""

import ast
import dataclasses
import functools
import itertools
from pathlib import Path

import gin
import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import load
from hypothesis import given, settings
from hypothesis import strategies as st

import t5x_lite
from t5x_lite import config
from t5x_lite.errors import UserError
from t5x_lite.inference.beam import BeamSearch
from t5x_lite.inference.decoding import generate, given_prompts
from t5x_lite.inference.sampling import Greedy, Sample, shape_logits
from t5x_lite.inference.scoring import log_likelihood, token_log_probs
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.model import Model


class Markov:
    """The next token depends on the two before it, through a table [V, V, V] of logits.

    The last two tokens live in the cache, in arrays whose batch axes differ, so that a beam whose
    cache isn't moved with it, or is moved along the wrong axis, gives other tokens.
    """

    def start_decoding(self, params, batch, max_length):
        rows = next(iter(batch.values())).shape[0]
        zeros = jnp.zeros(rows, jnp.int32)
        return {"index": jnp.int32(0), "last": zeros, "before": jnp.zeros((2, rows), jnp.int32)}

    def decode(self, params, cache, tokens, *, valid=None, bidirectional=None, last_only=False):
        valid = jnp.ones(tokens.shape, bool) if valid is None else valid

        def one(carry, column):
            before, last = carry
            token, ok = column
            before, last = jnp.where(ok, last, before), jnp.where(ok, token, last)
            return (before, last), params[before, last]

        carry = (cache["before"][0], cache["last"])
        (before, last), logits = jax.lax.scan(one, carry, (tokens.T, valid.T))
        cache = {
            "index": cache["index"] + tokens.shape[1],
            "last": last,
            "before": jnp.stack([before, before]),
        }
        logits = logits.swapaxes(0, 1)
        return logits[:, -1:] if last_only else logits, cache

    def rewind(self, cache, count):
        raise NotImplementedError

    def for_steps(self, params, cache, rows):
        return self, params, cache

    def map_cache(self, fn, cache):
        return cache | {"last": fn(cache["last"], 0), "before": fn(cache["before"], 1)}


MARKOV = Markov()


def table(seed, vocabulary=4):
    return np.random.default_rng(seed).normal(0, 2, (vocabulary,) * 3).astype(np.float32)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def log_prob(logits, tokens, prompt=(), ends=(1,)):
    """Log-probability of tokens up to an EOS after [start, *prompt], in plain Python."""
    history, total = [0, 0, *prompt], 0.0
    for token in tokens:
        total += log_softmax(logits[history[-2], history[-1]])[token]
        history.append(token)
        if token in ends:
            break
    return total


def finished_sequences(vocabulary, length, ends=(1,)):
    others = [token for token in range(vocabulary) if token not in ends]
    for n in range(length):
        for body in itertools.product(others, repeat=n):
            yield from ([*body, end] for end in ends)


BATCH = {"rows": np.zeros((2, 1), np.int32)}


# ---------------------------------------------------------------------------- against brute force


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    alpha=st.sampled_from([0.0, 0.6, 1.5]),
    ends=st.sampled_from([(1,), (1, 3)]),
)
def test_a_wide_enough_beam_finds_the_best_sequences(seed, alpha, ends):
    logits, length, beams = table(seed), 4, 27
    method = BeamSearch(beams=beams, alpha=alpha)
    tokens, scores = generate(
        MARKOV, logits, BATCH, method=method, max_new_tokens=length, eos_id=ends
    )
    ranked = sorted(
        (
            (
                log_prob(logits, s, ends=ends) / ((5 + len(s)) / 6) ** alpha,
                s + [0] * (length - len(s)),
            )
            for s in finished_sequences(4, length, ends)
        ),
        reverse=True,
    )
    best = [s for _, s in ranked[:5]]
    np.testing.assert_allclose(
        scores[0, :5], [score for score, _ in ranked[:5]], rtol=1e-4, atol=1e-5
    )
    assert tokens[0, :5].tolist() == best
    assert tokens[1].tolist() == tokens[0].tolist()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_each_of_several_eos_ids_ends_a_row(seed):
    logits, length = table(seed, 6), 8
    for method in (Greedy(), Sample(num_samples=3)):
        run = functools.partial(
            generate, MARKOV, logits, BATCH, method=method, max_new_tokens=length,
            rng=jax.random.key(seed),
        )  # fmt: skip
        free, found = run(eos_id=-1), run(eos_id=[3, 1, 5])
        rows = found.tokens.reshape(-1, length).tolist()
        scores = found.scores.reshape(-1).tolist()
        cut = []
        for row in free.tokens.reshape(-1, length).tolist():
            ends = [i for i, token in enumerate(row) if token in (1, 3, 5)]
            kept = row[: ends[0] + 1] if ends else row
            cut.append(kept + [0] * (length - len(kept)))
        assert sorted(rows) == sorted(cut)  # samples are in the order of their scores
        for row, score in zip(rows, scores, strict=True):
            np.testing.assert_allclose(score, log_prob(logits, row, ends=(1, 3, 5)), rtol=1e-4)


def test_the_narrowest_beam_goes_on_although_all_best_tokens_end():
    logits = np.zeros((6, 6, 6), np.float32)
    logits[..., [1, 3, 5]] = 2.0
    tokens, _ = generate(
        MARKOV, logits, BATCH, method=BeamSearch(beams=1, alpha=9.0), max_new_tokens=3,
        eos_id=(1, 3, 5),
    )  # fmt: skip
    assert np.isin(tokens[0, 0], [1, 3, 5]).sum() == 1


def test_no_eos_id_is_refused():
    with pytest.raises(UserError, match="eos_id is an empty list"):
        generate(MARKOV, table(0), BATCH, max_new_tokens=2, eos_id=[])


def test_a_beam_that_never_finishes_is_returned_alive_with_its_log_probability():
    logits = table(1)
    logits[:, :, 1] = -1e9  # EOS
    tokens, scores = generate(MARKOV, logits, BATCH, method=BeamSearch(9, 0.6), max_new_tokens=3)
    everything = sorted(
        ((log_prob(logits, s), list(s)) for s in itertools.product([0, 2, 3], repeat=3)),
        reverse=True,
    )
    assert tokens[0, 0].tolist() == everything[0][1]
    np.testing.assert_allclose(scores[0, 0], everything[0][0], rtol=1e-4, atol=1e-5)
    assert np.all(np.diff(scores) <= 0)


def test_empty_places_of_a_beam_are_padding():
    # Three tokens, one step: only EOS can finish, and a beam of 3 has two places to spare.
    tokens, scores = generate(
        MARKOV, table(0, 3), BATCH, method=BeamSearch(3, 1.0), max_new_tokens=1
    )
    assert tokens[0].tolist() == [[1], [0], [0]]
    assert scores[0, 1:].tolist() == [-1e7, -1e7]
    assert scores[0, 0] > -100


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_greedy_takes_the_most_probable_token_until_eos(seed):
    logits = table(seed)
    tokens, scores = generate(MARKOV, logits, BATCH, max_new_tokens=6)
    history = [0, 0]
    while len(history) < 8 and history[-1] != 1:
        history.append(int(np.argmax(logits[history[-2], history[-1]])))
    assert tokens[0, 0].tolist() == history[2:] + [0] * (8 - len(history))
    np.testing.assert_allclose(scores[0, 0], log_prob(logits, history[2:]), rtol=1e-4, atol=1e-5)
    one_beam = generate(MARKOV, logits, BATCH, method=BeamSearch(1, 0.0), max_new_tokens=6)
    if 1 in history:  # a beam of one differs from greedy only where EOS comes second
        assert one_beam.scores[0, 0] >= scores[0, 0] - 1e-4


# --------------------------------------------------------------------------------------- prompts


METHODS = [Greedy(), BeamSearch(3, 0.6)]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_prompts_of_unequal_length_decode_as_if_alone(method):
    logits = table(5, 6)
    prompts = np.array([[2, 3, 4], [5, 2, 0], [0, 0, 0]], np.int32)
    run = functools.partial(generate, MARKOV, logits, method=method, max_new_tokens=5)
    tokens, scores = run({}, prompts=prompts)
    unprompted = run({"rows": np.zeros((1, 1))})
    for row, alone in [(1, run({}, prompts=prompts[1:2, :2])), (2, unprompted)]:
        assert tokens[row].tolist() == alone.tokens[0].tolist()
        np.testing.assert_allclose(scores[row], alone.scores[0], rtol=1e-4, atol=1e-5)
    shifted = np.array([[2, 3, 4], [0, 5, 2], [0, 0, 0]], np.int32)
    assert run({}, prompts=shifted).tokens.tolist() == tokens.tolist()


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_max_length_counts_the_prompt_and_include_prompts_shows_it(method):
    logits = table(5, 6)
    logits[:, :, 1] = -50
    prompts = np.array([[2, 3, 4], [3, 0, 0], [2, 3, 0]], np.int32)
    run = functools.partial(generate, MARKOV, logits, {}, method=method, prompts=prompts)
    decoded = run(max_length=3)
    bare = decoded.tokens[:, 0]
    assert bare.shape == (3, 3)
    assert bare[0].tolist() == [0, 0, 0]
    assert decoded.scores[0, 0] == 0
    assert (bare[1, 2], bare[2, 1], bare[2, 2]) == (0, 0, 0)
    full = run(max_length=3, include_prompts=True).tokens[:, 0]
    assert full.tolist() == [[2, 3, 4], [3, *bare[1, :2].tolist()], [2, 3, bare[2, 0].item()]]
    new = run(max_new_tokens=2, include_prompts=True).tokens[:, 0]
    assert new.shape == (3, 5)
    assert new[0, :3].tolist() == [2, 3, 4]
    assert new[1].tolist() == [*full[1].tolist(), 0, 0]


def test_given_prompts_are_what_is_not_learnt():
    batch = {
        "decoder_target_tokens": np.array([[7, 8, 9, 4, 1], [5, 6, 1, 0, 0]]),
        "decoder_loss_weights": np.array([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]]),
    }
    assert given_prompts(batch).tolist() == [[7, 8, 0, 0, 0], [5, 0, 0, 0, 0]]


# -------------------------------------------------------------------------------------- sampling


@settings(max_examples=40, deadline=None)
@given(
    probs=st.lists(st.integers(1, 1000), min_size=6, max_size=6, unique=True),
    top_p=st.floats(0.01, 1.0),
    top_k=st.integers(0, 7),
)
def test_shape_logits_keeps_the_smallest_sufficient_set(probs, top_p, top_k):
    probs = np.array(probs) / sum(probs)
    kept = np.asarray(shape_logits(jnp.log(probs), 1.0, top_k, top_p)) > -1e6
    ordered = np.argsort(-probs)[: top_k or None]
    mass = np.cumsum(probs[ordered]) / probs[ordered].sum()
    if np.abs(mass - top_p).min() > 1e-5 or top_p == 1:  # not on the edge of rounding
        size = len(ordered) if top_p == 1 else int(np.searchsorted(mass, top_p)) + 1
        assert sorted(np.flatnonzero(kept)) == sorted(ordered[:size])


def test_samples_have_the_support_of_top_k_and_the_scores_of_the_model():
    logits = table(3, 8)
    key = jax.random.key(0)
    method = Sample(top_k=3, num_samples=200)
    tokens, scores = generate(MARKOV, logits, BATCH, method=method, max_new_tokens=4, rng=key)
    assert tokens.shape == (2, 200, 4)
    assert set(tokens[0, :, 0].tolist()) == set(np.argsort(-logits[0, 0])[:3].tolist())
    assert np.all(np.diff(scores) <= 0)
    for i in (0, 50, 199):
        expected = log_prob(logits, tokens[1, i].tolist())
        np.testing.assert_allclose(scores[1, i], expected, rtol=1e-4, atol=1e-5)
    again = generate(MARKOV, logits, BATCH, method=method, max_new_tokens=4, rng=key)
    assert again.tokens.tolist() == tokens.tolist()
    other = generate(MARKOV, logits, BATCH, method=method, max_new_tokens=4, rng=jax.random.key(1))
    assert other.tokens.tolist() != tokens.tolist()


def test_cold_samples_are_greedy():
    logits = table(4, 8)
    greedy = generate(MARKOV, logits, BATCH, max_new_tokens=6)
    for temperature in (0.0, 0.01):
        method = Sample(temperature=temperature, num_samples=2)
        tokens, scores = generate(
            MARKOV, logits, BATCH, method=method, max_new_tokens=6, rng=jax.random.key(0)
        )
        assert tokens[:, 0].tolist() == tokens[:, 1].tolist() == greedy.tokens[:, 0].tolist()
        np.testing.assert_allclose(scores[:, :1], greedy.scores, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------- early stop and compiling


def test_the_loop_stops_when_all_rows_have_ended():
    steps = []

    class Counting(Markov):
        def decode(self, params, cache, tokens, **kwargs):
            jax.debug.callback(lambda: steps.append(1))
            return super().decode(params, cache, tokens, **kwargs)

    logits = np.zeros((4, 4, 4), np.float32)
    logits[:, 0, 2], logits[:, 2, 1] = 50, 50  # start -> 2 -> EOS
    for method in (Greedy(), BeamSearch(1, 0.0)):
        steps.clear()
        tokens, _ = generate(Counting(), logits, BATCH, method=method, max_new_tokens=50)
        jax.effects_barrier()
        assert tokens[0, 0, :3].tolist() == [2, 1, 0]
        assert len(steps) == 2


def test_one_trace_for_equal_shapes():
    traces = []

    class Traced(Markov):
        def start_decoding(self, *args):
            traces.append(1)
            return super().start_decoding(*args)

    model = Traced()
    for seed in range(3):
        method = Sample(top_k=2)
        key = jax.random.key(seed)
        generate(model, table(seed), BATCH, method=method, max_new_tokens=3, rng=key)
    assert len(traces) == 1


def test_methods_are_configurable_and_equal_by_value():
    gin.parse_config("BeamSearch.beams = 2\nt5x_lite.Sample.top_p = 0.9")
    try:
        assert config.call("BeamSearch") == BeamSearch(beams=2, alpha=0.6)
        assert hash(config.call("Sample")) == hash(Sample(1.0, 0, 0.9))
    finally:
        gin.clear_config()
    assert BeamSearch() == BeamSearch(beams=4)


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: Sample(temperature=-1.0), "temperature"),
        (lambda: Sample(top_k=-1), "top_k"),
        (lambda: Sample(top_p=0.0), "top_p"),
        (lambda: Sample(num_samples=0), "num_samples"),
        (lambda: BeamSearch(beams=0), "beams"),
        (lambda: BeamSearch(alpha=-0.5), "alpha"),
        (lambda: generate(MARKOV, table(0), BATCH), "max_new_tokens"),
        (lambda: generate(MARKOV, table(0), BATCH, max_new_tokens=0), "max_new_tokens"),
        (lambda: generate(MARKOV, table(0), BATCH, max_new_tokens=1, max_length=1), "exactly"),
        (lambda: generate(MARKOV, table(0), {}, max_new_tokens=1), "prompts"),
        (
            lambda: generate(
                MARKOV, table(0), BATCH, max_new_tokens=1, prompts=np.ones((3, 2), np.int32)
            ),
            r"prompts have shape \(3, 2\)",
        ),
        (lambda: generate(MARKOV, table(0), BATCH, method=Sample(), max_new_tokens=1), "rng"),
    ],
)
def test_bad_input_is_one_clear_line(build, words):
    with pytest.raises(UserError, match=words) as error:
        build()
    # gin adds a line that names the configurable.
    assert "\n" not in str(error.value).split("\n  In call to configurable")[0]


# ---------------------------------------------------------------------------------- against T5X


@functools.cache
def golden():
    return load("tiny_decode.npz")


def tiny_model(eos3=False):
    model, params = golden_files.tiny_model()
    if eos3:
        params["decoder"]["logits_dense"]["kernel"] = golden()["eos3/logits_kernel"]
    return model, params


def check_golden(case, method, eos3, rng=None, check_scores=True, **options):
    """T5X has the best last."""
    batch = {"encoder_input_tokens": golden()["encoder_input_tokens"]}
    decoded = generate(*tiny_model(eos3), batch, method=method, max_length=16, rng=rng, **options)
    name = ("eos3/" if eos3 else "") + case
    np.testing.assert_array_equal(decoded.tokens[:, ::-1], golden()[f"{name}/tokens"])
    if check_scores:
        np.testing.assert_allclose(
            decoded.scores[:, ::-1], golden()[f"{name}/scores"], rtol=1e-4, atol=1e-5
        )
    return decoded


@pytest.mark.parametrize("eos3", [False, True])
@pytest.mark.parametrize("alpha", [0, 0.6])
@pytest.mark.parametrize("beams", [1, 2, 4])
def test_beam_search_is_t5x(beams, alpha, eos3):
    check_golden(f"beam{beams}_alpha{alpha}", BeamSearch(beams, alpha), eos3)


@pytest.mark.parametrize("eos3", [False, True])
@pytest.mark.parametrize(
    "case, method, seed",
    [
        ("sample_t1_topk0_seed0", Sample(), 0),
        ("sample_t0.7_topk5_seed1_n3", Sample(temperature=0.7, top_k=5, num_samples=3), 1),
        ("sample_t1_topp0.8_seed2", Sample(top_p=0.8), 2),
    ],
)
def test_samples_are_t5x(case, method, seed, eos3):
    method = dataclasses.replace(method, rescale_log_probs=True)
    check_golden(case, method, eos3, jax.random.PRNGKey(seed))


def targets_of(tokens):
    """Features that score decoded tokens [B, T]: everything up to EOS counts."""
    inputs = np.pad(tokens[:, :-1], ((0, 0), (1, 0)))
    after = np.cumsum(inputs == 1, axis=1) > 0
    return {
        "encoder_input_tokens": golden()["encoder_input_tokens"],
        "decoder_input_tokens": inputs,
        "decoder_target_tokens": tokens,
        "decoder_loss_weights": (~after).astype(np.int32),
        # Decoded tokens may be 0 before EOS, which isn't padding here.
        "decoder_segment_ids": np.ones_like(tokens),
    }


@pytest.mark.parametrize("eos3", [False, True])
@pytest.mark.parametrize("case", ["greedy_temperature0", "greedy_topk1"])
def test_greedy_is_t5x_and_scores_its_log_likelihood(case, eos3):
    decoded = check_golden(case, Greedy(), eos3, check_scores=False)
    batch = targets_of(np.asarray(decoded.tokens[:, 0]))
    expected = log_likelihood(*tiny_model(eos3), batch)
    np.testing.assert_allclose(decoded.scores[:, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("eos3", [False, True])
def test_forced_prompts_are_t5x(eos3):
    prompts = golden()["prompt"][:, 1:]  # without the start token
    decoded = check_golden(
        "greedy_prompted",
        Greedy(),
        eos3,
        check_scores=False,
        prompts=prompts,
        include_prompts=True,
    )
    batch = targets_of(np.asarray(decoded.tokens[:, 0]))
    per_token = token_log_probs(*tiny_model(eos3), batch)
    new = np.pad(prompts, ((0, 0), (0, 1))) == 0
    np.testing.assert_allclose(decoded.scores[:, 0], (per_token * new).sum(1), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------- the real model, decoder-only


def language_model(positions):
    model = Model(
        TransformerConfig(
            vocab_size=32,
            embed_dim=16,
            num_heads=2,
            head_dim=8,
            mlp_dim=32,
            num_decoder_layers=2,
            architecture="decoder_only",
            positions=positions,
            num_kv_heads=1,
            dtype="float32",
        )
    )
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(np.float32)  # noqa: E731
    return model, jax.tree.map(draw, model.abstract_params())


@pytest.mark.parametrize(
    "positions, bidirectional, method",
    [
        ("relative", False, Greedy()),
        ("relative", True, Sample(num_samples=2)),
        ("rope", False, BeamSearch(3, 0.0)),
    ],
)
def test_prompted_scores_are_those_of_the_uncached_model(positions, bidirectional, method):
    model, params = language_model(positions)
    prompts = np.array([[5, 6, 7, 8, 9], [11, 0, 0, 0, 0], [3, 4, 5, 0, 0]], np.int32)
    new = 6
    tokens, scores = generate(
        model,
        params,
        {},
        prompts=prompts,
        method=method,
        max_new_tokens=new,
        bidirectional_prompts=bidirectional,
        include_prompts=True,
        rng=jax.random.key(0),
        eos_id=-1,
    )
    lengths = np.repeat((prompts > 0).sum(1), tokens.shape[1])[:, None]
    tokens = np.asarray(tokens).reshape(-1, tokens.shape[-1])
    columns = np.arange(tokens.shape[1])
    batch = {
        "decoder_input_tokens": np.pad(tokens[:, :-1], ((0, 0), (1, 0))),
        "decoder_target_tokens": tokens,
        "decoder_segment_ids": (columns < lengths + new).astype(np.int32),
        "decoder_loss_weights": (columns >= lengths) & (columns < lengths + new),
    }
    if bidirectional:
        batch["decoder_causal_attention"] = (columns <= lengths).astype(np.int32)
    expected = log_likelihood(model, params, batch)
    np.testing.assert_allclose(scores.reshape(-1), expected, rtol=1e-4, atol=1e-5)
    if method == Greedy():
        best = jax.jit(model.apply)(params, batch)[0].argmax(-1)
        assert np.all((best == tokens) | ~batch["decoder_loss_weights"])


def test_everything_that_generates_says_what_ends_a_text():
    """The default of 1 is T5's: of another vocabulary it would be any token."""
    package = Path(t5x_lite.__file__).parent
    calls = [
        (file.name, node)
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "generate"
    ]
    assert len(calls) >= 5
    silent = [name for name, call in calls if "eos_id" not in [k.arg for k in call.keywords]]
    assert not silent
