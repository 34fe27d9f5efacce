"""Augmentation of windows: the effect of each layer on known windows, and the samples that teachers see."""

import functools
import math

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_ssd
from keras_ssd import augmentation
from keras_ssd.augmentation import Augmentation, Jitter, Rotation, Scaling, TimeMask, TimeShift, rotation_matrices
from keras_ssd.noise import is_augmentation, is_noise
from passes import passes
from same_weights import assert_close, assert_same
from structures import Doubling

# Name of the strength, a usual one, and the largest.
LAYERS = {
    Jitter: ("stddev", 0.5, math.inf),
    Scaling: ("stddev", 0.5, math.inf),
    TimeMask: ("max_fraction", 0.5, 1),
    TimeShift: ("max_fraction", 0.5, 1),
    Rotation: ("max_angle", 90, 180),
}
makers = [functools.partial(layer, strength) for layer, (_, strength, _) in LAYERS.items()]
every_layer = pytest.mark.parametrize("make", makers, ids=lambda make: make.func.__name__)
# No value is 0, and none is like another.
WINDOWS = 1 + np.arange(4 * 10 * 3, dtype="float32").reshape(4, 10, 3)


def applied(layer, x, training=True):
    return ops.convert_to_numpy(layer(x, training=training))


@every_layer
def test_every_window_and_call_of_training_draws_new_numbers_fixed_by_the_seed(make):
    same = np.tile(np.arange(1, 601, dtype="float32").reshape(1, 200, 3), (64, 1, 1))
    layer = make(seed=1)
    np.testing.assert_array_equal(applied(layer, same, training=False), same)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(same)), same)
    first, second = applied(layer, same), applied(layer, same)
    assert len(np.unique(first.reshape(64, -1), axis=0)) > 30
    for other in (same, second, applied(make(seed=2), same)):
        assert np.abs(first - other).max() > 0.01
    np.testing.assert_array_equal(first, applied(make(seed=1), same))


@every_layer
def test_layers_count_as_augmentation_not_as_noise_and_are_saved_with_their_arguments(make):
    layer = make(seed=3, name="one")
    assert is_augmentation(layer) and not is_noise(layer)
    assert is_augmentation(keras.Sequential([keras.Input((10, 3)), make()]))
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(copy) is type(layer) and copy.get_config() == layer.get_config()
    np.testing.assert_array_equal(applied(copy, WINDOWS), applied(layer, WINDOWS))


@every_layer
def test_the_dtype_of_the_policy_is_kept(make):
    for dtype in ["float64", "mixed_float16", "bfloat16"][keras.backend.backend() == "jax" :]:
        layer = make(dtype=dtype)
        result = layer(ops.cast(WINDOWS, layer.compute_dtype), training=True)
        assert keras.backend.standardize_dtype(result.dtype) == layer.compute_dtype


def test_jitter_is_normal_of_the_given_deviation():
    noise = applied(Jitter(0.3, seed=0), np.full((100, 100, 9), 5.0, "float32")) - 5
    assert noise.mean() == pytest.approx(0, abs=0.005)
    assert noise.std() == pytest.approx(0.3, rel=0.01)
    # Neither steps nor channels share a draw.
    for other in (noise[:, 1, 0], noise[:, 0, 1]):
        assert abs(np.corrcoef(noise[:, 0, 0], other)[0, 1]) < 0.4


def test_scaling_has_one_factor_for_each_window_and_channel():
    windows = np.tile(WINDOWS[:1], (2000, 1, 1))
    factors = applied(Scaling(0.2, seed=0), windows) / windows
    np.testing.assert_allclose(factors, np.broadcast_to(factors[:, :1], factors.shape), rtol=1e-5)
    assert factors.mean() == pytest.approx(1, abs=0.01)
    assert factors[:, 0].std() == pytest.approx(0.2, rel=0.05)
    assert abs(np.corrcoef(factors[:, 0, 0], factors[:, 0, 1])[0, 1]) < 0.1


