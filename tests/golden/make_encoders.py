"""Makes tests/golden/encoders: random BERTs and XLNets of transformers, and what they compute.

Run where torch and transformers are installed, from the root of the repository:

    python tests/golden/make_encoders.py                make all
    python tests/golden/make_encoders.py open FOLDER    open this package's exports of them

Each folder holds what `save_pretrained` wrote and outputs.npz: a batch as this package's features,
logits, and losses and gradients of some tensors by their names. FOLDER is what
`python tests/golden/check_encoders.py FOLDER` wrote. wordpiece.zip holds a vocabulary of BERT's
kind and the ids that BertTokenizerFast gives for some texts.
"""

import json
import math
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
import transformers as hf

FOLDER = Path(__file__).parent / "encoders"
V = 61
BERT = dict(
    vocab_size=V, hidden_size=20, num_hidden_layers=2, num_attention_heads=4, intermediate_size=28,
    max_position_embeddings=32, type_vocab_size=3, layer_norm_eps=1e-12, hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)  # fmt: skip
XLNET = dict(vocab_size=V, d_model=20, n_layer=2, n_head=4, d_inner=28, dropout=0.0)
HEADED = BERT | dict(num_hidden_layers=1)
MODELS = {
    "bert": (hf.BertForPreTraining, hf.BertConfig, BERT),
    "bert_masked": (hf.BertForMaskedLM, hf.BertConfig, BERT | dict(hidden_act="gelu_new")),
    "bert_body": (hf.BertModel, hf.BertConfig, BERT | dict(num_hidden_layers=1)),
    "bert_classes": (hf.BertForSequenceClassification, hf.BertConfig, HEADED | dict(num_labels=3)),
    "bert_tags": (hf.BertForTokenClassification, hf.BertConfig, HEADED | dict(num_labels=5)),
    "bert_span": (hf.BertForQuestionAnswering, hf.BertConfig, HEADED),
    "xlnet": (hf.XLNetLMHeadModel, hf.XLNetConfig, XLNET),
}


def main() -> None:
    for name, (kind, config, settings) in MODELS.items():
        torch.manual_seed(sum(name.encode()))
        config = config(**settings)
        config._attn_implementation = "eager"
        model = kind(config).eval()
        randomise(model)
        folder = FOLDER / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        measure = permuted if name == "xlnet" else masked
        outputs = (headed if settings is HEADED or "num_labels" in settings else measure)(model)
        np.savez_compressed(folder / "outputs.npz", **outputs)
        print(name, sum(f.stat().st_size for f in folder.iterdir()), "bytes")
    wordpiece()


def randomise(model) -> None:
    """Every number random, norms and biases too: their defaults of 1 and 0 hide mistakes."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.copy_(0.3 * torch.randn(p.shape) + (0.0 if name.endswith("bias") else 1.0))
            elif "embed" in name or "r_" in name or "mask_emb" in name:
                p.copy_(torch.randn(p.shape))
            else:
                p.copy_(torch.randn(p.shape) / math.sqrt(model.config.hidden_size))


def batch(rng) -> dict[str, np.ndarray]:
    B, S = 4, 24
    segments = np.ones((B, S), int)
    positions = np.tile(np.arange(S), (B, 1))
    segments[1, 17:] = 0  # padded on the right,
    segments[2, :5] = 0  # on the left,
    positions[2] = np.maximum(np.arange(S) - 5, 0)
    segments[3, 11:] = 2  # and two texts in a row
    positions[3, 11:] = np.arange(S - 11)
    return {
        "encoder_input_tokens": rng.integers(3, V, (B, S)) * (segments > 0),
        "encoder_segment_ids": segments,
        "encoder_positions": positions,
    }


def masked(model) -> dict[str, np.ndarray]:
    """BERT's two losses: the mean over masked tokens, and that over rows with a label."""
    rng = np.random.default_rng(1)
    found = batch(rng)
    segments = found["encoder_segment_ids"]
    found["encoder_types"] = rng.integers(0, 3, segments.shape) * (segments > 0)
    chosen = (rng.random(segments.shape) < 0.3) & (segments > 0)
    found["encoder_target_tokens"] = np.where(chosen, rng.integers(3, V, segments.shape), 0)
    found["encoder_pair_label"] = np.array(
        [[2], [1], [0], [2]]
    )  # none where the text is padded on the left
    seen = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
    mask = torch.where(torch.tensor(seen), 0.0, torch.finfo(torch.float32).min)[:, None]
    out = model(
        input_ids=torch.tensor(found["encoder_input_tokens"]), attention_mask=mask,
        position_ids=torch.tensor(found["encoder_positions"]),
        token_type_ids=torch.tensor(found["encoder_types"]), output_hidden_states=True,
    )  # fmt: skip
    arrays, losses = {}, []
    if isinstance(model, hf.BertModel):
        arrays = {"encoded": out.last_hidden_state, "pooled": out.pooler_output}
        pooled = out.pooler_output[[0, 1, 3]]
        losses.append(out.last_hidden_state[:, 6].square().sum() + pooled.sum())
    else:
        arrays["logits"] = out.logits if "logits" in out else out.prediction_logits
        labels = torch.tensor(np.where(chosen, found["encoder_target_tokens"], -100))
        losses.append(cross_entropy(arrays["logits"], labels))
    if isinstance(model, hf.BertForPreTraining):
        arrays["pair_logits"] = out.seq_relationship_logits
        arrays["pooled"] = model.bert.pooler(out.hidden_states[-1])
        # Theirs: 0 if the second text follows the first, 1 if it doesn't.
        labels = torch.tensor([0, 1, -100, 0])
        losses.append(cross_entropy(out.seq_relationship_logits, labels))
    return found | measured(model, arrays, losses)


