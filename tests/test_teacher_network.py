"""Another network as the teacher: its outputs are read as its own loss says, its inputs have to be the student's."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_ssd
from models import classifier, compiled, softmax_head

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")
SPARSE = "sparse_categorical_crossentropy"


def ended(activation, units=3):
    stack = [layers.Dense(32, activation="relu"), layers.Dropout(0.01), layers.Dense(units, activation=activation)]
    return keras.Sequential([keras.Input((4,)), *stack])


@pytest.mark.parametrize("of_student, of_teacher", [("softmax", None), (None, "softmax"), (None, None)])
def test_teacher_may_return_logits(of_student, of_teacher):
    """The very same network, with a softmax at its end or without: there is nothing to distil."""
    teacher, student = ended(of_teacher), ended(of_student)
    teacher.set_weights([4 * value for value in teacher.get_weights()])
    student.set_weights(teacher.get_weights())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=of_student is None)
    ssd = keras_ssd.wrap(compiled(student, keras.optimizers.SGD(0.0), loss, metrics=()), teacher=teacher, seed=0)
    assert ssd.fit(X, Y, verbose=0).history["kd_loss"][0] < 0.02


@keras.saving.register_keras_serializable(package="tests")
class Untold(layers.Layer):
    """Puts out what nobody knows."""

    def call(self, x):
        return x


def untold():
    return keras.Sequential([*ended(None).layers, Untold()])


def test_teacher_with_ambiguous_outputs_needs_a_loss():
    student = compiled(ended("softmax"), metrics=())
    teacher = untold()
    teacher.build((None, 4))
    with pytest.raises(ValueError, match=r"`teacher` does not say.*output 0.*teacher\.compile\(loss="):
        keras_ssd.wrap(student, teacher=teacher)
    teacher.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    student.set_weights(teacher.get_weights())
    ssd = keras_ssd.wrap(student, teacher=teacher, seed=0)
    ssd.compile(keras.optimizers.SGD(0.0), SPARSE)
    assert ssd.fit(X, Y, verbose=0).history["kd_loss"][0] < 0.02
    # A regression has but one meaning.
    values = compiled(ended(None), loss="mse", metrics=())
    of_values = untold()
    of_values.build((None, 4))
    keras_ssd.wrap(values, teacher=of_values)


@pytest.mark.parametrize(
    "make",
    [
        lambda: classifier((20,)),
        lambda: keras.Model([a := keras.Input((4,)), b := keras.Input((4,))], softmax_head(layers.Dropout(0.3)(a + b))),
    ],
    ids=["wider", "two inputs"],
)
def test_teacher_with_other_inputs_is_rejected(make):
    with pytest.raises(ValueError, match=r"`teacher` takes inputs of shape .*\(4,\)"):
        keras_ssd.wrap(classifier(), teacher=make())
