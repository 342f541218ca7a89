"""Likelihoods and texts for lm-evaluation-harness, against the plain computation."""

import dataclasses
import json
import re
import shlex
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from t5x_lite import cli, config
from t5x_lite.data.chat import ChatTemplate
from t5x_lite.data.vocabulary import ByteVocabulary
from t5x_lite.errors import UserError
from t5x_lite.evaluation.harness import Judge, Pair
from t5x_lite.inference.decoding import generate
from t5x_lite.models.model import Model

VOCABULARY = ByteVocabulary()
PROMPTS = ["the quick", "a", "jumps over the lazy"]


def judge(config, **options) -> Judge:
    smaller = {"num_decoder_layers": 1} | (
        {"num_encoder_layers": 1} if config.num_encoder_layers else {}
    )
    model = Model(dataclasses.replace(config, **smaller))
    params = jax.tree.map(lambda x: x * 3, jax.jit(model.init)(jax.random.key(2)))
    return Judge(model, params, VOCABULARY, **{"batch_size": 3, "max_length": 64} | options)


@pytest.fixture(scope="module")
def lm():
    return judge(tiny.LM)


@pytest.fixture(scope="module")
def t5():
    return judge(tiny.T5)


@pytest.mark.parametrize("kind", ["lm", "t5"])
def test_texts_are_what_generate_writes_and_scores_are_theirs(kind, request):
    found: Judge = request.getfixturevalue(kind)
    written = found.write(PROMPTS, 6)
    rows = np.zeros((3, 32), np.int32)
    for row, text in zip(rows, PROMPTS, strict=True):
        ids = found.encode(text, special=found.has_encoder)
        row[: len(ids)] = ids
    batch = {"encoder_input_tokens": rows} if found.has_encoder else {}
    forced = None if found.has_encoder else rows
    wanted = generate(found.model, found.params, batch, prompts=forced, max_new_tokens=6)
    tokens = [_ended(row) for row in wanted.tokens[:, 0].tolist()]
    assert written == [found.decode(row) for row in tokens]

    pairs = [Pair(found.encode(text), row) for text, row in zip(PROMPTS, tokens, strict=True)]
    scored = found.score(pairs)
    np.testing.assert_allclose([value for value, _ in scored], wanted.scores[:, 0], atol=1e-4)
    assert all(greedy for _, greedy in scored)
    others = [Pair(a, [*b[:-1], b[-1] % 200 + 7]) for a, b in pairs]
    for (value, _), (other, greedy) in zip(scored, found.score(others), strict=True):
        assert other < value and not greedy
    backwards = found.score([*pairs, *others][::-1])[::-1]  # in other batches, with other company
    np.testing.assert_allclose([v for v, _ in backwards[:3]], [v for v, _ in scored], atol=1e-5)

    place = max(range(3), key=lambda i: len(written[i]))
    stop = written[place][1:2]
    cut = found.write(PROMPTS, 6, ["", stop])[place]
    assert stop and stop not in cut and written[place].startswith(cut)


def _ended(row: list[int]) -> list[int]:
    return row[: row.index(1) + 1] if 1 in row else row


def test_texts_are_encoded_as_the_exported_tokenizer_does(lm, t5):
    ids = VOCABULARY.encode("ab").tolist()
    assert lm.encode("ab") == [0, *ids] and t5.encode("ab") == [*ids, 1]
    assert lm.encode("ab", special=False) == t5.encode("ab", special=False) == ids
    assert (lm.prefix_id, t5.prefix_id) == (0, 1)
    sentinel = VOCABULARY.sentinel(0)
    assert t5.decode([*ids, sentinel, ids[0], 1]) == "aba"


def test_what_is_too_long_is_cut_at_its_left(lm):
    long = [0, *range(10, 40)]
    short = Judge(lm.model, lm.params, VOCABULARY, batch_size=3, max_length=8)
    pair = Pair(long, [50, 51])
    cut = Pair(long[-7:], [50, 51])
    assert short.score([pair])[0][0] == pytest.approx(lm.score([cut])[0][0], abs=1e-5)
    assert short.score([pair])[0][0] != pytest.approx(lm.score([pair])[0][0], abs=1e-3)
    with pytest.raises(UserError, match="a continuation of 9 tokens"):
        short.score([Pair([0], [5] * 9)])
    with pytest.raises(UserError, match="lower max_gen_toks"):
        short.write(["a"], 8)


def test_a_stop_that_the_vocabulary_spells_ends_a_text(lm, monkeypatch):
    [whole] = lm.write(["a"], 16)
    stop = whole[4:7]
    template = ChatTemplate("plain", assistant="Assistant: {content}{stop}\n\n", stop=stop)
    assert template.stop_texts(VOCABULARY) == (stop,)
    monkeypatch.setattr(lm, "reading", dataclasses.replace(lm.reading, template=template))
    assert lm.write(["a"], 16) == [whole.partition(stop)[0]]


