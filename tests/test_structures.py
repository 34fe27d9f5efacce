"""Teacher and student passes on models of every structure, against Keras' own calls of the same model."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import keras_ssd
from passes import passes
from same_weights import arrays, assert_same
from structures import BUILT_IN, EXCHANGEABLE, Doubling, batch, targets

OUTPUTS = dict(distill="outputs", similarity="kl", percentile=0, num_teachers=3)


def move_statistics(model):
    """Give BatchNormalization statistics that differ from those of a batch, as after training."""
    for variable in model.non_trainable_weights:
        variable.assign(np.linspace(0.5, 1.5, int(np.prod(variable.shape))).reshape(variable.shape))


def frozen_copy(model):
    if type(model).__name__ == "Subclassed":
        copy = type(model).from_config(model.get_config())
        copy(np.zeros((2, 4)))
    else:
        copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    copy.trainable = False
    return copy


def wrapped(model, x, **options):
    ssd = keras_ssd.wrap(model, **{**OUTPUTS, **options})
    _, loss = targets(model, x)
    ssd.compile(keras.optimizers.SGD(0.1), loss)
    return ssd


def assert_each_is(teachers, expected):
    """Every pass has given the same outputs."""
    for one, reference in zip(teachers, expected, strict=True):
        np.testing.assert_allclose(one, np.repeat(reference[:, None], one.shape[1], axis=1), atol=1e-6)


@pytest.mark.parametrize("name", EXCHANGEABLE)
def test_frozen_teachers_have_noise_on_and_normalize_as_in_inference(name):
    """The student's pass is the plain training call, and the teachers keep the weights that the model had."""
    model = EXCHANGEABLE[name](Doubling)
    move_statistics(model)
    x = batch(model)
    config = None if name == "subclassed" else json.dumps(model.get_config())
    ssd = wrapped(model, x, teacher="snapshot")
    expected = arrays(frozen_copy(model)(x, training=True))
    for variable in model.trainable_weights:  # the snapshot must not follow
        variable.assign(variable + 1.0)
    with keras.StatelessScope([(v, v.value) for v in model.variables]):
        plain = arrays(model(x, training=True))
    found = passes(ssd, x)
    assert found.teacher_outputs[0].shape[:2] == (6, 3)
    assert_each_is(found.teacher_outputs, expected)
    assert_each_is([one[:, None] for one in found.outputs], plain)
    assert config is None or json.dumps(model.get_config()) == config


@pytest.mark.parametrize("name, chunk", [("several_inputs_and_outputs", 3), ("masked", 2)])
def test_chunks_of_teachers_stay_with_their_sample(name, chunk):
    model = EXCHANGEABLE[name](Doubling)
    x = batch(model)
    ssd = wrapped(model, x, teacher="snapshot", num_teachers=4, teacher_chunk=chunk)
    assert_each_is(passes(ssd, x).teacher_outputs, arrays(frozen_copy(model)(x, training=True)))


@pytest.mark.parametrize("name", ["several_inputs_and_outputs", "masked"])
def test_own_weights_teacher_branches_off_the_students_own_pass(name):
    """Batch statistics before the cut are shared; with no BatchNormalization after it the passes are the student's."""
    model = EXCHANGEABLE[name](Doubling)
    x = batch(model)
    students, _, teachers, _ = passes(wrapped(model, x), x)
    assert_each_is(teachers, students)


@pytest.mark.parametrize(
    "name, chunk",
    [(name, None) for name in (*BUILT_IN, "shared_layers", "subclassed")]
    + [(name, 2) for name in ("recurrent_dropout", "several_inputs_and_outputs", "block")],
)
def test_teachers_differ_from_each_other(name, chunk):
    model = {**EXCHANGEABLE, **BUILT_IN}[name](lambda: layers.Dropout(0.5))
    x = batch(model)
    teachers = passes(wrapped(model, x, num_teachers=5, teacher_chunk=chunk), x).teacher_outputs
    for one in teachers:
        assert one.shape[:2] == (6, 5)
        for i in range(5):
            for j in range(i):
                assert np.abs(one[:, i] - one[:, j]).max() > 1e-4


