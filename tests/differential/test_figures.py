"""A figure that users can get in two ways is the same: objective by architecture by way in.

The ways: train's evaluation, eval, infer (scores, choices, texts), the evaluation harness, report,
explain, serve; and a sum by hand of one plain call of the model, from token ids that each case
here spells out for itself.
"""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs as runs
from small_runs import CHATS, PAIRS, TEXTS, encode

import t5x_lite as tl
from t5x_lite import config

LENGTHS = {"inputs": 24, "targets": 12}
BOTH = 'LENGTHS = {"inputs": 24, "targets": 12}'
SCORED = "Task.metrics = [@exact_match]"
# What is read of a question, as ids: (encoder, decoder before the answer, how many of these see
# each other in both directions).
READS = {
    "encoder_decoder": lambda ids: ([*ids[:23], 1], [], 0),
    "bidirectional": lambda ids: ([], [*ids[:23], 1], min(len(ids), 23) + 1),
    "causal": lambda ids: ([], ids[-24:], 0),
}
PAIRED = [
    ("encoder_decoder", "encoder_decoder", ""),
    ("bidirectional", "decoder_only", ""),
    ("causal", "decoder_only", 'TextToText.prefix = "causal"'),
]


def close(found, wanted, tolerance=2e-4):
    np.testing.assert_allclose(found, wanted, atol=tolerance, rtol=tolerance)


@pytest.fixture(scope="module", params=PAIRED, ids=[name for name, *_ in PAIRED])
def pairs(request, tmp_path_factory):
    name, architecture, more = request.param
    folder = tmp_path_factory.mktemp(name)
    run = runs.make(folder, architecture, "TextToText", PAIRS, f"{BOTH}\n{SCORED}\n{more}")
    return name, run, runs.evaluated(run)


def reference(run: runs.Run, name: str, questions: list[str], answers: list[str]) -> list[float]:
    model, params, _ = tl.from_pretrained(run.folder)
    found = []
    for question, answer in zip(questions, answers, strict=True):
        encoder, before, prefix = READS[name](encode(question))
        decoder = [*before, *encode(answer), 1]
        found.append(runs.by_hand(model, params, encoder, decoder, len(before), prefix))
    return found


def test_pairs_have_one_likelihood(pairs):
    name, run, (figures, rows) = pairs
    questions, answers = [p["inputs"] for p in PAIRS], [p["targets"] for p in PAIRS]
    assert [row["input"] for row in rows] == questions
    wanted = reference(run, name, questions, answers)
    close([row["target_score"] for row in rows], wanted)
    # The loss is their sum, per token, in training, `eval` and the report.
    tokens = sum(len(encode(answer)) + 1 for answer in answers)
    close(figures["loss"], -sum(wanted) / tokens)
    close(runs.trained(run)["loss"], figures["loss"], 1e-5)
    assert runs.reported(run)["eval/loss"] == runs.trained(run)["loss"]

    records = [{"input": q, "target": a} for q, a in zip(questions, answers, strict=True)]
    found = runs.inferred(run, records)
    close([record["target_log_likelihood"] for record in found], wanted)
    assert [("truncated" in record) for record in found] == [("truncated" in row) for row in rows]
    told = runs.explained(run, f"--text={questions[1]}", f"--target={answers[1]}")
    close(sum(t["log_prob"] for t in told if "log_prob" in t), wanted[1], 5e-4)
    judge = runs.judge(run)
    close([runs.judged(judge, q, [*encode(a), 1])
           for q, a in zip(questions[:4], answers, strict=False)], wanted[:4])  # fmt: skip


def test_pairs_have_one_answer(pairs):
    name, run, (_, rows) = pairs
    questions = [p["inputs"] for p in PAIRS]
    found = runs.inferred(run, [{"input": question} for question in questions])
    assert [r["prediction"] for r in found] == [row["prediction"] for row in rows]
    close([r["score"] for r in found], [row["score"] for row in rows])
    for (text, score), record in zip(runs.served(run, questions[:3]), found, strict=False):
        assert text == record["prediction"]
        close(score, record["score"])
    written = runs.judge(run).write(questions[:3], 12)
    assert [plain(text) for text in written] == [plain(r["prediction"]) for r in found[:3]]
    predicted = {row["input"]: row["prediction"] for row in rows}
    shown = [s for s in runs.shown_samples(run) if s["input"] in predicted]  # one is cut
    assert shown and all(s["prediction"] == predicted[s["input"]] for s in shown)


