import math

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_ssd
import reference
from gradients import assert_close, value_and_gradient
from keras_ssd.callbacks.statistics import TeacherStatistics
from keras_ssd.graph import Graph
from keras_ssd.guidance import guidance_weights, similarity_scores
from keras_ssd.output_records import OutputRecords
from keras_ssd.outputs import Output
from keras_ssd.term import mean_weight, representation_loss
from keras_ssd.uncertainty import summary

B, N = 2, 3
WEIGHTS = np.float32([[0.2, 0.3, 0.5], [0, 0.25, 0.75]])
LN2, LN3 = math.log(2), math.log(3)
# (kind, shape of one sample's output): several positions are time steps.
OUTPUTS = {
    "categorical": ("categorical", (4,), reference.tempered_kl),
    "categorical-in-time": ("categorical", (5, 4), reference.tempered_kl),
    "binary": ("binary", (1,), reference.tempered_binary_kl),
    "binary-in-time": ("binary", (5, 4), reference.tempered_binary_kl),
    "regression": ("regression", (4,), reference.squared_error),
    "regression-in-time": ("regression", (5, 4), reference.squared_error),
    "categorical-volume": ("categorical", (2, 1, 2, 3), reference.tempered_kl),
    "binary-volume": ("binary", (2, 1, 2, 1), reference.tempered_binary_kl),
    "regression-volume": ("regression", (2, 1, 2, 2), reference.squared_error),
}
every_output = pytest.mark.parametrize("kind, shape, expected", OUTPUTS.values(), ids=OUTPUTS)


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def outputs(shape):
    return normal(B, *shape), normal(B, N, *shape, seed=2)


def for_samples(sample_weight, shape):
    """As for any loss of Keras, the weights of outputs in time have a time axis."""
    return np.float32(sample_weight).reshape((B,) + (1,) * (len(shape) - 1))


def distil(distance, student, teachers, weights=WEIGHTS, sample_weight=None):
    return distance.loss(distance.target(weights, student, teachers)[0], student, sample_weight)


@every_output
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_loss_and_gradient(kind, shape, expected, temperature):
    student, teachers = outputs(shape)
    distance = Output(kind, from_logits=True, temperature=temperature)
    value, gradient = value_and_gradient(lambda s: distil(distance, s, teachers), student, compiled=True)
    assert_close(value, expected(teachers, WEIGHTS, student, temperature))
    assert_close(gradient, reference.gradient(lambda s: expected(teachers, WEIGHTS, s, temperature), student))


