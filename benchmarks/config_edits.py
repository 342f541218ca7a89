"""Edits of config.json and what transformers makes of them: the other half of config_fuzz.py.

  TORCH_ENVIRONMENT/bin/python benchmarks/config_edits.py FOLDER [BASE ...]

Needs torch and transformers, not this package. For each base, a tiny random model that transformers
saved (those of tests/golden, and some more that are made here from seeds), it writes FOLDER/BASE:
the model, edits.json (each edit, and the refusal of transformers or the weights that it would draw
at random), and logits.npz (the logits of each edit that it opens).

Edits: every field of the base removed, nulled, and under its other spellings; every field of the
class and of all its siblings with several values; combinations that matter together; random pairs.
"""

import dataclasses
import json
import os
import random
import resource
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from transformers.activations import ACT2CLS

GOLDEN = Path(__file__).resolve().parent.parent / "tests/golden"
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe", "gemma", "gemma2")
DECODERS += ("gemma3_text",)
KINDS = (*DECODERS, "t5", "mt5", "umt5", "gpt2", "bert", "xlnet")
LOCAL, FULL = "sliding_attention", "full_attention"

_D = dict(vocab_size=61, hidden_size=24, intermediate_size=28, num_hidden_layers=2,
          num_attention_heads=6, num_key_value_heads=2, rms_norm_eps=2e-5,
          max_position_embeddings=64)  # fmt: skip
_T = dict(vocab_size=61, d_model=20, d_kv=6, d_ff=24, num_layers=2, num_decoder_layers=2,
          num_heads=3, dropout_rate=0.0)  # fmt: skip
