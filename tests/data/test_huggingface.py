import json
import pickle
import random
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.data.huggingface import HuggingFaceVocabulary
from t5x_lite.data.loader import BatchLoader
from t5x_lite.data.objectives.lm import CausalLM
from t5x_lite.data.sources import InMemory
from t5x_lite.data.tasks import Task
from t5x_lite.errors import UserError

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra hf")
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

texts = st.text(st.sampled_from("abc the\n é你😀!▁</s>"), max_size=40)


def corpus():
    rng = random.Random(0)
    words = ["the", "cat", "sat", "naïve", "\n", "你好", "x=1", "!"]
    return [" ".join(rng.choices(words, k=30)) for _ in range(50)]


def save(tokenizer, path):
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="module")
def gpt2(folder):
    """As GPT-2's: byte-level BPE, "!" is id 0, the only special token is the last."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return save(tokenizer, folder / "gpt2.json")


@pytest.fixture(scope="module")
def llama(folder):
    """As Llama 2's: <unk> 0, <s> 1, </s> 2, bytes from 3, spaces as U+2581."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "t", "h", "e"]
    pieces += ["th", "the", "▁the"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [("t", "h"), ("th", "e"), ("▁", "the")]
    model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return save(tokenizer, folder / "llama.json")


@pytest.fixture(scope="module")
def t5(folder):
    """As T5's: <pad> 0, </s> 1, <unk> 2, sentinels at the top."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁the", -2.0), ("▁", -3.0)]
    pieces += [(c, -4.0) for c in "abcthe"]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>", "<extra_id_1>", "<extra_id_0>"])
    return save(tokenizer, folder / "t5.json")


@pytest.fixture(scope="module")
def bert(folder):
    """As BERT's: [PAD] 0, words in pieces, no spaces."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "##s", "##at", "s", "!"]
    model = models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(pieces[:4])
    return save(tokenizer, folder / "bert.json")


def test_padding_never_comes_out_of_a_text(gpt2):
    plain = tokenizers.Tokenizer.from_file(str(gpt2))
    size = plain.get_vocab_size()
    vocabulary = HuggingFaceVocabulary(gpt2)
    assert vocabulary.size == size and vocabulary.num_sentinels == 0
    assert vocabulary.eos_id == size - 1
    never = plain.token_to_id("\u00c0")  # stands for the byte 0xC0, which UTF-8 doesn't have
    assert plain.encode("!").ids == [0] and vocabulary.encode("!").tolist() == [never]
    text = "the cat! sat"
    assert vocabulary.encode(text).tolist() == [i or never for i in plain.encode(text).ids]
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert vocabulary.byte_lengths[0] == 0 and vocabulary.byte_lengths[never] == 1


def test_a_text_that_starts_with_a_token_starts_with_id_0(llama, gpt2, t5, tmp_path):
    """As Llama's do: it and <unk> change places. T5's end with a token: nothing changes."""
    for source, start, ours in ((llama, "<s>", 1), (gpt2, "<|begin|>", 281)):
        tokenizer = tokenizers.Tokenizer.from_file(str(source))
        tokenizer.add_special_tokens([start])
        place = tokenizer.token_to_id(start)
        assert place == ours
        starting = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, place)]
        )
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), starting])
        vocabulary = HuggingFaceVocabulary(save(tokenizer, tmp_path / f"{ours}.json"))
        plain = HuggingFaceVocabulary(source)
        ids = tokenizer.encode("the!").ids
        assert ids[0] == place
        assert vocabulary.encode("the!").tolist() == [i or place for i in ids[1:]]
        assert vocabulary.decode(vocabulary.encode("the! cat")) == plain.decode(
            plain.encode("the! cat")
        )
        assert vocabulary.eos_id == plain.eos_id and vocabulary.byte_lengths[0] == 0
        assert vocabulary.fingerprint != plain.fingerprint
    tokenizer = tokenizers.Tokenizer.from_file(str(t5))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    ending = HuggingFaceVocabulary(save(tokenizer, tmp_path / "t5.json"))
    assert ending.encode("the").tolist() == HuggingFaceVocabulary(t5).encode("the").tolist()