def plain(text: str) -> str:
    """Without sentinels, which the harness leaves out, and bytes that they part."""
    return re.sub("<extra_id_[0-9]+>|\ufffd", "", text)


def test_choices_have_one_likelihood(pairs, tmp_path):
    name, run, _ = pairs
    questions, choices = [p["inputs"] for p in PAIRS[:5]], ["alpha", "bee bee", ""]
    records = [{"input": question, "choices": choices} for question in questions]
    found = runs.inferred(run, records)
    for i, choice in enumerate(choices):
        close([r["choice_scores"][i] for r in found],
              reference(run, name, questions, [choice] * 5))  # fmt: skip


# ------------------------------------------------------------------ ranked by another's weights


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("causal_lm")
    more = 'LENGTHS = {"targets": 64}\nTask.metrics = [@perplexity]'
    return runs.make(folder, "decoder_only", "CausalLM", TEXTS, more)


def test_a_task_of_pairs_is_read_as_the_weights_were_trained(causal, tmp_path):
    """Weights of a causal LM, judged on a task that would train a prefix LM."""
    for name in ("pairs", "held_out"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(p) + "\n" for p in PAIRS))
    more = f"""include "{causal.gin}"
Task.objective = @TextToText()
task_data.files = "{tmp_path}/pairs.jsonl"
task_data.validation_files = "{tmp_path}/held_out.jsonl"
{BOTH}
{SCORED}
MODEL_DIR = "{causal.folder}"
"""
    (tmp_path / "pairs.gin").write_text(more)
    other = runs.Run(causal.folder, "decoder_only", "TextToText")
    runs.command("eval", f"--gin_file={tmp_path / 'pairs.gin'}")
    [file] = causal.folder.glob("eval/validation/*.predictions.jsonl")
    rows = [json.loads(line) for line in file.read_text().strip().split("\n")]
    questions, answers = [p["inputs"] for p in PAIRS], [p["targets"] for p in PAIRS]
    wanted = reference(other, "causal", questions, answers)
    close([row["target_score"] for row in rows], wanted)
    [*_, line] = (causal.folder / "eval.jsonl").read_text().strip().split("\n")
    tokens = sum(len(encode(answer)) + 1 for answer in answers)
    close(json.loads(line)["loss"], -sum(wanted) / tokens)
    judge = runs.judge(causal)
    close(runs.judged(judge, questions[0], [*encode(answers[0]), 1]), wanted[0])


def test_text_of_a_causal_model_has_one_likelihood(causal):
    figures, rows = runs.evaluated(causal)
    model, params, _ = tl.from_pretrained(causal.folder)
    texts = [record["text"] for record in TEXTS]
    rows = [row for row in rows if row["target"] in texts]
    assert len(rows) == len(texts)  # each in one window
    alone = [runs.by_hand(model, params, [], encode(text), 0) for text in texts]
    close([row["target_score"] for row in rows], alone)  # a document's EOS isn't part of it
    close(runs.trained(causal)["loss"], figures["loss"], 1e-5)
    judge = runs.judge(causal)
    close([runs.judged(judge, "", encode(text)) for text in texts[:3]], alone[:3])
    told = runs.explained(causal, f"--text={texts[2]}")
    close(sum(token["log_prob"] for token in told), alone[2], 5e-4)

    ended = [runs.by_hand(model, params, [], [*encode(t), 1], len(encode(t)) - 4) for t in texts]
    records = [{"input": text[:-4], "target": text[-4:]} for text in texts]
    found = runs.inferred(causal, records)
    close([record["target_log_likelihood"] for record in found], ended)
    for (text, score), record in zip(
        runs.served(causal, [r["input"] for r in records[:3]]), found, strict=False
    ):
        assert text == record["prediction"]
        close(score, record["score"])
    written = judge.write([r["input"] for r in records[:3]], 64)
    assert [plain(text) for text in written] == [plain(r["prediction"]) for r in found[:3]]


# ------------------------------------------------------------------------------- conversations