# Heads that share the width, windows in all layers, tables tied and not: what golden models lack.
MADE = {
    "llama_whole_heads": ("llama", _D),
    "mistral_whole_heads": ("mistral", _D | dict(sliding_window=3)),
    "qwen2_window": ("qwen2", _D | dict(use_sliding_window=True, sliding_window=3,
                                        max_window_layers=0)),
    "qwen3_window": ("qwen3", _D | dict(head_dim=4, use_sliding_window=True, sliding_window=3,
                                        max_window_layers=0)),
    "mixtral_whole_heads": ("mixtral", _D | dict(num_local_experts=4)),
    "qwen3_moe_window": ("qwen3_moe", _D | dict(
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12, norm_topk_prob=True,
        use_sliding_window=True, sliding_window=3)),
    "gemma_untied": ("gemma", _D | dict(head_dim=4, tie_word_embeddings=False)),
    "gemma2_whole_heads": ("gemma2", _D | dict(head_dim=4, num_hidden_layers=4, sliding_window=3)),
    "gemma3_six": ("gemma3_text", _D | dict(head_dim=4, num_hidden_layers=7, sliding_window=3)),
    "t5_tied_gated": ("t5", _T | dict(feed_forward_proj="gated-gelu")),
    "mt5_tied": ("mt5", _T),
    "gpt2_untied": ("gpt2", dict(vocab_size=61, n_embd=20, n_layer=2, n_head=4, n_positions=64,
                                 tie_word_embeddings=False)),
}  # fmt: skip
ENCODERS = ("encoders/bert_masked", "encoders/xlnet")
ACTIVATIONS = [*ACT2CLS, "geglu", "GELU", "gelu_tanh", "softmax", "exact_gelu"]
ROPES = [
    dict(type="linear", factor=2.0), dict(rope_type="linear", factor=2.0),
    dict(rope_type="default"), dict(type="default"), dict(rope_type="dynamic", factor=2.0),
    dict(type="dynamic", factor=2.0),
    dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16),
    dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
         original_max_position_embeddings=16),
    dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0),
    dict(type="linear", rope_type="default", factor=4.0),
    dict(type="linear", rope_type="linear", factor=4.0),
    dict(rope_type="linear", factor=2), dict(rope_type="linear"), dict(factor=2.0),
    dict(type="su", short_factor=[1.0] * 3, long_factor=[2.0] * 3),
    dict(rope_type="proportional", partial_rotary_factor=0.5),
    dict(rope_type="default", partial_rotary_factor=0.5), dict(rope_type="default", factor=3.0),
    dict(type="mrope", mrope_section=[1, 1, 1]), {},
    dict(rope_type="longrope", short_factor=[1.0] * 3, long_factor=[2.0] * 3),
]  # fmt: skip
VALUES = {
    **dict.fromkeys(
        ("hidden_act", "hidden_activation", "activation_function", "ff_activation", "dense_act_fn"),
        ACTIVATIONS,
    ),
    "feed_forward_proj": ["relu", "gelu", "gelu_new", "silu", "swish", "gated-gelu", "gated-relu",
                          "gated-silu", "gated-gelu_new", "gated-gelu_fast", "gated-tanh", "gated",
                          "gelu_fast", "quick_gelu", "relu-gated", "gated-gated-gelu"],
    "rope_scaling": ROPES,
    "rope_parameters": [*ROPES, *(r | dict(rope_theta=77.0) for r in ROPES[:9]), {
        FULL: dict(rope_type="default", rope_theta=77.0),
        LOCAL: dict(rope_type="default", rope_theta=99.0)}, {
        FULL: dict(rope_type="linear", rope_theta=77.0, factor=3.0), LOCAL: None},
        {FULL: dict(rope_type="default", rope_theta=77.0)},
        {FULL: dict(rope_type="default"), LOCAL: dict(rope_type="linear", factor=2.0)}],
    "rope_theta": [77.0, 77, 0, "10000", 1e6],
    "rope_local_base_freq": [55.0, 1e4],
    "layer_types": ["FULL", "LOCAL", "MIX", "XIM", "SHORT", "LINEAR"],
    "use_sliding_window": [True, False],
    "sliding_window": [None, 0, 1, 3, 4096, "3", 3.0],
    "sliding_window_pattern": [1, 2, 3, 6, 0],
    "_sliding_window_pattern": [1, 2, 3, 6],
    "max_window_layers": [0, 1, 2, 28],
    "num_key_value_heads": [None, 1, 2, 4, 6],
    "head_dim": [None, 3, 4, 6, 10],
    "num_attention_heads": [2, 3, 4, 12],
    "tie_word_embeddings": [True, False, None, "false"],
    "scale_decoder_outputs": [True, False, None],
    "is_gated_act": [True, False, None],
    "query_pre_attn_scalar": [3, 3.5, 256, None],
    "final_logit_softcapping": [None, 3.0, 30.0],
    "attn_logit_softcapping": [None, 3.0, 50.0],
    "num_experts_per_tok": [1, 2, 3],
    "num_local_experts": [2, 4, 5, 6],
    "num_experts": [2, 4, 5, 6],
    "norm_topk_prob": [True, False],
    "decoder_sparse_step": [1, 2],
    "mlp_only_layers": [[], [0], [1]],
    "moe_intermediate_size": [9, 12, 14],
    "router_jitter_noise": [0.0, 0.3],
    "shared_expert_intermediate_size": [8],
    "n_shared_experts": [1],
    "attention_bias": [True, False],
    "mlp_bias": [True, False],
    "use_bidirectional_attention": [True, False, None],
    "is_causal": [True, False],
    "partial_rotary_factor": [0.5, 1.0],
    "position_embedding_type": ["absolute", "relative_key", "rope"],
    "attn_type": ["bi", "uni"],
    "clamp_len": [-1, 0, 3],
    "d_head": [None, 5, 7],
    "n_token": [61, 89],
    "pad_token_id": [0, 5, None, -1],
    "eos_token_id": [1, 7, [1, 2], None],
    "bos_token_id": [0, 1, None],
    "architectures": [["LlamaModel"], ["LlamaForSequenceClassification"], ["T5EncoderModel"], None],
    "dtype": ["float16", "bfloat16"],
    "torch_dtype": ["float16"],
    "id2label": [{"0": "a", "1": "b", "2": "c"}],
    "rms_norm_eps": [0.1, 1, 1e-5, 1e-6],
    "layer_norm_epsilon": [0.1, 1e-5, 1e-6],
    "layer_norm_eps": [0.1, 1e-5],
    "quantization_config": [dict(quant_method="gptq", bits=4)],
    "text_config": [dict(hidden_act="relu")],
    "dual_chunk_attention_config": [dict(chunk_size=8)],
    "no_rope_layers": [[1, 0]],
    "summary_type": ["mean"],
    "chunk_size_feed_forward": [3, 4],
}  # fmt: skip
# Of models that aren't read here, or of none.
STRANGE = dict(
    logit_scale=0.5, logits_scaling=2.0, embedding_multiplier=3.0, residual_multiplier=0.5,
    attention_multiplier=0.2, use_qk_norm=True, qk_layernorm=True, rotary_dim=2, rope_pct=0.5,
    rope_interleaved=True, use_mrope=True, attention_chunk_size=4, mup_scale=2.0,
    num_nextn_predict_layers=1, norm_type="layer_norm", rms_norm_add_unit_offset=True,
    nope_layer_interval=2, clip_qkv=0.5, parallel_attn=True, multi_query=True, alibi=True,
    is_causal=False, original_max_position_embeddings=16, attn_implementation="eager",
    per_layer_config={"0": {"hidden_act": "relu"}}, embedding_size=8, pooler_type="mean",
    scalable_attention=True, use_mems=True, n_positions=5, foo=1, use_cache=False, top_k=3,
    partial_rotary_factor=0.5, quantization_config=0, text_config=0, no_rope_layers=0,
    dual_chunk_attention_config=0, position_embedding_type=0, n_token=0, id2label=0,
    sliding_window_pattern=0, _sliding_window_pattern=0, n_shared_experts=0, rope_theta=0,
    shared_expert_intermediate_size=0, rope_scaling=0, rope_local_base_freq=0, torch_dtype=0,
    dense_act_fn=0, is_gated_act=0, scale_decoder_outputs=0, qk_norm=True, use_bias=True,
)  # fmt: skip
# What belongs together: (fields to take out, fields to set).
TOGETHER = [
    *((("rope_parameters",), dict(rope_scaling=r, rope_theta=77.0)) for r in ROPES),
    (("rope_parameters",), dict(rope_theta=77.0)),
    (("rope_parameters",), dict(rope_theta=77.0, rope_local_base_freq=55.0)),
    (("rope_parameters",), dict(rope_theta=77.0, rope_local_base_freq=55.0, rope_scaling=ROPES[1])),
    ((), dict(rope_scaling=ROPES[1], rope_parameters=dict(rope_type="default", rope_theta=99.0))),
    ((), dict(rope_scaling=ROPES[1], rope_parameters=ROPES[1])),
    *(((), dict(use_sliding_window=u, sliding_window=w, max_window_layers=m))
      for u in (True, False) for w in (3, None) for m in (0, 1, 28)),
    *((("layer_types",), dict(use_sliding_window=u, sliding_window=3, max_window_layers=m))
      for u in (True, False) for m in (0, 1, 28)),
    *(((), dict(use_sliding_window=u, sliding_window=w, layer_types=t))
      for u in (True, False) for w in (3, None) for t in ("LOCAL", "FULL", "MIX")),
    *((("layer_types",), dict(sliding_window=3, sliding_window_pattern=p)) for p in (1, 2, 3, 6)),
    (("layer_types",), dict(sliding_window=3)),
    (("layer_types",), dict(sliding_window=3, _sliding_window_pattern=3)),
    (("layer_types", "sliding_window_pattern"), dict(_sliding_window_pattern=2)),
    (("layer_types", "sliding_window_pattern", "_sliding_window_pattern"), {}),
    *(((), dict(hidden_act=a, hidden_activation=b))
      for a in ("gelu", "gelu_pytorch_tanh", "relu") for b in ("gelu", "gelu_new", "relu")),
    *(((), dict(feed_forward_proj=a, dense_act_fn=b, is_gated_act=g))
      for a in ("gated-gelu", "relu") for b in ("gelu", "gelu_new", "relu", "tanh")
      for g in (True, False)),
    *((("dense_act_fn", "is_gated_act"), dict(feed_forward_proj=a))
      for a in VALUES["feed_forward_proj"]),
    *(((), dict(tie_word_embeddings=t, scale_decoder_outputs=s))
      for t in (True, False) for s in (True, False)),
    *((("scale_decoder_outputs",), dict(tie_word_embeddings=t)) for t in (True, False, None)),
    (("scale_decoder_outputs", "tie_word_embeddings"), {}),
    (("num_local_experts",), dict(num_experts=5)), (("num_experts",), dict(num_local_experts=4)),
    ((), dict(num_local_experts=4, num_experts=5)),
    (("num_local_experts", "num_experts"), {}),
    ((), dict(norm_topk_prob=True, num_experts_per_tok=1)),
    ((), dict(attention_bias=True, mlp_bias=True)),
    ((), dict(query_pre_attn_scalar=5, attn_logit_softcapping=2.0, final_logit_softcapping=2.0)),
]  # fmt: skip


