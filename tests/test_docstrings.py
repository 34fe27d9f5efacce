"""Every example in a docstring runs, and gives the value that its comment states."""

import ast
import doctest
import importlib
import pkgutil
import re
import types

import keras
import numpy as np
import pytest

import keras_ssd

# An example shows what to call, not how long it takes: more epochs, trials and rows would teach this test nothing.
MOST_EPOCHS, MOST_TRIALS, ROWS = 2, 2, 40
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


def build(hp=None):
    """A compiled classifier of four values, as `x` and `y` want it."""
    augmentation = keras_ssd.augmentation.Jitter(0.01)
    layers = [keras.Input((4,)), augmentation, keras.layers.Dense(6, "relu"), keras.layers.Dropout(0.5)]
    model = keras.Sequential([*layers, keras.layers.Dense(2, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.fixture
def namespace(tmp_path, monkeypatch):
    """What the examples take for granted: data, a model, a wrapped one, and a file of a student."""
    monkeypatch.chdir(tmp_path)
    fit = keras.Model.fit

    def short_fit(self, *args, epochs=1, **kwargs):
        return fit(self, *args, epochs=min(epochs, MOST_EPOCHS), **{**kwargs, "verbose": 0})

    monkeypatch.setattr(keras.Model, "fit", short_fit)
    generator = np.random.default_rng(0)
    x, x_val, x_unlabelled = generator.normal(size=(3, ROWS, 4)).astype("float32")
    y, y_val = (x[:, 0] > 0).astype("int32"), (x_val[:, 0] > 0).astype("int32")
    names = dict(keras=keras, keras_ssd=keras_ssd, np=np, build=build, model=build())
    names.update(x=x, y=y, x_val=x_val, y_val=y_val, x_unlabelled=x_unlabelled)
    names["ssd"] = keras_ssd.wrap(build())
    names["model"].save("student.keras")
    return names


def short_searches(keras_tuner):
    """`keras_tuner` with a search of few trials."""

    def search(*args, max_trials, **options):
        return keras_tuner.RandomSearch(*args, max_trials=min(max_trials, MOST_TRIALS), **options)

    return types.SimpleNamespace(RandomSearch=search)


@pytest.mark.parametrize("module, examples", list(docstrings()))
def test_examples(module, examples, namespace):
    namespace = {**vars(module), **namespace}
    if module.__name__.startswith("keras_ssd.tuner"):
        namespace["keras_tuner"] = short_searches(pytest.importorskip("keras_tuner"))
    for example in examples:
        if example.options.get(doctest.SKIP):
            continue
        statements = ast.parse(example.source).body
        if not isinstance(statements[-1], ast.Expr):
            exec(example.source, namespace)
            continue
        value = eval(example.source, namespace)
        stated = STATED.search(example.source.strip())
        if stated:
            expected = ast.literal_eval(stated["value"])
            np.testing.assert_allclose(keras.ops.convert_to_numpy(value), expected, atol=1e-3)
        if example.want:
            assert str(value) == example.want.strip()


def test_a_stated_value_is_found():
    assert STATED.search("f(x)  # [[1., 2.]]")["value"] == "[[1., 2.]]"
    assert STATED.search('f(x)["a"]  # sqrt(1) / sqrt(5) = 0.447')["value"] == "0.447"
    assert STATED.search("f(x)  # the others are left to a human") is None
