"""Next sentence and contrastive losses: by hand, in micro-batches, on one device and on eight."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import t5x_lite as tl
from t5x_lite.errors import UserError
from t5x_lite.models.model import Head
from t5x_lite.parallel.mesh import MeshConfig, make_mesh
from t5x_lite.parallel.rules import batch_sharding, logical_rules, use_mesh
from t5x_lite.training.pair_losses import ContrastiveLoss
from t5x_lite.training.state import TrainState

B, S, D, V = 8, 6, 4, 12


class Lookup:
    """An encoder without layers: what the losses ask of a model, and no more."""

    encoder_only = True
    config = types.SimpleNamespace(
        encoder_heads=("masked_lm", "pooler", "next_sentence"), positions="none", token_types=2
    )

    def encoded(self, params, batch, *, rng=None, train=False):
        x = params["table"][batch["encoder_input_tokens"]]
        pooled = x[:, 0]
        return {"hidden": x, "pooled": pooled, "pair_logits": pooled @ params["pairs"]}, {}

    def head(self, params):
        return Head(params["table"], 0, ("vocab", "embed"), 1.0, None, params["bias"])

    def embed(self, params, batch, *, pooling, rng=None, train=False):
        x = params["table"][batch["encoder_input_tokens"]]
        real = (batch["encoder_input_tokens"] > 0)[..., None]
        x = (x * real).sum(1) / jnp.maximum(real.sum(1), 1)
        if train:  # what dropout does: each row its own
            x += 0.3 * jax.random.normal(rng, x.shape)
        return x / jnp.sqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)

    def logical_axes(self):
        return {"table": ("vocab", "embed"), "bias": ("vocab",), "pairs": ("embed", None)}


def params():
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "table": jax.random.normal(keys[0], (V, D)),
        "bias": jax.random.normal(keys[1], (V,)),
        "pairs": jax.random.normal(keys[2], (D, 2)),
    }


def masked_batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, V, (B, S))
    chosen = rng.random((B, S)) < 0.4
    return {
        "encoder_input_tokens": tokens,
        "encoder_target_tokens": np.where(chosen, rng.integers(1, V, (B, S)), 0),
        "encoder_loss_weights": chosen.astype(np.int32),
        # Two rows without a label, such as those that fill up a last batch.
        "encoder_pair_label": np.array([[2], [1], [0], [1], [2], [2], [0], [1]]),
    }


def step_of(loss, batch, num_microbatches=1):
    """Metrics, and the parameters after one step of plain gradient descent."""
    transform = optax.identity()
    start = params()
    state = TrainState(jnp.int32(0), start, transform.init(start), jnp.int32(0))
    step = tl.make_train_step(
        Lookup(), transform, lambda _: 0.1, loss=loss, num_microbatches=num_microbatches
    )
    state, metrics = jax.jit(step)(state, {k: jnp.asarray(v) for k, v in batch.items()})
    return metrics, state.params


def by_hand(params, batch):
    """Means over masked tokens and over labelled rows."""
    x = params["table"][batch["encoder_input_tokens"]]
    chances = jax.nn.log_softmax(x @ params["table"].T + params["bias"])
    chosen = batch["encoder_loss_weights"] > 0
    each = jnp.take_along_axis(chances, jnp.asarray(batch["encoder_target_tokens"])[..., None], -1)
    tokens = -jnp.sum(each[..., 0] * chosen) / chosen.sum()
    chances, label = (
        jax.nn.log_softmax(x[:, 0] @ params["pairs"]),
        batch["encoder_pair_label"][:, 0],
    )
    pairs = -jnp.sum(jnp.where(label == 2, chances[:, 0], chances[:, 1]) * (label > 0))
    return tokens, pairs / (label > 0).sum()


def test_masked_tokens_and_next_sentences_are_means_over_the_global_batch():
    batch = masked_batch()
    tokens, pairs = by_hand(params(), batch)
    gradient = jax.grad(lambda p: sum(by_hand(p, batch)))(params())
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params(), gradient)
    for pieces, microbatches in ((True, 4), (False, 1)):
        loss = tl.Loss(z_loss=0.0, in_pieces=pieces)
        metrics, after = step_of(loss, batch, microbatches)
        np.testing.assert_allclose(metrics["loss"], tokens + pairs, rtol=1e-5)
        np.testing.assert_allclose(metrics["cross_entropy"], tokens, rtol=1e-5)
        np.testing.assert_allclose(metrics["next_sentence_loss"], pairs, rtol=1e-5)
        right = metrics["next_sentence_accuracy"] * 6
        np.testing.assert_allclose(right, np.round(right), atol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after, expected)

    sums = jax.jit(tl.make_eval_step(Lookup()))(params(), batch)
    assert sums["pairs"] == 6
    np.testing.assert_allclose(sums["loss"] / sums["target_tokens"], tokens, rtol=1e-5)
    np.testing.assert_allclose(sums["next_sentence_loss"] / 6, pairs, rtol=1e-5)


def pairs_batch(negatives: bool):
    rng = np.random.default_rng(1)
    names = ("anchor", "positive", "negative")[: 2 + negatives]
    batch = {f"encoder_{n}": rng.integers(1, V, (B, S - (n == "positive"))) for n in names}
    batch["encoder_anchor"][0, 3:] = 0
    for tokens in batch.values():
        tokens[5] = 0  # a row that only fills up
    return batch


def contrastive_by_hand(params, batch, temperature, more=0.0):
    """Row by row, in float64, without the empty row."""
    table, vectors = np.asarray(params["table"], np.float64), {}
    for name, tokens in batch.items():
        rows = [table[row[row > 0]].mean(0) for row in tokens if row.any()]
        vectors[name] = [row / np.linalg.norm(row) for row in rows]
    anchors, positives = vectors["encoder_anchor"], vectors["encoder_positive"]
    losses, hits = [], 0
    for i, anchor in enumerate(anchors):
        scores = [anchor @ p / temperature for p in positives]
        for j, negative in enumerate(vectors.get("encoder_negative", [])):
            scores.append(anchor @ negative / temperature + more * (i == j))
        losses.append(np.log(np.sum(np.exp(scores))) - scores[i])
        hits += np.argmax(scores) == i
    return np.mean(losses), hits


@pytest.mark.parametrize(("negatives", "more"), [(False, 0.0), (True, 0.7)])
def test_each_anchor_finds_its_own_positive(negatives, more):
    batch = pairs_batch(negatives)
    loss = ContrastiveLoss(temperature=0.3, hard_negative_weight=more)
    expected, hits = contrastive_by_hand(params(), batch, 0.3, more)
    sums = jax.jit(tl.make_eval_step(Lookup(), loss=loss))(params(), batch)
    np.testing.assert_allclose(sums["loss"] / sums["target_tokens"], expected, rtol=1e-5)
    assert sums["hits"] == hits and sums["target_tokens"] == B - 1


def test_eight_devices_have_the_negatives_of_one():
    batch = pairs_batch(True)
    loss = ContrastiveLoss(temperature=0.3)

    def value(params, batch):
        normalizer, batch = loss.prepare(batch)
        rng = jax.random.key(7)
        real = batch["real_weights"]
        return loss.sums(Lookup(), params, batch, real, rng=rng, train=True)[0] / normalizer

    alone = jax.jit(jax.value_and_grad(value))(params(), batch)
    mesh, rules = make_mesh(MeshConfig(data=4, fsdp=2)), logical_rules()
    placed = jax.device_put(batch, batch_sharding(mesh, rules))
    with use_mesh(mesh, rules):
        together = jax.jit(jax.value_and_grad(value))(params(), placed)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), together, alone
    )
    # A text is told from itself by its dropout: equal texts, unequal vectors.
    same = {"encoder_anchor": batch["encoder_anchor"], "encoder_positive": batch["encoder_anchor"]}
    assert 0.01 < value(params(), same) < 10


def test_what_doesnt_go_together_is_refused():
    contrastive, pairs = ContrastiveLoss(), ("encoder_anchor", "encoder_positive")
    bert = tl.TransformerConfig(
        8, 4, 2, 2, 8, 0, 1, "encoder_only", positions="learned", token_types=2,
        tied_embeddings=True, encoder_heads=("masked_lm",),
    )  # fmt: skip
    model = tl.Model(bert)
    cases = [
        (
            lambda: contrastive.check(model, ("encoder_input_tokens",), 1),
            "makes pairs: use Dropout",
        ),
        (
            lambda: contrastive.check(model, (*pairs, "encoder_anchor_segment_ids"), 1),
            "PACK = False",
        ),
        (lambda: contrastive.check(model, pairs, 2), "num_microbatches = 2"),
        (lambda: ContrastiveLoss(pooling="pooler").check(model, pairs, 1), "add 'pooler'"),
        (lambda: ContrastiveLoss(pooling="maen"), "Did you mean 'mean'"),
        (lambda: ContrastiveLoss(temperature=0.0), "temperature = 0.0"),
        (lambda: tl.Loss().check(model, pairs, 1), "ContrastiveLoss()"),
        (lambda: tl.Loss().check(model, ("encoder_pair_label",), 1), "add 'pooler'"),
        (lambda: tl.Loss().check(model, ("encoder_order",), 1), "only XLNet's two streams"),
    ]
    for case, said in cases:
        with pytest.raises(UserError) as error:
            case()
        assert said in str(error.value).splitlines()[0]  # behind it, gin says where
