"""What an encoder ends with: output layers for masked and permuted text, a pooler, sentence pairs,
and those that are put on for a task: classes, tags, a span.

`TransformerConfig.encoder_heads` names them:
  masked_lm      dense, activation and norm before the embedding's table as output layer, and a
                 bias behind it (BERT, https://arxiv.org/abs/1810.04805)
  lm             the table and the bias alone (XLNet, https://arxiv.org/abs/1906.08237)
  pooler         tanh of a dense layer on each row's first token (BERT)
  next_sentence  two logits of the pooler's output: follows or doesn't (BERT)
  classes        dropout and `num_labels` logits of the pooler's output or, without one, of each
                 row's first token; 1 is a number to be predicted (BERT for GLUE)
  tags           dropout and `num_labels` logits of each token (BERT for CoNLL-2003)
  span           two logits of each token: an answer begins, and ends, here (BERT for SQuAD)
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.functional.mlp import ACTIVATIONS
from t5x_lite.models.layers import Dense, Norm, dropout, kernel_init

Outputs = dict[str, Any]
LOGITS = {"classes": "class_logits", "tags": "tag_logits", "span": "span_logits"}


class Bias(nn.Module):
    """A bias that is read where it is added."""

    size: int
    axis: str

    @nn.compact
    def __call__(self) -> jax.Array:
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, (self.axis,))
        return self.param("bias", zeros, (self.size,), jnp.float32)


class Heads(nn.Module):
    """All heads of an encoder, over its output x [B, S, D]."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> Outputs:
        """Returns, of what the configuration names,

        "encoded": x; "hidden" [B, S, D]: what the output layer is applied to; "pooled" [B, D];
        "pair_logits" float32 [B, 2]: 0 says that the second text follows the first, 1 that not;
        "class_logits" [B, num_labels], "tag_logits" [B, S, num_labels], "span_logits" [B, S, 2].
        """
        c, heads = self.config, self.config.encoder_heads
        init = kernel_init(c, "truncated_normal")
        found: Outputs = {"encoded": x, "hidden": x}
        if "masked_lm" in heads:
            y = Dense(x.shape[-1], ("embed", "head_out"), init, True, name="transform")(x)
            found["hidden"] = Norm(c, name="transform_norm")(ACTIVATIONS[c.mlp_activations[0]](y))
        if {"masked_lm", "lm"} & set(heads):
            Bias(c.vocab_size, "vocab", name="output")()
        if "pooler" in heads:
            y = Dense(x.shape[-1], ("embed", "head_out"), init, True, name="pooler")(x[:, :1])
            found["pooled"] = jnp.tanh(y)[:, 0]
        if "next_sentence" in heads:
            y = Dense(2, ("embed", "head_out"), init, True, name="next_sentence")
            found["pair_logits"] = y(found["pooled"][:, None])[:, 0].astype(jnp.float32)
        drop = dropout(c, train, whole_sequence=False)
        for name, size in (("classes", c.num_labels), ("tags", c.num_labels), ("span", 2)):
            if name not in heads:
                continue
            y = x
            if name == "classes":
                y = found["pooled"][:, None] if "pooled" in found else x[:, :1]
            y = y if name == "span" else drop(y)
            y = Dense(size, ("embed", "head_out"), init, True, name=name)(y).astype(jnp.float32)
            found[LOGITS[name]] = y[:, 0] if name == "classes" else y
        return found
