"""BERT's vocab.txt and its tokenizer.json give the ids of BertTokenizerFast of transformers."""

import json
import zipfile

import numpy as np
import pytest
from golden_files import FOLDER

from t5x_lite.data.huggingface import BERT_TOKENS, HuggingFaceVocabulary
from t5x_lite.data.objectives.contrastive import DropoutPairs
from t5x_lite.data.objectives.masked import MaskedLM
from t5x_lite.errors import UserError

pytest.importorskip("tokenizers", reason="the extra hf isn't installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wordpiece")
    with zipfile.ZipFile(FOLDER / "encoders/wordpiece.zip") as file:
        file.extractall(folder)
    for name in ("lower_True", "lower_False"):
        (folder / name / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
    return folder


@pytest.mark.parametrize("kind", ["lower_True", "lower_False"])
@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json"])
def test_ids_are_those_of_transformers(folder, kind, file):
    golden = json.loads((folder / "transformers.json").read_text())
    vocabulary = HuggingFaceVocabulary(folder / kind / file)
    for text, ids in zip(golden["texts"], golden[kind]["ids"], strict=True):
        assert vocabulary.encode(text).tolist() == ids, text
    found = [vocabulary.special_id(t) for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")]
    assert found == golden[kind]["special"]
    assert vocabulary.eos_id == found[3] and vocabulary.unk_id == found[1]
    assert vocabulary.special_id("[NONE]") is None
    assert vocabulary.decode(vocabulary.encode("a text")) == "a text"


def test_objectives_take_special_tokens_by_name(folder):
    vocabulary = HuggingFaceVocabulary(folder / "vocab.txt")
    tokens = vocabulary.encode("the quick brown fox")
    objective = MaskedLM(noise_density=0.9, mask_share=1.0, random_share=0.0,
                         special_tokens=("[MASK]", "[CLS]"))  # fmt: skip
    example = objective(tokens, np.random.default_rng(0), vocabulary, {})
    mask, start = vocabulary.special_id("[MASK]"), vocabulary.special_id("[CLS]")
    assert example["inputs"][0] == start and (example["inputs"] == mask).sum() > 3
    pair = DropoutPairs(start="[CLS]")({"text": tokens}, None, vocabulary, {})
    assert pair["anchor"].tolist() == [start, *tokens] == pair["positive"].tolist()


def test_a_list_of_words_is_no_vocabulary(tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\n[PAD]\nword\n")
    with pytest.raises(UserError, match=r"expected \[PAD\] in its first line, and \[CLS\]"):
        _ = HuggingFaceVocabulary(tmp_path / "vocab.txt").size


def test_an_id_is_a_line_number_whatever_the_piece_is(tmp_path):
    # bert-base-chinese holds U+2028 as a piece; others hold a lone carriage return or U+0085.
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "\u2028",
        "\x85",
        "cat",
        "\f",
        "on",
    ]
    for end in ("\n", "\r\n"):
        (tmp_path / "vocab.txt").write_bytes("".join(p + end for p in pieces).encode())
        vocabulary = HuggingFaceVocabulary(tmp_path / "vocab.txt")
        assert vocabulary.encode("the cat on").tolist() == [5, 8, 10]


@pytest.mark.parametrize(
    "settings, ids",
    [  # of transformers 5.24, BertTokenizer
        (None, [5, 5, 8, 9]),
        ({}, [5, 5, 8, 9]),
        ({"do_lower_case": False}, [7, 5, 8, 9]),
        ({"strip_accents": False}, [6, 5, 8, 9]),
        ({"do_lower_case": False, "strip_accents": True}, [1, 5, 8, 9]),
        ({"strip_accents": None, "tokenize_chinese_chars": False}, [5, 5, 10]),
    ],
)
def test_what_is_said_beside_a_vocab_txt(tmp_path, settings, ids):
    pieces = [*BERT_TOKENS, "schon", "sch\u00f6n", "Sch\u00f6n", "\u4e2d", "\u6587", "\u4e2d\u6587"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    vocabulary = HuggingFaceVocabulary(tmp_path / "vocab.txt")
    assert vocabulary.encode("Sch\u00f6n schon \u4e2d\u6587").tolist() == ids


@pytest.mark.parametrize(
    "settings, said",
    [
        ("[1]", "tokenizer_config.json is list, expected a JSON object"),
        ("{", "tokenizer_config.json is no JSON"),
        ('{"do_lower_case": null}', "do_lower_case is None, expected true or false"),
        ('{"strip_accents": "no"}', "strip_accents is 'no', expected true or false"),
        ('{"do_basic_tokenize": false}', "do_basic_tokenize = false isn't supported"),
    ],
)
def test_mistakes_beside_a_vocab_txt(tmp_path, settings, said):
    (tmp_path / "vocab.txt").write_text("\n".join(BERT_TOKENS) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(settings)
    with pytest.raises(UserError, match=said):
        _ = HuggingFaceVocabulary(tmp_path / "vocab.txt").size


def test_a_vocab_txt_in_another_encoding(tmp_path):
    (tmp_path / "vocab.txt").write_bytes("\n".join([*BERT_TOKENS, "\u00e9"]).encode("latin-1"))
    with pytest.raises(UserError, match="vocab.txt is not UTF-8"):
        _ = HuggingFaceVocabulary(tmp_path / "vocab.txt").size
