"""The other side of decode.py: the same work by Hugging Face's `generate`; prints JSON.

Run by an interpreter that has torch and transformers.
"""

import argparse
import json
import time

import decode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True)
    parser.add_argument("--workloads", required=True)
    parser.add_argument("--cases", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()

    import torch
    import transformers

    encoder = args.workloads == "t5"
    kind = transformers.AutoModelForSeq2SeqLM if encoder else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(args.folder, dtype=torch.float32).eval()
    new = decode.sizes(args.workloads, args.tiny)["new"]
    # Without an end of text nothing stops early.
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    results = {}
    for case in args.cases.split(","):
        rows, beams = decode.CASES[case]
        ids = torch.tensor(decode.inputs(args.workloads, rows, args.tiny), dtype=torch.int64)

        def call(ids=ids, beams=beams):
            with torch.inference_mode():
                tokens = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=new,
                    num_beams=beams,
                    do_sample=False,
                    pad_token_id=0,
                )
            return tokens[:, -new:].numpy()

        begin = time.perf_counter()
        call()
        first = time.perf_counter() - begin
        results[case] = decode.timed(call, args.repeats) | {"first_seconds": first}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