def headed(model) -> dict[str, np.ndarray]:
    """A head's logits; and its loss, of the rows without padding, which theirs looks at, too."""
    rng = np.random.default_rng(3)
    found = batch(rng)
    segments = found["encoder_segment_ids"]
    found["encoder_types"] = rng.integers(0, 3, segments.shape) * (segments > 0)
    (B, S), whole = segments.shape, [0, 3]
    if isinstance(model, hf.BertForQuestionAnswering):
        found["encoder_span"] = np.zeros((B, 2), int)
        found["encoder_span"][whole] = [[5, 9], [1, 1]]
    elif isinstance(model, hf.BertForTokenClassification):
        chosen = (rng.random((B, S)) < 0.4) & np.isin(np.arange(B), whole)[:, None]
        found["encoder_tags"] = np.where(chosen, rng.integers(1, 6, (B, S)), 0)
    else:
        found["encoder_label"] = np.array([[3], [0], [0], [1]])
    seen = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
    mask = torch.where(torch.tensor(seen), 0.0, torch.finfo(torch.float32).min)[:, None]
    labels = {}
    if "encoder_span" in found:  # theirs leaves out what is beyond the row
        first, last = np.where(found["encoder_span"] > 0, found["encoder_span"] - 1, S).T
        labels = {"start_positions": torch.tensor(first), "end_positions": torch.tensor(last)}
    else:
        given = found["encoder_tags"] if "encoder_tags" in found else found["encoder_label"][:, 0]
        labels["labels"] = torch.tensor(np.where(given > 0, given - 1, -100))
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(found["encoder_input_tokens"]), attention_mask=mask,
            position_ids=torch.tensor(found["encoder_positions"]),
            token_type_ids=torch.tensor(found["encoder_types"]), **labels,
        )  # fmt: skip
    if "encoder_span" in found:
        found["span_logits"] = torch.stack([out.start_logits, out.end_logits], -1).numpy()
    else:
        name = "tag_logits" if "encoder_tags" in found else "class_logits"
        found[name] = out.logits.numpy()
    return found | {"losses": np.array([out.loss.item()], np.float32)}


def permuted(model) -> dict[str, np.ndarray]:
    """XLNet's loss, the mean over the tokens predicted; and the content stream's logits alone."""
    rng = np.random.default_rng(2)
    found = batch(rng)
    tokens, segments = found["encoder_input_tokens"], found["encoder_segment_ids"]
    B, S = tokens.shape
    order = np.where(segments > 0, 1, 0)
    for b in range(B):
        for segment in set(segments[b]) - {0}:
            places = rng.permutation(np.flatnonzero(segments[b] == segment))[:4]
            order[b, places] = np.arange(2, 2 + len(places))
    types = (np.arange(S) > 7)[None] * (segments > 0)
    found |= {"encoder_order": order, "encoder_types": types.astype(int)}
    found["encoder_target_tokens"] = np.where(order > 1, tokens, 0)
    i, j = order[:, :, None], order[:, None, :]
    together = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
    # Tokens of the context see each other; the query stream is asked of the others only.
    forbidden = ~(together & ((j < i) | ((i == 1) & (j == 1))))
    mapping = torch.eye(S).expand(B, S, S)
    ids = torch.tensor(tokens)
    arguments = dict(perm_mask=torch.tensor(forbidden).float(), use_mems=False)
    typed = torch.tensor(found["encoder_types"])
    out = model(ids, target_mapping=mapping, token_type_ids=typed, **arguments)
    labels = torch.tensor(np.where(order > 1, tokens, -100))
    loss = cross_entropy(out.logits, labels)
    with torch.no_grad():
        arguments["perm_mask"] = torch.tensor(~together).float()
        content = model(ids, **arguments).logits  # no types either
    return found | measured(model, {"logits": out.logits, "content_logits": content}, [loss])