def test_an_encoder_alone_is_refused():
    encoder = types.SimpleNamespace(encoder_only=True)
    with pytest.raises(UserError, match="writes no texts"):
        Judge(encoder, {}, VOCABULARY)


def test_the_harness_knows_the_model(lm, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness isn't installed")
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    from t5x_lite import lm_eval as ours

    monkeypatch.setattr(ours, "open_judge", lambda *arguments: lm)
    model = get_model("t5x_lite")(path="run", batch_size=3)
    assert isinstance(model, ours.T5XLite)

    def instances(kind, *arguments):
        return [Instance(kind, {}, a, i) for i, a in enumerate(arguments)]

    [(value, _)] = model.loglikelihood(instances("loglikelihood", ("a b", " c")))
    pair = Pair(lm.encode("a b"), VOCABULARY.encode(" c").tolist())
    assert value == lm.score([pair])[0][0]
    text = "the lazy dog " * 8  # of more than one window
    [rolling] = model.loglikelihood_rolling(instances("loglikelihood_rolling", (text,)))
    ids = VOCABULARY.encode(text).tolist()
    first = lm.score([Pair([0], ids[:64])])[0][0]
    assert rolling < first < 0
    options = {"until": ["\n"], "max_gen_toks": 6}
    assert model.generate_until(instances("generate_until", ("a", options))) == lm.write(
        ["a"], 6, ["\n"]
    )


SMALL = [
    "VOCABULARY=@ByteVocabulary()", "VOCABULARY_SIZE=384", "TransformerConfig.embed_dim=16",
    "TransformerConfig.num_heads=2", "TransformerConfig.head_dim=8", "TransformerConfig.mlp_dim=16",
    "TransformerConfig.num_decoder_layers=1", "BATCH_SIZE=8", "TOTAL_STEPS=1", "WARMUP_STEPS=1",
    'LENGTHS={"targets": 96, "learnt": 96}', "CheckpointConfig.period=1", "train.eval_period=1",
    "train.eval_batch_count=1",
]  # fmt: skip
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: examples.jsonl
test_split: train
output_type: {kind}
doc_to_text: "{text}"
doc_to_target: "{target}"
"""


def test_the_printed_command_runs(tmp_path, monkeypatch, capsys):
    """As it is in the docs, with tasks of these names that need no network; then with a chat
    template, whose marks reach the model as training had them."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness isn't installed")
    from t5x_lite import lm_eval as ours

    page = (Path(__file__).parents[2] / "docs" / "fine_tuning.md").read_text()
    [block] = [b for b in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "lm_eval run" in b]
    [line] = [x for x in block.replace("\\\n", " ").split("\n") if x.startswith("python")]
    printed = shlex.split(line)[3:]
    assert "--device" not in line
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    answer = {"role": "assistant", "content": "Hello."}
    talks = [[{"role": "user", "content": f"hi {i}"}, answer] for i in range(60)]
    Path("talks.jsonl").write_text("".join(json.dumps({"messages": t}) + "\n" for t in talks))
    words = ["train", "--gin_file=recipes/finetune_chat.gin", "--gin.DATA='talks.jsonl'",
             "--gin.MODEL_DIR='runs/quickstart_lm'"]  # fmt: skip
    with config.fresh():
        assert cli.main([*words, *(f"--gin.{x}" for x in SMALL)]) == 0, capsys.readouterr().err
    example = {"context": "one", "choices": ["a", "b"], "gold": 0}
    Path("examples.jsonl").write_text((json.dumps(example) + "\n") * 2)
    Path("tasks").mkdir()
    ranked = "doc_to_choice: choices\nmetric_list:\n  - metric: acc\n"
    rolling = "metric_list:\n  - metric: byte_perplexity\n"
    Path("tasks/a.yaml").write_text(
        TASK.format(name="hellaswag", kind="multiple_choice", text="{{context}}", target="gold")
        + ranked
    )
    Path("tasks/b.yaml").write_text(
        TASK.format(name="wikitext", kind="loglikelihood_rolling", text="", target="{{context}}")
        + rolling
    )
    seen = []
    score = Judge.score
    monkeypatch.setattr(
        Judge, "score", lambda self, pairs: seen.extend(pairs) or score(self, pairs)
    )

    def run(*more: str) -> str:
        with config.fresh():
            words = [*printed, "--include_path", "tasks", *more]
            monkeypatch.setattr(sys, "argv", ["lm_eval", *words])
            assert ours.main() == 0, capsys.readouterr().err
        return capsys.readouterr().out

    out = run()
    assert re.search(r"hellaswag.*acc", out) and re.search(r"wikitext.*byte_perplexity", out)
    seen.clear()
    run("--apply_chat_template")
    user = [{"role": "user", "content": "one"}]
    prompt = ChatTemplate("plain").prompt_ids(user, VOCABULARY).tolist()
    assert [0, *prompt] in [pair.context for pair in seen]
