"""The other side of step.py: the same work by Hugging Face's models on PyTorch; prints JSON.

Run by an interpreter that has torch and transformers.
"""

import argparse
import json
import platform
import resource
import statistics
import time

PROCESS_START = time.time()


def t5(tiny: bool):
    import torch
    import transformers

    size = (512, 64, 128, 2) if tiny else (32128, 512, 1024, 8)
    vocab, width, mlp, layers = size
    config = transformers.T5Config(
        vocab_size=vocab, d_model=width, d_ff=mlp, d_kv=64, num_heads=6, num_layers=layers,
        num_decoder_layers=layers, feed_forward_proj="gated-gelu", dropout_rate=0.0,
        tie_word_embeddings=False, decoder_start_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
    # Newer versions tie the head whatever the configuration says: T5 1.1 has its own.
    if model.lm_head.weight is model.shared.weight:
        model.lm_head.weight = torch.nn.Parameter(model.shared.weight.detach().clone())
    lengths = (32, 16) if tiny else (512, 114)
    ids = [torch.randint(2, vocab, (8, n)) for n in lengths]
    batch = {"input_ids": ids[0], "labels": ids[1]}
    return model, batch


def lm(tiny: bool):
    import torch
    import transformers

    vocab, width, layers, length = (512, 64, 2, 32) if tiny else (32128, 512, 8, 512)
    config = transformers.GPT2Config(
        vocab_size=vocab, n_embd=width, n_layer=layers, n_head=8, n_positions=2048,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    ids = torch.randint(2, vocab, (8, length))
    return transformers.GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=("t5", "lm"), default="t5")
    parser.add_argument("--mode", choices=("eager", "compile"), default="eager")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()

    import torch
    import transformers

    torch.manual_seed(0)
    model, batch = {"t5": t5, "lm": lm}[args.workload](args.tiny)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    forward = torch.compile(model) if args.mode == "compile" else model
    cpu, losses, first = [], [], None
    for _ in range(args.steps + 1):
        begin = time.process_time()
        loss = forward(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        cpu.append(time.process_time() - begin)
        first = first or time.time() - PROCESS_START
    print(
        json.dumps(
            {
                "cpu_seconds": statistics.median(cpu[1:]),
                "first_step_seconds": first,
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "parameters": sum(p.numel() for p in model.parameters()),
                "losses": losses,
                "versions": {
                    "torch": torch.__version__,
                    "transformers": transformers.__version__,
                    "python": platform.python_version(),
                },
            }
        )
    )


if __name__ == "__main__":
    main()
