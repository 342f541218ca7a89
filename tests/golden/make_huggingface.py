"""Makes tests/golden/huggingface: random models of transformers, what they compute, tokenizer ids.

Run where torch and transformers are installed, from the root of the repository:

    python tests/golden/make_huggingface.py [NAME ...]

Each folder holds what `save_pretrained` wrote (config.json, model*.safetensors) and outputs.npz:
a batch as this package's features, logits, loss (mean over targets), gradients of some tensors by
their names, and greedy continuations of 64 tokens.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers as hf

FOLDER = Path(__file__).parent / "huggingface"
V, NEW = 61, 64
LOW = torch.finfo(torch.float32).min
T5_SIZES = dict(
    vocab_size=V, d_model=20, d_kv=6, d_ff=24, num_layers=2, num_decoder_layers=3, num_heads=3,
    relative_attention_num_buckets=12, relative_attention_max_distance=20, dropout_rate=0.0,
    layer_norm_epsilon=1e-5,
)  # fmt: skip
LLAMA_SIZES = dict(
    vocab_size=V, hidden_size=20, intermediate_size=28, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=6, rms_norm_eps=1e-5, max_position_embeddings=128,
    rope_theta=5000.0, pad_token_id=None, bos_token_id=None, eos_token_id=None,
)  # fmt: skip
MODELS = {
    "t5_1_0": (hf.T5Config, dict(T5_SIZES, feed_forward_proj="relu")),
    "t5_1_1": (hf.T5Config, dict(T5_SIZES, feed_forward_proj="gated-gelu",
                                 tie_word_embeddings=False)),
    "ul2": (hf.T5Config, dict(T5_SIZES, feed_forward_proj="gated-silu", num_decoder_layers=2,
                              tie_word_embeddings=False)),
    "mt5": (hf.MT5Config, dict(T5_SIZES, feed_forward_proj="gated-gelu", num_layers=1,
                               num_decoder_layers=1, tie_word_embeddings=False)),
    "umt5": (hf.UMT5Config, dict(T5_SIZES, feed_forward_proj="gated-gelu", num_decoder_layers=2,
                                 tie_word_embeddings=False)),
    "llama": (hf.LlamaConfig, dict(LLAMA_SIZES, tie_word_embeddings=False)),
    "llama_biases": (hf.LlamaConfig, dict(LLAMA_SIZES, tie_word_embeddings=True, mlp_bias=True,
                                          attention_bias=True, hidden_act="gelu_pytorch_tanh")),
    "mistral": (hf.MistralConfig, dict(LLAMA_SIZES, sliding_window=None, num_hidden_layers=1)),
    "llama3": (hf.LlamaConfig, dict(LLAMA_SIZES, tie_word_embeddings=True, rope_parameters=dict(
        rope_type="llama3", rope_theta=5000.0, factor=8.0, low_freq_factor=1.0,
        high_freq_factor=4.0, original_max_position_embeddings=64))),
    "llama_linear": (hf.LlamaConfig, dict(LLAMA_SIZES, num_hidden_layers=1, rope_parameters=dict(
        rope_type="linear", rope_theta=5000.0, factor=2.5))),
    "mistral_window": (hf.MistralConfig, dict(LLAMA_SIZES, sliding_window=7)),
    "qwen2": (hf.Qwen2Config, dict(LLAMA_SIZES, tie_word_embeddings=True)),
    "qwen3": (hf.Qwen3Config, dict(LLAMA_SIZES, tie_word_embeddings=True)),
    "gemma": (hf.GemmaConfig, dict(LLAMA_SIZES, tie_word_embeddings=True, num_hidden_layers=1)),
    "gemma2": (hf.Gemma2Config, dict(LLAMA_SIZES, tie_word_embeddings=True, num_hidden_layers=3,
                                     sliding_window=5, query_pre_attn_scalar=9,
                                     attn_logit_softcapping=3.0, final_logit_softcapping=7.0)),
    "gemma3": (hf.Gemma3TextConfig, dict(
        {k: v for k, v in LLAMA_SIZES.items() if k != "rope_theta"}, tie_word_embeddings=True,
        num_hidden_layers=4, sliding_window=5, sliding_window_pattern=3, query_pre_attn_scalar=9,
        rope_parameters=dict(
            full_attention=dict(rope_type="linear", rope_theta=5000.0, factor=2.5),
            sliding_attention=dict(rope_type="default", rope_theta=100.0)))),
    "mixtral": (hf.MixtralConfig, dict(LLAMA_SIZES, num_local_experts=5, sliding_window=7)),
    "qwen3_moe": (hf.Qwen3MoeConfig, dict(LLAMA_SIZES, moe_intermediate_size=14, num_experts=6,
                                          num_experts_per_tok=3, norm_topk_prob=False)),
    "gpt2": (hf.GPT2Config, dict(vocab_size=V, n_embd=20, n_layer=2, n_head=4, n_inner=28,
                                 n_positions=96, layer_norm_epsilon=1e-5, resid_pdrop=0.0,
                                 embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None,
                                 eos_token_id=None)),
}  # fmt: skip
SHARDED = ("t5_1_1", "gpt2")  # written as several files


def main() -> None:
    for name, (kind, settings) in MODELS.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        torch.manual_seed(sum(name.encode()))
        config = kind(**settings)
        config._attn_implementation = config._experts_implementation = "eager"
        model = model_class(config)(config).eval()
        if name == "umt5":  # no version has published weights with a scaled output
            model.config.tie_word_embeddings = False
        randomise(model, untie=settings.get("tie_word_embeddings") is False)
        folder = FOLDER / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder, max_shard_size="40KB" if name in SHARDED else "5GB")
        (folder / "generation_config.json").unlink(missing_ok=True)
        if name in (
            "t5_1_1",
            "umt5",
        ):  # as published: transformers 5 itself writes it otherwise ("ul2")
            edit = json.loads((folder / "config.json").read_text())
            edit["tie_word_embeddings"] = False
            edit.pop("scale_decoder_outputs", None)
            (folder / "config.json").write_text(json.dumps(edit, indent=2) + "\n")
        outputs = encoder_decoder(model) if config.is_encoder_decoder else decoder_only(model)
        np.savez_compressed(folder / "outputs.npz", **outputs)
        print(name, sum(f.stat().st_size for f in folder.iterdir()), "bytes")


def model_class(config):
    return {
        "t5": hf.T5ForConditionalGeneration,
        "mt5": hf.MT5ForConditionalGeneration,
        "umt5": hf.UMT5ForConditionalGeneration,
        "llama": hf.LlamaForCausalLM,
        "mistral": hf.MistralForCausalLM,
        "qwen2": hf.Qwen2ForCausalLM,
        "qwen3": hf.Qwen3ForCausalLM,
        "gemma": hf.GemmaForCausalLM,
        "gemma2": hf.Gemma2ForCausalLM,
        "gemma3_text": hf.Gemma3ForCausalLM,
        "mixtral": hf.MixtralForCausalLM,
        "qwen3_moe": hf.Qwen3MoeForCausalLM,
        "gpt2": hf.GPT2LMHeadModel,
    }[config.model_type]


def randomise(model, untie: bool) -> None:
    """Every number random, norms and biases too: their defaults of 1 and 0 hide mistakes."""
    neutral = 0.0 if model.config.model_type.startswith("gemma") else 1.0  # of a norm
    if untie and model.lm_head.weight is model.get_input_embeddings().weight:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.copy_(0.3 * torch.randn(p.shape) + (0.0 if name.endswith("bias") else neutral))
            elif any(part in name for part in ("embed", "shared", "wte", "wpe", "relative")):
                p.copy_(torch.randn(p.shape))
            else:
                p.copy_(torch.randn(p.shape) / math.sqrt(model.config.hidden_size))


def encoder_decoder(model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    inputs, targets = rng.integers(3, V, (3, 26)), rng.integers(3, V, (3, 10))
    inputs[1, 17:], inputs[2, :9], targets[1, 6:] = 0, 0, 0  # padding on either side
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    arguments = dict(
        input_ids=torch.tensor(inputs),
        attention_mask=torch.tensor(inputs > 0).long(),
    )
    # Without a cache: transformers 5.23 makes it as deep as the encoder.
    out = model(**arguments, decoder_input_ids=torch.tensor(shifted), use_cache=False)
    result = measured(model, out.logits, targets)
    with torch.no_grad():
        greedy = model.generate(
            **arguments, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0,
            decoder_start_token_id=0, use_cache=False,
        )  # fmt: skip
    return result | {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": shifted,
        "decoder_target_tokens": targets,
        "greedy": greedy.numpy()[:, 1:],
    }


def decoder_only(model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    B, T = 3, 30
    targets = rng.integers(3, V, (B, T))
    segments, positions = np.ones((B, T), int), np.tile(np.arange(T), (B, 1))
    segments[0, 21:] = 0  # padded on the right,
    segments[1, :8] = 0  # on the left,
    positions[1] = np.maximum(np.arange(T) - 8, 0)
    segments[2, 13:] = 2  # and two texts in a row
    positions[2, 13:] = np.arange(T - 13)
    targets *= segments > 0
    inputs = rng.integers(3, V, (B, T)) * (segments > 0)
    seen = (segments[:, :, None] == segments[:, None, :]) & np.tril(np.ones((T, T), bool))
    seen &= segments[:, None, :] > 0
    near = seen
    if window := getattr(model.config, "sliding_window", None):
        near = seen & (np.arange(T)[:, None] - np.arange(T)[None, :] < window)
    kinds = set(getattr(model.config, "layer_types", None) or ["sliding_attention"])
    masks = {
        "full_attention": torch.where(torch.tensor(seen), 0.0, LOW)[:, None],
        "sliding_attention": torch.where(torch.tensor(near), 0.0, LOW)[:, None],
    }
    mask = masks if len(kinds) > 1 else masks[kinds.pop()]
    out = model(input_ids=torch.tensor(inputs), attention_mask=mask,
                position_ids=torch.tensor(positions))  # fmt: skip
    result = measured(model, out.logits, targets)
    prompts = rng.integers(3, V, (3, 9))
    prompts[1, 4:] = 0  # three lengths; ours begin with the start token, id 0
    prompts[2, 1:] = 0
    lengths = (prompts > 0).sum(1)
    padded, valid = np.zeros((3, 10), int), np.zeros((3, 10), int)
    for i, length in enumerate(lengths):
        padded[i, 10 - length :] = prompts[i, :length]
        valid[i, 9 - length :] = 1
    with torch.no_grad():
        greedy = model.generate(
            input_ids=torch.tensor(padded), attention_mask=torch.tensor(valid), max_new_tokens=NEW,
            do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    return result | {
        "decoder_input_tokens": inputs,
        "decoder_target_tokens": targets,
        "decoder_segment_ids": segments,
        "decoder_positions": positions,
        "prompts": prompts,
        "greedy": greedy.numpy()[:, 10:],
    }


def measured(model, logits, targets) -> dict[str, np.ndarray]:
    labels = torch.tensor(np.where(targets > 0, targets, -100))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss.backward()
    found = {"logits": logits.detach().numpy(), "loss": loss.detach().numpy()}
    named = dict(model.named_parameters())
    # The first matrix and norm of the first layer, the last of the last, the table.
    chosen = [*list(named)[:4], *list(named)[-3:]]
    chosen += [name for name in named if ".0.mlp.experts" in name or ".0.mlp.gate.weight" in name]
    for name in dict.fromkeys(chosen):
        for saved, grad in as_saved(model, name, named[name].grad.numpy()):
            found[f"grads/{saved}"] = grad
    return found


def as_saved(model, name: str, value: np.ndarray):
    """(name, part) of a parameter as files hold it: experts one by one, gate and up apart."""
    mixtral = model.config.model_type == "mixtral"
    parts = {"gate_up_proj": ("w1", "w3") if mixtral else ("gate_proj", "up_proj"),
             "down_proj": ("w2",) if mixtral else ("down_proj",)}  # fmt: skip
    body, _, last = name.rpartition(".")
    if mixtral:
        name, body = (n.replace(".mlp.", ".block_sparse_moe.") for n in (name, body))
    if not body.endswith("experts"):
        yield name, value
        return
    for e, expert in enumerate(value):
        for part, cut in zip(parts[last], np.split(expert, len(parts[last])), strict=True):
            yield f"{body}.{e}.{part}.weight", cut


if __name__ == "__main__":
    main()
