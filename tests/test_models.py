"""Published networks, and tasks with an output for each position: wrapped, trained for a step, saved and loaded.

`tools/models_table.py` writes docs/models.md from the results.
"""

import importlib
import pathlib
import re
import sys

import keras
import numpy as np
import pytest
from keras import layers

import keras_ssd
from keras_ssd.noise import is_noise
from models import compiled, softmax_head

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks" / "accuracy"), str(ROOT / "tools")]

# It does not exist on PyTorch, which runs what is marked `once`.
NOT_ON_TORCH = "keras.applications.NASNetMobile"
# The smallest model of each family, and the smallest image that it takes.
APPLICATIONS = dict.fromkeys(
    "ConvNeXtTiny DenseNet121 EfficientNetB0 EfficientNetV2B0 InceptionResNetV2 InceptionV3 MobileNet MobileNetV2 "
    "MobileNetV3Small NASNetMobile ResNet50 ResNet50V2 VGG16 Xception".split(),
    32,
) | {"InceptionResNetV2": 75, "InceptionV3": 75, "Xception": 71}
# What aeon builds, as small as its arguments allow.
AEON = {
    "TimeCNNClassifier": {},
    "EncoderClassifier": dict(n_filters=[4, 4, 4], fc_units=4),
    "FCNClassifier": dict(n_filters=4),
    "IndividualInceptionClassifier": dict(n_filters=2, depth=3),
    "MLPClassifier": dict(n_units=16),
    "ResNetClassifier": dict(n_filters=4),
    "IndividualLITEClassifier": dict(n_filters=2),
    "DisjointCNNClassifier": dict(n_filters=4),
}


def application(name, size):
    if name == "NASNetMobile" and keras.backend.backend() == "torch":
        pytest.skip("Keras does not have it on PyTorch")
    model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=3)
    if name.startswith("VGG"):
        # Without normalization its many layers leave so little of what comes in that all outputs are the same.
        head = model.layers[-1]
        head.set_weights([1000 * value for value in head.get_weights()])
    return model


def published(name):
    return getattr(importlib.import_module("published"), name)((24, 2), 3, width=0.1)


def of_aeon(name, options):
    deep_learning = pytest.importorskip("aeon.classification.deep_learning")
    return getattr(deep_learning, name)(**options).build_model((24, 2), 3)


def classifier(x, inputs):
    return keras.Model(inputs, softmax_head(x, 3))


def convolutional_recurrent():
    inputs = keras.Input((3, 8, 8, 1))
    return classifier(layers.Flatten()(layers.ConvLSTM2D(2, 3, dropout=0.3)(inputs)), inputs)


def u_net():
    inputs = keras.Input((8, 8, 1))
    down = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    deep = layers.Dropout(0.3)(layers.Conv2D(8, 3, padding="same", activation="relu")(layers.MaxPooling2D()(down)))
    up = layers.Concatenate()([down, layers.UpSampling2D()(deep)])
    scores = layers.GlobalMaxPooling2D()(layers.Conv2D(3, 1)(up))
    return keras.Model(inputs, layers.Softmax()(scores))


def transformer():
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 8, mask_zero=True)(tokens)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4, dropout=0.3)(x, x))
    return classifier(layers.GlobalAveragePooling1D()(x), tokens)


def bidirectional():
    inputs = keras.Input((6, 8))
    return classifier(layers.Bidirectional(layers.GRU(4, dropout=0.3))(inputs), inputs)


def depthwise_in_time():
    inputs = keras.Input((4, 8, 8, 1))
    frames = layers.TimeDistributed(layers.Conv2D(3, 3))(inputs)
    x = layers.GlobalAveragePooling1D()(layers.TimeDistributed(layers.GlobalAveragePooling2D())(frames))
    return classifier(x, inputs)


SMALL = {
    "FCN (Wang et al.)": lambda: published("fcn"),
    "ResNet (Wang et al.)": lambda: published("resnet"),
    "InceptionTime (Ismail Fawaz et al.)": lambda: published("inception_time"),
    "ConvLSTM": convolutional_recurrent,
    "U-Net": u_net,
    "transformer with masks": transformer,
    "bidirectional GRU": bidirectional,
    "TimeDistributed over frames": depthwise_in_time,
}
LARGE = {
    **{f"keras.applications.{n}": lambda n=n, s=s: application(n, s) for n, s in APPLICATIONS.items()},
    **{f"aeon {name}": lambda name=name, o=o: of_aeon(name, o) for name, o in AEON.items()},
}


def segmentation(rank, activation, units):
    """A convolution, dropout of features, and a head for every position."""
    convolution = (layers.Conv1D, layers.Conv2D, layers.Conv3D)[rank - 1]
    inputs = keras.Input((*((12,), (8, 6), (4, 4, 4))[rank - 1], 2))
    x = layers.Dropout(0.3)(convolution(4, 3, padding="same", activation="relu")(inputs))
    return keras.Model(inputs, convolution(units, 1, activation=activation)(x))


