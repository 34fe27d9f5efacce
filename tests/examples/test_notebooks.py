"""The notebooks: whole, small, with stored outputs; all of their cells run on TensorFlow, which exports to LiteRT."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
TOOL = ROOT / "tools" / "notebooks.py"
sys.path.insert(0, str(TOOL.parent))

import notebooks  # noqa: E402


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_with_outputs(path):
    assert path.stat().st_size < 300 * 1024
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = notebooks.code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        source, kinds = "".join(cell["source"]), {output["output_type"] for output in cell["outputs"]}
        assert ("plt.show()" in source) == ("display_data" in kinds)
        assert ("print(" in source) == ("stream" in kinds)


@pytest.mark.parametrize("name", notebooks.FROM_PAGES)
def test_holds_text_and_code_of_its_page(name):
    notebook = json.loads((notebooks.FOLDER / f"{name}.ipynb").read_text())
    kept = [(cell["cell_type"], cell["source"]) for cell in notebook["cells"]]
    page = [(cell["cell_type"], cell["source"]) for cell in notebooks.from_page(name)["cells"]]
    assert kept == page, f"run python tools/notebooks.py {name}"
    assert len(kept) > 6


def test_runs_cells_in_order_and_stores_what_they_print_and_draw():
    sources = ["a = 2", "print(a + 1)\nprint(a)", "import matplotlib.pyplot as plt\nplt.plot([a])"]
    cells = [{"cell_type": "code", "source": [source], "outputs": ["old"]} for source in sources]
    cells.insert(1, {"cell_type": "markdown", "source": ["text"]})
    notebooks.run({"cells": cells}, "made up")
    assert cells[0]["outputs"] == [] and cells[1] == {"cell_type": "markdown", "source": ["text"]}
    assert cells[2]["outputs"] == [{"name": "stdout", "output_type": "stream", "text": ["3\n", "2\n"]}]
    assert cells[3]["outputs"][0]["data"]["image/png"].startswith("iVBOR")
    assert [cell.get("execution_count") for cell in cells] == [1, None, 2, 3]


@pytest.mark.slow
@pytest.mark.once
def test_run(tmp_path):
    """All but those of pages, whose blocks `test_documentation.py` runs; with one epoch and one seed."""
    names = [path.stem for path in NOTEBOOKS if path.stem not in notebooks.FROM_PAGES]
    for name in names:
        text = (notebooks.FOLDER / f"{name}.ipynb").read_text()
        short, n_changes = re.subn(r"\b(epochs|epochs, steps|seeds)( ?= ?)\d+", r"\1\g<2>1", text)
        assert n_changes > 0
        (tmp_path / f"{name}.ipynb").write_text(short)
    code = "import pathlib, sys, notebooks; notebooks.FOLDER = pathlib.Path(sys.argv[1]); notebooks.main(sys.argv[2:])"
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "PYTHONPATH": f"{ROOT}{os.pathsep}{TOOL.parent}"}
    environment.pop("HAR_DATA", None)
    command = [sys.executable, "-c", code, str(tmp_path), "--check", *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == names
