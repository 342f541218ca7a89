"""What transformers makes of our tokenizer files: the ids in tokenizers.zip."""

import dataclasses
import json
import zipfile

import jax
import numpy as np
import pytest
from golden_files import FOLDER

import t5x_lite as tl
from t5x_lite.data.huggingface import HuggingFaceVocabulary
from t5x_lite.errors import UserError
from t5x_lite.interop import pretrained, tokenizer_files

NAMES = ["t5", "plain", "unigram", "bpe", "bytes", "gpt2", "gpt2_sentinels"]
STARTS = ("bpe", "gpt2")  # exported for a decoder
T5 = tl.TransformerConfig(600, 8, 2, 4, 8, 1, 1)
LM = tl.TransformerConfig(600, 8, 2, 4, 8, 1, architecture="decoder_only", positions="rope")
MARKS = "e\u0301\u0323\u0327"  # composed in another order by Hugging Face's normalizer
# Where a space goes in front of the text, theirs leaves none before a sentinel ...
FIRST = ("<extra_id_3> first", "<extra_id_99> unknown sentinel")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    with zipfile.ZipFile(FOLDER / "tokenizers.zip") as file:
        file.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def golden(folder):
    return json.loads((folder / "transformers.json").read_text())


def vocabulary(folder, name):
    if name == "bytes":
        return tl.ByteVocabulary()
    if name.startswith("gpt2"):
        pytest.importorskip("tokenizers", reason="the extra hf isn't installed")
        sentinels = 12 if name == "gpt2_sentinels" else None
        return HuggingFaceVocabulary(folder / "gpt2.json", extra_ids=sentinels)
    return tl.SentencePieceVocabulary(folder / f"{name}.model")


def excused(name: str, text: str) -> bool:
    squeezed = name in ("t5", "plain", "T5Tokenizer")
    return squeezed and (text.startswith(MARKS) or (text in FIRST and vocabulary_holds(name, text)))


def vocabulary_holds(name: str, text: str) -> bool:
    return text == FIRST[0] or name != "t5"  # which has 12 sentinels, no 99th


@pytest.mark.parametrize("name", NAMES)
def test_auto_tokenizer_gives_our_ids(folder, golden, name):
    ours, differing = vocabulary(folder, name), 0
    for text, theirs in zip(golden["texts"], golden["ids"][name], strict=True):
        ids = ours.encode(text).tolist()
        expected = [0, *ids] if name in STARTS else [*ids, ours.eos_id]
        row = tokenizer_files.swapped_row(ours)
        expected = [tokenizer_files.theirs(i, row) for i in expected]
        if excused(name, text):
            differing += expected != theirs
        else:
            assert theirs == expected, text[:40]
    assert differing == {"t5": 2, "plain": 3}.get(name, 0)  # an excuse that isn't needed goes


def test_transformers_own_t5_tokenizer_gives_our_ids(folder, golden):
    """Where the text itself holds sentinels it puts its spaces elsewhere than SentencePiece."""
    ours = vocabulary(folder, "plain")
    for text, theirs in zip(golden["texts"], golden["ids"]["T5Tokenizer"], strict=True):
        if "<extra_id_" not in text and not text.startswith(MARKS):
            assert [*ours.encode(text).tolist(), 1] == theirs, text[:40]


@pytest.mark.parametrize("name", NAMES)
def test_special_ids_and_sentinels(folder, golden, name):
    ours, theirs = vocabulary(folder, name), golden["special"][name]
    pad = ours.eos_id if tokenizer_files.swapped_row(ours) else 0
    assert (theirs["pad"], theirs["eos"]) == (pad, ours.eos_id)
    assert theirs["size"] == ours.size
    if ours.num_sentinels:
        assert theirs["sentinels"] == [ours.sentinel(i) for i in range(3)]


@pytest.mark.parametrize("name", NAMES)
def test_the_files_are_read_again(folder, tmp_path, name):
    ours = vocabulary(folder, name)
    tokenizer_files.write(ours, tmp_path, LM if name in STARTS else T5)
    again = tokenizer_files.read(tmp_path, 600)
    assert (again.size, again.eos_id, again.num_sentinels) == (
        ours.size,
        ours.eos_id,
        ours.num_sentinels,
    )
    text = "A text,  with <extra_id_2> and\ttabs!"
    np.testing.assert_array_equal(again.encode(text), ours.encode(text))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "bytes"])