def test_time_mask_sets_one_span_to_0_in_all_channels():
    windows = np.ones((4000, 10, 3), "float32")
    masked = applied(TimeMask(0.4, seed=0), windows) == 0
    np.testing.assert_array_equal(masked.all(axis=2), masked.any(axis=2))
    masked = masked[:, :, 0]
    # One span: it begins at most once.
    begins = np.diff(np.pad(masked.astype(int), ((0, 0), (1, 0))), axis=1) == 1
    assert begins.sum(axis=1).max() == 1
    lengths = masked.sum(axis=1)
    np.testing.assert_allclose(np.bincount(lengths) / 4000, [0.2] * 5, atol=0.03)
    # Of spans of 4 steps all 7 places are equally frequent.
    places = begins[lengths == 4].argmax(axis=1)
    np.testing.assert_allclose(np.bincount(places) / len(places), [1 / 7] * 7, atol=0.05)
    # The longest of all covers the window.
    masked = applied(TimeMask(1.0, seed=0), np.ones((300, 4, 1), "float32"))[:, :, 0] == 0
    assert set(masked.sum(axis=1).tolist()) == {0, 1, 2, 3, 4}


def test_time_shift_rolls_each_window_by_up_to_its_fraction():
    window = np.arange(30, dtype="float32").reshape(10, 3)
    shifted = applied(TimeShift(0.25, seed=0), np.tile(window, (2000, 1, 1)))
    rolled = np.stack([np.roll(window, n, axis=0) for n in range(-2, 3)])
    is_rolled = (shifted[:, None] == rolled).all(axis=(2, 3))
    np.testing.assert_array_equal(is_rolled.sum(axis=1), 1)
    np.testing.assert_allclose(is_rolled.mean(axis=0), [0.2] * 5, atol=0.03)


def test_rotation_by_hand():
    """A quarter turn about z moves x to y and y to -x, a third of a turn about (1, 1, 1) x to y, y to z, z to x."""
    axes, angles = np.float32([[0, 0, 2], [1, 1, 1], [1, 0, 0]]), np.float32([math.pi / 2, 2 * math.pi / 3, 0])
    matrices = rotation_matrices(ops.convert_to_tensor(axes), ops.convert_to_tensor(angles))
    expected = [[[0, -1, 0], [1, 0, 0], [0, 0, 1]], [[0, 0, 1], [1, 0, 0], [0, 1, 0]], np.eye(3)]
    np.testing.assert_allclose(ops.convert_to_numpy(matrices), expected, atol=1e-6)


def test_rotation_turns_all_triples_of_a_window_alike():
    windows = np.random.default_rng(0).normal(size=(500, 4, 6)).astype("float32")
    windows[:, :, 3:] = windows[:, :, :3]
    turned = applied(Rotation(40, seed=0), windows)
    np.testing.assert_allclose(turned[:, :, :3], turned[:, :, 3:], atol=1e-5)
    before, after = windows[:, :, :3], turned[:, :, :3]
    # Lengths and angles between the steps stay.
    np.testing.assert_allclose(after @ after.transpose(0, 2, 1), before @ before.transpose(0, 2, 1), atol=1e-4)
    cosines = (before * after).sum(axis=2) / (before**2).sum(axis=2)
    assert cosines.min() > math.cos(math.radians(40)) - 1e-4
    # The turn of a window is one: from three of its steps its matrix follows, and it moves the fourth.
    for i in range(5):
        matrix = np.linalg.solve(before[i, :3], after[i, :3])
        np.testing.assert_allclose(before[i, 3] @ matrix, after[i, 3], atol=1e-3)
        angle = np.degrees(np.arccos(np.clip((np.trace(matrix) - 1) / 2, -1, 1)))
        assert 0 <= angle < 40.1
    with pytest.raises(ValueError, match="triples .* windows of 4 channels"):
        Rotation()(np.zeros((2, 5, 4), "float32"), training=True)


@pytest.mark.parametrize("layer", LAYERS)
def test_strength_must_be_a_positive_number_up_to_its_limit(layer):
    name, _, most = LAYERS[layer]
    layer(min(most, 1000))
    for value in (0, 1.01 * most, None):
        with pytest.raises(ValueError, match=rf"`{name}` should be a float in \(0, {most}[\])]"):
            layer(value)


class Halving(Augmentation):
    """Augmentation that can be computed by hand."""

    def augment(self, x):
        return x / 2


def test_subclass_of_augmentation_is_active_in_training_only():
    assert is_augmentation(Halving())
    np.testing.assert_array_equal(applied(Halving(), WINDOWS), WINDOWS / 2)
    np.testing.assert_array_equal(applied(Halving(), WINDOWS, training=False), WINDOWS)
    with pytest.raises(NotImplementedError, match="should define `augment"):
        Augmentation()(WINDOWS, training=True)


# What the teachers see.


