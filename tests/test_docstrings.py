"""Every example in a docstring runs, and gives the value that its comment states."""

import ast
import doctest
import importlib
import pkgutil
import re

import keras
import numpy as np
import pytest

import keras_ssd
from models import compiled
from test_documentation import prepared, shortened

# A list at the end of a line, or a number after an equals sign.
STATED = re.compile(r"#.*?(?P<value>\[.*\]|(?<== )[-\d.]+)$")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.once,
    # So short a run ends before a snapshot was taken, and Keras Tuner warns of itself.
    pytest.mark.filterwarnings("ignore"),
]


def docstrings():
    """Parameters `(module, examples)` for every docstring of the package that holds examples."""
    for info in pkgutil.walk_packages(keras_ssd.__path__, "keras_ssd."):
        if "_dataset_builder" in info.name:
            continue  # not ours to import: tensorflow-datasets does
        try:
            module = importlib.import_module(info.name)
        except ModuleNotFoundError as error:
            yield pytest.param(None, (), id=info.name, marks=pytest.mark.skip(reason=f"needs {error.name}"))
            continue
        for test in doctest.DocTestFinder(exclude_empty=True).find(module):
            if test.examples:
                yield pytest.param(module, test.examples, id=test.name.removeprefix("keras_ssd."))


@pytest.fixture
def namespace(tmp_path, monkeypatch):
    """What the examples take for granted: data, a model that augments, a wrapped one, and a file of a student."""
    monkeypatch.chdir(tmp_path)
    names = prepared("", tmp_path)

    def build(hp=None):
        layers = [keras.Input((12, 3)), keras_ssd.augmentation.Jitter(0.01), names["build"]()]
        return compiled(keras.Sequential(layers), "adam")

    return {**names, "build": build, "model": build(), "ssd": keras_ssd.wrap(build())}


@pytest.mark.parametrize("module, examples", list(docstrings()))
def test_examples(module, examples, namespace):
    namespace = {**vars(module), **namespace}
    for example in examples:
        if example.options.get(doctest.SKIP):
            continue
        source = shortened(example.source)
        if not isinstance(ast.parse(source).body[-1], ast.Expr):
            exec(source, namespace)
            continue
        value = eval(source, namespace)
        if stated := STATED.search(source.strip()):
            expected = ast.literal_eval(stated["value"])
            np.testing.assert_allclose(keras.ops.convert_to_numpy(value), expected, atol=1e-3)
        if example.want:
            assert str(value) == example.want.strip()


def test_a_stated_value_is_found():
    assert STATED.search("f(x)  # [[1., 2.]]")["value"] == "[[1., 2.]]"
    assert STATED.search('f(x)["a"]  # sqrt(1) / sqrt(5) = 0.447')["value"] == "0.447"
    assert STATED.search("f(x)  # the others are left to a human") is None
