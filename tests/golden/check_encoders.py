"""Exports the models of tests/golden/encoders: first step of checking that transformers opens them.

python tests/golden/check_encoders.py FOLDER        with t5x_lite
python tests/golden/make_encoders.py open FOLDER    with torch and transformers
"""

import sys
import tempfile
import zipfile
from pathlib import Path

import jax

import t5x_lite as tl
from t5x_lite.data.huggingface import HuggingFaceVocabulary

GOLDEN = Path(__file__).parent / "encoders"


def main(folder: Path) -> None:
    for source in sorted(p for p in GOLDEN.iterdir() if p.is_dir()):
        model, params, _ = tl.from_pretrained(source)
        tl.save_pretrained(folder / source.name, model, params)
    with tempfile.TemporaryDirectory() as temporary:
        with zipfile.ZipFile(GOLDEN / "wordpiece.zip") as file:
            (Path(temporary) / "vocab.txt").write_bytes(file.read("vocab.txt"))
        vocabulary = HuggingFaceVocabulary(Path(temporary) / "vocab.txt")
        bert = tl.TransformerConfig(
            512, 8, 2, 4, 8, 0, 1, "encoder_only", mlp_activations=("gelu",), norm="layer",
            norm_placement="post", embedding_norm=True, positions="learned", token_types=2,
            use_bias=True, scale_attention=True, tied_embeddings=True, scale_tied_logits=False,
            encoder_heads=("masked_lm",),
        )  # fmt: skip
        params = tl.Model(bert).init(jax.random.key(0))
        tl.save_pretrained(folder / "word_pieces", tl.Model(bert), params, vocabulary)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
