"""lm-evaluation-harness on a run, and with its own `hf` model on the run's exported folder.

  python benchmarks/harness.py --run=runs/quickstart_lm --hf_python=TORCH_ENV/bin/python
  python benchmarks/harness.py --run=runs/quickstart --hf_python=... --examples=8   # T5-shaped

Needs lm_eval here, and lm_eval with PyTorch and transformers there; no network. Tasks are made of
Python's own library: "next_line", which of four lines follows (log-likelihoods); "go_on", what the
model writes on (generate_until); "whole", texts (rolling log-likelihoods). Compared sample by
sample: log-likelihoods must agree within --tolerance, or a millionth of them where that is more;
texts must be equal, and so must the harness's own values be. What a decoder-only model gives a
whole text is compared with add_bos_token=False: else `hf` scores the start token, too, which is
nobody's text.
"""

import argparse
import inspect
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

MODULES = ("argparse", "ast", "calendar", "csv", "difflib", "gzip", "heapq", "json.decoder")
_ROUNDING = 1e-6  # of a log-likelihood, where that is more than the tolerance
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
BASE = "dataset_path: json\ndataset_kwargs:\n  data_files: {file}\ntest_split: train\n"
TASKS = {
    "next_line": """
output_type: multiple_choice
doc_to_text: "{{context}}"
target_delimiter: ""
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - metric: acc
""",
    "go_on": """
output_type: generate_until
doc_to_text: "{{context}}"
target_delimiter: ""
doc_to_target: "{{next}}"
generation_kwargs:
  until: ["\\n\\n"]
  do_sample: false
  max_gen_toks: 16
metric_list:
  - metric: exact_match
""",
    "whole": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: byte_perplexity
  - metric: bits_per_byte
""",
}


def write_tasks(folder: Path, examples: int, encoder: bool) -> None:
    """The tasks' YAML files, and the examples that all of them read."""
    draw, rows = random.Random(0), []
    lines = []
    for name in MODULES:
        source = inspect.getsource(__import__(name, fromlist=["_"])).splitlines(keepends=True)
        lines += [line for line in source if line.strip()]
    for _ in range(examples):
        at = draw.randrange(4, len(lines) - 20)
        choices = [lines[at].rstrip("\n"), *(draw.choice(lines).rstrip("\n") for _ in range(3))]
        right = choices[0]
        draw.shuffle(choices)
        rows.append({
            "context": "".join(lines[at - draw.randint(1, 4) : at]),
            "next": right,
            "choices": choices,
            "gold": choices.index(right),
            "text": "".join(lines[at : at + draw.randint(2, 12)]),
        })  # fmt: skip
    file = folder / "examples.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        if encoder and name == "go_on":
            # `hf` counts an encoder's input as text that is written; this names the number itself.
            text = text.replace("max_gen_toks: 16", "max_gen_toks: 16\n  max_length: 17")
        whole = f"task: {name}\n" + BASE.format(file=file) + textwrap.dedent(text)
        (folder / f"{name}.yaml").write_text(whole)


# `lm_eval`, but for one thing: having loaded a model it ties its weights again, with which
# transformers 5 puts the embedding in the place of T5 1.1's own output layer.
AS_LOADED = """
from lm_eval.models.huggingface import HFLM
create = HFLM._create_model
def as_loaded(self, *arguments, **options):
    create(self, *arguments, **options)
    self._model.tie_weights = lambda *_, **__: None
HFLM._create_model = as_loaded
from lm_eval.__main__ import cli_evaluate
cli_evaluate()
"""


def evaluate(python: str, module: list[str], model: str, arguments: str, tasks: str, folder: Path):
    """{task: {"values": ..., "samples": [...]}} of one run of the harness, and its seconds."""
    out = Path(tempfile.mkdtemp(dir=folder))
    started = time.monotonic()
    command = [
        python, *module, "run", f"--model={model}", f"--model_args={arguments}",
        f"--tasks={tasks}", f"--include_path={folder}", f"--output_path={out}", "--log_samples",
        "--batch_size=8",
    ]  # fmt: skip
    environment = os.environ | OFFLINE | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    seconds = time.monotonic() - started
    [results] = out.rglob("results_*.json")
    values = json.loads(results.read_text())["results"]
    found = {}
    for task in tasks.split(","):
        [samples] = out.rglob(f"samples_{task}_*.jsonl")
        rows = [json.loads(line) for line in samples.read_text().splitlines()]
        rows.sort(key=lambda row: row["doc_id"])
        found[task] = {
            "values": {k: v for k, v in values[task].items() if isinstance(v, float)},
            "samples": [row["resps"] for row in rows],
        }
    return found, seconds


def compare(task: str, ours: dict, theirs: dict, tolerance: float) -> dict:
    """What differs, and whether that is too much."""
    leaves = [(a, b) for a, b in zip(_leaves(ours["samples"]), _leaves(theirs["samples"]),
                                     strict=True)]  # fmt: skip
    texts = [(a, b) for a, b in leaves if isinstance(a, str) and not _is_number(a)]
    numbers = [(float(a), float(b)) for a, b in leaves if _is_number(a)]
    flags = [(a, b) for a, b in leaves if isinstance(a, bool) or a in ("True", "False")]
    texts = [pair for pair in texts if pair not in flags]
    largest = max((abs(a - b) for a, b in numbers), default=0.0)
    # Of long texts they are sums of hundreds of float32 numbers.
    near = all(math.isclose(a, b, rel_tol=_ROUNDING, abs_tol=tolerance) for a, b in numbers)
    result = {
        "samples": len(ours["samples"]),
        "log_likelihoods": len(numbers),
        "largest_difference": largest,
        "largest_log_likelihood": max((abs(a) for a, _ in numbers), default=0.0),
        "texts": len(texts),
        "texts_that_differ": sum(a != b for a, b in texts),
        "flags_that_differ": sum(str(a) != str(b) for a, b in flags),
        "values": ours["values"],
        "their_values": theirs["values"],
    }
    same = all(
        math.isclose(v, theirs["values"].get(k, math.nan), rel_tol=tolerance, abs_tol=tolerance)
        for k, v in ours["values"].items()
        if "stderr" not in k
    )
    wrong = result["texts_that_differ"] + result["flags_that_differ"]
    return result | {"task": task, "agrees": near and not wrong and same}


def _leaves(value):
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _is_number(value) -> bool:
    if isinstance(value, bool):
        return False
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", required=True, help="a run's folder")
    parser.add_argument("--hf_python", required=True, help="with lm_eval, torch and transformers")
    parser.add_argument("--examples", type=int, default=50)
    parser.add_argument("--max_length", type=int, default=96, help="so that texts are longer, too")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        export = folder / "exported"
        convert = ["-m", "t5x_lite", "convert", f"--from={args.run}", f"--to={export}"]
        subprocess.run([sys.executable, *convert], check=True)
        encoder = "T5" in json.loads((export / "config.json").read_text())["architectures"][0]
        write_tasks(folder, args.examples, encoder)
        mine = f"path={args.run},max_length={args.max_length}"
        theirs = f"pretrained={export},max_length={args.max_length},dtype=float32"
        names = ",".join(TASKS)
        ours, seconds = evaluate(
            sys.executable, ["-m", "t5x_lite.lm_eval"], "t5x_lite", mine, names, folder
        )
        harness = ["-c", AS_LOADED] if encoder else ["-m", "lm_eval"]
        hf, hf_seconds = evaluate(args.hf_python, harness, "hf", theirs, names, folder)
        if not encoder:
            theirs += ",add_bos_token=False"
            hf |= evaluate(args.hf_python, harness, "hf", theirs, "whole", folder)[0]
    compared = [compare(task, ours[task], hf[task], args.tolerance) for task in TASKS]
    for found in compared:
        print(json.dumps(found))
    print(f"t5x_lite {seconds:.0f} s, hf {hf_seconds:.0f} s, importing and compiling included")
    if args.json:
        Path(args.json).write_text(json.dumps(compared, indent=1))
    return 0 if all(found["agrees"] for found in compared) else 1


if __name__ == "__main__":
    sys.exit(main())