def test_the_json_is_what_transformers_was_asked_about(folder, golden, tmp_path, name):
    tokenizers = pytest.importorskip("tokenizers", reason="the extra hf isn't installed")
    tokenizer_files.write(vocabulary(folder, name), tmp_path, LM if name in STARTS else T5)
    read = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text, theirs in zip(golden["texts"], golden["ids"][name], strict=True):
        assert read.encode(text).ids == theirs
    for text, ids in zip(golden["texts"], golden["ids"][name], strict=True):
        if name in ("unigram", "bpe", "gpt2"):
            start = int(name == "gpt2")  # which is no character
            plain = read.decode(ids[start:], skip_special_tokens=False)
            assert plain.replace("<pad>", "").replace("</s>", "").replace(
                "<|endoftext|>", ""
            ) == text.replace("\u2581", " ")


def test_more_ids_than_rows(folder, tmp_path):
    tokenizer_files.write(vocabulary(folder, "unigram"), tmp_path, T5)
    with pytest.raises(UserError, match="has 420 ids and the embedding only 419 rows"):
        tokenizer_files.read(tmp_path, 419)


def test_text_at_id_0_changes_places_with_a_byte_that_no_text_has(folder, tmp_path):
    """Weights in a file's order: read in ours, written back in theirs, bit for bit."""
    ours = vocabulary(folder, "gpt2")
    row = tokenizer_files.swapped_row(ours)
    assert row > 0 and ours.encode("!").tolist() == [row]
    model = tl.Model(dataclasses.replace(LM, scale_attention=True))
    params = jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(0)))
    tl.save_pretrained(tmp_path / "with", model, params, ours)
    tl.save_pretrained(tmp_path / "without", model, params)
    written = json.loads((tmp_path / "with/config.json").read_text())
    eos = ours.eos_id
    assert (written["bos_token_id"], written["eos_token_id"]) == (row, eos)
    assert json.loads((tmp_path / "with/generation_config.json").read_text())["pad_token_id"] == eos

    _, again, read = tl.from_pretrained(tmp_path / "with")
    assert read.encode("Hi!").tolist() == ours.encode("Hi!").tolist()
    jax.tree.map(np.testing.assert_array_equal, again, params)
    source = pretrained.open_source(tmp_path / "with")
    (tmp_path / "with/tokenizer.json").rename(tmp_path / "aside.json")
    with pytest.raises(UserError, match=f"config.json says .*eos_token_id = {eos}: .*vocabulary"):
        tl.from_pretrained(tmp_path / "with")
    aside = HuggingFaceVocabulary(str(tmp_path / "aside.json"))
    _, again, read = tl.from_pretrained(tmp_path / "with", vocabulary=aside)
    assert read is aside
    jax.tree.map(np.testing.assert_array_equal, again, params)
    _, plain, read = tl.from_pretrained(tmp_path / "with", vocabulary="none")  # the file's ids
    assert read is None
    swap = np.arange(LM.vocab_size)
    swap[[0, row]] = row, 0
    table = ("token_embedder", "embedding")
    assert (plain[table[0]][table[1]] == params[table[0]][table[1]][swap]).all()
    head = source.parameters({n: s for n, s in shapes(params)})["decoder/logits_dense/kernel"]
    for start, stop in ((0, 4), (row, row + 1), (1, row), (row - 2, row + 2)):
        part = head.read((slice(2, 5), slice(start, stop)))
        assert (part == params["decoder"]["logits_dense"]["kernel"][2:5, start:stop]).all()


def shapes(params):
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape


def test_text_at_id_0_of_a_file_without_bytes_is_not_used(tmp_path, caplog):
    tokenizers = pytest.importorskip("tokenizers", reason="the extra hf isn't installed")
    words = tokenizers.models.WordLevel({"a": 0, "b": 1, "</s>": 2}, unk_token="b")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert tokenizer_files.read(tmp_path, 600) is None
    assert "ordinary text at id 0" in caplog.text
    assert tokenizer_files.text_at_zero(tmp_path) == "a"
    with pytest.raises(UserError, match=r"has text \('a'\) at id 0, which is padding here"):
        pretrained.require_padding(tmp_path)


