"""A few held-out examples, completed by the model, as text."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.data.loader import eval_batches
from t5x_lite.data.reading import task_reading
from t5x_lite.data.tasks import Mixture, Task
from t5x_lite.inference.decoding import Method, generate, given_prompts
from t5x_lite.inference.sampling import Greedy
from t5x_lite.models.model import Model


def predict_samples(
    model: Model,
    params: Any,
    task: Task | Mixture,
    lengths: dict[str, int],
    *,
    count: int,
    method: Method | None = None,
) -> list[dict[str, str]]:
    """Decodes ``count`` held-out examples: a list of {"input", "target", "prediction"}.

    They are a fixed sample of the split, in which each task of a mixture has its share.

    An encoder-decoder or a decoder with pairs reads the inputs; a causal LM reads the first
    half of the example and the other half is the target, or, of a conversation, the last answer.
    An encoder-only model fills in the tokens that are masked, where there are any; XLNet's
    permutations aren't shown.
    """
    batches = eval_batches(
        task,
        lengths=lengths,
        batch_size=count,
        architecture=model.config.architecture,
        max_batches=1,
    )
    batch = next(iter(batches), None)
    if batch is None:
        return []
    if model.encoder_only:
        return _filled_in(model, params, batch, task.vocabulary.decode)
    targets = batch["decoder_target_tokens"]
    inputs, prompts, options = batch.get("encoder_input_tokens"), None, {}
    limit = lengths["targets"]  # as `eval` and `infer`
    if inputs is None and "inputs" in task.objective.features:
        inputs = prompts = np.asarray(given_prompts(batch))
        targets = targets * (batch["decoder_loss_weights"] > 0)
        options["bidirectional_prompts"] = "decoder_causal_attention" in batch
    elif inputs is None:
        begin = _continued_from(targets, batch["decoder_loss_weights"] > 0)
        place = np.arange(targets.shape[1])
        inputs = prompts = targets * (place < begin)
        targets = targets * (place >= begin) * (batch["decoder_loss_weights"] > 0)
        limit = int((targets > 0).sum(axis=1).max(initial=1))
    decoded = generate(
        model,
        params,
        {name: jnp.asarray(value) for name, value in batch.items()},
        method=method or Greedy(),
        max_new_tokens=limit,
        prompts=None if prompts is None else jnp.asarray(prompts),
        eos_id=task_reading(task, model.config.architecture).end_ids(task.vocabulary),
        **options,
    )
    decode = task.vocabulary.decode
    rows = zip(inputs, targets, np.asarray(decoded.tokens)[:, 0], strict=True)
    return [
        {"input": decode(i[i > 0]), "target": decode(t[t > 0]), "prediction": decode(p)}
        for i, t, p in rows
        if (t > 0).any()
    ]


def _continued_from(targets: np.ndarray, learnt: np.ndarray) -> np.ndarray:
    """int [B, 1]: where the last part that is learnt begins; the middle, if everything is."""
    real = targets > 0
    half = real.sum(axis=1, keepdims=True) // 2
    begins = learnt.copy()
    begins[:, 1:] &= ~learnt[:, :-1]
    last = (begins * np.arange(targets.shape[1])).max(axis=1, keepdims=True)
    return np.where(last > 0, last, half)


def _filled_in(model: Model, params: Any, batch: dict, decode: Any) -> list[dict[str, str]]:
    """Texts as they were read, as they were, and with the likeliest tokens in the masked places."""
    if "encoder_target_tokens" not in batch or "encoder_order" in batch:
        return []
    arrays = {name: jnp.asarray(value) for name, value in batch.items()}
    likely = np.asarray(jnp.argmax(jax.jit(model.apply)(params, arrays)[0], axis=-1))
    inputs, labels = batch["encoder_input_tokens"], batch["encoder_target_tokens"]
    rows = zip(
        inputs,
        np.where(labels > 0, labels, inputs),
        np.where(labels > 0, likely, inputs),
        strict=True,
    )
    return [
        {"input": decode(i[i > 0]), "target": decode(t[i > 0]), "prediction": decode(p[i > 0])}
        for i, t, p in rows
        if (i > 0).any()
    ]
