import pickle
import random
import shutil
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.data.objectives.denoisers import UL2
from t5x_lite.data.sentencepiece_training import train_sentencepiece
from t5x_lite.data.vocabulary import (
    ByteVocabulary,
    SentencePieceVocabulary,
    add_sentinels,
)
from t5x_lite.errors import UserError

SIZE = 400
TRICKY = [
    "",
    " ",
    "\n",
    "  two  spaces, \t a tab\r\nand\n\n\nlines ",
    "def f(x):\n    return x  # Grüße, 你好 😀 ﬁ",
    "nul \x00 and controls \x07\x1b",
    "e\u0301 is not \u00e9",
]


def corpus():
    rng = random.Random(0)
    words = ["the", "cat", "return", "    x =", "naïve", "\n\n"]
    words += ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 8))) for _ in range(300)]
    text = " ".join(rng.choice(words) for _ in range(3000)) + " the cat" * 50
    return [text[:9000], text[9000:], "", string.printable * 3]


texts = st.lists(st.integers(0, 0x10FFFF) | st.integers(0, 127)).map(
    lambda points: "".join(map(chr, points))
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "tiny.model"
    train_sentencepiece(corpus(), path, SIZE, extra_ids=20)
    return path


@pytest.fixture(scope="module")
def tiny(path):
    return SentencePieceVocabulary(str(path))


@pytest.fixture(scope="module")
def normalising(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "t5_like.model"
    return train_sentencepiece(corpus(), path, SIZE, extra_ids=20, lossless=False)


# --- SentencePiece --------------------------------------------------------------------------------


def test_layout_is_t5s(tiny):
    assert (tiny.pad_id, tiny.eos_id, tiny.unk_id) == (0, 1, 2)
    assert tiny.size == SIZE and tiny.num_sentinels == 20
    assert [tiny.sentinel(i) for i in (0, 1, 19)] == [SIZE - 1, SIZE - 2, SIZE - 20]
    for i in (-1, 20):
        with pytest.raises(UserError, match="20 sentinels"):
            tiny.sentinel(i)


@pytest.mark.parametrize("text", TRICKY)
def test_lossless_round_trip(tiny, text):
    ids = tiny.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert ((ids > 2) & (ids < SIZE)).all()
    assert tiny.decode(ids) == text
    assert tiny.byte_lengths[ids].sum() == len(text.encode())


@given(texts)
@settings(max_examples=200, deadline=None)
def test_any_text_survives(tiny, text):
    kept = text.encode(errors="replace").decode().replace("\u2581", " ")
    ids = tiny.encode(text)
    assert tiny.decode(ids) == kept
    assert tiny.byte_lengths[ids].sum() == len(kept.encode())


def test_space_mark_and_surrogates_are_read_as_documented(tiny):
    ids = tiny.encode("a\u2581b")
    assert tiny.decode(ids) == "a b" and tiny.byte_lengths[ids].sum() == 3
    assert tiny.decode(tiny.encode("a\ud800b")) == "a?b"


def test_sentinels_in_text(tiny):
    ids = tiny.encode("the <extra_id_0> sat<extra_id_19>.")
    assert [i for i in ids if i >= SIZE - 20] == [tiny.sentinel(0), tiny.sentinel(19)]
    assert tiny.decode(ids) == "the <extra_id_0> sat<extra_id_19>."
    assert tiny.byte_lengths[ids].sum() == len("the  sat.")
    beyond = tiny.encode("<extra_id_20>")
    assert (beyond < SIZE - 20).all() and tiny.decode(beyond) == "<extra_id_20>"


def test_decode_never_raises(tiny):
    the = tiny.encode("the").tolist()
    assert tiny.decode([]) == tiny.decode([0, 1, 0]) == ""
    assert tiny.decode([0, *the, 1, 0]) == "the"
    assert tiny.decode([*the, SIZE, -1, 10**9]) == "the\ufffd\ufffd\ufffd"
    assert tiny.decode(np.array([*the, tiny.sentinel(3)])) == "the<extra_id_3>"
    half = tiny.encode("你")[:-1]
    assert "\ufffd" in tiny.decode(half)
    assert isinstance(tiny.decode(range(-3, SIZE + 3)), str)


def test_byte_lengths(tiny):
    assert tiny.byte_lengths.shape == (SIZE,) and tiny.byte_lengths.dtype == np.int32
    assert not tiny.byte_lengths[:3].any() and not tiny.byte_lengths[-20:].any()
    assert (tiny.byte_lengths[3:-20] > 0).all()
    with pytest.raises(ValueError):
        tiny.byte_lengths[0] = 1


@pytest.mark.parametrize("name", ["tiny", "normalising"])
def test_word_starts(name, request):
    vocabulary = request.getfixturevalue(name)
    starts = vocabulary.word_starts
    assert starts.shape == (vocabulary.size,) and starts[:3].all() and starts[-20:].all()
    for text, words in [("the cat", 2), ("naïve", 1), ("cat return the", 3), ("你好", 1)]:
        text = text if name == "normalising" else " " + text
        assert starts[vocabulary.encode(text)].sum() == words, text


def test_normalised_text_is_counted_with_its_first_space(normalising):
    ids = normalising.encode("  the \t cat\n\nsat ﬁ ")
    kept = "the cat sat fi"
    assert normalising.decode(ids) == kept
    assert normalising.byte_lengths[ids].sum() == len(" " + kept)


def test_files_without_sentinels_get_them(path, tiny, tmp_path):
    bare = tmp_path / "bare.model"
    model = path.read_bytes()
    bare.write_bytes(model[: len(model) - len(add_sentinels(b"", 20))])
    assert SentencePieceVocabulary(bare).size == SIZE - 20 + 100
    added = SentencePieceVocabulary(bare, extra_ids=20)
    assert added.fingerprint == tiny.fingerprint
    text = "the <extra_id_0> cat"
    assert added.encode(text).tolist() == tiny.encode(text).tolist()
    none = SentencePieceVocabulary(bare, extra_ids=0)
    assert none.size == SIZE - 20 and none.num_sentinels == 0
    assert none.fingerprint != tiny.fingerprint


def test_fingerprint_is_of_the_content(path, tiny, normalising, tmp_path):
    copy = shutil.copy(path, tmp_path / "copy.model")
    assert SentencePieceVocabulary(copy).fingerprint == tiny.fingerprint
    assert normalising.fingerprint != tiny.fingerprint
    int(tiny.fingerprint, 16)


def test_pickled_small_and_read_again(tiny):
    tiny.encode("the")
    pickled = pickle.dumps(tiny)
    assert len(pickled) < 500
    assert pickle.loads(pickled) == tiny
    assert pickle.loads(pickled).encode("the cat").tolist() == tiny.encode("the cat").tolist()


def test_nothing_is_read_before_use(tmp_path):
    vocabulary = SentencePieceVocabulary(tmp_path / "tinny.model")
    (tmp_path / "tiny.model").write_bytes(b"")
    with pytest.raises(UserError, match=r"can't read vocabulary .*Did you mean 'tiny.model'"):
        vocabulary.encode("x")


def test_bad_files_are_named(path, tmp_path):
    for name, content in [("garbage.model", b"not a model"), ("empty.model", b"")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} is not a SentencePiece model"):
            _ = SentencePieceVocabulary(tmp_path / name).size
    with pytest.raises(UserError, match="holds 20 <extra_id_.*extra_ids is 100"):
        _ = SentencePieceVocabulary(path, extra_ids=100).size


def test_other_layouts_are_refused(tmp_path):
    import io

    import sentencepiece

    def train(name, **options):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus()[:1][0].splitlines()),
            model_writer=model,
            vocab_size=60,
            minloglevel=2,
            **options,
        )
        (tmp_path / name).write_bytes(model.getvalue())
        return SentencePieceVocabulary(tmp_path / name)

    with pytest.raises(UserError, match=r"ids \(-1, 2, 0\), expected \(0, 1, 2\)"):
        _ = train("llama.model").size
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    with pytest.raises(UserError, match="expected <extra_id_0>"):
        _ = train("low.model", user_defined_symbols=["<extra_id_0>"], **ids).size