def test_text_at_id_0_where_segment_ids_say_what_is_padding():
    """Id 0 is seen as any other: the same model with two ids' places swapped gives the same."""
    model = tl.Model(dataclasses.replace(LM, vocab_size=16, scale_attention=True))
    params = jax.jit(model.init)(jax.random.key(0))
    swap = np.arange(16)
    swap[[0, 9]] = 9, 0
    table = params["token_embedder"]["embedding"][swap]
    head = params["decoder"]["logits_dense"]["kernel"][:, swap]
    other = params | {"token_embedder": {"embedding": table}}
    other["decoder"] = params["decoder"] | {"logits_dense": {"kernel": head}}
    ids = np.array([[3, 0, 5, 7], [3, 9, 5, 7]])
    logits = []
    apply = jax.jit(model.apply)
    for weights, tokens in ((params, ids), (other, swap[ids])):
        batch = {"decoder_input_tokens": tokens, "decoder_target_tokens": tokens}
        batch["decoder_segment_ids"] = np.array([[1, 1, 1, 0]] * 2)
        logits.append(np.asarray(apply(weights, batch)[0])[:, :3])
    np.testing.assert_allclose(logits[1][..., swap], logits[0], rtol=1e-5, atol=1e-6)
    assert np.abs(logits[0][0, 2] - logits[0][1, 2]).max() > 1e-3  # 0 and 9 aren't the same


def llama2(tokenizers, texts):
    """Pieces of bytes where there is none of the text's, a space in front, id 0 for unknown."""
    t = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True))
    t.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("\u2581"), tokenizers.normalizers.Replace(" ", "\u2581")]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=special[:3], show_progress=False,
        initial_alphabet=special[3:],
    )  # fmt: skip
    t.train_from_iterator(texts, trainer)
    steps = tokenizers.decoders
    t.decoder = steps.Sequence(
        [steps.Replace("\u2581", " "), steps.ByteFallback(), steps.Fuse(), steps.Strip(" ", 1, 0)]
    )
    spec = json.loads(t.to_str())
    known = {piece: 3 + i for i, piece in enumerate(special[3:])}
    kept = [p for p in spec["model"]["vocab"] if p not in special]
    spec["model"]["vocab"] = {piece: i for i, piece in enumerate(special[:3])} | known
    spec["model"]["vocab"] |= {p: 259 + i for i, p in enumerate(kept)}
    return json.dumps(spec)


def llama3(tokenizers, texts):
    """Bytes by GPT-2's letters, cut by Llama 3's expression; text at id 0, special ids last."""
    t = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=True))
    cut = tokenizers.Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    before = tokenizers.pre_tokenizers
    t.pre_tokenizer = before.Sequence(
        [before.Split(cut, "isolated"), before.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=before.ByteLevel.alphabet()
    )
    t.train_from_iterator(texts, trainer)
    t.decoder = tokenizers.decoders.ByteLevel()
    t.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    return t.to_str()


@pytest.mark.parametrize("make", [llama2, llama3])
def test_tokenizers_of_llamas_kind(golden, tmp_path, make):
    """Ours gives the ids of the file, but for the text at id 0; and the text comes back."""
    tokenizers = pytest.importorskip("tokenizers", reason="the extra hf isn't installed")
    (tmp_path / "tokenizer.json").write_text(make(tokenizers, golden["texts"][2:10]))
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ours = HuggingFaceVocabulary(tmp_path / "tokenizer.json")
    count = theirs.get_vocab_size(with_added_tokens=True)
    row = tokenizer_files.swapped_row(ours)
    assert ours.size == count and (row > 0) == (make is llama3)
    for text in golden["texts"]:
        ids = np.array(theirs.encode(text, add_special_tokens=False).ids, np.int32)
        np.testing.assert_array_equal(ours.encode(text), np.where(ids == 0, row, ids), text[:40])
        assert 0 not in ours.encode(text)
        assert ours.decode(ours.encode(text)) == text


GENERATION = {"bos_token_id": 7, "eos_token_id": [9, 8], "pad_token_id": 8, "do_sample": True,
              "temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1}  # fmt: skip
SETTINGS = {"eos_token": "<end>", "pad_token": "<more>", "bos_token": "<start>",
            "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{{ 1 }}",
            "model_max_length": 512}  # fmt: skip


@pytest.fixture
def instruct(tmp_path):
    """A folder's tokenizer files, as those of an instruct model: letters at 0 to 6, marks above."""
    tokenizers = pytest.importorskip("tokenizers", reason="the extra hf isn't installed")
    made = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate("abcdefg")}, []))
    made.decoder = tokenizers.decoders.Fuse()
    made.add_special_tokens(["<start>", "<more>", "<end>"])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<start> $A", special_tokens=[("<start>", 7)]
    )
    folder = tmp_path / "in"
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    for name, values in (
        ("generation_config", GENERATION), ("tokenizer_config", SETTINGS),
        ("special_tokens_map", {"eos_token": "<end>", "pad_token": "<more>"}),
        ("config", {"eos_token_id": 9, "bos_token_id": 7, "pad_token_id": 8}),
    ):  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(values))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}\n\n")
    return folder


