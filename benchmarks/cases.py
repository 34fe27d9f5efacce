"""The models whose training step is timed, the ways to train them, and the ratios to be reached."""

import dataclasses

import keras
import numpy as np
from keras import ops
from keras.layers import (
    LSTM,
    Activation,
    BatchNormalization,
    Conv1D,
    Dense,
    Dropout,
    GlobalAveragePooling1D,
    LayerNormalization,
    MultiHeadAttention,
)

import keras_ssd
from keras_ssd.guidance import guidance_weights, guided_target, similarity_scores

N_CLASSES = 6


def conv_net(dropout_in_blocks=False):
    layers = [keras.Input((128, 9))]
    for filters, width in ((64, 8), (128, 5), (64, 3)):
        layers += [Conv1D(filters, width, padding="same"), BatchNormalization(), Activation("relu")]
        if dropout_in_blocks:
            layers.append(Dropout(0.2))
    layers += [GlobalAveragePooling1D(name="pooled"), Dropout(0.3), Dense(N_CLASSES, activation="softmax")]
    return keras.Sequential(layers)


def lstm_net():
    layers = [LSTM(64, dropout=0.2, recurrent_dropout=0.2, name="pooled"), Dense(N_CLASSES, activation="softmax")]
    return keras.Sequential([keras.Input((128, 9)), *layers])


def mobile_net():
    return keras.applications.MobileNetV3Small((96, 96, 3), weights=None, classes=N_CLASSES)


def transformer():
    """Two encoder blocks with dropout behind attention and feed-forward, as in the accuracy benchmark."""
    inputs = keras.Input((128, 9))
    x = Dense(64)(inputs)
    for _ in range(2):
        attended = Dropout(0.1)(MultiHeadAttention(4, 16, dropout=0.1)(x, x))
        x = LayerNormalization()(x + attended)
        fed = Dropout(0.1)(Dense(64)(Dense(128, activation="relu")(x)))
        x = LayerNormalization()(x + fed)
    x = GlobalAveragePooling1D(name="pooled")(x)
    return keras.Model(inputs, Dense(N_CLASSES, activation="softmax")(x))


def fcn():
    """The fully convolutional network of Wang et al. 2017 (arXiv 1611.06455), which has no dropout."""
    layers = [keras.Input((128, 9))]
    for filters, width in ((128, 8), (256, 5), (128, 3)):
        layers += [Conv1D(filters, width, padding="same"), BatchNormalization(), Activation("relu")]
    return keras.Sequential([*layers, GlobalAveragePooling1D(name="pooled"), Dense(N_CLASSES, activation="softmax")])


def efficient_net():
    return keras.applications.EfficientNetV2B0(input_shape=(96, 96, 3), weights=None, classes=N_CLASSES)


# The ratio to the plain step that is to be reached: anywhere, and where dropout lies in the head only.
TARGETS = {
    "self": {"tensorflow": 1.25, "jax": 1.25, "torch": 1.40},
    "ema": {"tensorflow": 1.5, "jax": 1.5, "torch": 1.5},
    "snapshot": {"tensorflow": 1.5, "jax": 1.5, "torch": 1.5},
}
HEAD_TARGETS = TARGETS | {"self": {"tensorflow": 1.05, "jax": 1.05, "torch": 1.10}}


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, how many teachers it gets, and which kinds of them."""

    title: str
    build: object
    num_teachers: int = 8
    input_shape: tuple = (128, 9)
    teachers: tuple = ("self", "ema")
    targets: dict = dataclasses.field(default_factory=lambda: TARGETS)
    # The representation that `FeatureDistillation` compares.
    features: str = "pooled"
    options: dict = dataclasses.field(default_factory=dict)
    # Other ways to distil. 30 calls of a large network take minutes to compile.
    rivals: tuple = ("naive", "distiller")


CASES = {
    "head": Case(
        "Conv1D 64-128-64, dropout after pooling",
        conv_net,
        30,
        teachers=("self", "snapshot", "ema"),
        targets=HEAD_TARGETS,
    ),
    "blocks": Case("Conv1D 64-128-64, dropout in every block", lambda: conv_net(dropout_in_blocks=True)),
    "lstm": Case("LSTM 64, dropout at its input", lstm_net),
    "transformer": Case("two encoder blocks of width 64", transformer),
    "fcn": Case("FCN 128-256-128 without dropout, dropout_rate=0.3", fcn, options={"dropout_rate": 0.3}),
    "mobilenet": Case(
        "MobileNetV3Small 96x96",
        mobile_net,
        input_shape=(96, 96, 3),
        features="conv_2",
        # The network has no Dense layer, before which the representation would be looked for.
        options={"representation": "logits"},
        rivals=("distiller",),
    ),
    "efficientnet": Case("EfficientNetV2B0 96x96", efficient_net, input_shape=(96, 96, 3), rivals=()),
}


def batch_of(case, size):
    """Random data for a case, `(x, y)`."""
    generator = np.random.default_rng(0)
    return generator.standard_normal((size, *case.input_shape), "float32"), generator.integers(N_CLASSES, size=size)


def compiled(model):
    model.compile(keras.optimizers.Adam(), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.optimizer.build(model.trainable_variables)
    return model


def build_variant(case, variant, num_teachers, chunk=None):
    """A compiled model, trained as `variant` says: `"plain"`, `"naive"`, `"distiller"` or a kind of teacher."""
    keras.utils.set_random_seed(0)
    model = case.build()
    if variant == "plain":
        return compiled(model)
    if variant == "naive":
        return compiled(NaiveTeachers(model, num_teachers))
    if variant == "distiller":
        return _distiller(case, model)
    # One teacher leaves nothing to choose by similarity.
    options = case.options | ({"similarity": "uniform"} if num_teachers == 1 else {})
    return compiled(keras_ssd.wrap(model, variant, num_teachers=num_teachers, teacher_chunk=chunk, **options))


class NaiveTeachers(keras.Model):
    """The method in the most direct way: the whole network is called N times more in every step."""

    def __init__(self, model, num_teachers):
        super().__init__()
        self.model = model
        self.num_teachers = num_teachers
        self.built = True

    def call(self, x, training=None):
        outputs = self.model(x, training=training)
        if training:
            teachers = [ops.stop_gradient(self.model(x, training=True)) for _ in range(self.num_teachers)]
            teachers = ops.stack(teachers, axis=1)
            target = guided_target(guidance_weights(similarity_scores(outputs, teachers)), teachers)
            self.add_loss(ops.mean(ops.square(outputs - target)))
        return outputs


def _distiller(case, model):
    """Keras' own distillation of one layer's output, with one teacher."""
    feature = keras.distillation.FeatureDistillation(teacher_layer_name=case.features, student_layer_name=case.features)
    distiller = keras.distillation.Distiller(case.build(), model, feature)
    return compiled(distiller)
