"""Time and peak memory of converting a T5 1.1 each way, with random weights made on disk.

    python benchmarks/convert.py --size=xl --folder=/tmp/convert     # 3B parameters: 4 x 11.4 GB
    python benchmarks/convert.py --size=small

Each conversion is a process of its own, `t5x_lite convert`, whose memory is looked at every 20 ms:
`anonymous` is what it allocates, `mapped` are pages of the files it reads, which the system takes
back when it likes. The bound to compare with is the largest parameter, printed first; to begin
with, Python and its libraries have about 250 MB and 130 MB. The folder is removed at the end.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from t5x_lite.interop import huggingface
from t5x_lite.interop.safetensors_files import Writer
from t5x_lite.interop.weight_maps import their_shapes
from t5x_lite.programs.convert import read_model


def make(folder: Path, size: str, dtype: np.dtype) -> tuple[int, int]:
    """Writes a folder of Hugging Face; returns (bytes of all, bytes of the largest parameter)."""
    config = read_model(f"models/t5_1_1_{size}.gin")
    shapes = huggingface.shapes_of(config)
    family = huggingface.family_for(config)
    specs = {n: (s, dtype) for n, s in their_shapes(family.rules(config), shapes, config).items()}
    folder.mkdir(parents=True)
    writer, rng = Writer(folder, specs), np.random.default_rng(0)
    for name, (shape, _) in specs.items():
        writer.write(name, (0.02 * rng.standard_normal(shape, np.float32)).astype(dtype))
    writer.close()
    values = family.write(config) | {"torch_dtype": dtype.name}
    (folder / "config.json").write_text(json.dumps(values))
    sizes = [int(np.prod(s)) * dtype.itemsize for s in shapes.values()]
    return sum(sizes), max(sizes)


def convert(source: Path, to: Path, *flags: str) -> dict[str, float]:
    """Seconds, and peaks of anonymous and mapped memory in MB, of one conversion."""
    command = [sys.executable, "-m", "t5x_lite", "convert", f"--from={source}", f"--to={to}"]
    started = time.monotonic()
    process = subprocess.Popen([*command, *flags], stdout=subprocess.DEVNULL,
                               env={**os.environ, "JAX_PLATFORMS": "cpu"})  # fmt: skip
    peaks = {"anonymous": 0, "mapped": 0}
    while process.poll() is None:
        with open(f"/proc/{process.pid}/status") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
        for name, field in (("anonymous", "RssAnon"), ("mapped", "RssFile")):
            kilobytes = int(fields.get(field, "0 kB").split()[0])
            peaks[name] = max(peaks[name], kilobytes / 1000)
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}")
    return {"seconds": time.monotonic() - started, **peaks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="small", help="of gin_configs/models/t5_1_1_*.gin")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/t5x_lite_convert"))
    parser.add_argument("--keep", action="store_true", help="leave the folder there")
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    try:
        measure(args)
    finally:
        if not args.keep:
            shutil.rmtree(args.folder, ignore_errors=True)


def measure(args: argparse.Namespace) -> None:
    total, largest = make(args.folder / "start", args.size, np.dtype(np.float32))
    print(f"T5 1.1 {args.size}: {total / 1e6:,.0f} MB, largest parameter {largest / 1e6:,.0f} MB")
    for name, source, to, flags in (
        ("Hugging Face -> t5x_lite", "start", "run", []),
        ("t5x_lite -> Hugging Face", "run", "back", []),
        ("t5x_lite -> Hugging Face, bfloat16", "run", "half", ["--dtype=bfloat16"]),
    ):
        found = convert(args.folder / source, args.folder / to, *flags)
        rate = total / 1e6 / found["seconds"]
        print(
            f"{name}: {found['seconds']:.1f} s ({rate:,.0f} MB/s), "
            f"peak {found['anonymous']:,.0f} MB anonymous + {found['mapped']:,.0f} MB mapped",
            flush=True,
        )
    one, other = (sorted((args.folder / name).glob("*.safetensors")) for name in ("start", "back"))
    same = len(one) == len(other) and all(
        subprocess.run(["cmp", "-s", a, b]).returncode == 0 for a, b in zip(one, other, strict=True)
    )
    print(f"the weights that came back are {'the same, byte for byte' if same else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
