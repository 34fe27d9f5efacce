"""The models whose training step is timed, the ways to train them, and the cost that counting FLOPs allows."""

import dataclasses
import math

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


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, how many teachers it gets, and which kinds of them."""

    title: str
    build: object
    num_teachers: int
    input_shape: tuple = (128, 9)
    # For each kind of teacher the ratio to the plain step that is to be reached; `None`: 1.15 times the floor.
    targets: dict = dataclasses.field(default_factory=lambda: {"self": None})
    # The representation that `FeatureDistillation` compares.
    features: str = "pooled"
    options: dict = dataclasses.field(default_factory=dict)
    # Other ways to distil. 30 calls of a large network take minutes to compile.
    rivals: tuple = ("naive", "distiller")

    def floor_and_target(self, teacher, num_teachers):
        least = floor(self.build(), teacher, num_teachers)
        return least, self.targets[teacher] or 1.15 * least


CASES = {
    "head": Case(
        "Conv1D 64-128-64, dropout after pooling",
        conv_net,
        30,
        targets={"self": 1.10, "snapshot": 1.40, "ema": 1.40},
    ),
    "blocks": Case("Conv1D 64-128-64, dropout in every block", lambda: conv_net(dropout_in_blocks=True), 8),
    "lstm": Case("LSTM 64, dropout at its input", lstm_net, 8),
    "mobilenet": Case(
        "MobileNetV3Small 96x96",
        mobile_net,
        30,
        input_shape=(96, 96, 3),
        targets={"self": 1.10},
        features="conv_2",
        # The network has no Dense layer, before which the representation would be looked for.
        options={"representation": "logits"},
        rivals=("distiller",),
    ),
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


def floor(model, teacher, num_teachers):
    """The least cost of a step over that of the plain model's, counted in forward passes: a plain step is 3.

    Only what lies behind the first dropout has to be repeated. A teacher that shares the student's weights shares
    what lies before it, too.
    """
    costs = [_multiplications(layer) for layer in model.layers]
    noisy = [_has_dropout(layer) for layer in model.layers]
    repeated = sum(costs[noisy.index(True) :]) / sum(costs)
    prefix = 0.0 if teacher == "self" else 1.0 - repeated
    return (3 + prefix + num_teachers * repeated) / 3


def _has_dropout(layer):
    return any(getattr(layer, name, 0) or 0 for name in ("rate", "dropout", "recurrent_dropout"))


def _multiplications(layer):
    """Every kernel (a weight of two or more axes) is applied once for each position of the output, or time step."""
    kernels = sum(math.prod(weight.shape) for weight in layer.weights if len(weight.shape) > 1)
    shape = layer.input.shape if isinstance(layer, keras.layers.RNN) else layer.output.shape
    return kernels * math.prod(shape[1:-1]) if kernels else 0