def test_the_end_of_a_text_at_id_0(tmp_path):
    """As Pythia's: <|endoftext|> is id 0."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"],
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(corpus(), trainer)
    vocabulary = HuggingFaceVocabulary(save(tokenizer, tmp_path / "pythia.json"))
    assert vocabulary.eos_id == tokenizer.token_to_id("\u00c0") and vocabulary.size == 280
    assert vocabulary.decode([*vocabulary.encode("the cat"), vocabulary.eos_id]) == "the cat"


def test_where_no_byte_is_free_id_0_moves_behind_the_last(tmp_path):
    pieces = {"a": 0, "b": 1, "</s>": 2}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(pieces, unk_token="b"))
    tokenizer.add_special_tokens(["</s>"])
    vocabulary = HuggingFaceVocabulary(save(tokenizer, tmp_path / "words.json"))
    assert vocabulary.size == 4 and vocabulary.encode("a").tolist() == [3]
    assert vocabulary.decode([3]) == "a"


@given(text=texts)
@settings(max_examples=100, deadline=None)
def test_byte_level_is_lossless(gpt2, text):
    vocabulary = HuggingFaceVocabulary(gpt2, extra_ids=3)
    ids = vocabulary.encode(text)
    assert ids.dtype == np.int32 and (ids > 0).all() and (ids < vocabulary.size).all()
    assert vocabulary.eos_id not in ids
    assert vocabulary.decode(ids) == text
    assert vocabulary.byte_lengths[ids].sum() == len(text.encode())


@given(text=texts)
@settings(max_examples=100, deadline=None)
def test_byte_fallback_is_lossless(llama, text):
    vocabulary = HuggingFaceVocabulary(llama)
    ids = vocabulary.encode(text)
    assert vocabulary.size == 266 and vocabulary.eos_id == 2
    assert (ids > 2).all()  # nothing unknown, and a "</s>" in a text doesn't end it
    assert vocabulary.decode(ids) == text.replace("▁", " ")
    assert vocabulary.byte_lengths[ids].sum() == len(text.replace("▁", " ").encode())


def test_sentinels(gpt2, t5):
    added = HuggingFaceVocabulary(gpt2, extra_ids=4)
    size = HuggingFaceVocabulary(gpt2).size
    assert added.size == size + 4 and added.sentinel(0) == size + 3
    ids = added.encode("the <extra_id_0> sat<extra_id_3>!")
    assert [i for i in ids if i >= size] == [added.sentinel(0), added.sentinel(3)]
    assert added.decode(ids) == "the <extra_id_0> sat<extra_id_3>!"
    beyond = added.encode("<extra_id_4>")
    assert (beyond < size).all() and added.decode(beyond) == "<extra_id_4>"

    held = HuggingFaceVocabulary(t5)
    assert (held.size, held.num_sentinels, held.eos_id, held.unk_id) == (13, 2, 1, 2)
    ids = held.encode("the <extra_id_0>")
    assert ids[0] == 3 and ids[-1] == held.sentinel(0) == 12
    assert held.decode(ids).endswith("<extra_id_0>") and held.decode([3]) == "the"
    assert held.byte_lengths.tolist() == [0, 0, 0, 4, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    with pytest.raises(UserError, match="holds 2 <extra_id_.*extra_ids is 5"):
        _ = HuggingFaceVocabulary(t5, extra_ids=5).size


def test_words_and_bert(gpt2, llama, bert):
    for path, space in ((gpt2, " the"), (llama, " the")):
        vocabulary = HuggingFaceVocabulary(path)
        starts = vocabulary.word_starts
        assert starts[vocabulary.encode(space)[0]] and not starts[vocabulary.encode("é")].any()
        assert not starts[vocabulary.encode("the")[0]]
    vocabulary = HuggingFaceVocabulary(bert)
    assert vocabulary.eos_id == 3 and vocabulary.unk_id == 1
    assert vocabulary.encode("the cats!").tolist() == [4, 5, 6, 9]
    assert vocabulary.decode([4, 5, 6]) == "the cats"
    assert np.flatnonzero(~vocabulary.word_starts).tolist() == [6, 7]
    assert vocabulary.byte_lengths.tolist() == [0, 0, 0, 0, 3, 3, 1, 2, 1, 1]


def test_decode_never_raises(gpt2):
    vocabulary = HuggingFaceVocabulary(gpt2, extra_ids=2)
    the = vocabulary.encode("the").tolist()
    assert vocabulary.decode([]) == vocabulary.decode([0, vocabulary.eos_id]) == ""
    assert vocabulary.decode([*the, vocabulary.size, -1, 10**9]) == "the\ufffd\ufffd\ufffd"
    assert isinstance(vocabulary.decode(range(-3, vocabulary.size + 3)), str)
    assert vocabulary.encode("a\ud800b").tolist() == vocabulary.encode("a?b").tolist()


def test_fingerprint_and_pickle(gpt2, tmp_path):
    copy = tmp_path / "copy.json"
    copy.write_bytes(gpt2.read_bytes())
    vocabulary = HuggingFaceVocabulary(str(gpt2), extra_ids=2)
    assert HuggingFaceVocabulary(copy, extra_ids=2).fingerprint == vocabulary.fingerprint
    assert HuggingFaceVocabulary(copy).fingerprint != vocabulary.fingerprint
    pickled = pickle.dumps(vocabulary)
    assert len(pickled) < 400 and pickle.loads(pickled) == vocabulary
    assert pickle.loads(pickled).encode("the cat").tolist() == vocabulary.encode("the cat").tolist()


def test_settings_of_the_file_are_ignored(gpt2, tmp_path):
    tokenizer = tokenizers.Tokenizer.from_file(str(gpt2))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    vocabulary = HuggingFaceVocabulary(save(tokenizer, tmp_path / "short.json"))
    assert vocabulary.decode(vocabulary.encode("the cat sat the cat")) == "the cat sat the cat"


def test_trains(llama):
    vocabulary = HuggingFaceVocabulary(llama)
    task = Task("t", InMemory(["the the", "the"]), CausalLM(), vocabulary)
    loader = BatchLoader(task, lengths={"targets": 8}, batch_size=1, seed=0,
                         architecture="decoder_only", pack="concat")  # fmt: skip
    tokens = next(loader).features["decoder_target_tokens"][0]
    assert 2 in tokens and set(vocabulary.decode(tokens)) <= set("the ")


def test_errors(gpt2, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="can't read vocabulary"):
        HuggingFaceVocabulary(tmp_path / "none.json").encode("x")
    for content in ("no json", "{}"):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(UserError, match="bad.json is not a tokenizer of Hugging Face"):
            _ = HuggingFaceVocabulary(tmp_path / "bad.json").size
    with pytest.raises(UserError, match="no end-of-text token '<end>'"):
        _ = HuggingFaceVocabulary(gpt2, eos="<end>").size
    spec = json.loads(gpt2.read_text())
    spec["added_tokens"] = []
    (tmp_path / "bare.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match="set HuggingFaceVocabulary.eos"):
        _ = HuggingFaceVocabulary(tmp_path / "bare.json").size
    tokenizer = tokenizers.Tokenizer.from_file(str(gpt2))
    tokenizer.add_special_tokens(["<extra_id_0>", "<extra_id_1>"])
    with pytest.raises(UserError, match="aren't its last ids, counting down"):
        _ = HuggingFaceVocabulary(save(tokenizer, tmp_path / "up.json")).size
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 't5x_lite\[hf\]'"):
        HuggingFaceVocabulary(gpt2).encode("x")
