"""Runs the notebooks of examples/notebooks and stores what they print and draw: `python tools/notebooks.py [name ...]`.

Plain Python is enough: a notebook has no magic, so its cells are executed one after the other, and the figures that a
cell leaves open are its pictures, as in Jupyter. `--check` runs and stores nothing. Those of `FROM_PAGES` are
pages of docs/ with outputs.
"""

import argparse
import base64
import contextlib
import io
import json
import os
import pathlib
import re
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "notebooks"
FROM_PAGES = ["recordings"]
NAMES = sorted({*FROM_PAGES, *(path.stem for path in FOLDER.glob("*.ipynb"))})


def from_page(name):
    """A page as a notebook: a block of Python is a cell of code, what stands between two blocks a cell of text."""
    text = re.sub(r"\]\((?=[\w-]+\.md)", "](../../docs/", (ROOT / "docs" / f"{name}.md").read_text())
    cells = []
    for number, part in enumerate(re.split(r"^```python\n(.*?)^```\n", text, flags=re.M | re.S)):
        if part := part.strip():
            cell = {"cell_type": "code" if number % 2 else "markdown", "id": f"cell-{len(cells):02}", "metadata": {}}
            cell |= {"execution_count": None, "outputs": []} if number % 2 else {}
            cells.append({**cell, "source": part.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(notebook, name):
    """Executes the code cells in a folder of their own and puts their outputs into the notebook."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    pyplot.close("all")  # figures that others left open are not those of the first cell
    namespace = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for number, cell in enumerate(code_cells(notebook), start=1):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), namespace)
            cell["execution_count"] = number
            cell["outputs"] = []
            if text := printed.getvalue():
                cell["outputs"].append(
                    {"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}
                )
            for figure in map(pyplot.figure, pyplot.get_fignums()):
                cell["outputs"].append(picture(figure))
            pyplot.close("all")
    return notebook


def picture(figure):
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=70, facecolor="white", bbox_inches="tight")
    return {
        "data": {"image/png": base64.b64encode(data.getvalue()).decode(), "text/plain": ["a picture"]},
        "metadata": {},
        "output_type": "display_data",
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--check", action="store_true", help="store nothing")
    arguments = parser.parse_args(argv)
    for name in arguments.names:
        path = FOLDER / f"{name}.ipynb"
        began = time.perf_counter()
        notebook = run(from_page(name) if name in FROM_PAGES else json.loads(path.read_text()), name)
        if not arguments.check:
            path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
        print(f"{name}: {time.perf_counter() - began:.0f} s, {path.stat().st_size / 1024:.0f} KiB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