def test_loss_by_hand():
    """Logits (2 ln 3, 0) at T = 2 are the probabilities (3/4, 1/4); the student has (1/2, 1/2)."""
    student, teachers = np.zeros((1, 2), "float32"), np.float32([[[2 * LN3, 0], [0, 2 * LN3]]])
    distance = Output("categorical", from_logits=True, temperature=2.0, weight=0.5)
    value, gradient = value_and_gradient(
        lambda s: distil(distance, s, teachers, np.float32([[1, 0]])), student, compiled=True
    )
    assert_close(value, 0.5 * 4 * (LN2 + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    # weight * T^2 * (softmax(z_S / T) - p) / T
    assert_close(gradient, [[-0.25, 0.25]])
    # The mean of (3/4, 1/4) and (1/4, 3/4) is the student's own distribution.
    assert_close(distil(distance, student, teachers, np.float32([[0.5, 0.5]])), 0.0)
    # 5/6 (3/4, 1/4) + 1/6 (1/4, 3/4), which is not the softmax of the mean logits.
    assert_close(distance.target(np.float32([[5 / 6, 1 / 6]]), student, teachers)[0], [[2 / 3, 1 / 3]])


# Three samples; at T = 1/2 the mean (3/4, 1/4) becomes (9, 1) / 10 and (1/2, 1/2) stays.
SURE = np.float32([[[0.9, 0.1], [0.6, 0.4]], [[0.8, 0.2], [0.2, 0.8]], [[0.25, 0.75], [0.25, 0.75]]])
HALVES = np.full((3, 2), 0.5, "float32")


@pytest.mark.parametrize(
    "threshold, targets, shares",
    [
        (0.0, [[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]], [1, 1, 1]),
        (0.7, [[0.9, 0.1], [0.3, 0.7], [0.1, 0.9]], [1, 0, 1]),
        (0.76, [[0.3, 0.7], [0.3, 0.7], [0.3, 0.7]], [0, 0, 0]),
    ],
)
def test_targets_are_sharpened_where_they_reach_the_threshold(threshold, targets, shares):
    """Elsewhere the student's own distribution, (0.3, 0.7), leaves neither term nor gradient."""
    student = np.float32([[0.3, 0.7]] * 3)
    distance = Output("categorical", from_logits=False, temperature=1.0)

    def loss(x):
        return distance.loss(distance.target(HALVES, x, SURE, None, 0.5, threshold)[0], x, None)

    target, share = distance.target(HALVES, student, SURE, None, 0.5, threshold)
    assert_close(target, targets)
    assert_close(share, shares)
    value, gradient = value_and_gradient(loss, student, compiled=True)
    divergences = [sum(p * math.log(p / q) for p, q in zip(one, (0.3, 0.7), strict=True)) for one in targets]
    assert_close(value, sum(divergences) / 3)
    # Of KL to softmax(log q): (q_c - p_c) / q_c for each of three samples.
    assert_close(gradient, [[(q - p) / q / 3 for p, q in zip(one, (0.3, 0.7), strict=True)] for one in targets])


def test_each_unit_of_a_binary_output_has_its_own_threshold():
    """Units at 0.75 and 0.5: the first is sharpened to 0.9, the second is the student's own, 0.4."""
    student, teachers = np.float32([[0.4, 0.4]]), np.float32([[[0.75, 0.5]]])
    distance = Output("binary", from_logits=False, temperature=1.0)
    target, share = distance.target(np.ones((1, 1), "float32"), student, teachers, None, 0.5, 0.7)
    assert_close(target, [[[0.9, 0.1], [0.4, 0.6]]])
    assert_close(share, [0.5])


def test_masked_positions_have_no_part_in_the_share_that_counts():
    teachers = np.float32([[[[0.9, 0.1], [0.5, 0.5], [0.5, 0.5]]]])
    distance = Output("categorical", from_logits=False, temperature=1.0)
    mask = ops.convert_to_tensor([[True, True, False]])
    share = distance.target(np.ones((1, 1), "float32"), teachers[:, 0], teachers, mask, 1.0, 0.7)[1]
    assert_close(share, [0.5])


def test_regression_has_no_threshold():
    student, teachers = outputs((4,))
    target, share = Output("regression", False, 1.0).target(WEIGHTS, student, teachers, None, 0.5, 0.9)
    assert_close(target, reference.target(WEIGHTS, teachers))
    assert share is None


def test_logs_show_the_share_of_targets_that_count():
    """A model without a kernel puts out sigmoid(ln 4) = 0.8 for every sample, and so do its teachers."""
    model = keras.Sequential([keras.Input((2,)), layers.Dropout(0.5), layers.Dense(1, "sigmoid", use_bias=True)])
    model.set_weights([np.zeros((2, 1)), np.log([4.0])])
    shares = []
    for threshold in (0.7, 0.9):
        ssd = keras_ssd.wrap(model, target_threshold=threshold, temperature=1.0, kd_fraction=1)
        ssd.compile(keras.optimizers.SGD(0.0), "binary_crossentropy")
        shares += ssd.fit(normal(4, 2), np.ones(4), validation_split=0.5, verbose=0).history["kd_share"]
        assert "kd_share" not in ssd.evaluate(normal(4, 2), np.ones(4), return_dict=True, verbose=0)
    assert shares == [1.0, 0.0]


@pytest.mark.parametrize("kind", ["categorical", "binary"])
def test_probabilities_agree_with_logits(kind):
    student, teachers = outputs((5, 4))
    activation = {"categorical": reference.softmax, "binary": reference.sigmoid}[kind]
    logits, probabilities = (Output(kind, from_logits, 3.0) for from_logits in (True, False))
    given = [activation(x).astype("float32") for x in (student, teachers)]
    assert_close(probabilities.scores(*given), logits.scores(student, teachers))
    assert_close(distil(probabilities, *given), distil(logits, student, teachers))


@pytest.mark.parametrize("kind", ["categorical", "binary"])
def test_certain_probabilities_stay_finite(kind):
    student, teachers = np.float32([[0, 1]]), np.float32([[[1, 0], [0, 1]]])
    distance = Output(kind, from_logits=False, temperature=1.0)
    value, gradient = value_and_gradient(
        lambda s: distil(distance, s, teachers, np.float32([[1, 0]])), student, compiled=True
    )
    assert 10 < value < 20
    assert np.isfinite(gradient).all()
    assert np.isfinite(ops.convert_to_numpy(distance.scores(student, teachers))).all()


@every_output
def test_scores(kind, shape, expected):
    """Minus the divergence of each teacher, alone, without T^2."""
    student, teachers = outputs(shape)
    scores = Output(kind, from_logits=True, temperature=2.0).scores(student, teachers)
    factor = 1 / 2 if kind == "regression" else 1 / 4
    one, divergence = np.ones((1, 1)), np.zeros((B, N))
    for b, i in np.ndindex(B, N):
        divergence[b, i] = expected(teachers[b : b + 1, i : i + 1], one, student[b : b + 1], 2.0)
    assert_close(scores, -factor * divergence)


def test_scores_have_no_gradient_through_outputs():
    student, teachers = outputs((4,))
    for kind in ("categorical", "binary", "regression"):
        distance = Output(kind, from_logits=True, temperature=1.0)
        _, gradient = value_and_gradient(lambda s, d=distance: ops.sum(d.scores(s, teachers)), student)
        assert not gradient.any()


@every_output
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("sharpness", [(1.0, 0.0), (0.5, 0.1)], ids=["mean", "sharpened"])
def test_non_finite_teachers_leave_no_term(kind, shape, expected, bad, sharpness):
    """Also where the gradient could come back through weights that depend on the student."""
    student, teachers = outputs(shape)
    teachers[0, 1].flat[0] = bad
    distance = Output(kind, from_logits=True, temperature=2.0)
    representations = normal(B, N, 4, seed=3)
    factors = normal(4, math.prod(shape), seed=4)

    def loss(hidden, sample_weight=None):
        output = ops.reshape(ops.matmul(hidden, factors), student.shape)
        weights = guidance_weights(similarity_scores(hidden, representations, "dot"), 5.0, 0.0)
        return distance.loss(distance.target(weights, output, teachers, None, *sharpness)[0], output, sample_weight)

    hidden = normal(B, 4, seed=5)
    value, gradient = value_and_gradient(loss, hidden)
    assert_close(gradient[0], np.zeros(4))
    assert gradient[1].all()
    alone, gradient_alone = value_and_gradient(lambda s: loss(s, for_samples([0, 1], shape)), hidden)
    assert_close(value, alone)
    assert_close(gradient, gradient_alone)
    scores = ops.convert_to_numpy(distance.scores(student, teachers))
    assert np.isnan(scores[0, 1]) and np.isfinite(scores).sum() == B * N - 1


@every_output
def test_sample_weight(kind, shape, expected):
    """Reduced as Keras' "sum_over_batch_size": weighted terms are summed, and divided by the number of all."""
    student, teachers = outputs(shape)
    distance = Output(kind, from_logits=True, temperature=1.0)
    each = [expected(teachers[b : b + 1], WEIGHTS[b : b + 1], student[b : b + 1], 1.0) for b in range(B)]
    for sample_weight in ([3, 0], [0.5, 2]):
        given = for_samples(sample_weight, shape)
        value, gradient = value_and_gradient(lambda s, w=given: distil(distance, s, teachers, WEIGHTS, w), student)
        assert_close(value, np.dot(sample_weight, each) / B)
        assert gradient[1].any() == (sample_weight[1] > 0)


def test_sample_weight_for_each_position():
    student, teachers = outputs((5, 4))
    distance = Output("categorical", from_logits=True, temperature=1.0)
    sample_weight = np.zeros((B, 5), "float32")
    sample_weight[1, 2] = 2
    one = reference.tempered_kl(teachers[1:, :, 2], WEIGHTS[1:], student[1:, 2], 1.0)
    assert_close(distil(distance, student, teachers, sample_weight=sample_weight), 2 * one / 10)


@every_output
def test_float16_outputs(kind, shape, expected):
    student, teachers = (x.astype("float16") for x in outputs(shape))
    student[0] = teachers[0, 0] = 60000  # twice it is infinite
    value = distil(Output(kind, from_logits=True, temperature=3.0), student, teachers)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    student, teachers = student.astype("float64"), teachers.astype("float64")
    if kind == "regression":
        assert float(value) == pytest.approx(expected(teachers, WEIGHTS, student), rel=1e-6)
    assert np.isfinite(float(value))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="only TensorFlow has dynamic shapes")
@pytest.mark.compiled
@every_output
def test_dynamic_shapes(kind, shape, expected):
    import tensorflow as tf

    student, teachers = outputs(shape)
    distance = Output(kind, from_logits=True, temperature=3.0)
    dynamic = [None] * (len(shape) - 1) + [shape[-1]]
    signature = [tf.TensorSpec([None, *dynamic]), tf.TensorSpec([None, N, *dynamic])]

    @tf.function(input_signature=signature)
    def run(student, teachers):
        scores = distance.scores(student, teachers)
        return scores, distil(distance, student, teachers, guidance_weights(scores, 1.0, 50.0))

    scores, loss = run(student, teachers)
    eager = distance.scores(student, teachers)
    assert_close(scores, ops.convert_to_numpy(eager))
    weights = reference.weights(ops.convert_to_numpy(eager), 1.0, 50.0)
    assert_close(loss, expected(teachers, weights, student, 3.0))


@pytest.mark.parametrize(
    "sample_weight, expected",
    [(None, (1 + 4 + 0 + 9) / 4), ([1, 0], (1 + 4) / 4), ([0, 2], 2 * 9 / 4)],
    ids=["none", "first", "second-twice"],
)
def test_representation_loss(sample_weight, expected):
    student, target = np.float32([[1, 2], [3, 4]]), np.float32([[0, 0], [3, 1]])
    weight = None if sample_weight is None else np.float32(sample_weight)
    assert_close(representation_loss(ops.convert_to_tensor(target), student.astype("float16"), weight), expected)


def test_representation_loss_of_unmasked_features():
    """The first sample has the squares (1, 4) unmasked, the second none."""
    student, target = np.float32([[1, 2, 9], [3, 4, 5]]), ops.zeros((2, 3))
    mask = ops.convert_to_tensor([[True, True, False], [False, False, False]])
    value, gradient = value_and_gradient(lambda s: representation_loss(target, s, None, mask), student)
    assert_close(value, (1 + 4) / 2 / 2)
    assert_close(gradient, [[1 / 2, 2 / 2, 0], [0, 0, 0]])


def test_mean_weight():
    assert mean_weight([None, None]) is None
    assert_close(mean_weight([np.float32([[1, 3], [0, 4]])]), [2, 2])
    assert_close(mean_weight([np.float32([1, 2]), None, np.float32([[1, 5], [0, 0]])]), [2, 1])
    assert_close(mean_weight([np.float32(0.5)]), 0.5)


# Outputs of up to five axes in a compiled step


VOLUME = (2, 1, 3)


def volume_model(kind, sizes, activation=True):
    """A dropout layer and a head of two units for each position."""
    names = {"categorical": "softmax", "binary": "sigmoid", "regression": None}
    inputs = keras.Input((*sizes, 3))
    x = layers.Dropout(0.5, seed=1)(layers.Dense(8, activation="relu")(inputs))
    return keras.Model(inputs, layers.Dense(2, activation=names[kind] if activation else None)(x))


def volume_data(kind, sizes):
    x = normal(3, *sizes, 3)
    y = normal(3, *sizes, 2, seed=2)
    return x, {"categorical": np.argmax(y, axis=-1), "binary": (y > 0).astype("float32"), "regression": y}[kind]


LOSSES = {"categorical": "sparse_categorical_crossentropy", "binary": "binary_crossentropy", "regression": "mse"}


def history_of(kind, sizes, run_eagerly, axes=None, **options):
    """The logs of three samples in batches of two, with the statistics of the teachers."""
    keras.utils.set_random_seed(1)
    ssd = keras_ssd.wrap(volume_model(kind, sizes if axes is None else axes), num_teachers=2, seed=3, **options)
    ssd.compile("sgd", LOSSES[kind], run_eagerly=run_eagerly)
    monitor = keras_ssd.callbacks.TeacherMonitor()
    history = ssd.fit(*volume_data(kind, sizes), batch_size=2, shuffle=False, verbose=0, callbacks=[monitor]).history
    assert set(TeacherStatistics.names[:-1]) < set(history)
    return {name: values[0] for name, values in history.items()}


STEPS = {
    "categorical, two axes": ("categorical", (), "ema", {"distill": "both"}),
    "binary, three axes": ("binary", (3,), "self", {"kd_fraction": 0.5}),
    "regression, four axes": ("regression", (2, 3), "snapshot", {"distill": "both"}),
    "binary, four axes": ("binary", (2, 3), "ema", {"distill": "both", "similarity": "cosine", "percentile": 50}),
    "categorical, five axes": ("categorical", VOLUME, "snapshot", {"distill": "outputs", "similarity": "kl"}),
    "binary, five axes": ("binary", VOLUME, "self", {"kd_fraction": 1}),
    "binary, five axes, rows": ("binary", VOLUME, "snapshot", {"distill": "both", "kd_fraction": 0.5}),
    "regression, five axes": ("regression", VOLUME, "self", {}),
    "unknown sizes": ("binary", VOLUME, "self", {"axes": (None, None, None)}),
}


@pytest.mark.compiled
@pytest.mark.parametrize("kind, sizes, teacher, options", STEPS.values(), ids=STEPS)
def test_compiled_steps_equal_eager_ones(kind, sizes, teacher, options):
    compiled = history_of(kind, sizes, run_eagerly=False, teacher=teacher, **options)
    assert compiled["kd_loss"] > 0 and np.isfinite(list(compiled.values())).all()
    if keras.backend.backend() == "tensorflow":
        eager = history_of(kind, sizes, run_eagerly=True, teacher=teacher, **options)
        assert compiled == pytest.approx(eager, rel=1e-4, abs=1e-6)


@pytest.mark.compiled
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_compiled_steps_of_low_precision_equal_eager_ones(policy):
    keras.config.set_dtype_policy(policy)
    try:
        compiled, eager = (history_of("binary", VOLUME, flag, teacher="self", distill="both") for flag in (False, True))
    finally:
        keras.config.set_dtype_policy("float32")
    for name in ("kd_loss", "teacher_spread", "representation_norm"):
        assert compiled[name] == pytest.approx(eager[name], rel=0.05), name


@every_output
def test_the_loss_of_an_empty_batch_is_a_scalar(kind, shape, expected):
    student, teachers = (x[:0] for x in outputs(shape))
    loss = distil(Output(kind, from_logits=True, temperature=2.0), student, teachers, WEIGHTS[:0])
    assert ops.shape(loss) == () and float(loss) == 0


@pytest.mark.compiled
@pytest.mark.parametrize("kind", ["binary", "regression"])
def test_an_empty_batch_adds_no_term_and_no_gradient(kind):
    """Keras' losses of an empty batch are not scalars where its samples have a single value each."""
    model = volume_model(kind, (3,))
    model.compile(keras.optimizers.SGD(0.1), LOSSES[kind])
    before = model.get_weights()
    ssd = keras_ssd.wrap(model, num_teachers=2, teacher="self", distill="both", kd_fraction=1)
    x, y = volume_data(kind, (3,))
    ssd.train_on_batch(x[:0], y[:0])
    for value, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.compiled
@pytest.mark.parametrize("kind", ["categorical", "binary"])
def test_uncertainty_of_a_volume_of_logits(kind):
    model = volume_model(kind, VOLUME, activation=False)
    losses = {"categorical": keras.losses.SparseCategoricalCrossentropy, "binary": keras.losses.BinaryCrossentropy}
    model.compile(loss=losses[kind](from_logits=True))
    prediction = keras_ssd.predict_stochastic(model, volume_data(kind, VOLUME)[0], 3, verbose=0)
    assert prediction.mean.shape == (3, *VOLUME, 2)
    assert prediction.predictive_entropy.shape == (3, *VOLUME) + ((2,) if kind == "binary" else ())
    assert prediction.mutual_information.max() > 0
    logits = normal(2, 3, *VOLUME, 2)
    activation = {"categorical": reference.softmax, "binary": reference.sigmoid}[kind]
    assert_close(summary(logits, kind, from_logits=True)["mean"], activation(logits).mean(axis=1))


# Masks


@every_output
def test_scores_of_unmasked_positions(kind, shape, expected):
    if len(shape) == 1:
        pytest.skip("has no positions")
    student, teachers = outputs(shape)
    mask = np.zeros((B, *shape[:-1]), "bool")
    mask[0, :1] = True
    output = Output(kind, from_logits=True, temperature=2.0)
    teachers[0, 0, 1:] = math.nan  # where it is masked
    scores = output.scores(student, teachers, ops.convert_to_tensor(mask))
    assert_close(scores[:1], output.scores(student[:1, :1], teachers[:1, :, :1]))
    assert_close(scores[1], np.zeros(N))


@pytest.mark.parametrize("kind", ["categorical", "binary"])
def test_disagreement_at_unmasked_positions(kind):
    """At the first position one of three teachers is outside the majority, at the second none is."""
    first, second = [[2, -1], [2, -1], [-1, 2]], [[2, -1], [2, -1], [2, -1]]
    teachers = ops.convert_to_tensor(np.float32([[first, second]] * 2).swapaxes(1, 2))
    output = Output(kind, from_logits=True, temperature=1.0)
    assert_close(output.disagreement(teachers), [1 / 6, 1 / 6])
    mask = ops.convert_to_tensor(np.array([[True, False], [False, False]]))
    assert_close(output.disagreement(teachers, mask), [1 / 3, 0])


def test_teachers_that_return_logits_disagree_by_the_sign():
    output = Output("binary", from_logits=False, temperature=1.0, teacher_from_logits=True)
    assert_close(output.disagreement(ops.convert_to_tensor(np.float32([[[0.4], [0.4], [-0.4]]]))), [1 / 3])


def sequences(kind, similarity, distill, fraction=1.0):
    """A model of masked sequences whose noise is that of the sequence, however long its padding is."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((None, 3))
    x = layers.Dense(6, activation="tanh")(layers.Masking()(inputs))
    x = layers.SpatialDropout1D(0.5, seed=1)(x)
    activation = {"categorical": "softmax", "binary": "sigmoid", "regression": None}[kind]
    model = keras.Model(inputs, layers.Dense(2, activation=activation)(x))
    options = dict(similarity=similarity, distill=distill, temperature=1.0, guidance_temperature=0.1, percentile=0.0)
    ssd = keras_ssd.wrap(model, "snapshot", num_teachers=3, seed=1, kd_fraction=fraction, **options)
    ssd.compile(keras.optimizers.SGD(0.0), LOSSES[kind])
    return ssd


SEQUENCES = [
    ("categorical", "kl", "outputs", 1.0),
    ("binary", "kl", "both", 1.0),
    ("regression", "kl", "outputs", 0.5),
    ("categorical", "dot", "representation", 0.5),
    ("categorical", "cosine", "both", 1.0),
    ("regression", "euclidean", "outputs", 1.0),
    ("binary", lambda s, t: ops.sum(t, axis=-1) - ops.sum(s, axis=-1, keepdims=True), "outputs", 1.0),
]


@pytest.mark.parametrize("kind, similarity, distill, fraction", SEQUENCES)
def test_padding_changes_neither_weights_nor_term_nor_statistics(kind, similarity, distill, fraction):
    x, y = volume_data(kind, (4,))
    x, y = np.concatenate([x, x[:1] * 0]), np.concatenate([y, y[:1]])  # the last sample is masked entirely
    x[0, 2:] = 0
    weights, terms = [], []
    for padding in (0, 28):
        padded, targets = (np.concatenate([a, np.zeros((4, padding, *a.shape[2:]), a.dtype)], axis=1) for a in (x, y))
        ssd = sequences(kind, similarity, distill, fraction)
        weights.append(ssd.guidance_weights(padded))
        monitor = keras_ssd.callbacks.TeacherMonitor()
        history = ssd.fit(padded, targets, shuffle=False, verbose=0, callbacks=[monitor]).history
        terms.append(
            {name: values[0] for name, values in history.items() if name in TeacherStatistics.names + ("kd_loss",)}
        )
    np.testing.assert_allclose(weights[0], weights[1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(weights[0][3], np.full(3, 1 / 3), rtol=1e-6)
    assert np.ptp(weights[0][:3]) > 0.01
    assert terms[0] == pytest.approx(terms[1], rel=1e-4)


# OutputRecords


def described(activations, loss, loss_weights=None):
    """The records of a model with outputs "a", "b" ... that end in these activations."""
    inputs = keras.Input((2,))
    heads = [layers.Dense(3, activation=one, name=name)(inputs) for one, name in zip(activations, "ab", strict=False)]
    model = keras.Model(inputs, heads if len(heads) > 1 else heads[0])
    records = OutputRecords(model, Graph(model), 2.5)
    records.note_compile(loss, loss_weights)
    return records.describe()


def custom(y_true, y_pred):
    return ops.mean(y_pred, axis=-1)


def weighted_crossentropy(y_true, y_pred):
    return ops.mean(y_pred, axis=-1)


KINDS = [
    ("sparse_categorical_crossentropy", None, "categorical", False),
    ("categorical_crossentropy", "softmax", "categorical", False),
    ("kl_divergence", None, "categorical", False),
    ("binary_crossentropy", "softmax", "binary", False),
    ("bce", None, "binary", False),
    ("mse", "sigmoid", "regression", False),
    ("mean_absolute_error", "softmax", "regression", False),
    ("huber", None, "regression", False),
    (keras.losses.SparseCategoricalCrossentropy(from_logits=True), None, "categorical", True),
    (keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1), None, "categorical", True),
    (keras.losses.CategoricalFocalCrossentropy(), "softmax", "categorical", False),
    (keras.losses.BinaryCrossentropy(from_logits=True), "softmax", "binary", True),
    (keras.losses.BinaryFocalCrossentropy(), None, "binary", False),
    (keras.losses.KLDivergence(), None, "categorical", False),
    (keras.losses.MeanSquaredError(), "softmax", "regression", False),
    (keras.losses.categorical_crossentropy, None, "categorical", False),
    (weighted_crossentropy, "sigmoid", "binary", False),
    (weighted_crossentropy, "softmax", "categorical", False),
    (weighted_crossentropy, None, "categorical", True),
    (custom, "softmax", "categorical", False),
    (custom, "sigmoid", "binary", False),
    (custom, None, "regression", False),
    ("categorical_hinge", "softmax", "categorical", False),
    (None, "softmax", "categorical", False),
    (None, None, "regression", False),
]


def loss_id(value):
    name = value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)
    return {"NoneType": "None", "bool": str(value)}.get(name, name)


@pytest.mark.parametrize("loss, activation, kind, from_logits", KINDS, ids=loss_id)
def test_kind_of_an_output(loss, activation, kind, from_logits):
    (distance,) = described([activation], loss)
    assert (distance.kind, distance.from_logits, distance.temperature, distance.weight) == (kind, from_logits, 2.5, 1)


@pytest.mark.parametrize(
    "loss, loss_weights, expected",
    [
        (["mse", "bce"], [0.5, 2], [("regression", 0.5), ("binary", 2)]),
        ({"b": "bce", "a": "mse"}, {"b": 2}, [("regression", 1), ("binary", 2)]),
        ({"b": "bce"}, None, [("categorical", 0), ("binary", 1)]),  # what is not trained is not taught
        ("mse", 0.5, [("regression", 0.5), ("regression", 0.5)]),
        (["mse"], None, [("regression", 1), ("regression", 1)]),
        (None, None, [("categorical", 1), ("regression", 1)]),
    ],
    ids=["list", "dict", "part-of-a-dict", "one-for-all", "list-of-one", "none"],
)
def test_several_outputs(loss, loss_weights, expected):
    distances = described(["softmax", None], loss, loss_weights)
    assert [(distance.kind, distance.weight) for distance in distances] == expected
