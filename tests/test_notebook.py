"""launch/notebook.ipynb, run by a kernel on the CPU with a tiny config."""

import importlib.util
import json
import os
import re
from pathlib import Path

import pytest
import tiny

from r1jax import config

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "launch/notebook.ipynb"


def settings():
    held_out = config.Eval(every=1, limit=2, samples=1, final_samples=1, greedy=False)
    return tiny.grpo(steps=2, minibatches=1, eval=held_out)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("nbclient", "ipykernel"))),
    reason="pip install nbclient ipykernel: 60 MB, most of it for typing into a kernel, so the extra test leaves them out",
)
def test_the_notebook_trains_and_shows_the_curve_and_answers(tmp_path, monkeypatch):
    import nbclient
    import nbformat

    (tmp_path / "small.py").write_text("import test_notebook\n\n\ndef config():\n    return test_notebook.settings()\n")
    (tmp_path / "r1jax").symlink_to(ROOT)  # as a clone would be
    for name, value in {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "R1JAX_CONFIG": "small.py",
        "R1JAX_FLAGS": "--log.tensorboard",
        "R1JAX_RUN": "run",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    said = ["".join(o.get("text", "") for o in cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]
    assert "accelerator: cpu" in said[1] and "installing" not in said[1]
    assert "run directory: run" in said[2]
    shown = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(shown) == len(list((tmp_path / "run").rglob("curve.png"))) == 1
    assert "step 2" in said[4] and (tmp_path / "run" / "tb").is_dir()


def test_it_has_no_output_and_every_setting_in_its_first_cell():
    notebook = json.loads(NOTEBOOK.read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell.get("outputs", []) == [] for cell in notebook["cells"])
    read = set(re.findall(r"R1JAX_\w+", "".join(cells)))
    assert read and read == set(re.findall(r"R1JAX_\w+", cells[0]))
    for cell in cells:
        compile(cell, "cell", "exec")