def main(folder: Path, only: list[str]) -> None:
    places = [*sorted((GOLDEN / "huggingface").iterdir()), *(GOLDEN / name for name in ENCODERS)]
    bases = {place.name: place for place in places}
    for name in [*bases, *MADE]:
        if only and name not in only:
            continue
        place = folder / name
        shutil.rmtree(place, ignore_errors=True)
        (place / "edit").mkdir(parents=True)
        if name in MADE:
            make(*MADE[name], place / "base")
        else:
            shutil.copytree(bases[name], place / "base")
        base = json.loads((place / "base/config.json").read_text())
        for file in (place / "base").glob("model*"):
            os.symlink(file.resolve(), place / "edit" / file.name)
        found, logits = [], {}
        for i, (drop, fields) in enumerate(edits(base, random.Random(name))):
            config = {k: v for k, v in (base | fields).items() if k not in drop or k in fields}
            (place / "edit/config.json").write_text(json.dumps(config))
            row = dict(drop=drop, set=fields)
            try:
                logits[f"e{i}"], missing = opened(place / "edit", base["model_type"])
                row |= dict(drawn=missing)
            except Exception as error:  # noqa: BLE001
                row |= dict(refused=f"{type(error).__name__}: {' '.join(str(error).split())}"[:200])
            found.append(row)
        np.savez_compressed(place / "logits.npz", **logits)
        (place / "edits.json").write_text(json.dumps(found, indent=0))
        print(name, len(found), "edits,", sum("refused" in row for row in found), "refused there",
              flush=True)  # fmt: skip


