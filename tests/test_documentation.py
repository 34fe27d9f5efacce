"""The documents are correct: their Python blocks run, their links have a target, no option is missing."""

import contextlib
import os
import pathlib
import pkgutil
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_ssd
import test_datasets_uci_har
import test_datasets_ucr
from keras_ssd.settings import OPTIONS
from models import compiled, softmax_head

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import options_table  # noqa: E402
import package_page  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += sorted(page for folder in ("docs", "benchmarks", "examples") for page in (ROOT / folder).rglob("*.md"))


def shortened(code):
    """Fewer epochs and trials, which show as well what to call."""
    return re.sub(r"\b(epochs|max_trials)=\d+", r"\1=2", code).replace("patience=10", "at_epoch=1")


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.M | re.S)


def prepared(name, folder):
    """What a page takes for granted: a compiled model of windows, data for it, and what its own text speaks of."""

    def build(hp=None):
        inputs = keras.Input((12, 3))
        x = keras.layers.GlobalAveragePooling1D()(keras.layers.Conv1D(4, 3, activation="relu")(inputs))
        return compiled(keras.Model(inputs, softmax_head(keras.layers.Dropout(0.3)(x))), "adam")

    model = build()
    x, y = np.random.default_rng(0).normal(size=(20, 12, 3)).astype("float32"), np.arange(20) % 2
    model.fit(x, y, verbose=0)  # a file of an optimizer that never stepped warns
    model.save(folder / "student.keras")
    namespace = dict(keras=keras, keras_ssd=keras_ssd, np=np, model=model, x=x, y=y, build=build, x_val=x, y_val=y)
    namespace |= {"x_unlabelled": x[:9], "labels": np.where(np.arange(20) % 3, y, -1)}
    if name == "docs/data.md":
        downloads = folder / "downloads"
        test_datasets_uci_har.write(downloads)
        test_datasets_ucr.write(downloads / "UCRArchive_2018" / "Coffee")
    return namespace


@contextlib.contextmanager
def process_group(namespace, folder):
    """One process of PyTorch's distributed training, a wrapped model, and batches for it."""
    import torch

    ssd = keras_ssd.wrap(namespace["model"])
    namespace |= {"torch": torch, "ssd": ssd, "optimizer": torch.optim.Adam(ssd.parameters())}
    namespace["loader"] = [(torch.tensor(namespace["x"]), torch.tensor(namespace["y"]))]
    torch.distributed.init_process_group("gloo", f"file://{folder}/group", world_size=1, rank=0)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize("name", [page.relative_to(ROOT).as_posix() for page in PAGES if python_blocks(page)])
@pytest.mark.filterwarnings("ignore:(currentThread|getName):DeprecationWarning")  # Keras Tuner calls them
@pytest.mark.filterwarnings("ignore:Statistics for quantized inputs:UserWarning")  # TensorFlow's converter, of any int8
def test_python_blocks_of_a_page_run_in_order(name, tmp_path, monkeypatch, request):
    if name == "docs/devices.md" and keras.backend.backend() != "torch":
        pytest.skip("its block is a loop of PyTorch")
    if name == "docs/export.md" and keras.backend.backend() != "tensorflow":  # LiteRT is written there only
        command = [sys.executable, "-m", "pytest", "-q", "-m", "", f"{__file__}::{request.node.name}"]
        environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-3000:]
        return
    monkeypatch.chdir(tmp_path)
    namespace = prepared(name, tmp_path)
    with process_group(namespace, tmp_path) if name == "docs/devices.md" else contextlib.nullcontext():
        for block in python_blocks(ROOT / name):
            exec(compile(shortened(block), name, "exec"), namespace)
    if name == "docs/recordings.md":  # 58 windows of a minute; 11 have a change of label, or a part of 20 to 24 s
        assert np.sum(namespace["subjects"] == "s00") == 58 - 11
    if name == "docs/export.md":  # int8 of probabilities that are far from 0 and 1
        expected = namespace["student"].predict(namespace["x"][:1])
        np.testing.assert_allclose(namespace["probabilities"], expected, atol=0.02)
        assert namespace["given"]["dtype"] == namespace["returned"]["dtype"] == np.int8
        header = (tmp_path / "student_int8.h").read_text()
        assert bytes(map(int, re.search(r"{(.*)}", header)[1].split(","))) == namespace["content"]


def test_relative_links_lead_to_a_file():
    broken = []
    for page in PAGES:
        targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
        paths = [target for target in targets if target and "://" not in target]
        broken += [f"{page.relative_to(ROOT)}: {path}" for path in paths if not (page.parent / path).exists()]
    assert broken == []


def test_the_page_of_options_is_as_written_from_the_docstring():
    assert options_table.PAGE.read_text() == options_table.whole(), "run python tools/options_table.py"
    table = re.findall(r"^\| `(\w+)` \|", options_table.table(), flags=re.M)
    assert sorted(table) == sorted(OPTIONS)


def test_what_computes_the_equations_exists():
    names = set(re.findall(r"`(keras_ssd\.[\w.]+)`", (ROOT / "docs" / "paper.md").read_text()))
    assert "keras_ssd.guidance.guided_target" in names and len(names) > 10
    for name in names:
        assert pkgutil.resolve_name(name) is not None


def test_links_of_the_package_page_are_absolute_and_code_is_as_it_was(tmp_path):
    address = "https://example.org/x/keras-ssd"
    text = "[a](docs/a.md#b) [b](#b) [c](https://c.org) ![d](docs/d.png) `x[0](y)`\n```python\nx[0](y)\n```\n"
    assert package_page.package_page(text, f"{address}/", "v1") == (
        f"[a]({address}/blob/v1/docs/a.md#b) [b](#b) [c](https://c.org) ![d]({address}/raw/v1/docs/d.png) "
        "`x[0](y)`\n```python\nx[0](y)\n```\n"
    )
    package_page.main(["--repository", address, "--out", str(tmp_path / "page.md")])
    page, readme = (tmp_path / "page.md").read_text(), (ROOT / "README.md").read_text()
    assert all("://" in link for link in re.findall(r"\]\(([^)\s]+)\)", page))
    assert page.replace(f"{address}/blob/main/", "").replace(f"{address}/raw/main/", "") == readme


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