# --- Training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_training_is_deterministic_and_quiet(model_type, tmp_path, capfd):
    made = []
    for name in ("a", "b"):
        path = tmp_path / name / "new.model"
        vocabulary = train_sentencepiece(
            iter(corpus()), path, SIZE, model_type=model_type, extra_ids=20
        )
        assert vocabulary.size == SIZE
        made.append(path.read_bytes())
        assert [p.name for p in path.parent.iterdir()] == ["new.model"]
    assert made[0] == made[1]
    assert capfd.readouterr() == ("", "")


def test_long_lines_are_trained_on(tmp_path):
    text = " ".join(corpus()).replace("\n", " ")
    assert len(text) > 10_000
    vocabulary = train_sentencepiece([text], tmp_path / "z.model", 450, extra_ids=20)
    assert (vocabulary.byte_lengths > 2).any()  # words were learned, not just characters


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_user_symbols_are_single_pieces(model_type, tmp_path):
    symbols = ["[NLU]", "[S2S]", "[NLG]"]
    vocabulary = train_sentencepiece(
        corpus(), tmp_path / "u.model", SIZE, model_type, extra_ids=20, user_symbols=symbols
    )
    assert vocabulary.size == SIZE and vocabulary.encode("".join(symbols)).tolist() == [3, 4, 5]
    text = "x [S2S]the cat"
    assert 4 in vocabulary.encode(text) and vocabulary.decode(vocabulary.encode(text)) == text
    mixture = UL2(mode_tokens=tuple(symbols))
    example = mixture(vocabulary.encode("the cat " * 9), np.random.default_rng(0), vocabulary, {})
    assert example["inputs"][0] in (3, 4, 5)


