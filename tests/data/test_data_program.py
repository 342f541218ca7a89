import json
import re
import sys
from html.parser import HTMLParser

import pytest

from t5x_lite import cli, config
from t5x_lite.data.tfds_source import Tfds
from t5x_lite.data.token_cache import CachedTokens

GIN = """
include "runs/base.gin"
include "tasks/text.gin"
TEXT = "a.jsonl"
LENGTHS = {"inputs": 40, "targets": 16}
BATCH_SIZE = 4
Task.vocabulary = @ByteVocabulary()
Task.preprocessors = [@Strip(), @Filter()]
Filter.min_characters = 5
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path / "cache"))
    texts = [f" <script>alert({i})</script> & text \x1b[31m{i} " * 3 for i in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (tmp_path / "my.gin").write_text(GIN)
    with config.fresh():
        yield tmp_path


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.open, self.text = set(), [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        assert not any(name in ("src", "href") or name.startswith("on") for name, _ in attributes)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_what_the_data_looks_like(folder, capsys):
    assert cli.main(["data", "my.gin", "--records=2", "--html=page.html"]) == 0
    printed = capsys.readouterr().out
    assert "text: JsonLines: 1 files, 60 records" in printed
    assert re.search(r"splits: train 5\d, validation \d", printed)
    assert "SpanCorruption(noise_density=0.15" in printed and "ByteVocabulary, 384 ids" in printed
    assert re.search(r"tokens of text: mean [\d.]+, median", printed)
    assert "1.00 bytes per token" in printed and "tokens of an example: 4" in printed
    assert "== text: record 1 ==" in printed and "== text: record 2 ==" not in printed
    assert "after 1. Strip" in printed and "after 2. Filter" in printed
    assert re.search(r"inputs, \d+ tokens: .*<extra_id_0>", printed)
    assert re.search(r"encoder_input_tokens: \d+\.\d\d% packing waste in 64 rows", printed)
    assert "examples per row (decoder_segment_ids): mean" in printed
    assert "\x1b" not in printed and "\\x1b[31m" in printed  # nothing that a terminal would obey

    parser = Tags()
    page = (folder / "page.html").read_text()
    parser.feed(page)
    assert not parser.open and "script" not in parser.tags and "link" not in parser.tags
    assert "<script>alert(" in parser.text and "<script>" not in page
    assert "packing waste" in parser.text


def test_it_can_be_asked_with_flags_too(capsys):
    flags = ["--gin_file=my.gin", "--gin.PACK=False", "--gin.OBJECTIVE=@CausalLM()"]
    assert cli.main(["data", *flags, "--gin.LENGTHS={'targets': 32}"]) == 0
    printed = capsys.readouterr().out
    assert "decoder_target_tokens" in printed and "% padding in 64 rows" in printed


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "data needs a gin file with a task: t5x_lite data recipes/NAME.gin"),
        (["biuld", "x"], "data has no action 'biuld'. Did you mean 'build'?"),
        (["build"], "needs the name of a TFDS dataset"),
        (["build", "x", "--file_format=parquet"], "loses records.*of 1,000 it keeps 400"),
        (["build", "x", "--file_format=tfrecord"], "with TensorFlow only; use array_record"),
        (["cache", "my.gin"], "data cache needs --cache_dir=FOLDER"),
    ],
)
def test_mistakes(words, message, capsys):
    assert cli.main(["data", *words]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1


def test_cache(folder, capsys):
    pytest.importorskip("array_record")
    assert cli.main(["data", "cache", "my.gin", "--cache_dir=tokens", "--shards=2"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"tokens/text: train 5\d documents, [\d,]+ tokens", printed)
    assert "CachedTokens.path = 'tokens/text'" in printed
    assert len(CachedTokens("tokens/text")) > 50
    flags = ["--gin.Task.source=@CachedTokens()", "--gin.CachedTokens.path='tokens/text'"]
    assert cli.main(["data", "my.gin", *flags]) == 0
    assert "CachedTokens: 3 files" in capsys.readouterr().out


def test_build(folder, capsys):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")

    class TinyBuilt(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {"train": ((i, {"text": f"text {i}"}) for i in range(30))}

        def _generate_examples(self):
            raise NotImplementedError

    assert cli.main(["data", "build", "tiny_built", "--data_dir=tfds"]) == 0
    printed = capsys.readouterr().out
    assert "tiny_built/1.0.0: train 30" in printed and "Tfds.data_dir = 'tfds'" in printed
    assert len(Tfds("tiny_built", str(folder / "tfds"), held_out=0.1)) == 27
    assert "tensorflow" not in sys.modules
