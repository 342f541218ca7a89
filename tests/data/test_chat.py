"""Conversations: templates, what is learnt of them, what is cut, and what is wrong with a line."""

import json
import logging

import numpy as np
import pytest

import t5x_lite as tl
from t5x_lite.data.chat import TEMPLATES, ChatTemplate, check_messages, messages_of
from t5x_lite.data.conversations import conversations
from t5x_lite.data.huggingface import HuggingFaceVocabulary
from t5x_lite.data.loader import BatchLoader, eval_batches
from t5x_lite.data.objectives.chat import Chat, LastAnswer
from t5x_lite.errors import UserError
from t5x_lite.evaluation.samples import _continued_from
from t5x_lite.programs.infer import _prompt, template_of

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi <|im_end|>"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Goodbye"},
]
BYTES = tl.ByteVocabulary()


@pytest.fixture(scope="module")
def marked(tmp_path_factory) -> HuggingFaceVocabulary:
    """Characters, and chatml's marks as special tokens."""
    tokenizers = pytest.importorskip("tokenizers", reason="the extra hf isn't installed")
    model = tokenizers.models.BPE({c: i + 1 for i, c in enumerate(map(chr, range(10, 127)))}, [])
    made = tokenizers.Tokenizer(model)
    made.decoder = tokenizers.decoders.Fuse()
    made.add_special_tokens(["<pad>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    path = tmp_path_factory.mktemp("marked") / "tokenizer.json"
    made.save(str(path))
    return HuggingFaceVocabulary(path)


def test_templates_as_their_models_have_them():
    assert ChatTemplate("chatml").prompt(TALK[:2]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <|im_end|><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert ChatTemplate("llama2").prompt(TALK[:4]) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi <|im_end|> [/INST] Hello. <s>[INST] Bye "
        "[/INST]"
    )
    assert ChatTemplate("llama3").prompt(TALK[3:4]) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert ChatTemplate("gemma").prompt(TALK[3:4]) == (
        "<bos><start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
    )
    own = ChatTemplate("plain", user="Q: {content}\n", assistant="A: {content}{stop}\n", stop="#")
    assert own.prompt(TALK[3:4]) == "Q: Bye\nA:" and own.answer(" Yes# no") == "Yes"


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_and_their_ends_are_learnt_and_prompts_are_those_of_training(name):
    template = ChatTemplate(name)
    ids, turns = template.encode(TALK, BYTES)
    for exchange, answer in ((1, "Hello."), (2, "Goodbye")):
        learnt = ids[turns == 2 * exchange + 1]
        said = BYTES.decode(learnt)
        assert template.answer(said) == answer
        assert said.endswith(template.stop) and (learnt[-1] == BYTES.eos_id) == (not template.stop)
    for count in (2, 4):
        prompt = template.prompt_ids(TALK[:count], BYTES)
        np.testing.assert_array_equal(prompt, ids[: len(prompt)])
        assert turns[len(prompt)] % 2 == 1 and turns[len(prompt) - 1] % 2 == 0


def test_marks_are_special_tokens_of_the_template_alone(marked):
    start, end = marked.special_id("<|im_start|>"), marked.special_id("<|im_end|>")
    template = ChatTemplate()
    ids, turns = template.encode(TALK, marked)
    assert (ids == start).sum() == 5 and (ids == end).sum() == 5  # not the one a user wrote
    assert template.stop_ids(marked) == (end, marked.eos_id)
    assert template.stop_ids(BYTES) == (BYTES.eos_id,)
    # A stop that the vocabulary spells ends an answer as a text.
    assert template.stop_texts(BYTES) == ("<|im_end|>",) and template.stop_texts(marked) == ()
    assert ChatTemplate("plain").stop_texts(BYTES) == ()
    assert [ids[turns == label][-1] for label in (3, 5)] == [end, end]
    assert marked.decode(ids[turns == 3]) == "Hello.<|im_end|>"


def source_of(talks: list, path, **options):
    lines = "".join(json.dumps({"messages": talk}) + "\n" for talk in talks)
    path.write_text(lines)
    return conversations(str(path), **({"held_out": 0.0} | options))


def chat(source, **options) -> tl.Task:
    template = ChatTemplate("plain")
    return tl.Task("chat", source, Chat(template, **options), BYTES)


def test_conversations_are_packed_with_masks_and_segments(tmp_path):
    talks = [[TALK[1] | {"content": f"{i}?"}, TALK[2]] for i in range(20)]
    task = chat(source_of(talks, tmp_path / "talks.jsonl"))
    loader = BatchLoader(
        task, lengths={"targets": 80, "learnt": 80}, batch_size=2, seed=0,
        architecture="decoder_only", pack=True,
    )  # fmt: skip
    batch = next(loader).features
    assert set(batch) == {
        f"decoder_{name}"
        for name in ("input_tokens", "target_tokens", "loss_weights", "segment_ids", "positions")
    }
    for row in range(2):
        segments, learnt = batch["decoder_segment_ids"][row], batch["decoder_loss_weights"][row]
        targets = batch["decoder_target_tokens"][row]
        assert segments.max() == 2
        for segment in (1, 2):
            there = segments == segment
            assert BYTES.decode(targets[there & (learnt == 1)]) == " Hello."
            assert targets[there & (learnt == 1)][-1] == BYTES.eos_id
            assert BYTES.decode(targets[there & (learnt == 0)])[:6] == "User: "
            assert batch["decoder_input_tokens"][row][there][0] == 0
        assert not learnt[segments == 0].any()


def test_what_is_too_long_is_cut_between_exchanges_and_counted(tmp_path, caplog):
    exchange = TALK[3:5]
    whole = len(ChatTemplate("plain").encode([TALK[0], *exchange], BYTES)[0])
    long = [TALK[0], TALK[1], TALK[2], *exchange]
    lengths = {"targets": whole, "learnt": whole}
    for keep, kept in (("end", "Goodbye"), ("start", "Hello.")):
        objective = Chat(ChatTemplate("plain"), keep=keep)
        if keep == "start":
            lengths = dict.fromkeys(lengths, whole + 10)
        tokens = objective.tokens({"messages": long}, BYTES)
        with caplog.at_level(logging.WARNING):
            made = objective(tokens, None, BYTES, lengths)
        assert BYTES.decode(made["targets"]).startswith("Be brief.")
        assert BYTES.decode(made["targets"][made["learnt"] == 1]).strip() == kept
    assert "1 of 1 conversations so far were cut" in caplog.text
    objective = Chat(ChatTemplate("plain"))
    tokens = objective.tokens({"messages": [TALK[0], *exchange]}, BYTES)
    nothing = objective(tokens, None, BYTES, {"targets": whole - 1, "learnt": whole - 1})
    assert not len(nothing["targets"]) and "left out" in caplog.text


def test_the_last_answer_for_an_encoder_decoder(tmp_path):
    source = source_of([TALK, TALK[1:2]], tmp_path / "talks.jsonl")
    task = tl.Task("last", source, tl.TextToText(), BYTES, [LastAnswer()])
    asked = "Be brief.\n\nUser: Hi <|im_end|>\n\nAssistant: Hello.\n\nUser: Bye\n\nAssistant:"
    assert task.record(source, 0) == {"inputs": asked, "targets": "Goodbye"}
    assert task.record(source, 1) is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"messages": [{"content": "x"}]}, "message 1 has the role None, expected one of system"),
        ({"messages": [{"role": "usr", "content": "x"}]}, "Did you mean 'user'"),
        ({"messages": TALK[2:]}, "message 1 is of the assistant, expected system or user"),
        ({"messages": [TALK[1], TALK[1]]}, "message 2 is of the user, expected assistant"),
        ({"messages": [TALK[1] | {"content": " "}]}, "message 1, of the user, has no text"),
        ({"messages": []}, "expected a list of one or more"),
        ({"text": "x"}, 'no "messages" .*, found text'),
    ],
)
def test_a_bad_line_is_named_with_its_file(line, said, tmp_path):
    path = tmp_path / "talks.jsonl"
    path.write_text(json.dumps({"messages": TALK}) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(UserError, match=rf"talks.jsonl line 2 .*{said}"):
        len(conversations(str(path), held_out=0.0))


def test_other_forms_of_messages_and_files_that_are_not_there():
    shared = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    assert messages_of({"conversations": shared}) == [TALK[1] | {"content": "Hi"}, TALK[2]]
    parts = [{"type": "text", "text": "B"}, {"type": "text", "text": "ye"}]
    assert check_messages([{"role": "user", "content": parts}]) == TALK[3:4]
    with pytest.raises(UserError, match="expected one of auto, tokenizer, chatml"):
        ChatTemplate("chatlm")
    with pytest.raises(UserError, match="the last message is of the assistant"):
        ChatTemplate().prompt(TALK)
    task = chat(conversations("nowhere.jsonl"))  # a model can be used without them
    with pytest.raises(UserError, match="nowhere"):
        eval_batches(task, lengths={"targets": 8, "learnt": 8}, batch_size=1,
                     architecture="decoder_only")  # fmt: skip


def test_a_sample_continues_from_the_last_answer():
    targets = np.array([[5, 6, 7, 8, 9, 0], [5, 6, 7, 8, 0, 0]])
    learnt = np.array([[0, 1, 0, 1, 1, 0], [1, 1, 1, 1, 0, 0]], bool)
    assert _continued_from(targets, learnt).tolist() == [[3], [2]]


@pytest.mark.parametrize("more", [
    {"tool_calls": [{"id": "1"}]}, {"function_call": {"name": "f"}}, {"weight": 0},
    {"audio": {"id": "1"}},
])  # fmt: skip
def test_what_a_message_says_beside_its_content_is_refused(more):
    talk = [TALK[3], TALK[4] | more]
    with pytest.raises(UserError, match=f"message 2, of the assistant, has {next(iter(more))}"):
        messages_of({"messages": talk})
    shared = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"} | more]
    with pytest.raises(UserError, match=f"has {next(iter(more))}"):
        messages_of({"conversations": shared})
    nothing = {"tool_calls": None, "function_call": None, "weight": 1, "name": "bob", "id": 7}
    assert messages_of({"messages": [TALK[3], TALK[4] | nothing]}) == TALK[3:]
    picture = [{"type": "image_url", "text": "a cat"}, {"type": "text", "text": "What is it?"}]
    with pytest.raises(UserError, match="no text as its content"):
        messages_of({"messages": [{"role": "user", "content": picture}]})


def test_infer_asks_as_in_training():
    template = ChatTemplate("plain")
    task = chat(None)
    asked = _prompt({"messages": TALK[:4]}, template_of(task), task)
    np.testing.assert_array_equal(asked, template.prompt_ids(TALK[:4], BYTES))
    alone = _prompt({"input": "Bye"}, template_of(task), task)
    assert BYTES.decode(alone) == template.prompt(TALK[3:4])
    other = tl.Task("plain", None, tl.CausalLM(), BYTES)
    with pytest.raises(UserError, match="plain isn't one of conversations"):
        _prompt({"messages": TALK[:4]}, template_of(other), other)
