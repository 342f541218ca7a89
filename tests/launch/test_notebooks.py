"""The notebooks of launch/colab run top to bottom, at small size."""

import json
import os

import pytest
from fakes import ROOT

NOTEBOOKS = sorted((ROOT / "launch" / "colab").glob("*.ipynb"))
SLOW = ("fine_tune_and_export",)  # half a minute; the other two show the same commands
SHOWN = {
    "first_steps": "prediction",
    "fine_tune_and_export": "model.safetensors",
    "pretrain_on_your_text": "bits per byte",
}


@pytest.mark.parametrize(
    "file",
    [pytest.param(f, marks=pytest.mark.slow if f.stem in SLOW else ()) for f in NOTEBOOKS],
    ids=lambda file: file.stem,
)
def test_a_notebook_runs(file, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient isn't installed")
    pytest.importorskip("ipykernel", reason="ipykernel isn't installed")
    import nbformat

    monkeypatch.setenv("T5X_LITE_SMALL", "1")
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    # One device: that compiles in half the time.
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    notebook = nbformat.read(file, as_version=4)
    # The kernel of this environment, whatever others are registered.
    notebook.metadata["kernelspec"]["name"] = "python3"
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )  # fmt: skip
    client.execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())
    )
    assert SHOWN[file.stem] in printed


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_kept_without_what_it_printed(file):
    notebook = json.loads(file.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    # It installs what isn't there, and finds its devices.
    text = "".join("".join(cell["source"]) for cell in code)
    assert 'find_spec("t5x_lite")' in text and "jax.devices()" in text
