"""Opens what t5x_lite exports in transformers: the parameters must be those it started from.

In two steps, as they needn't live together; from the root of the repository:

    python tests/golden/check_exports.py write FOLDER [NAME ...]     with t5x_lite
    python tests/golden/check_exports.py open FOLDER [NAME ...]      with torch and transformers
"""

import sys
from pathlib import Path

GOLDEN = Path(__file__).parent / "huggingface"


def sources() -> list[Path]:
    chosen = sys.argv[3:]
    return sorted(p for p in GOLDEN.iterdir() if p.is_dir() and (not chosen or p.name in chosen))


def write(folder: Path) -> None:
    import t5x_lite as tl
    from t5x_lite.interop import pretrained

    for source in sources():
        model, params, _ = tl.from_pretrained(source)
        tl.save_pretrained(folder / source.name, model, params)
        tl.save_pretrained(folder / f"{source.name}-bf16", model, params, dtype="bfloat16")
        opened = pretrained.open_source(source)
        pretrained.convert(opened, folder / f"{source.name}-run", "t5x_lite")
        opened = pretrained.open_source(folder / f"{source.name}-run")
        pretrained.convert(opened, folder / f"{source.name}-back", "huggingface")


def open_all(folder: Path) -> None:
    import numpy as np
    import torch
    import transformers as hf

    for source in sources():
        seq2seq = source.name.startswith(("t5", "mt5", "umt5", "ul2"))
        kind = hf.AutoModelForSeq2SeqLM if seq2seq else hf.AutoModelForCausalLM
        before = kind.from_pretrained(source, dtype="float32").state_dict()
        outputs = dict(np.load(source / "outputs.npz"))
        for name in ("", "-back", "-bf16"):
            model, info = kind.from_pretrained(
                folder / (source.name + name), dtype="auto", output_loading_info=True
            )
            assert not info["missing_keys"] and not info["unexpected_keys"], info
            after = model.state_dict()
            assert before.keys() == after.keys(), before.keys() ^ after.keys()
            for key, value in before.items():
                wanted = value.to(after[key].dtype)
                assert torch.equal(wanted, after[key]), (source.name, key)
                assert after[key].dtype == (torch.bfloat16 if name == "-bf16" else torch.float32)
            said = f"{len(after)} tensors equal"
            model.config._experts_implementation = "eager"  # others want sizes of 16 bytes
            if source.name == "umt5":  # transformers 5 scales its output by mistake
                model.config.tie_word_embeddings = False
            if name != "-bf16" and "decoder_input_tokens" in outputs:
                decoder_ids = torch.tensor(outputs["decoder_input_tokens"])
                real = outputs["decoder_target_tokens"] > 0
                with torch.no_grad():
                    if seq2seq:
                        ids = torch.tensor(outputs["encoder_input_tokens"])
                        logits = model(ids, (ids > 0).long(), decoder_ids, use_cache=False).logits
                    else:  # of the first row, which is padded at its end
                        logits, real[1:] = model(decoder_ids[:1]).logits, False
                worst = np.abs(logits.numpy() - outputs["logits"])[real].max()
                assert worst < 1e-5 * np.abs(outputs["logits"]).max(), worst
                said += f", logits within {worst:.1e}"
            print(f"{source.name}{name}: {type(model).__name__}, {said}")


if __name__ == "__main__":
    {"write": write, "open": open_all}[sys.argv[1]](Path(sys.argv[2]))
