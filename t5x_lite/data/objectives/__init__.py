"""Pretraining objectives: tokens of text -> examples. Pure functions on numpy arrays.

  base.py         what an objective is; documents -> segments; EOS
  span.py         T5's span corruption
  lm.py           causal LM, prefix LM, supervised text to text
  denoisers.py    UL2's mixture of denoisers
  fim.py          fill-in-the-middle, for code
  masked.py       BERT's masked LM, next sentence, ALBERT's sentence order; ELECTRA's detection
  permutation.py  XLNet's permutation LM
  chat.py         conversations, of which answers are learnt
  heads.py        a task's labels, for the heads of an encoder: classes, tags, spans
  contrastive.py  pairs for sentence embeddings: SimCSE's, and given ones

Those of the first six make "inputs" and "targets" for an encoder-decoder or decoder-only model;
the others make features for the architecture "encoder_only" (features.py).
"""

from t5x_lite.data.objectives.base import (
    Example,
    Lengths,
    Objective,
    finish_example,
    split_documents,
)
from t5x_lite.data.objectives.chat import Chat, LastAnswer
from t5x_lite.data.objectives.contrastive import DropoutPairs, GivenPairs
from t5x_lite.data.objectives.denoisers import UL2, Denoiser
from t5x_lite.data.objectives.fim import FillInTheMiddle, fill_in_the_middle, undo_middle
from t5x_lite.data.objectives.heads import Classes, Span, Tags
from t5x_lite.data.objectives.lm import CausalLM, PrefixLM, TextToText, random_prefix_mask
from t5x_lite.data.objectives.masked import (
    MaskedLM,
    NextSentence,
    ReplacedTokens,
    SentenceOrder,
    mask_tokens,
    replaced_token_detection,
)
from t5x_lite.data.objectives.permutation import (
    PermutationLM,
    permutation_masks,
    permutation_order,
    target_mapping,
)
from t5x_lite.data.objectives.span import (
    SpanCorruption,
    noise_counts,
    noise_span_to_unique_sentinel,
    nonnoise_span_to_unique_sentinel,
    random_spans_helper,
    random_spans_noise_mask,
)

__all__ = [
    "UL2",
    "CausalLM",
    "Chat",
    "Classes",
    "Denoiser",
    "DropoutPairs",
    "Example",
    "FillInTheMiddle",
    "GivenPairs",
    "LastAnswer",
    "Lengths",
    "MaskedLM",
    "NextSentence",
    "Objective",
    "PermutationLM",
    "PrefixLM",
    "ReplacedTokens",
    "SentenceOrder",
    "Span",
    "SpanCorruption",
    "Tags",
    "TextToText",
    "fill_in_the_middle",
    "finish_example",
    "mask_tokens",
    "noise_counts",
    "noise_span_to_unique_sentinel",
    "nonnoise_span_to_unique_sentinel",
    "permutation_masks",
    "permutation_order",
    "random_prefix_mask",
    "random_spans_helper",
    "random_spans_noise_mask",
    "replaced_token_detection",
    "split_documents",
    "target_mapping",
    "undo_middle",
]