def config_class(kind: str):
    return hf.models.auto.configuration_auto.CONFIG_MAPPING[kind]


def auto(kind: str):
    if kind in ("t5", "mt5", "umt5"):
        return hf.AutoModelForSeq2SeqLM
    return hf.AutoModelForMaskedLM if kind == "bert" else hf.AutoModelForCausalLM


def make(kind: str, settings: dict, folder: Path) -> None:
    """A random model: every number, norms and biases too."""
    torch.manual_seed(sum(folder.parent.name.encode()))
    none = {} if "t5" in kind else dict(pad_token_id=None, bos_token_id=None, eos_token_id=None)
    model = auto(kind).from_config(config_class(kind)(**settings, **none))
    neutral = 0.0 if kind.startswith("gemma") else 1.0
    with torch.no_grad():
        for name, p in model.named_parameters():
            drawn = torch.randn(p.shape)
            if p.ndim == 1:
                p.copy_(0.3 * drawn + (0.0 if name.endswith("bias") else neutral))
            else:
                table = any(part in name for part in ("embed", "shared", "wte", "wpe", "relative"))
                p.copy_(drawn * (1.0 if table else 0.25))
    model.save_pretrained(folder)


def edits(base: dict, rng: random.Random):
    """(fields taken out, fields set), each once; the first is none."""
    kind, layers = base["model_type"], base.get("num_hidden_layers", 2)
    own = [name for name in base if name not in ("model_type", "architectures")]
    found = [((), {})]
    found += [((name,), {}) for name in own]
    found += [((), {name: None}) for name in own]
    siblings = KINDS if kind in DECODERS else ("t5", "gpt2", "bert", "xlnet", "llama", "gemma2")
    known: dict[str, list] = {}
    for sibling in (kind, *siblings):
        kept = config_class(sibling)
        for field in dataclasses.fields(kept):
            if field.name not in ("transformers_version", "vocab_size"):
                known.setdefault(field.name, values(field.name, field.default))
        for alias, name in kept.attribute_map.items():
            known.setdefault(alias, values(alias, base.get(name, 4)))
    for name, value in STRANGE.items():
        known.setdefault(name, VALUES.get(name, [value]))
    found += [((), {name: value}) for name, several in known.items() for value in several]
    for alias, name in config_class(kind).attribute_map.items():
        alias, name = (alias, name) if name in base else (name, alias)
        if name in base:
            found.append(((name,), {alias: base[name]}))
            found.append(((), {alias: base[name]}))
    for name in own:  # misspelt, and thus taken out
        parts = name.split("_")
        wrong = rng.choice([f"_{name}", f"{name}s", parts[0] + "".join(map(str.title, parts[1:]))])
        if wrong not in base:
            found.append(((name,), {wrong: base[name]}))
    found += [((), {"model_type": sibling}) for sibling in KINDS]
    found += TOGETHER
    singles = [(drop, fields) for drop, fields in found if len(drop) + len(fields) == 1]
    for _ in range(30):
        (drop, fields), (drop_2, fields_2) = rng.sample(singles, 2)
        found.append(((*drop, *drop_2), fields | fields_2))
    seen = set()
    for drop, fields in found:
        fields = {name: filled(value, layers) for name, value in fields.items()}
        drop = [name for name in drop if name in base]
        same = all(name in base and base[name] == value for name, value in fields.items())
        key = json.dumps([sorted(drop), fields], sort_keys=True)
        if key not in seen and not (same and not drop and seen):
            seen.add(key)
            yield drop, fields


