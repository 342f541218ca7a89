"""Likelihoods and texts as lm-evaluation-harness asks for them; t5x_lite/lm_eval.py is its door.

Token for token as the harness's own `hf` model makes them of the exported folder, with an exception
that is noted at `Judge.limit`. Dimensions: B batch, T target length, S input length, V vocabulary.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.data.chat import ChatTemplate
from t5x_lite.data.chat_jinja import CUT, MARK
from t5x_lite.data.reading import Reading, default_reading
from t5x_lite.data.vocabulary import Vocabulary
from t5x_lite.errors import UserError
from t5x_lite.inference.decoding import generate
from t5x_lite.inference.prefill import START_ID
from t5x_lite.inference.sampling import Greedy, Sample
from t5x_lite.models.model import Model

_NARROWEST = 32  # tokens; widths are this times powers of two, so that few are compiled


class Pair(NamedTuple):
    """Token ids: what is given, and what is scored; neither is empty."""

    context: list[int]
    continuation: list[int]


class Judge:
    """A model for one process's first device.

    Args:
      batch_size: rows of a batch.
      max_length: tokens of context and continuation that a decoder-only model reads, or of an
        encoder's input; None: TransformerConfig.max_positions.
      reading: what the weights were trained to read; None: their family's default.
    """

    def __init__(
        self,
        model: Model,
        params: Any,
        vocabulary: Vocabulary,
        batch_size: int = 8,
        max_length: int | None = None,
        reading: Reading | None = None,
    ):
        if model.encoder_only:
            raise UserError("an encoder_only model writes no texts and has no likelihoods of them.")
        self.model, self.params, self.vocabulary = model, params, vocabulary
        self.batch_size = batch_size
        self.max_length = max_length or model.config.max_positions
        self.has_encoder = model.config.has_encoder
        self.reading = reading or default_reading(model.config.architecture)

    @property
    def separate(self) -> bool:
        """Whether context and continuation are two texts to the model, the first ended by EOS."""
        return self.reading.attention != "causal"

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids; with ``special``, as the exported tokenizer adds them: the start token before
        what a causal model reads, EOS behind the inputs of others."""
        ids = self._ids(text)
        if not special:
            return ids.tolist()
        ids = self.reading.inputs(ids, self.vocabulary.eos_id).tolist()
        return ids if self.separate else [START_ID, *ids]

    def _ids(self, text: str) -> np.ndarray:
        if self.reading.marks and (
            MARK in text or CUT in text
        ):  # of `chat`, perhaps more behind it
            return self.template.encode_marked(text, self.vocabulary)
        return self.vocabulary.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text, without sentinels and special tokens, as `hf` leaves them out."""
        first = self.vocabulary.size - self.vocabulary.num_sentinels
        special = {*range(first, self.vocabulary.size), *self.vocabulary.special_tokens.values()}
        return self.vocabulary.decode([i for i in ids if i not in special])

    @property
    def prefix_id(self) -> int:
        """What stands for a context that is empty."""
        return self.vocabulary.eos_id if self.separate else START_ID

    def score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """Of each continuation its log-likelihood, and whether it is what greedy decoding writes.

        What is too long is cut at its left.
        """
        rows = [self._row(pair) for pair in pairs]
        found: dict[int, tuple[float, bool]] = {}
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["decoder_target_tokens"]))
        for some in _chunks(order, self.batch_size):
            batch = self._batch([rows[i] for i in some])
            values, greedy = jax.device_get(_judge(self.model, self.params, batch))
            found |= {
                i: (float(values[place]), bool(greedy[place])) for place, i in enumerate(some)
            }
        return [found[i] for i in range(len(rows))]

    def _row(self, pair: Pair) -> dict[str, np.ndarray]:
        most, count = self.max_length, len(pair.continuation)
        if not pair.context or not count or count > most:
            raise UserError(
                f"a continuation of {count} tokens behind {len(pair.context)}: expected 1 to "
                f"{most} behind at least one; raise max_length."
            )
        if self.has_encoder:
            row = {
                "encoder_input_tokens": pair.context[-most:],
                "decoder_input_tokens": [START_ID, *pair.continuation[:-1]],
                "decoder_target_tokens": pair.continuation,
                "decoder_loss_weights": [1] * count,
            }
        elif self.reading.bidirectional:
            context = [START_ID, *pair.context[-(most - count) :]] if count < most else [START_ID]
            whole, prompt = [*context, *pair.continuation], len(context)
            row = {
                "decoder_input_tokens": whole[:-1],
                "decoder_target_tokens": whole[1:],
                "decoder_loss_weights": [0] * (prompt - 1) + [1] * count,
                "decoder_causal_attention": [1] * prompt + [0] * (count - 1),
            }
        else:
            whole = [*pair.context, *pair.continuation][-(most + 1) :]
            row = {
                "decoder_input_tokens": whole[:-1],
                "decoder_target_tokens": whole[1:],
                "decoder_loss_weights": [0] * (len(whole) - 1 - count) + [1] * count,
            }
        return {name: np.array(values, np.int32) for name, values in row.items()}

    def _batch(self, rows: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {name: self._pad([row[name] for row in rows]) for name in rows[0]}

    def _pad(self, rows: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
        width = _NARROWEST * 2 ** math.ceil(math.log2(max(1.0, max(map(len, rows)) / _NARROWEST)))
        found = np.zeros((self.batch_size, width), np.int32)
        for row, values in zip(found, rows, strict=False):
            row[: len(values)] = values
        return found

    def limit(self, new_tokens: int) -> int:
        """How many tokens of a prompt are read, its end.

        A decoder-only model sees its start token before them even so; `hf` cuts it off.
        """
        if self.has_encoder:
            return self.max_length
        if new_tokens >= self.max_length:
            raise UserError(
                f"{new_tokens} new tokens of at most {self.max_length}: lower max_gen_toks, or "
                "raise max_length."
            )
        return self.max_length - new_tokens

    def write(
        self,
        prompts: Sequence[str],
        new_tokens: int,
        until: Sequence[str] = (),
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """A text for each prompt, up to EOS or the first of ``until``."""
        most, found = self.limit(new_tokens), {}
        ids = [self.encode(prompt, special=self.separate)[-most:] for prompt in prompts]
        method: Any = Greedy()
        if temperature > 0:
            method = Sample(temperature=temperature, top_k=top_k, top_p=top_p)
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        for number, some in enumerate(_chunks(order, self.batch_size)):
            rows = self._pad([ids[i] for i in some])
            batch = {"encoder_input_tokens": rows} if self.has_encoder else {}
            decoded = generate(
                self.model,
                self.params,
                batch,
                method=method,
                max_new_tokens=new_tokens,
                prompts=None if self.has_encoder else rows,
                bidirectional_prompts=self.reading.bidirectional,
                rng=jax.random.fold_in(jax.random.key(seed), number),
                eos_id=self.reading.end_ids(self.vocabulary),
            )
            for i, tokens in zip(some, np.asarray(decoded.tokens)[:, 0].tolist(), strict=False):
                text = self.decode(tokens)
                for stop in (*filter(None, until), *self.reading.end_texts(self.vocabulary)):
                    text = text.partition(stop)[0]
                found[i] = text
        return [found[i] for i in range(len(ids))]

    @property
    def template(self) -> ChatTemplate:
        """That of the weights, or else `ChatTemplate`'s default: the tokenizer's own, or chatml."""
        return self.reading.template or ChatTemplate()

    def chat(self, messages: Sequence[dict[str, str]]) -> str:
        """Messages as a prompt; if the last is the assistant's, it is to be gone on with.

        The template's marks stand between characters that no other text has, so that `encode` makes
        of them what training had, and of a mark that a user has spelt, letters.
        """
        if self.reading.marks:
            return self.template.marked(messages, self.vocabulary)
        last = messages[-1] if messages else {}
        if last.get("role") == "assistant":  # LastAnswer: what is gone on with is an answer
            raise UserError(
                "this model answers whole conversations; it can't go on with an answer."
            )
        return self.template.prompt(messages)


def _chunks(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


@functools.partial(jax.jit, static_argnums=0)
def _judge(model: Model, params: Any, batch: dict) -> tuple[jax.Array, jax.Array]:
    """Log-likelihoods of what has a weight, float32 [B], and whether each such token is the most
    probable one, bool [B]."""
    weights = batch["decoder_loss_weights"]
    logits, _ = model.apply(params, batch)
    targets = batch["decoder_target_tokens"]
    chosen = jnp.take_along_axis(logits, targets[:, :, None], axis=-1)[:, :, 0]
    log_probs = chosen - jax.nn.logsumexp(logits, axis=-1)
    right = (jnp.argmax(logits, axis=-1) == targets) | (weights == 0)
    return jnp.sum(log_probs * weights, axis=1), jnp.all(right, axis=1)
