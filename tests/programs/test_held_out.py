"""What a held-out figure is of: three ways to the same number."""

import jax
import numpy as np
import pytest
import tiny

import t5x_lite as tl
from t5x_lite.interop.pretrained import restore_params
from t5x_lite.programs.eval import evaluate
from t5x_lite.programs.held_out import HeldOut
from t5x_lite.programs.train import train
from t5x_lite.training.checkpoints import CheckpointConfig
from t5x_lite.training.setup import set_up
from t5x_lite.training.state import abstract_params

RATES = {"short": 3, "long": 1, "odd": 2}


def mixture():
    rng = np.random.default_rng(1)
    texts = {
        "short": ["ab" * 20] * 90,
        "long": [" ".join(map(str, rng.integers(0, 9999, 60))) for _ in range(40)],
        "odd": ["the quick brown fox", "jumps"] * 30,
    }
    tasks = [
        tl.Task(
            name,
            tl.InMemory(several, held_out=0.0, validation=several),
            tl.CausalLM(),
            tl.ByteVocabulary(),
        )
        for name, several in texts.items()
    ]
    return tl.Mixture("m", tasks, list(RATES.values()))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture") / "run"
    train(**arguments(folder))
    return folder


def arguments(folder, **changes):
    return tiny.arguments(
        folder, model=tiny.LM, task=mixture(), lengths={"targets": 48}, total_steps=3,
        eval_batch_count=4, checkpoint=CheckpointConfig(period=3),
    ) | changes  # fmt: skip


def verb(folder, batch_count, **changes):
    names = ("model", "task", "lengths", "batch_size")
    given = {name: value for name, value in arguments(folder, **changes).items() if name in names}
    [found] = evaluate(model_dir=str(folder), batch_count=batch_count, num_samples=0, **given)
    return found


def per_example(folder, leaf, batch_count):
    """(loss, target tokens) of each example, by log-softmax in float64."""
    setup = set_up(tiny.LM, leaf, {"targets": 48}, 8, None, pack=False)
    params = restore_params(
        str(folder), abstract_params(setup.model, setup.mesh, setup.rules), model=tiny.LM
    )
    for batch in HeldOut(setup, batch_count).batches():
        logits = np.asarray(jax.jit(setup.model.apply)(params, setup.place(batch))[0], np.float64)
        logits -= logits.max(-1, keepdims=True)
        log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"] > 0
        losses = -np.take_along_axis(log_probabilities, targets[..., None], -1)[..., 0]
        for row, mask in zip(losses, weights, strict=True):
            if mask.any():
                yield (row * mask).sum(), mask.sum()


@pytest.mark.parametrize("batch_count", [4, None])
def test_a_mixture_is_weighed_by_rate_in_train_eval_and_by_hand(run, batch_count, tmp_path):
    if batch_count is None:
        run = tmp_path / "run"
        train(**arguments(run, eval_batch_count=None))
    logged = {name: tiny.logged(run, f"eval/{name}")[3] for name in ("loss", "accuracy")}
    found = verb(run, batch_count)
    assert {name: found[name] for name in logged} == logged  # to the last digit
    above = below = 0.0
    for leaf, share in mixture().leaves:
        examples = list(per_example(run, leaf, batch_count))
        own = sum(loss for loss, _ in examples) / sum(count for _, count in examples)
        assert tiny.logged(run, f"eval/{leaf.name}/loss")[3] == pytest.approx(own, rel=1e-5)
        above += sum(share / len(examples) * loss for loss, _ in examples)
        below += sum(share / len(examples) * count for _, count in examples)
    assert logged["loss"] == pytest.approx(above / below, rel=1e-5)


def test_the_number_does_not_depend_on_devices_or_how_batches_are_cut(run):
    assert verb(run, 2, batch_size=16)["loss"] == pytest.approx(verb(run, 4)["loss"], rel=1e-6)


def test_more_batches_than_there_are_is_all_of_them(run):
    assert verb(run, 500)["loss"] == verb(run, None)["loss"]


def test_the_baseline_is_of_the_same_targets_with_the_same_weights(run):
    weighted = np.zeros(384)
    for leaf, share in mixture().leaves:
        batches = tl.eval_batches(leaf, lengths={"targets": 48}, batch_size=8,
                                  architecture="decoder_only", max_batches=4)  # fmt: skip
        rows = np.concatenate([b["decoder_target_tokens"] for b in batches])
        rows = rows[(rows > 0).any(axis=1)]
        weighted += share / len(rows) * np.bincount(rows[rows > 0], minlength=384)
    shares = weighted[weighted > 0] / weighted.sum()
    entropy = -(shares * np.log(shares)).sum()
    assert tiny.logged(run, "eval/unigram_loss")[0] == pytest.approx(entropy, rel=1e-9)


def test_samples_are_of_each_task_by_rate():
    setup = set_up(tiny.LM, mixture(), {"targets": 48}, 8, None, pack=False)
    params = setup.model.init(jax.random.key(0))
    shown = HeldOut(setup, 1).samples(params, 6)
    texts = [sample["input"] + sample["target"] for sample in shown]
    assert sum(set(text) <= set("ab") for text in texts) == 3
    assert sum(any(c.isdigit() for c in text) for text in texts) == 1
