"""Metrics: functions of (targets, predictions) that return {name: value}, for a Task's `metrics`.

  base.py            what a metric is; confidence intervals by the bootstrap
  classification.py  accuracy, precision, recall, F1, Matthews, calibration, area under the curve
  correlation.py     Pearson, Spearman; STS of embeddings
  answers.py         exact match, SQuAD 1.1 and 2, groups of answers
  generation.py      BLEU, chrF, ROUGE
  tagging.py         precision, recall and F1 of entities, by seqeval's rules
  likelihood.py      perplexity and bits, per word, byte and character

Values are percentages, as in papers' tables, except perplexities and bits.
"""