# Those that a traced step could treat in another way: several tensors, masks, layers whose inside is not known.
@pytest.mark.compiled
@pytest.mark.parametrize(
    "name",
    [
        "dictionaries",
        "masked",
        "block",
        "subclassed",
        "several_inputs_and_outputs",
    ],
)
def test_a_training_step_adds_the_weighted_term_to_the_plain_loss(name):
    model = EXCHANGEABLE[name](Doubling)
    x = batch(model)
    y, loss = targets(model, x)
    ssd = keras_ssd.wrap(model, teacher="snapshot", kd_weight=0.7, **OUTPUTS)
    ssd.compile("sgd", loss)
    model.set_weights([np.cos(np.arange(w.size)).reshape(w.shape) + 1.1 for w in model.get_weights()])
    plain = frozen_copy(model)
    plain.trainable = True
    plain.compile("sgd", loss)
    expected = plain.train_on_batch(x, y, return_dict=True)["loss"]
    logs = ssd.train_on_batch(x, y, return_dict=True)
    assert float(logs["loss"]) == pytest.approx(float(expected) + 0.7 * float(logs["kd_loss"]), rel=1e-4)
    assert float(logs["kd_loss"]) > 1e-3


def flip():
    return layers.RandomFlip("horizontal", seed=5)


@pytest.mark.parametrize("teacher", ["self", "snapshot"])
def test_augmentation_is_shared_and_not_noise(teacher):
    inputs = keras.Input((4, 4, 1))
    hidden = Doubling()(layers.Flatten()(keras.Sequential([flip()])(inputs)))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(hidden))
    x = batch(model, size=8)
    students, _, teachers, _ = passes(wrapped(model, x, teacher=teacher), x)
    assert_each_is(teachers, students)


def test_augmentation_is_noise_if_the_user_asks():
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.Flatten()(flip()(inputs))))
    x = batch(model, size=8)
    ssd = wrapped(model, x, stochastic_layers=lambda layer: isinstance(layer, layers.RandomFlip), num_teachers=16)
    teachers = passes(ssd, x).teacher_outputs
    assert np.ptp(teachers[0], axis=1).max() > 1e-3


def test_a_nested_layer_may_be_called_as_the_input_of_a_sequential():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(6, name="features")])
    model = keras.Sequential([keras.Input((4,), name="features"), inner, Doubling(), layers.Dense(3)])
    x = batch(model)
    students, _, teachers, _ = passes(wrapped(model, x), x)
    assert students[0].shape == (len(x), 3) and teachers[0].shape[::2] == (len(x), 3)
    assert [layer.name for layer in inner.layers] == ["features"]


def test_chosen_layers_are_random_and_the_others_are_not():
    inputs = keras.Input((50,))
    first, second = layers.Dropout(0.5, name="first"), layers.Dropout(0.5, name="second")
    x = first(inputs)
    model = keras.Model(inputs, [layers.Dense(2, name="a")(x), layers.Dense(2, name="b")(second(x))])
    x = np.ones((4, 50), "float32")
    ssd = wrapped(model, x, stochastic_layers="second", teacher="snapshot")
    a, b = passes(ssd, x).teacher_outputs
    assert np.ptp(a, axis=1).max() == 0 and np.ptp(b, axis=1).min() > 0


def test_another_network_teaches():
    student, teacher = EXCHANGEABLE["sequential"](Doubling), EXCHANGEABLE["noise_at_the_input"](Doubling)
    move_statistics(teacher)
    x = batch(student)
    ssd = wrapped(student, x, teacher=teacher)
    expected = arrays(frozen_copy(teacher)(x, training=True))
    assert_each_is(passes(ssd, x).teacher_outputs, expected)
    before = teacher.get_weights()
    ssd.fit(x, targets(student, x)[0], verbose=0)
    assert_same(before, teacher.get_weights())
    assert teacher.trainable and len(ssd.trainable_variables) == len(student.trainable_variables)