def network(augmenting=Halving, noise=Doubling):
    """With a momentum of 1, so that the student's pass leaves the statistics that teachers read as they are."""
    inputs = keras.Input((6, 3))
    x = layers.BatchNormalization(momentum=1.0)(augmenting()(layers.Rescaling(1.0)(inputs)))
    x = layers.Flatten()(layers.Dense(5, activation="relu")(x))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(noise()(x)))


X = np.random.default_rng(0).normal(size=(8, 6, 3)).astype("float32")
Y = np.arange(8) % 3


def wrapped(model, **options):
    ssd = keras_ssd.wrap(model, **{"num_teachers": 3, "distill": "outputs", "similarity": "uniform", **options})
    ssd.compile("sgd", "sparse_categorical_crossentropy")
    return ssd


def teachers_of(ssd, x):
    return passes(ssd, x).teacher_outputs[0]


def frozen_with_noise(model, x):
    """What a teacher puts out for `x` if nothing augments it: inference, but what the noise gets is doubled."""
    features = keras.Model(model.input, model.layers[-2].input)(x, training=False)
    return ops.convert_to_numpy(model.layers[-1](features * 2))


@pytest.mark.parametrize("teacher", ["self", "snapshot", "ema"])
def test_teachers_see_the_augmented_or_the_clean_sample(teacher):
    model = network()
    augmented, clean = frozen_with_noise(model, X / 2), frozen_with_noise(model, X)
    assert np.abs(augmented - clean).max() > 1e-3
    views = teachers_of(wrapped(model, teacher=teacher, augmented_teachers=False), X)
    np.testing.assert_allclose(views, np.stack([clean] * 3, axis=1), atol=1e-6)
    if teacher != "self":  # whose passes start from the student's, normalised with the statistics of the batch
        np.testing.assert_allclose(teachers_of(wrapped(model, teacher=teacher), X)[:, 0], augmented, atol=1e-6)


@pytest.mark.parametrize("teacher, noise", [("self", None), ("self", ()), ("snapshot", ()), ("ema", None)])
def test_each_teacher_augments_the_clean_sample_once(teacher, noise):
    """The sample is halved, not left or halved twice; the noise, if it is on, doubles what it gets."""
    model = network()
    views = teachers_of(wrapped(model, teacher=teacher, augmented_teachers="each", stochastic_layers=noise), X)
    expected = model.predict(X / 2, verbose=0) if noise == () else frozen_with_noise(model, X / 2)
    np.testing.assert_allclose(views, np.stack([expected] * 3, axis=1), atol=1e-6)


def brightness():
    return layers.RandomBrightness(0.1, value_range=(-9, 9))


@pytest.mark.parametrize(
    "make, shape, teacher",
    [
        (lambda: Jitter(1.0), (6, 3), "self"),
        (brightness, (4, 4, 3), "model"),
        (lambda: keras.Sequential([brightness()]), (4, 4, 3), "ema"),
    ],
    ids=["Jitter", "Keras' own", "nested"],
)
def test_each_teacher_and_sample_draws_a_view_of_its_own(make, shape, teacher):
    """The output is the mean of the augmented sample; a model without dropout needs none."""
    inputs = keras.Input(shape)
    mean = layers.AveragePooling1D(18)(layers.Reshape((-1, 1))(make()(inputs)))
    model = keras.Model(inputs, layers.Flatten()(mean))
    x = np.zeros((5, *shape), "float32")
    teacher = teacher if teacher != "model" else keras.models.clone_model(model)
    options = dict(distill="outputs", similarity="uniform", ema_momentum=0.9, num_teachers=4, kd_fraction=1, seed=3)
    ssd = keras_ssd.wrap(model, teacher, augmented_teachers="each", **options)
    first, second = passes(ssd, x), passes(ssd, x)
    drawn = np.concatenate([first.teacher_outputs[0][..., 0], first.outputs[0][:, None, 0]], axis=1)
    assert len(np.unique(drawn)) == drawn.size
    np.testing.assert_array_equal(first.teacher_outputs[0], second.teacher_outputs[0])


def test_training_with_augmentation_continues_from_a_file_bit_for_bit(tmp_path):
    def chain():
        return keras.Sequential([Rotation(20), Scaling(0.1), Jitter(0.1), TimeMask(0.5), TimeShift(0.2)])

    model = network(chain, lambda: layers.Dropout(0.5, seed=1))
    ssd = wrapped(model, teacher="ema", augmented_teachers=False, target_threshold=0.1)
    ssd.train_on_batch(X, Y)
    ssd.save(tmp_path / "ssd.keras")
    loaded = keras_ssd.load_model(tmp_path / "ssd.keras")
    assert loaded.settings == ssd.settings
    for one in (ssd, loaded):
        one.train_on_batch(X, Y)
    assert_same(ssd.student.get_weights(), loaded.student.get_weights())


