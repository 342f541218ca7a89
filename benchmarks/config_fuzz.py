"""Edits of config.json: what is opened here computes what transformers computes, or is refused.

  TORCH_ENVIRONMENT/bin/python benchmarks/config_edits.py FOLDER [BASE ...]    # transformers' half
  python benchmarks/config_fuzz.py FOLDER [BASE ...] [--json=FILE]             # this half: no torch

Counts, for each base, the edits that are
  equal       opened by both, with the same logits (within 5e-5 of the largest)
  refused     refused here, opened there
  both        refused by both
  there       refused there only: a value that is read here, or that nothing here asks for
  drawn       opened there with weights drawn at random, and refused here
  differing   opened by both, with other logits, or here where transformers draws weights: the goal
              is none
--golden writes some of those that matter, for tests/interop/test_class_fields.py.
It names each that differs, each exception that isn't a UserError, and with --refused the refusals.
"""

import argparse
import collections
import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from command import report

import t5x_lite as tl
from t5x_lite.errors import UserError
from t5x_lite.interop import huggingface

OUTCOMES = ("equal", "refused", "both", "there", "drawn", "differing")
CLOSE = 5e-5
KEPT = {"equal": 2, "refused": 4}
GOLDEN = Path(__file__).resolve().parent.parent / "tests/golden/huggingface"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="what config_edits.py has written")
    parser.add_argument("bases", nargs="*", help="some of its bases; none: all")
    parser.add_argument("--refused", action="store_true", help="print what is refused here only")
    parser.add_argument("--golden", type=Path, help="a file for edits of golden models")
    parser.add_argument("--json", help="a file for the counts")
    args = parser.parse_args()
    bases = args.bases or sorted(p.parent.name for p in args.folder.glob("*/logits.npz"))
    kept: dict[str, list] = {}
    report((counted(args.folder / b, args.refused, kept) for b in bases), table, args.json)
    if args.golden:
        args.golden.write_text("{" + ",\n".join(
            f'"{base}": [\n' + ",\n".join(map(json.dumps, edits)) + "]"
            for base, edits in sorted(kept.items()) if (GOLDEN / base).exists()
        ) + "}\n")  # fmt: skip


def counted(folder: Path, refused: bool, kept: dict[str, list]) -> dict:
    """The outcomes of one base's edits. kept: takes some that change the logits there."""
    base = json.loads((folder / "base/config.json").read_text())
    edits = json.loads((folder / "edits.json").read_text())
    theirs = np.load(folder / "logits.npz")
    compute = functools.cache(lambda config: logits(folder / "edit", config))
    shapes = functools.cache(huggingface.shapes_of)
    counts: collections.Counter = collections.Counter(dict.fromkeys(OUTCOMES, 0))
    for i, edit in enumerate(edits):
        what = " ".join([*(f"-{name}" for name in edit["drop"]), json.dumps(edit["set"])])[:150]
        drop = set(edit["drop"]) - edit["set"].keys()
        config = {k: v for k, v in (base | edit["set"]).items() if k not in drop}
        (folder / "edit/config.json").write_text(json.dumps(config))
        try:
            read = huggingface.read(folder / "edit")
            read.parameters(shapes(read.config))
            found, said = compute(read.config), None
        except UserError as error:
            found, said = None, str(error).replace(str(folder), "")
        except Exception as error:  # noqa: BLE001
            print(f"  {folder.name}: {type(error).__name__} {what}: {str(error)[:100]}")
            counts["differing"] += 1
            continue
        outcome = judged(edit, found, theirs.get(f"e{i}"))
        counts[outcome] += 1
        if edit.get("drawn") == []:
            keep(kept.setdefault(folder.name, []), outcome, edit, theirs[f"e{i}"], theirs["e0"])
        if outcome == "differing" or (i == 0 and outcome != "equal"):
            print(f"  {folder.name}: DIFFERING {what} {edit.get('drawn', '')}")
        if refused and outcome in ("refused", "there"):
            print(f"  {folder.name}: {outcome} {what}: {said or edit['refused']}")
    return {"base": folder.name, "edits": len(edits), **counts}


def keep(kept: list, outcome: str, edit: dict, found: np.ndarray, base: np.ndarray) -> None:
    """A few edits that transformers reads as something else than the base: logits, or refused."""
    if np.abs(found - base).max() < 1e-3 * np.abs(base).max():
        return
    row = [
        edit["drop"],
        edit["set"],
        outcome,
        found[:, -1, :8].ravel().astype(float).round(5).tolist(),
    ]
    alike = sum(other[2] == outcome for other in kept)
    if alike < KEPT.get(outcome, 0) and row[3] not in [other[3] for other in kept]:
        kept.append(row)


def judged(edit: dict, ours: np.ndarray | None, theirs: np.ndarray | None) -> str:
    if ours is None:
        return "both" if theirs is None else "drawn" if edit["drawn"] else "refused"
    if theirs is None:
        return "there"
    same = ours.shape == theirs.shape and not edit["drawn"]
    return (
        "equal"
        if same and np.abs(ours - theirs).max() < CLOSE * np.abs(theirs).max()
        else "differing"
    )


def logits(folder: Path, config: tl.TransformerConfig) -> np.ndarray:
    """What the folder's model computes here on the ids that config_edits.py drew."""
    settings = dict(dtype="float32", scan_layers=False)
    model, params, _ = tl.from_pretrained(folder, vocabulary="none", **settings)
    assert model.config == dataclasses.replace(config, **settings)
    rng = np.random.default_rng(3)
    x, y = (jnp.asarray(rng.integers(8, 61, (2, size)), jnp.int32) for size in (15, 11))
    batch = {"encoder_input_tokens": x}
    if not model.config.has_encoder:
        batch = {"decoder_input_tokens": x}
    elif model.config.num_decoder_layers:
        batch["decoder_input_tokens"] = y
    if "decoder_input_tokens" in batch:
        batch["decoder_target_tokens"] = jnp.ones_like(batch["decoder_input_tokens"])
    with jax.disable_jit():
        return np.asarray(model.apply(params, batch)[0])


def table(rows: list[dict]) -> str:
    """Markdown, with the sums."""
    rows = [*rows, {"base": "all"} | {k: sum(r[k] for r in rows) for k in ("edits", *OUTCOMES)}]
    names = ("base", "edits", *OUTCOMES)
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    return "\n".join(lines + [f"| {' | '.join(str(r[k]) for k in names)} |" for r in rows])


if __name__ == "__main__":
    main()