def values(name: str, default) -> list:
    if name in VALUES:
        return VALUES[name]
    if isinstance(default, bool):
        return [not default, default]
    if isinstance(default, int):
        return [default + 1 if default < 512 else 96, 2]
    if isinstance(default, float):
        return [default / 2 + 0.1]
    return ["eager" if isinstance(default, str) else 3]


def filled(value, layers: int):
    if not isinstance(value, str):
        return value
    each = {
        "FULL": lambda i: FULL,
        "LOCAL": lambda i: LOCAL,
        "MIX": lambda i: FULL if i % 2 else LOCAL,
        "XIM": lambda i: LOCAL if i % 2 else FULL,
        "SHORT": lambda i: FULL,
        "LINEAR": lambda i: "linear_attention",
    }
    if value not in each:
        return value
    return [each[value](i) for i in range(layers - (value == "SHORT"))]


def inputs(kind: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    x, y = rng.integers(8, 61, (2, 15)), rng.integers(8, 61, (2, 11))
    if kind in ("t5", "mt5", "umt5"):
        return dict(input_ids=x, decoder_input_ids=y)
    return dict(input_ids=x)


def opened(folder: Path, kind: str) -> tuple[np.ndarray, list[str]]:
    """The logits, and the weights that the folder lacks, which are drawn at random then."""
    kind = json.loads((folder / "config.json").read_text()).get("model_type", kind)
    moe = dict(experts_implementation="eager") if kind in ("mixtral", "qwen3_moe") else {}
    model, info = auto(kind).from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, attn_implementation="eager", **moe
    )
    batch = {name: torch.tensor(ids) for name, ids in inputs(kind).items()}
    cache = {} if kind in ("bert", "xlnet") else dict(use_cache=False)
    with torch.no_grad():
        found = model.eval()(**batch, **cache, return_dict=True).logits.numpy()
    return found, sorted(map(str, info["missing_keys"]))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    hf.logging.set_verbosity(50)
    hf.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    # An edit may ask for a table of any size.
    resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
