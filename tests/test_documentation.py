"""The documents say what is: their Python blocks run, their links lead somewhere, no option is left out."""

import dataclasses
import pathlib
import re

import keras
import numpy as np
import pytest

import keras_ssd
from keras_ssd.settings import Settings

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Pages whose blocks need nothing but Keras and a small model. The others need Keras Tuner, a download or processes.
RUN = ["README.md", "docs/teachers.md", "docs/few-labels.md", "docs/uncertainty.md"]

SHORTER = {"epochs=50": "epochs=2", "epochs=200": "epochs=3", "patience=10": "at_epoch=1"}


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.M | re.S)


def prepared():
    """What the pages take for granted: a compiled model of windows, and data for it."""
    inputs = keras.Input((12, 3))
    x = keras.layers.Conv1D(4, 3, activation="relu")(inputs)
    x = keras.layers.GlobalAveragePooling1D()(x)
    x = keras.layers.Dropout(0.3)(x)
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    generator = np.random.default_rng(0)
    x = generator.normal(size=(20, 12, 3)).astype("float32")
    y = np.arange(20) % 2
    return {"keras": keras, "keras_ssd": keras_ssd, "np": np, "model": model, "x": x, "y": y, "x_unlabelled": x[:9]}


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize("name", RUN)
def test_python_blocks_of_a_page_run_in_order(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = prepared()
    namespace["model"].fit(namespace["x"], namespace["y"], verbose=0)  # a file of an optimizer that never stepped warns
    namespace["model"].save("student.keras")
    blocks = python_blocks(ROOT / name)
    assert blocks
    for block in blocks:
        for long, short in SHORTER.items():
            block = block.replace(long, short)
        exec(compile(block, name, "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_are_python(page):
    for block in python_blocks(page):
        compile(block, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_a_file(page):
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    paths = [target for target in targets if target and "://" not in target]
    assert [path for path in paths if not (page.parent / path).exists()] == []


def test_the_page_of_options_names_exactly_the_options():
    table = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "options.md").read_text(), flags=re.M)
    options = [field.name for field in dataclasses.fields(Settings)][2:]  # the first two are the kind of teacher
    assert sorted(table) == sorted(options)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
