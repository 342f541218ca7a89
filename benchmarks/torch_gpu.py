"""The other side of gpu.py: the same steps by Hugging Face's models on PyTorch; prints JSON.

bfloat16 by autocast with float32 parameters, torch.compile, fused AdamW, flash-attn's attention if
it is installed and the model takes it, else PyTorch's scaled_dot_product_attention, else the
model's own. Run by an interpreter that has torch and transformers.
"""

import argparse
import importlib.util
import json
import time


def build(size: dict):
    """The model, and the name of its attention."""
    import torch
    import transformers

    if size["kind"] == "t5":
        kind = transformers.T5ForConditionalGeneration
        config = transformers.T5Config(
            vocab_size=size["vocab"], d_model=size["width"], d_ff=size["mlp"],
            d_kv=size["head_dim"], num_heads=size["heads"], num_layers=size["layers"],
            num_decoder_layers=size["layers"], feed_forward_proj="gated-gelu", dropout_rate=0.0,
            tie_word_embeddings=False, decoder_start_token_id=0, use_cache=False,
        )  # fmt: skip
    else:
        kind = transformers.LlamaForCausalLM
        config = transformers.LlamaConfig(
            vocab_size=size["vocab"], hidden_size=size["width"], intermediate_size=size["mlp"],
            num_hidden_layers=size["layers"], num_attention_heads=size["heads"],
            head_dim=size["head_dim"], max_position_embeddings=max(size["lengths"]),
            tie_word_embeddings=False, use_cache=False,
        )  # fmt: skip
    flash = importlib.util.find_spec("flash_attn") and torch.cuda.is_available()
    for attention in ["flash_attention_2"] * bool(flash) + ["sdpa", "eager"]:
        try:
            model = kind._from_config(config, attn_implementation=attention)
            break
        except (ImportError, ValueError):  # the model doesn't know this one
            if attention == "eager":
                raise
    # Newer versions tie T5's head whatever the configuration says: T5 1.1 has its own.
    if size["kind"] == "t5" and model.lm_head.weight is model.shared.weight:
        model.lm_head.weight = torch.nn.Parameter(model.shared.weight.detach().clone())
    return model, attention


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", required=True)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    size = json.loads(args.size)

    import torch
    import transformers

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, attention = build(size)
    model = model.to(device).train()
    ids = [
        torch.randint(2, size["vocab"], (size["rows"], n), device=device) for n in size["lengths"]
    ]
    batch = {"input_ids": ids[0], "labels": ids[-1]}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    forward = torch.compile(model)

    def step():
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = forward(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    begin = time.perf_counter()
    float(step())
    compile_seconds = time.perf_counter() - begin
    float(step())
    begin = time.perf_counter()
    for _ in range(args.steps):
        loss = step()
    loss = float(loss)
    seconds = (time.perf_counter() - begin) / args.steps
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    print(
        json.dumps(
            {
                "seconds": seconds,
                "peak_mib": peak / 2**20,
                "compile_seconds": compile_seconds,
                "parameters": sum(p.numel() for p in model.parameters()),
                "loss": loss,
                "attention": attention,
                "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
                "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            }
        )
    )


if __name__ == "__main__":
    main()