def key_points():
    """Five points of two coordinates."""
    inputs = keras.Input((8, 6, 2))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(inputs))
    return keras.Model(inputs, layers.Reshape((5, 2))(layers.Dense(10)(layers.Dropout(0.3)(x))))


def steps():
    inputs = keras.Input((None, 2))
    return classifier(layers.Dropout(0.3)(layers.LSTM(4, return_sequences=True)(inputs)), inputs)


# Targets are one-hot: PyTorch cannot derive Keras' sparse cross-entropy of images on a CPU, for plain models either.
CATEGORICAL, BINARY = ("categorical_crossentropy", "categorical"), ("binary_crossentropy", "binary")
# The loss and the kind of the output that follows from it.
TASKS = {
    f"segmentation of {what} ({rank}-D), {activation}": (
        lambda rank=rank, activation=activation, units=units: segmentation(rank, activation, units),
        *loss_and_kind,
    )
    for rank, what in ((1, "series"), (2, "images"), (3, "volumes"))
    for activation, units, loss_and_kind in (("softmax", 3, CATEGORICAL), ("sigmoid", 1, BINARY))
}
TASKS["segmentation with `keras.losses.Dice`"] = (lambda: segmentation(2, "sigmoid", 1), keras.losses.Dice(), "binary")
TASKS["key points (regression of coordinates)"] = (key_points, "mse", "regression")
TASKS["a label for each step of a series"] = (steps, *CATEGORICAL)
ROWS = {**{title: (make, *CATEGORICAL) for title, make in {**SMALL, **LARGE}.items()}, **TASKS}
# One of each number of dimensions and each kind says what all six do.
QUICK = {"FCN (Wang et al.)", "transformer with masks", *[*TASKS][:1], *[*TASKS][-4:]}


def marks(title):
    return [pytest.mark.slow] * (title not in QUICK) + [pytest.mark.once] * (title in LARGE and title != NOT_ON_TORCH)


def targets(kind, shape, generator):
    if kind == "categorical":
        return np.eye(shape[-1], dtype="float32")[generator.integers(0, shape[-1], shape[:-1])]
    values = generator.normal(size=shape).astype("float32")
    return (values > 0).astype("float32") if kind == "binary" else values


@pytest.mark.filterwarnings("ignore")  # of aeon, and of Keras about inputs in lists
@pytest.mark.parametrize("title", [pytest.param(title, marks=marks(title)) for title in ROWS])
def test_a_model_or_task_is_wrapped_trained_saved_and_loaded(tmp_path, title, record_property):
    record_property("row", title)
    make, loss, kind = ROWS[title]
    # A step is compiled for longer than it runs.
    model = compiled(make(), keras.optimizers.SGD(1e-3), loss, metrics=(), run_eagerly=True)
    generator = np.random.default_rng(0)
    shape, of_targets = ((4, *(size or 12 for size in s[1:])) for s in (model.input_shape, model.output_shape))
    x = generator.integers(0, 9, shape) if "int" in model.inputs[0].dtype else generator.normal(size=shape)
    weights = len(model.weights)
    ssd = keras_ssd.wrap(model, dropout_rate=None if any(map(is_noise, model.layers)) else 0.3, num_teachers=2)
    history = ssd.fit(x, targets(kind, of_targets, generator), batch_size=4, verbose=0).history
    assert ssd.distillation.output_records.describe(model.output)[0].kind == kind
    # Above what rounding leaves of a divergence of equal outputs.
    assert 1e-6 < history["kd_loss"][0] < np.inf and np.isfinite(history["loss"]).all()
    assert len(model.weights) == weights
    ssd.save(tmp_path / "ssd.keras")
    loaded = keras_ssd.load_model(tmp_path / "ssd.keras")
    predicted = ssd.predict(x, verbose=0)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), predicted, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(model.predict(x, verbose=0), predicted, atol=1e-6)


def test_every_family_of_keras_applications_is_there():
    families = {name for name in dir(keras.applications) if re.fullmatch(r"[a-z0-9_]+", name) and name[0] != "_"}
    ours = {getattr(keras.applications, name).__module__.rpartition(".")[2] for name in APPLICATIONS}
    assert families - ours <= {"imagenet_utils", "resnet50", "vgg19"}  # other names and sizes of `resnet` and `vgg16`


def test_the_table_in_the_documents_covers_all_and_nothing_fails():
    import contract
    import models_table

    rows = contract.read(models_table.RESULTS)
    assert models_table.TABLE.read_text() == models_table.render(rows)
    for backend in models_table.BACKENDS:
        assert [row["row"] for row in rows if row["backend"] == backend] == models_table.titles()
    assert not [row for row in rows if row["outcome"].startswith("fails")]
    for test in models_table.HABITS.values():
        file, _, name = test.partition("::")
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(), test
