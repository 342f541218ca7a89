"""The commands of docs/fine_tuning.md, on small files of the names it uses."""

import gzip
import json
import re
import shlex
from pathlib import Path

import pytest

from t5x_lite import cli, config
from t5x_lite.programs.held_out import HeldOut
from t5x_lite.training.setup import set_up

DOCUMENT = (Path(__file__).parents[2] / "docs" / "fine_tuning.md").read_text()
SMALL = ["BATCH_SIZE=8", "TransformerConfig.embed_dim=16", "TransformerConfig.num_heads=2",
         "TransformerConfig.head_dim=8", "TransformerConfig.mlp_dim=32", "WARMUP_STEPS=1",
         "TransformerConfig.num_encoder_layers=1", "TransformerConfig.num_decoder_layers=1",
         "TOTAL_STEPS=2", "VOCABULARY_SIZE=400", "train.eval_batch_count=1",
         'LENGTHS={"inputs": 16, "targets": 4}', "train.eval_period=1", "CheckpointConfig.period=1",
         "CheckpointConfig.keep_latest=2"]  # fmt: skip
REVIEWS = "".join(
    f"{'good' if i % 2 else 'bad'} film number {i}\t{1 + 3 * (i % 2)}\n" for i in range(150)
)


def talk(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": "Hello."}]


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("t5x_lite")]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path / "cache"))
    texts = [f"the dog {i} jumps over it" for i in range(60)]
    lines = "\n".join(texts) + "\n"
    files = {
        "reviews.tsv": "text\tstars\n" + REVIEWS,
        "tinyshakespeare/input.txt": lines,
        "talks.jsonl": "".join(json.dumps({"messages": talk(text)}) + "\n" for text in texts),
        **{f"multi30k/{s}.{lang}.gz": lines for s in ("train", "val", "test_2016_flickr")
           for lang in ("en", "de")},
        **{f"cola/in_domain_{s}.tsv": "".join(f"x\t{i % 2}\t\t{t}\n" for i, t in enumerate(texts))
           for s in ("train", "dev")},
    }  # fmt: skip
    for name, text in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        data = text.encode()
        Path(name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with config.fresh():
        yield tmp_path


def test_every_command_that_trains_is_put_together():
    """Model, data and lengths; without the weights and vocabularies that some start from."""
    for package in ("sklearn", "sacrebleu"):
        pytest.importorskip(package, reason=f"needs {package}")
    found = [cli.parse_args(words) for words in commands() if words[0] == "train"]
    assert len(found) == 10
    for args in found:
        with config.fresh():
            more = [] if "shakespeare" in str(args) else ["Task.vocabulary=@ByteVocabulary()"]
            config.parse(args.gin_file, [*args.gin_bindings, *more], root="train")
            model, task, lengths, size = (
                config.evaluate(f"train.{name}")
                for name in ("model", "task", "lengths", "batch_size")
            )
            setup = set_up(model, task, lengths, size, pack=False)
            batch = next(HeldOut(setup, 1).batches())
            learnt = batch.get("decoder_loss_weights", batch.get("encoder_label"))
            assert (learnt > 0).any() and (task.metrics or "chat" in str(args.gin_file))


def test_conversations_are_learnt_from_an_empty_folder(capsys):
    """As printed, but for the size: with a vocabulary of the conversations themselves."""
    [first, warm] = [words for words in commands() if "recipes/finetune_chat.gin" in str(words)]
    small = [f"--gin.{b}" for b in SMALL if "LENGTHS" not in b and "encoder" not in b]
    small += ['--gin.LENGTHS={"targets": 64, "learnt": 64}', "--gin.train.log_period=1",
              "--gin.TransformerConfig.num_decoder_layers=1"]  # fmt: skip
    assert cli.main([*first, *small]) == 0, capsys.readouterr().err
    run = "runs/finetune_chat"
    assert Path(run, "vocabulary.model").exists()
    messages = {"messages": [{"role": "user", "content": "the dog 3"}]}
    Path("asked.jsonl").write_text(json.dumps(messages) + "\n")
    capsys.readouterr()
    assert cli.main(["infer", f"--gin_file={run}/config.gin", "--input=asked.jsonl"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out)["prediction"], str)
    assert "train.initial_checkpoint" in str(warm)


def test_few_shots_are_of_the_training_split_in_the_tasks_template():
    [block] = [b for b in re.findall(r"```gin\n(.*?)```", DOCUMENT, flags=re.DOTALL) if "Shot" in b]
    data = [f"{name}='cola/in_domain_{split}.tsv'"
            for name, split in (("DATA", "train"), ("VALIDATION_DATA", "dev"))]  # fmt: skip
    Path("few.gin").write_text('include "recipes/finetune_cola.gin"\n' + block)
    config.parse(["few.gin"], [*data, "Task.vocabulary=@ByteVocabulary()"], root="train.task")
    task = config.evaluate("train.task")
    record = task.record(task.source.split("validation"), 3)
    *shots, query = record["inputs"].split("\n\n")
    assert query == "cola sentence: the dog 3 jumps over it\n" and len(shots) == 4
    for shot in shots:
        sentence, answer = shot.split("\n")
        number = int(sentence.removeprefix("cola sentence: the dog ").split()[0])
        assert number != 3 and answer == ["unacceptable", "acceptable"][number % 2]


@pytest.mark.slow
def test_a_table_is_learnt_from_evaluated_and_used(capsys):
    """The commands on runs/reviews, in their order; the others are understood."""
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    small = [f"--gin.{binding}" for binding in SMALL]
    first, *others = [words for words in commands() if "runs/reviews" in str(words)]
    assert cli.main([*first, *small]) == 0, capsys.readouterr().err
    lines = [json.loads(x) for x in Path("runs/reviews/metrics.jsonl").read_text().splitlines()]
    values = {x["step"]: x["eval/text/accuracy"] for x in lines if "eval/text/accuracy" in x}
    assert sorted(values) == [0, 1, 2] and "eval/text/f1_macro" in str(lines)
    assert len(others) == 5
    for words in others:
        assert cli.main(words) == 0, capsys.readouterr().err
    capsys.readouterr()
    results = Path("runs/reviews/eval/validation")
    table = json.loads((results / "table.json").read_text())
    assert [row["step"] for row in table] == [1, 2]
    predictions = [
        json.loads(line) for line in (results / "2.predictions.jsonl").read_text().splitlines()
    ]
    held_out = [row["index"] for row in predictions]
    assert held_out == list(range(len(held_out))) and len(held_out) > 2
    assert all(row["input"].startswith("review: ") for row in predictions)
    right = sum(row["prediction"] == row["target"] for row in predictions)
    assert table[-1]["text/accuracy"] == pytest.approx(100 * right / len(predictions))
    assert "Errors of checkpoint 2 beside those of 1" in Path("errors.html").read_text()
    assert (Path("runs/reviews/eval/train") / "table.md").exists()
    for words in commands():
        assert cli.parse_args(words).verb == words[0]
