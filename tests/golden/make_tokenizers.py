"""Makes tests/golden/tokenizers.zip: small vocabularies, and the ids that transformers gives.

In two steps, as t5x_lite and transformers needn't live together; from the root of the repository:

    python tests/golden/make_tokenizers.py train FOLDER      with t5x_lite and tokenizers
    python tests/golden/make_tokenizers.py ask FOLDER        with transformers and sentencepiece

The first trains the vocabularies and exports them; the second asks AutoTokenizer about the exports
and writes the zip.
"""

import json
import sys
import unicodedata
import zipfile
from pathlib import Path

SENTINELS = 12
TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  two spaces  and three   more ",
    "tabs\tand\t\ttabs\nlines\r\nand\n\n\nmore",
    "emoji: \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f3fd \u2764\ufe0f",
    unicodedata.normalize("NFD", "café naïve Ångström ü"),
    "e\u0301\u0323\u0327 \u0928\u093f\u0902 \u0e01\u0e33",  # marks upon marks
    "\uff21\uff22\uff23 \ufb01 \u2460 \u00bd \u3000 ideographic\u00a0no-break",
    "日本語のテキスト, 한국어, العربية, עברית",
    "zero\u200bwidth \ufeff bom \u00ad soft",
    "def f(x):\n    return [x_1 for x_1 in range(10)]  # 1_000\n",
    "x<extra_id_0>y <extra_id_1> z<extra_id_11>",
    "<extra_id_3> first",
    "<extra_id_99> unknown sentinel",
    "\x00\x01\x7f control",
    "[NLU] a mode",
    "a" * 10_000,
    "\u00e9\u4e2d" * 500,
]


def train(folder: Path) -> None:
    import sentencepiece
    import tokenizers

    import t5x_lite as tl
    from t5x_lite.data.huggingface import HuggingFaceVocabulary
    from t5x_lite.interop import tokenizer_files

    folder.mkdir(parents=True)
    source = tl.PythonLibrary().split("train")
    texts = [source[i]["text"][:4000] for i in range(0, 400, 5)] + ["Café naïve über 日本 é中"] * 20
    common = dict(size=420, extra_ids=SENTINELS)
    made = {
        "t5": tl.train_sentencepiece(texts, folder / "t5.model", lossless=False, **common),
        "unigram": tl.train_sentencepiece(
            texts, folder / "unigram.model", user_symbols=["[NLU]"], **common
        ),
        "bpe": tl.train_sentencepiece(texts, folder / "bpe.model", model_type="bpe", **common),
        "bytes": tl.ByteVocabulary(),
    }
    gpt2 = tokenizers.ByteLevelBPETokenizer()
    gpt2.train_from_iterator(texts, vocab_size=400, special_tokens=[], show_progress=False)
    gpt2.add_special_tokens(["<|endoftext|>"])
    gpt2.save(str(folder / "gpt2.json"))
    made["gpt2"] = HuggingFaceVocabulary(folder / "gpt2.json")
    made["gpt2_sentinels"] = HuggingFaceVocabulary(folder / "gpt2.json", extra_ids=SENTINELS)
    # As the published ones: no bytes, and sentinels that the readers add.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(folder / "plain"), vocab_size=400,
        normalization_rule_name="nmt_nfkc", pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        character_coverage=0.999, minloglevel=2,
    )  # fmt: skip
    (folder / "plain.vocab").unlink()
    made["plain"] = tl.SentencePieceVocabulary(folder / "plain.model")
    t5 = tl.TransformerConfig(600, 8, 2, 4, 8, 1, 1)
    lm = tl.TransformerConfig(600, 8, 2, 4, 8, 1, architecture="decoder_only", positions="rope")
    for name, vocabulary in made.items():
        out = folder / "exported" / name
        out.mkdir(parents=True)
        model = lm if name in ("bpe", "gpt2") else t5
        tokenizer_files.write(vocabulary, out, model)


def ask(folder: Path) -> None:
    import transformers as hf

    found: dict = {"texts": TEXTS, "ids": {}, "decoded": {}, "special": {}}
    for out in sorted((folder / "exported").iterdir()):
        tokenizer = hf.AutoTokenizer.from_pretrained(out)
        encoded = [tokenizer(text).input_ids for text in TEXTS]
        found["ids"][out.name] = encoded
        found["decoded"][out.name] = [
            tokenizer.decode(ids, skip_special_tokens=False) for ids in encoded
        ]
        found["special"][out.name] = {
            "class": type(tokenizer).__name__,
            "pad": tokenizer.pad_token_id,
            "eos": tokenizer.eos_token_id,
            "sentinels": tokenizer.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(3)]),
            "size": len(tokenizer),
        }
    # What transformers itself makes of a T5 vocabulary.
    plain = folder / "plain"
    plain.mkdir(exist_ok=True)
    (plain / "spiece.model").write_bytes((folder / "plain.model").read_bytes())
    own = hf.T5Tokenizer.from_pretrained(plain)
    found["ids"]["T5Tokenizer"] = [own(text).input_ids for text in TEXTS]
    with zipfile.ZipFile(Path(__file__).parent / "tokenizers.zip", "w", zipfile.ZIP_LZMA) as file:
        entries = {p.name: p.read_bytes() for p in sorted(folder.glob("*.*")) if p.is_file()}
        entries["transformers.json"] = json.dumps(found).encode()
        for name, data in entries.items():
            file.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), data, zipfile.ZIP_LZMA)


if __name__ == "__main__":
    {"train": train, "ask": ask}[sys.argv[1]](Path(sys.argv[2]))