@pytest.mark.parametrize("hops", [1, 2])
def test_what_an_instruct_folder_says_comes_back(instruct, tmp_path, hops):
    """Also by way of a run, whose folder has no config.json."""
    source, ids = instruct, {}
    for hop in range(hops):
        target = tmp_path / f"out{hop}"
        target.mkdir()
        ids = tokenizer_files.write(HuggingFaceVocabulary(source / "tokenizer.json"), target, LM)
        (target / "special_ids.json").write_text(json.dumps(ids))  # as in a run's folder
        source = target
    read = lambda name: json.loads((source / name).read_text())  # noqa: E731
    assert ids == {"eos_token_id": 9, "bos_token_id": 7, "pad_token_id": 8}
    assert read("generation_config.json") == GENERATION
    assert read("tokenizer_config.json") == SETTINGS
    assert read("special_tokens_map.json") == {"eos_token": "<end>", "pad_token": "<more>"}
    assert (source / "chat_template.jinja").read_text() == "{{ messages[0].content }}\n\n"
    again = HuggingFaceVocabulary(source / "tokenizer.json")
    assert again.eos_ids == (9, 8) and again.settings.chat_template.endswith("\n\n")


def test_an_eos_that_was_chosen_is_written_before_the_files(instruct, tmp_path):
    (tmp_path / "out").mkdir()
    chosen = HuggingFaceVocabulary(instruct / "tokenizer.json", eos="<more>")
    assert chosen.eos_ids == (8, 9)
    ids = tokenizer_files.write(chosen, tmp_path / "out", LM)
    assert ids["eos_token_id"] == 8
    read = lambda name: json.loads((tmp_path / "out" / name).read_text())  # noqa: E731
    assert read("generation_config.json")["eos_token_id"] == [8, 9]
    assert read("tokenizer_config.json")["eos_token"] == "<more>"


def test_an_instruct_folder_goes_through_a_run_unchanged(instruct, tmp_path):
    model = tl.Model(dataclasses.replace(LM, vocab_size=16, scale_attention=True))
    params = jax.jit(model.init)(jax.random.key(0))
    published = HuggingFaceVocabulary(instruct / "tokenizer.json")
    tl.save_pretrained(tmp_path / "first", model, params, published)
    for source, target, kind in (("first", "run", "t5x_lite"), ("run", "again", "huggingface")):
        opened = pretrained.open_source(tmp_path / source)
        pretrained.convert(opened, tmp_path / target, kind, vocabulary=opened.vocabulary())
    names = ("tokenizer.json", "generation_config.json", "config.json", "tokenizer_config.json",
             "chat_template.jinja")  # fmt: skip
    for name in names:
        first, again = ((tmp_path / f / name).read_bytes() for f in ("first", "again"))
        assert first == again, name
    assert (tmp_path / "again/tokenizer.json").read_bytes() == (
        instruct / "tokenizer.json"
    ).read_bytes()
    assert json.loads((tmp_path / "again/generation_config.json").read_text()) == GENERATION
