"""Metrics equal their published definitions: beside their libraries, or worked by hand."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from t5x_lite.errors import UserError
from t5x_lite.evaluation.metrics import base
from t5x_lite.evaluation.metrics.answers import exact_match, group_exact_match, squad
from t5x_lite.evaluation.metrics.base import bootstrap
from t5x_lite.evaluation.metrics.classification import (
    accuracy,
    auc,
    calibration_error,
    f1,
    matthews,
    precision,
    recall,
)
from t5x_lite.evaluation.metrics.correlation import (
    cosine_similarities,
    pearson,
    spearman,
    sts_correlation,
)
from t5x_lite.evaluation.metrics.generation import bleu, chrf, rouge
from t5x_lite.evaluation.metrics.likelihood import perplexity
from t5x_lite.evaluation.metrics.tagging import entities, entity_f1

GOLDEN = Path(__file__).parent.parent / "golden" / "seqeval.json"
LABELS = ["entailment", "neutral", "contradiction"]
TEXT = "the a cat dog's sat , . on mat U.S. 3.5% state-of-the-art Über naïve"
WORDS = TEXT.split()


def sentences(rng, count, longest=12):
    return [" ".join(rng.choices(WORDS, k=rng.randint(0, longest))) for _ in range(count)]


@pytest.mark.parametrize("seed", range(3))
def test_labels_as_scikit_learn_has_them(seed):
    sk = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    rng = random.Random(seed)
    true = rng.choices(LABELS, k=40)
    found = [t if rng.random() < 0.5 else rng.choice([*LABELS, "", "maybe"]) for t in true]
    expected = {
        "accuracy": sk.accuracy_score(true, found),
        "matthews": sk.matthews_corrcoef(true, found),
    }
    for ours in (precision, recall, f1):
        name = ours.__name__
        for average in ("macro", "micro", "weighted"):
            function = getattr(sk, f"{name}_score")
            value = function(true, found, labels=LABELS, average=average, zero_division=0)
            expected[f"{name}_{average}"] = value
            assert ours(true, found, average=average) == {
                f"{name}_{average}": pytest.approx(100 * value)
            }
    assert accuracy(true, found)["accuracy"] == pytest.approx(100 * expected["accuracy"])
    assert matthews(true, found)["matthews"] == pytest.approx(100 * expected["matthews"])
    scores = [math.log(rng.uniform(0.5, 1)) for _ in true]
    two = [t == "neutral" for t in true]
    text = ["yes" if t else "no" for t in two]
    guess = rng.choices(["yes", "no"], k=40)
    chance = [
        math.exp(s) if g == "yes" else 1 - math.exp(s) for g, s in zip(guess, scores, strict=True)
    ]
    assert auc(text, guess, scores=scores, positive="yes")["auc"] == pytest.approx(
        100 * sk.roc_auc_score(two, chance)
    )


def test_labels_at_the_edges():
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    # Worked by hand: an output that is no label is the wrong one: here fn, fp, tp, fp, tn.
    true = ["yes", "no", "yes", "no", "no"]
    found = ["oops", "", "yes", "yes", "no"]
    assert f1(true, found, positive="yes")["f1"] == pytest.approx(100 * 2 / (2 + 2 + 1))
    assert precision(true, found, positive="yes")["precision"] == pytest.approx(100 / 3)
    assert recall(true, found, positive="yes")["recall"] == 50
    assert f1(["no"], ["no"], positive="yes") == {"f1": 0.0}
    assert matthews(["a", "a"], ["a", "a"]) == {"matthews": 0.0}
    assert math.isnan(auc(["a"], ["a"], scores=[0.0], positive="a")["auc"])
    for call, message in [
        (lambda: accuracy([], []), "needs one prediction for each target"),
        (lambda: accuracy(["a"], []), "1 targets and 0 predictions"),
        (lambda: f1(["a"], ["a"], average="mikro"), "Did you mean 'micro'"),
        (lambda: f1(["a", "b"], ["a", "b"], labels=["a", "b"], positive="c"), "none of the la"),
    ]:
        with pytest.raises(UserError, match=message):
            call()


def test_correlation_as_scipy_has_it_with_ties_and_outputs_that_are_no_numbers():
    stats = pytest.importorskip("scipy.stats", reason="needs scipy")
    true = ["1.0", "2.4", "2.4", "5.0", "0.2"]
    found = ["1.2", "2.4", "oops", "4.8", "4.8"]
    x, y = [1.0, 2.4, 2.4, 5.0, 0.2], [1.2, 2.4, -1.0, 4.8, 4.8]
    assert pearson(true, found)["pearson"] == pytest.approx(100 * stats.pearsonr(x, y)[0])
    assert spearman(true, found)["spearman"] == pytest.approx(100 * stats.spearmanr(x, y)[0])
    assert math.isnan(pearson(["1", "2"], ["3", "3"])["pearson"])
    first, second = np.eye(3), np.array([[2.0, 0, 0], [0, 1, 1], [0, 0, 0]])
    assert cosine_similarities(first, second) == pytest.approx([1, 0.5**0.5, 0])
    assert sts_correlation([5, 3, 0], first, second)["spearman"] == pytest.approx(100)


def test_squad_by_the_official_rules():
    cases = [  # answers, prediction, em, f1
        (["Denver Broncos"], "the denver broncos.", 100, 100),
        (["Denver Broncos", "Broncos"], "Broncos!", 100, 100),
        (["Santa Clara, California"], "Santa Clara", 0, 80),
        (["a b b c"], "b b d", 0, 200 * (2 / 3) * (2 / 3) / (2 / 3 + 2 / 3)),
        (["it's"], "its", 100, 100),
        (["42"], "", 0, 0),
        (["the"], "a", 100, 0),  # nothing is left of either: SQuAD 1.1's F1 is then 0
        (["Über  uns"], "über uns", 100, 100),
    ]
    for answers, prediction, em, score in cases:
        assert squad([answers], [prediction]) == {"em": em, "f1": pytest.approx(score)}, answers
    targets, found = [[], ["x"], ["y z"], [""]], ["", "", "y", "w"]
    assert squad(targets, found, version=2) == pytest.approx(
        {
            "em": 25.0,
            "f1": (100 + 0 + 200 / 3 + 0) / 4,
            "has_answer_em": 0.0,
            "has_answer_f1": 100 / 3,
            "no_answer_em": 50.0,
            "no_answer_f1": 50.0,
        }
    )
    same = squad([["x"], ["x"], ["y"]], ["x", "no", "y"], groups=[(1,), (1,), (2,)])
    assert same["em"] == 100  # the second of a group doesn't count
    grouped = group_exact_match(list("tftt"), list("ttft"), groups=[1, 1, 2, None])
    assert grouped == {"group_exact_match": pytest.approx(100 / 3)}
    assert exact_match([["a", "b "], "c"], ["b", "C"]) == {"exact_match": 50}


@pytest.mark.parametrize("seed", range(2))
def test_bleu_and_chrf_as_sacrebleu_has_them(seed):
    sacrebleu = pytest.importorskip("sacrebleu", reason="needs sacrebleu")
    rng = random.Random(seed)
    found, one, other = (sentences(rng, 12) for _ in range(3))
    found[0] = ""
    found[1:4] = one[1:4]
    for targets, columns in [
        (one, [one]),
        ([list(p) for p in zip(one, other, strict=True)], [one, other]),
    ]:
        value = bleu(targets, found)
        assert value["bleu"] == pytest.approx(sacrebleu.corpus_bleu(found, columns).score)
        assert f"nrefs:{len(columns)}|" in value["bleu_signature"]
        assert "tok:13a" in value["bleu_signature"]
        expected = sacrebleu.corpus_bleu(found, columns, tokenize="intl", smooth_method="exp")
        assert bleu(targets, found, tokenize="intl")["bleu"] == pytest.approx(expected.score)
        assert chrf(targets, found)["chrf"] == pytest.approx(
            sacrebleu.corpus_chrf(found, columns).score
        )
    uneven = bleu([["the cat sat on the mat", "x"], ["a dog"]], ["the cat sat on the mat", "a"])
    assert "nrefs:var" in uneven["bleu_signature"] and 0 < uneven["bleu"] < 100
    assert bleu(["a b c d e"], ["a b c d e"])["bleu"] == pytest.approx(100)


def test_rouge_as_rouge_score_has_it():
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="needs rouge-score")
    rng = random.Random(0)
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    true, found = sentences(rng, 10, 30), sentences(rng, 10, 30)
    found[0] = ""
    for stemmer in (False, True):
        each = scorer.RougeScorer(kinds, use_stemmer=stemmer)
        lines = [[x.replace(" . ", " .\n") for x in texts] for texts in (true, found)]
        scores = [each.score(t, p) for t, p in zip(*lines, strict=True)]
        value = rouge(true, found, stemmer=stemmer)
        for kind in kinds:
            assert value[kind] == pytest.approx(100 * np.mean([s[kind].fmeasure for s in scores]))
    assert rouge([["x y", "the cat"]], ["the cat"])["rouge2"] == 100  # the best reference


def test_entities_as_seqeval_has_them():
    cases = json.loads(GOLDEN.read_text())
    assert sum("strict" in case for case in cases) == 60 and len(cases) == 90
    for case in cases:
        true, found = ([" ".join(row) for row in case[k]] for k in ("true", "found"))
        lenient = case["lenient"]
        assert [[list(e) for e in entities(r)] for r in case["true"]] == lenient["entities"]
        for kind in ("lenient", "strict"):
            value = entity_f1(true, found, strict=kind == "strict")
            for name, expected in case.get(kind, {}).items():
                if name != "entities":
                    key = f"entity_{name}"
                    assert value[key] == pytest.approx(100 * expected), (kind, name, case)
    assert entity_f1(["B-X I-X O"], ["B-X"])["entity_f1"] == 0  # cut short: another entity
    assert entity_f1(["O B-X"], ["O B-X B-X B-X"])["entity_f1"] == 100
    assert entity_f1(["O"], ["O"])["entity_f1"] == 0


def test_perplexity_by_units_of_the_text():
    texts, scores = ["Über uns", "a b c"], [-6.0, -4.0]
    value = perplexity(texts, ["", ""], target_scores=scores)
    assert value == {
        "word_perplexity": pytest.approx(math.exp(10 / 5)),
        "byte_perplexity": pytest.approx(math.exp(10 / 14)),
        "bits_per_byte": pytest.approx(10 / math.log(2) / 14),
        "bits_per_character": pytest.approx(10 / math.log(2) / 13),
    }
    assert math.isfinite(perplexity(["a"], [""], target_scores=[-1e6])["word_perplexity"])


def test_calibration_error_by_its_definition():
    rng = np.random.default_rng(0)
    confidence = np.append(rng.uniform(0.01, 1, 98), [0.2, 1.0])
    right = rng.random(100) < 0.6
    found = calibration_error(
        ["y"] * 100,
        ["y" if r else "n" for r in right],
        scores=np.log(confidence).tolist(),
        bins=5,
    )
    expected = 0.0
    for low in np.arange(5) / 5:
        inside = (np.exp(np.log(confidence)) > low) & (np.exp(np.log(confidence)) <= low + 0.2)
        if inside.any():
            gap = right[inside].mean() - confidence[inside].mean()
            expected += inside.sum() / 100 * abs(gap)
    assert found["calibration_error"] == pytest.approx(100 * expected)


def test_the_bootstrap_covers_and_draws_whole_groups():
    targets = ["y"] * 400
    predictions = ["y"] * 300 + ["n"] * 100
    low, high = bootstrap(accuracy, targets, predictions, samples=400)["accuracy"]
    error = 100 * math.sqrt(0.75 * 0.25 / 400)  # of a proportion
    assert low == pytest.approx(75 - 1.96 * error, abs=1)
    assert high == pytest.approx(75 + 1.96 * error, abs=1)
    again = bootstrap(accuracy, targets, predictions, samples=400)
    assert again["accuracy"] == (low, high)
    # All right within a group: drawn example by example, some groups would be torn.
    groups = [i // 2 for i in range(40)]
    grouped = bootstrap(
        group_exact_match, ["y"] * 40, ["y", "n"] * 20, {"groups": groups}, samples=20
    )
    assert grouped == {"group_exact_match": (0.0, 0.0)}
    with pytest.raises(UserError, match="2 samples or more"):
        bootstrap(accuracy, ["a"], ["a"], samples=1)


def test_what_is_not_installed_is_said_in_time(monkeypatch):
    base.check_installed([exact_match, len])  # need nothing
    monkeypatch.setitem(base._MODULES, "sacrebleu", "not_there")
    with pytest.raises(UserError, match="needs sacrebleu .*pip install sacrebleu"):
        base.check_installed([exact_match, bleu])
    with pytest.raises(UserError, match="pip install 't5x_lite.metrics.'"):
        bleu(["a"], ["a"])
