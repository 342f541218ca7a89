"""What the files beside a tokenizer.json say, and what is wrong with them."""

import json

import pytest

from t5x_lite.data.huggingface import HuggingFaceVocabulary
from t5x_lite.data.tokenizer_settings import read_settings
from t5x_lite.errors import UserError

START, END, USER, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<|pad|>"
SPECIAL = (START, END, USER, PAD, "</s>")


@pytest.fixture
def make(tmp_path):
    """Writes a tokenizer of characters (1 to 94) and special tokens (95 ...), and files beside it;
    returns its vocabulary."""
    tokenizers = pytest.importorskip("tokenizers", reason="the extra hf isn't installed")

    def made(special=SPECIAL, at_0="<zero>", eos=None, **files) -> HuggingFaceVocabulary:
        characters = {at_0: 0} | {chr(i + 31): i for i in range(2, 95)}
        characters[" "] = 1
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(characters, []))
        tokenizer.decoder = tokenizers.decoders.Fuse()
        tokenizer.add_special_tokens([at_0] * (len(at_0) > 1) + list(special))
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        for name, value in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(value))
        return HuggingFaceVocabulary(tmp_path / "tokenizer.json", eos=eos)

    return made


def test_eos_is_what_the_files_name(make):
    named = make(tokenizer_config={"eos_token": {"content": END, "special": True}})
    assert named.eos_id == named.special_id(END) and named.eos_ids == (named.eos_id,)
    assert named.decode([*named.encode("ab"), named.eos_id]) == "ab"


def test_eos_is_in_the_map_of_special_tokens(make):
    found = make(special_tokens_map={"eos_token": END})
    assert found.eos_id == found.special_id(END)


@pytest.mark.parametrize("file", ["config", "generation_config"])
def test_eos_is_an_id_of_the_files(make, file):
    found = make(**{file: {"eos_token_id": [96, 97]}})
    assert (found.eos_id, found.eos_ids) == (96, (96, 97))


def test_generation_config_says_what_ends_a_text_and_the_tokenizer_what_eos_is(make):
    found = make(tokenizer_config={"eos_token": USER}, config={"eos_token_id": 95},
                 generation_config={"eos_token_id": [96, 97, 96]})  # fmt: skip
    assert (found.eos_id, found.eos_ids) == (97, (97, 96))
    assert found.decode([*found.encode("ab"), 96, 97, 0]) == "ab"
    assert found.token_bytes(96) == b"" and found.byte_lengths[[96, 97]].tolist() == [0, 0]


def test_eos_that_is_given_counts_more_and_sep_or_a_known_name_is_the_last_resort(make):
    assert make(tokenizer_config={"eos_token": END}, eos=USER).eos_id == 97
    assert make(tokenizer_config={"sep_token": USER}).eos_id == 97
    assert make(tokenizer_config={}).eos_id == 99  # </s>


def test_ids_follow_id_0_to_its_new_place(make):
    """Id 0 is padding here: an EOS of 0 is where the file's token 0 went."""
    found = make(special=SPECIAL[:4], at_0="<end>", generation_config={"eos_token_id": [0, 96]})
    assert found.eos_ids == (found.size - 1, 96)
    assert found._model.tokens[found.eos_id] == "<end>"


@pytest.mark.parametrize("files, said", [
    ({"tokenizer_config": {"eos_token": "<gone>"}}, "'<gone>', which the files beside it name"),
    ({"tokenizer_config": {"eos_token": 7}}, "eos_token is 7, expected text"),
    ({"generation_config": {"eos_token_id": "2"}}, "eos_token_id is '2', expected an id"),
    ({"generation_config": {"eos_token_id": [2, None]}}, "expected an id or a list of ids"),
    ({"config": [1]}, "config.json is list, expected a JSON object"),
    ({"tokenizer_config": {"chat_template": 5}}, "chat_template is 5, expected text"),
    ({"tokenizer_config": {"chat_template": [{"name": "tool_use", "template": "x"}]}}, "default"),
    ({"tokenizer_config": {"chat_template": ["x"]}}, "list without names"),
])  # fmt: skip
def test_what_is_wrong_with_a_file_is_one_line_with_its_name(make, files, said):
    with pytest.raises(UserError) as error:
        make(**files).eos_id  # noqa: B018
    assert said in str(error.value) and "\n" not in str(error.value)
    assert "tokenizer" in str(error.value) or ".json" in str(error.value)


def test_no_json_and_what_cant_be_read_is_named(make, tmp_path):
    found = make()
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match="generation_config.json is no JSON"):
        found.eos_id  # noqa: B018
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").mkdir()
    with pytest.raises(UserError, match="can't read .*generation_config.json"):
        found.eos_id  # noqa: B018


def test_the_chat_template_is_in_the_settings_or_in_a_file_of_its_own(tmp_path):
    assert read_settings(tmp_path).chat_template is None
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({"chat_template": "one"}))
    assert read_settings(tmp_path).chat_template == "one"
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "two"}]
    settings.write_text(json.dumps({"chat_template": named}))
    assert read_settings(tmp_path).chat_template == "two"
    (tmp_path / "chat_template.jinja").write_text("three")
    assert read_settings(tmp_path).chat_template == "three"
