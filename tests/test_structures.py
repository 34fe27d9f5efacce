"""Teacher and student passes on models of every structure, against Keras' own calls of the same model."""

import json

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_ssd
from passes import passes
from same_weights import arrays
from structures import BUILT_IN, EXCHANGEABLE, Doubling, batch, targets

ALL = {**EXCHANGEABLE, **BUILT_IN}
# Those that a traced step could treat in another way: several tensors, masks, layers whose inside is not known.
COMPILED = {"several_inputs_and_outputs", "dictionaries", "masked", "block", "subclassed"}
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


@pytest.mark.parametrize("name", EXCHANGEABLE)
def test_frozen_teachers_have_noise_on_and_normalize_as_in_inference(name):
    model = EXCHANGEABLE[name](Doubling)
    move_statistics(model)
    x = batch(model)
    ssd = wrapped(model, x, teacher="snapshot")
    expected = arrays(frozen_copy(model)(x, training=True))
    for variable in model.trainable_weights:  # the snapshot must not follow
        variable.assign(variable + 1.0)
    teachers = passes(ssd, x).teacher_outputs
    assert len(teachers) == len(expected)
    for one, reference in zip(teachers, expected, strict=True):
        assert one.shape == (6, 3, *reference.shape[1:])
        for i in range(3):
            np.testing.assert_allclose(one[:, i], reference, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 2, 3], ids=lambda chunk: f"chunk={chunk}")
def test_chunks_of_teachers_stay_with_their_sample(chunk):
    model = EXCHANGEABLE["sequential"](Doubling)
    x = batch(model)
    expected = arrays(frozen_copy(model)(x, training=True))[0]
    ssd = wrapped(model, x, teacher="snapshot", num_teachers=4, teacher_chunk=chunk)
    (teachers,) = passes(ssd, x).teacher_outputs
    np.testing.assert_allclose(teachers, np.repeat(expected[:, None], 4, axis=1), atol=1e-6)


@pytest.mark.parametrize("name", EXCHANGEABLE)
def test_student_pass_is_the_plain_training_call(name):
    model = EXCHANGEABLE[name](Doubling)
    x = batch(model)
    with keras.StatelessScope([(v, v.value) for v in model.variables]):
        expected = arrays(model(x, training=True))
    students = passes(wrapped(model, x), x).outputs
    for one, reference in zip(students, expected, strict=True):
        np.testing.assert_allclose(one, reference, atol=1e-6)


@pytest.mark.parametrize("name", ["sequential", "branches", "several_inputs_and_outputs", "dictionaries", "masked"])
def test_own_weights_teacher_branches_off_the_students_own_pass(name):
    """Batch statistics before the cut are shared; with no BatchNormalization after it the passes are the student's."""
    model = EXCHANGEABLE[name](Doubling)
    x = batch(model)
    students, _, teachers, _ = passes(wrapped(model, x), x)
    for one, student in zip(teachers, students, strict=True):
        for i in range(3):
            np.testing.assert_allclose(one[:, i], student, atol=1e-6)


@pytest.mark.parametrize("chunk", [None, 2], ids=["tiled", "chunked"])
@pytest.mark.parametrize(
    "name", [*BUILT_IN, "masked", "several_inputs_and_outputs", "shared_layers", "block", "subclassed"]
)
def test_teachers_differ_from_each_other(name, chunk):
    model = ALL[name](lambda: layers.Dropout(0.5))
    x = batch(model)
    teachers = passes(wrapped(model, x, num_teachers=5, teacher_chunk=chunk), x).teacher_outputs
    for one in teachers:
        assert one.shape[:2] == (6, 5)
        for i in range(5):
            for j in range(i):
                assert np.abs(one[:, i] - one[:, j]).max() > 1e-4


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.compiled if name in COMPILED else []) for name in EXCHANGEABLE]
)
def test_a_training_step_adds_the_weighted_term_to_the_plain_loss(name):
    model = EXCHANGEABLE[name](Doubling)
    x = batch(model)
    y, loss = targets(model, x)
    architecture = None if name == "subclassed" else json.dumps(model.get_config())
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
    if architecture is not None:
        assert json.dumps(model.get_config()) == architecture


def test_mask_reaches_the_teachers():
    """Padding must not change what a teacher sees."""
    inputs = keras.Input((None,), dtype="int32")
    x = layers.Embedding(7, 4, mask_zero=True)(inputs)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.LSTM(4)(Doubling()(x))))
    short = np.array([[3, 2, 5]], "int32")
    padded = np.array([[3, 2, 5, 0, 0]], "int32")
    ssd = wrapped(model, short)
    np.testing.assert_allclose(passes(ssd, short).teacher_outputs[0], passes(ssd, padded).teacher_outputs[0], atol=1e-6)


def flip():
    return layers.RandomFlip("horizontal", seed=5)


@pytest.mark.parametrize(
    "augmentation",
    [flip, lambda: keras.Sequential([flip()]), lambda: layers.Pipeline([flip()])],
    ids=["layer", "nested", "pipeline"],
)
def test_augmentation_is_shared_and_not_noise(augmentation):
    inputs = keras.Input((4, 4, 1))
    flipped = augmentation()(inputs)
    hidden = Doubling()(layers.Flatten()(flipped))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(hidden))
    x = batch(model, size=8)
    for teacher in ("self", "snapshot", "ema"):
        students, _, teachers, _ = passes(wrapped(model, x, teacher=teacher), x)
        for i in range(3):
            np.testing.assert_allclose(teachers[0][:, i], students[0], atol=1e-6)


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


def test_a_model_with_augmentation_alone_has_no_noise():
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layers.RandomFlip()(inputs))))
    with pytest.raises(ValueError, match="no noise layer"):
        keras_ssd.wrap(model)


def test_dropout_rate_holds_for_the_teachers_only():
    inputs = keras.Input((1000,))
    drop = layers.Dropout(0.2)
    model = keras.Model(inputs, layers.Dense(3)(layers.Lambda(lambda x: x)(drop(inputs))))
    ssd = keras_ssd.wrap(
        model, dropout_rate=0.7, num_teachers=4, distill="representation", similarity="cosine", representation=drop.name
    )
    drawn = passes(ssd, np.ones((4, 1000), "float32"))
    assert np.mean(drawn.representation == 0) == pytest.approx(0.2, abs=0.03)
    assert np.mean(drawn.teacher_representation == 0) == pytest.approx(0.7, abs=0.03)
    assert drop.rate == 0.2


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
    student, teacher = EXCHANGEABLE["sequential"](Doubling), EXCHANGEABLE["skips"](Doubling)
    move_statistics(teacher)
    x = batch(student)
    ssd = wrapped(student, x, teacher=teacher)
    teachers = passes(ssd, x).teacher_outputs
    reference = ops.convert_to_numpy(frozen_copy(teacher)(x, training=True))
    for i in range(3):
        np.testing.assert_allclose(teachers[0][:, i], reference, atol=1e-6)
    before = teacher.get_weights()
    y, _ = targets(student, x)
    ssd.fit(x, y, epochs=2, verbose=0)
    for old, new in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert teacher.trainable and len(ssd.trainable_variables) == len(student.trainable_variables)
