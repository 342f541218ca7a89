"""Reading the golden files, for tests."""

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "golden"


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / name) as file:
        return dict(file)


def tree(arrays: dict[str, np.ndarray], prefix: str = "") -> dict:
    """{"a/b": x} -> {"a": {"b": x}}, of the names that begin with ``prefix``."""
    root: dict = {}
    for name, value in arrays.items():
        if name.startswith(prefix):
            *parents, last = name[len(prefix) :].split("/")
            node = root
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
    return root