def test_the_price_of_views_is_bounded():
    ssd = wrapped(network(), augmented_teachers="each", num_teachers=4)
    # Four passes of all but the first layer are 4/3 of a plain step; an eighth of the batch costs less than a quarter.
    assert ssd.teacher_cost.fraction == 1 / 8
    assert 0.1 < ssd.teacher_cost.relative < 0.25
    assert ssd.get_config()["augmented_teachers"] == "each"


def test_what_the_model_cannot_give_is_refused():
    """Views need augmentation that keeps samples apart and can be told from noise, sharp targets need outputs."""

    def flat(shape, *first):
        return keras.Sequential([keras.Input(shape), *first, layers.Flatten(), layers.Dropout(0.5), layers.Dense(3)])

    class Both(keras.Model):
        def __init__(self):
            super().__init__()
            self.augmentation, self.noise, self.head = Jitter(), layers.Dropout(0.5), layers.Dense(3)

        def call(self, x, training=False):
            return self.head(self.noise(self.augmentation(x, training=training), training=training))

    def refuses(model, message, **options):
        with pytest.raises(ValueError, match=message):
            wrapped(model, **options)

    refuses(flat((6, 3)), '"each", but the model .* has no augmentation layers', augmented_teachers="each")
    for layer in (layers.MixUp(name="mix"), layers.RandomCrop(3, 3, name="mix")):
        refuses(flat((4, 4, 3), layer), r"augments whole batches by \['mix'\]", augmented_teachers="each")
    model = Both()
    model(X)
    wrapped(model)
    refuses(model, "`augmented_teachers` is False, but the subclassed model", augmented_teachers=False)
    jitters = dict(stochastic_layers="jitter", augmented_teachers=False)
    refuses(network(lambda: Jitter(name="jitter")), "is False, but 'jitter' is or holds", **jitters)
    for sharp in ({"target_temperature": 0.5}, {"target_threshold": 0.9}):
        message = "`target_temperature` and `target_threshold` need outputs"
        refuses(flat((6, 3)), message, distill="representation", **sharp)


def test_augmentation_after_the_noise_is_off_in_the_teachers():
    inputs = keras.Input((6, 3))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.Flatten()(Halving()(Doubling()(inputs)))))
    for augmented in (True, False):
        teachers = teachers_of(wrapped(model, augmented_teachers=augmented), X)
        expected = ops.convert_to_numpy(model.layers[-1](X.reshape(8, -1) * 2))
        np.testing.assert_allclose(teachers[:, 0], expected, atol=1e-6)


def test_one_step_follows_the_gradient_of_the_student_alone():
    """Plain SGD, one step, the task left out: the gradient of KL(fixed targets, student on the augmented sample)."""
    model = network(noise=lambda: Doubling(name="noise"))
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    copy.compile(keras.optimizers.SGD(0.5), keras.losses.KLDivergence())
    copy.train_on_batch(X, frozen_with_noise(model, X))
    of_term = dict(kd_weight=1.0, kd_sample_weight=False, kd_fraction=1, temperature=1.0)
    ssd = wrapped(model, augmented_teachers=False, **of_term)
    ssd.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    ssd.train_on_batch(X, Y, sample_weight=np.zeros(len(Y)))
    assert_close(model.get_weights(), copy.get_weights(), tolerance=1e-5)


@pytest.mark.slow
@pytest.mark.compiled
def test_compiled_by_xla():
    if keras.backend.backend() == "torch":
        pytest.skip("Keras compiles nothing on PyTorch unless asked to")
    chain = [Rotation(20), Scaling(0.1), Jitter(0.1), TimeMask(0.5), TimeShift(0.2)]
    model = keras.Sequential([keras.Input((None, 3)), *chain, layers.GlobalAveragePooling1D(), layers.Dense(3)])
    model.compile("sgd", "mse", jit_compile=True)
    assert np.isfinite(model.fit(X, X.mean(axis=1), verbose=0).history["loss"]).all()


def test_every_layer_of_the_module_is_tested():
    types = [value for value in vars(augmentation).values() if isinstance(value, type)]
    layers_there = {value for value in types if issubclass(value, layers.Layer)} - {Augmentation}
    assert layers_there == set(LAYERS)