def test_conversations_have_one_likelihood(tmp_path):
    run = runs.make(tmp_path, "decoder_only", "Chat", CHATS,
                    'LENGTHS = {"targets": 64, "learnt": 64}')  # fmt: skip
    model, params, _ = tl.from_pretrained(run.folder)
    wanted, tokens = [], 0
    for record in CHATS:
        question, answer = (message["content"] for message in record["messages"])
        before = encode(f"User: {question}\n\nAssistant:")
        ids = [*before, *encode(f" {answer}"), 1]
        wanted.append(runs.by_hand(model, params, [], ids, len(before)))
        tokens += len(ids) - len(before)
    figures, _ = runs.evaluated(run)
    close(figures["loss"], -sum(wanted) / tokens)
    close(runs.trained(run)["loss"], figures["loss"], 1e-5)
    asked = [{"messages": c["messages"][:1], "target": c["messages"][1]["content"]} for c in CHATS]
    found = runs.inferred(run, asked)
    close([record["target_log_likelihood"] for record in found], wanted)
    question, answer = (message["content"] for message in CHATS[3]["messages"])
    told = runs.explained(run, f"--text={question}", f"--target={answer}")
    close(sum(t["log_prob"] for t in told if "log_prob" in t), wanted[3], 5e-4)
    served = runs.served(run, [record["messages"] for record in asked[:2]])
    for (text, score), record in zip(served, found, strict=False):
        assert text.strip() == record["prediction"]
        close(score, record["score"])


# -------------------------------------------------------- noise: the same examples, the same loss

NOISED = [
    ("encoder_decoder", "SpanCorruption"),
    ("encoder_decoder", "UL2"),
    ("encoder_decoder", "PrefixLM"),
    ("decoder_only", "SpanCorruption"),
    ("decoder_only", "UL2"),
    ("decoder_only", "PrefixLM"),
    ("decoder_only", "FillInTheMiddle"),
    ("encoder_only", "MaskedLM"),
]
NOISED_LENGTHS = {
    "FillInTheMiddle": 'LENGTHS = {"targets": 48}',
    "MaskedLM": """LENGTHS = {"inputs": 48, "labels": 48}
TransformerConfig.encoder_heads = ("masked_lm",)
TransformerConfig.tied_embeddings = True""",
}


@pytest.mark.parametrize(("architecture", "objective"), NOISED)
def test_noised_texts_have_one_loss(architecture, objective, tmp_path):
    lengths = NOISED_LENGTHS.get(objective, 'LENGTHS = {"inputs": 32, "targets": 48}')
    run = runs.make(tmp_path, architecture, objective, TEXTS, lengths)
    figures, _ = runs.evaluated(run)
    close(runs.trained(run)["loss"], figures["loss"], 1e-5)
    with config.fresh():
        config.parse([run.gin], root="train")
        task, sizes = config.evaluate("train.task"), config.evaluate("train.lengths")
    model, params, _ = tl.from_pretrained(run.folder)
    side = "encoder" if architecture == "encoder_only" else "decoder"
    examples = []
    for batch in tl.eval_batches(task, lengths=sizes, batch_size=4, architecture=architecture):
        logits = np.asarray(
            model.apply(params, {k: jnp.asarray(v) for k, v in batch.items()})[0], np.float64
        )
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        targets, weights = batch[f"{side}_target_tokens"], batch[f"{side}_loss_weights"]
        chosen = np.take_along_axis(logs, targets[..., None], -1)[..., 0]
        examples += [c[w > 0] for c, w in zip(chosen, weights, strict=True) if w.any()]
    close(figures["loss"], -sum(x.sum() for x in examples) / sum(map(len, examples)))
    told = [token["log_prob"] for token in runs.explained(run) if "log_prob" in token]
    # Whichever example it shows of the split, it is one of these, with these numbers.
    alike = [x for x in examples if len(x) == len(told)]
    assert any(np.allclose(told, x, atol=5e-4, rtol=5e-4) for x in alike)
    if architecture != "encoder_only" and "inputs" in sizes:
        question, answer = "alpha <extra_id_0> sea", "<extra_id_0> bee"
        [found] = runs.inferred(run, [{"input": question, "target": answer}])
        ids = task.vocabulary.encode(question).tolist()
        name = "encoder_decoder" if architecture == "encoder_decoder" else "bidirectional"
        encoder, before, prefix = READS[name](ids)
        decoder = [*before, *task.vocabulary.encode(answer).tolist(), 1]
        wanted = runs.by_hand(model, params, encoder, decoder, len(before), prefix)
        close(found["target_log_likelihood"], wanted)
        told = runs.explained(run, f"--text={question}", f"--target={answer}")
        close(sum(t["log_prob"] for t in told if "log_prob" in t), wanted, 5e-4)
    assert jax.device_count() == 8