def cross_entropy(logits, labels):
    return torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


def measured(model, arrays, losses) -> dict[str, np.ndarray]:
    sum(losses).backward()
    found = {name: array.detach().numpy() for name, array in arrays.items()}
    found["losses"] = np.array([loss.item() for loss in losses], np.float32)
    named = {n: p for n, p in model.named_parameters() if p.grad is not None}
    parts = ("word_embedding", "type_embeddings", "mask_emb", "layer.0", "seq_relationship",
             "transform", "pooler", "predictions.bias", "lm_loss.bias")  # fmt: skip
    chosen = [n for n in named if any(part in n for part in parts)]
    return found | {f"grads/{name}": named[name].grad.numpy() for name in chosen}


TEXTS = [
    "The quick brown fox didn't jump; it sat.", "UPPER lower Ünïcödé naïve façade", "",
    "  spaces\tand\nlines  ", "emoji 🙂🙃 and 中文字 mixed", "e\u0301 e\u0323\u0301 combining",
    "a\u200bzero\u00a0width", "[CLS] in the text [SEP] and [MASK]", "x" * 500,
    "supercalifragilistic 3.14159 @user #tag http://a.b/c?d=e",
]  # fmt: skip


def wordpiece() -> None:
    import tokenizers

    made = tokenizers.BertWordPieceTokenizer(lowercase=True)
    text = [str(hf.__doc__ or ""), *(json.dumps(vars(hf.BertConfig())) for _ in range(3)), *TEXTS]
    made.train_from_iterator(text, vocab_size=300, min_frequency=1, show_progress=False)
    with tempfile.TemporaryDirectory() as folder:
        made.save_model(folder)
        theirs, entries = {}, {"vocab.txt": (Path(folder) / "vocab.txt").read_bytes()}
        for lower in (True, False):
            tokenizer = hf.BertTokenizerFast(vocab=str(Path(folder) / "vocab.txt"),
                                             do_lower_case=lower)  # fmt: skip
            saved = Path(folder) / f"lower_{lower}"
            tokenizer.save_pretrained(saved)
            for name in ("tokenizer.json", "tokenizer_config.json"):
                entries[f"lower_{lower}/{name}"] = (saved / name).read_bytes()
            # Without special tokens, and without taking those spelt in the text for them.
            ids = tokenizer(TEXTS, add_special_tokens=False, split_special_tokens=True).input_ids
            special = tokenizer.convert_tokens_to_ids(
                ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
            )
            theirs[f"lower_{lower}"] = {"ids": ids, "special": special}
    entries["transformers.json"] = json.dumps({"texts": TEXTS, **theirs}).encode()
    with zipfile.ZipFile(FOLDER / "wordpiece.zip", "w", zipfile.ZIP_LZMA) as file:
        for name, data in entries.items():
            file.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), data, zipfile.ZIP_LZMA)


def open_all(folder: Path) -> None:
    for name, (kind, _, _) in MODELS.items():
        before = kind.from_pretrained(FOLDER / name).state_dict()
        model, info = kind.from_pretrained(folder / name, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"], info
        after = model.state_dict()
        assert before.keys() == after.keys(), before.keys() ^ after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before), name
        auto = hf.AutoModel.from_pretrained(folder / name)
        print(f"{name}: {kind.__name__}, {len(after)} tensors equal; {type(auto).__name__}")
    with zipfile.ZipFile(FOLDER / "wordpiece.zip") as file:
        golden = json.loads(file.read("transformers.json"))
    tokenizer = hf.AutoTokenizer.from_pretrained(folder / "word_pieces")
    special = golden["lower_True"]["special"]
    for text, ids in zip(golden["texts"], golden["lower_True"]["ids"], strict=True):
        found = tokenizer(text, split_special_tokens=True).input_ids
        assert found == [special[2], *ids, special[3]], text
    names = [tokenizer.pad_token, tokenizer.unk_token, tokenizer.cls_token, tokenizer.sep_token]
    assert tokenizer.convert_tokens_to_ids([*names, tokenizer.mask_token]) == special
    print(f"word_pieces: {type(tokenizer).__name__}, {len(golden['texts'])} texts equal")


if __name__ == "__main__":
    if sys.argv[1:2] == ["open"]:
        open_all(Path(sys.argv[2]))
    else:
        main()
