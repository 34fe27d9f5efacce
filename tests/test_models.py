"""Published networks: wrapped, trained for a step, saved and loaded. docs/models.md is generated from the results."""

import csv
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

# PyTorch, which runs what is marked `once`, has no NASNet.
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
        pytest.skip("Keras has it not on PyTorch")
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
QUICK = {"FCN (Wang et al.)", "ConvLSTM", "transformer with masks"}
LARGE = {
    **{f"keras.applications.{n}": lambda n=n, s=s: application(n, s) for n, s in APPLICATIONS.items()},
    **{f"aeon {name}": lambda name=name, o=o: of_aeon(name, o) for name, o in AEON.items()},
}
MODELS = {**SMALL, **LARGE}


@pytest.mark.filterwarnings("ignore")  # of aeon, and of Keras about inputs in lists
@pytest.mark.parametrize(
    "title",
    [
        *(pytest.param(title, marks=[] if title in QUICK else [pytest.mark.slow]) for title in SMALL),
        *(pytest.param(n, marks=[pytest.mark.slow, pytest.mark.once]) for n in LARGE if n != NOT_ON_TORCH),
        pytest.param(NOT_ON_TORCH, marks=pytest.mark.slow),
    ],
)
def test_a_published_network_is_wrapped_trained_saved_and_loaded(tmp_path, title, record_property):
    record_property("row", title)
    model = MODELS[title]()
    has_noise = any(is_noise(layer) for layer in model.layers)
    generator = np.random.default_rng(0)
    shape = (4, *model.input_shape[1:])
    x = generator.integers(0, 9, shape) if "int" in model.inputs[0].dtype else generator.normal(size=shape)
    # A step is compiled for longer than it runs.
    compiled(model, keras.optimizers.SGD(1e-3), metrics=(), run_eagerly=True)
    if not has_noise:
        with pytest.raises(ValueError, match="Pass dropout_rate=0.3"):
            keras_ssd.wrap(model)
    weights = len(model.weights)
    ssd = keras_ssd.wrap(model, dropout_rate=None if has_noise else 0.3, num_teachers=2)
    kd_loss = ssd.fit(x, np.int32([0, 1, 2, 0]), batch_size=4, verbose=0).history["kd_loss"][0]
    # Above what rounding leaves of a divergence of equal outputs.
    assert 1e-6 < kd_loss < np.inf
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


def test_the_stored_table_covers_all_and_nothing_fails():
    with (ROOT / "docs" / "results" / "models.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    from models_table import BACKENDS, titles

    for backend in BACKENDS:
        assert [row["row"] for row in rows if row["backend"] == backend] == titles()
    assert not [row for row in rows if row["outcome"].startswith("fails")]


def test_every_habit_of_the_table_names_a_test_that_exists():
    from models_table import HABITS

    for test in HABITS.values():
        file, _, name = test.partition("::")
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(), test
