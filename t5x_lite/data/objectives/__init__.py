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