def test_max_bytes_stops_reading(tmp_path):
    def endless():
        while True:
            yield from corpus()

    vocabulary = train_sentencepiece(
        endless(), tmp_path / "m.model", SIZE, extra_ids=20, max_bytes=30_000
    )
    assert vocabulary.size == SIZE


def test_training_errors(tmp_path):
    path = tmp_path / "new.model"
    with pytest.raises(UserError, match=r"at most \d+, or more text"):
        train_sentencepiece(corpus(), path, 50_000)
    with pytest.raises(UserError, match=r"at least \d+"):
        train_sentencepiece(corpus(), path, 150, extra_ids=20)
    with pytest.raises(UserError, match="texts are empty"):
        train_sentencepiece(["", ""], path, SIZE)
    with pytest.raises(UserError, match="model_type"):
        train_sentencepiece(corpus(), path, SIZE, model_type="wordpiece")

    def broken():
        yield "the cat"
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        train_sentencepiece(broken(), path, SIZE)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"precious")
    with pytest.raises(UserError, match="exists already"):
        train_sentencepiece(corpus(), path, SIZE)
    assert path.read_bytes() == b"precious"


# --- Bytes ----------------------------------------------------------------------------------------


def test_byt5_ids():
    vocabulary = ByteVocabulary()
    assert vocabulary.size == 384 and vocabulary.sentinel(0) == 383
    assert vocabulary.encode("aé").tolist() == [97 + 3, 0xC3 + 3, 0xA9 + 3]
    assert vocabulary.encode("").tolist() == []
    assert vocabulary.encode("a<extra_id_0><extra_id_124><extra_id_125>").tolist() == [
        100,
        383,
        259,
        *(b + 3 for b in b"<extra_id_125>"),
    ]
    assert (
        vocabulary.decode([0, 100, 383, 1, 2, 500, -1, 0xC3 + 3]) == "a<extra_id_0>" + "\ufffd" * 4
    )


@given(texts)
def test_bytes_round_trip(text):
    vocabulary = ByteVocabulary()
    kept = text.encode(errors="replace")
    ids = vocabulary.encode(text)
    assert ids.dtype == np.int32
    assert vocabulary.decode(ids) == kept.decode()
    assert vocabulary.byte_lengths[ids].sum() == len(kept)


def test_byte_fingerprint_and_pickle():
    assert ByteVocabulary().fingerprint != ByteVocabulary(extra_ids=0).fingerprint
    assert pickle.loads(pickle.dumps(ByteVocabulary(7))) == ByteVocabulary(7)
    assert ByteVocabulary().byte_lengths.sum() == 256
