"""The term of one output: scores, target and loss of each kind, with sample weights and masks, by hand or in NumPy."""

import math

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_ssd
import reference
from gradients import assert_close, value_and_gradient
from keras_ssd.callbacks.statistics import TeacherStatistics
from keras_ssd.guidance import guidance_weights, similarity_scores
from keras_ssd.outputs import Output
from keras_ssd.term import mean_weight, representation_loss

B, N = 2, 3
WEIGHTS = np.float32([[0.2, 0.3, 0.5], [0, 0.25, 0.75]])
LN2, LN3 = math.log(2), math.log(3)
# (kind, shape of one sample's output): of a volume each position is classified, with the teachers on six axes.
OUTPUTS = {
    "categorical": ("categorical", (4,), reference.tempered_kl),
    "binary": ("binary", (1,), reference.tempered_binary_kl),
    "regression": ("regression", (4,), reference.squared_error),
    "categorical-volume": ("categorical", (2, 1, 2, 3), reference.tempered_kl),
    "binary-volume": ("binary", (2, 1, 2, 2), reference.tempered_binary_kl),
    "regression-volume": ("regression", (2, 1, 2, 2), reference.squared_error),
}
every_output = pytest.mark.parametrize("kind, shape, expected", OUTPUTS.values(), ids=OUTPUTS)
every_kind = pytest.mark.parametrize("kind, shape, expected", [*OUTPUTS.values()][:3], ids=[*OUTPUTS][:3])
every_volume = pytest.mark.parametrize("kind, shape, expected", [*OUTPUTS.values()][3:], ids=[*OUTPUTS][3:])
every_classification = pytest.mark.parametrize("kind", ["categorical", "binary"])


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def outputs(shape):
    return normal(B, *shape), normal(B, N, *shape, seed=2)


def logits(kind, temperature=1.0):
    return Output(kind, from_logits=True, temperature=temperature)


def probabilities(kind, temperature=1.0):
    return Output(kind, from_logits=False, temperature=temperature)


def distil(output, student, teachers, weights=WEIGHTS, sample_weight=None):
    return output.loss(output.target(weights, student, teachers)[0], student, sample_weight)


@every_output
def test_loss_and_gradient(kind, shape, expected):
    student, teachers = outputs(shape)
    value, gradient = value_and_gradient(lambda s: distil(logits(kind, 3.0), s, teachers), student)
    assert_close(value, expected(teachers, WEIGHTS, student, 3.0))
    assert_close(gradient, reference.gradient(lambda s: expected(teachers, WEIGHTS, s, 3.0), student))


def test_loss_by_hand():
    """Logits (2 ln 3, 0) at T = 2 are the probabilities (3/4, 1/4); the student has (1/2, 1/2)."""
    student, teachers = np.zeros((1, 2), "float32"), np.float32([[[2 * LN3, 0], [0, 2 * LN3]]])
    output = Output("categorical", from_logits=True, temperature=2.0, weight=0.5)
    value, gradient = value_and_gradient(lambda s: distil(output, s, teachers, np.float32([[1, 0]])), student)
    assert_close(value, 0.5 * 4 * (LN2 + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    # weight * T^2 * (softmax(z_S / T) - p) / T
    assert_close(gradient, [[-0.25, 0.25]])
    # The mean of (3/4, 1/4) and (1/4, 3/4) is the student's own distribution.
    assert_close(distil(output, student, teachers, np.float32([[0.5, 0.5]])), 0.0)
    # 5/6 (3/4, 1/4) + 1/6 (1/4, 3/4), which is not the softmax of the mean logits.
    assert_close(output.target(np.float32([[5 / 6, 1 / 6]]), student, teachers)[0], [[2 / 3, 1 / 3]])


@pytest.mark.parametrize(
    "threshold, targets, shares",
    [
        (0.0, [[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]], [1, 1, 1]),
        (0.7, [[0.9, 0.1], [0.3, 0.7], [0.1, 0.9]], [1, 0, 1]),
        (0.76, [[0.3, 0.7], [0.3, 0.7], [0.3, 0.7]], [0, 0, 0]),
    ],
)
def test_targets_are_sharpened_where_they_reach_the_threshold(threshold, targets, shares):
    """At T = 1/2 the mean (3/4, 1/4) becomes (9, 1) / 10 and (1/2, 1/2) stays.

    Elsewhere the student's own distribution, (0.3, 0.7), leaves neither term nor gradient.
    """
    teachers = np.float32([[[0.9, 0.1], [0.6, 0.4]], [[0.8, 0.2], [0.2, 0.8]], [[0.25, 0.75], [0.25, 0.75]]])
    student, output = np.float32([[0.3, 0.7]] * 3), probabilities("categorical")

    def target(x):
        return output.target(np.full((3, 2), 0.5, "float32"), x, teachers, None, 0.5, threshold)

    for found, expected in zip(target(student), (targets, shares), strict=True):
        assert_close(found, expected)
    value, gradient = value_and_gradient(lambda x: output.loss(target(x)[0], x, None), student)
    p, q = np.array(targets), np.array([0.3, 0.7])
    assert_close(value, reference.kl(p, q).mean())
    assert_close(gradient, (q - p) / q / 3)  # of KL to softmax(log q): (q_c - p_c) / q_c for each of three samples


def test_each_unit_of_a_binary_output_has_its_own_threshold():
    """Units at 0.75 and 0.5: the first is sharpened to 0.9, the second is the student's own, 0.4."""
    student, teachers = np.float32([[0.4, 0.4]]), np.float32([[[0.75, 0.5]]])
    target, share = probabilities("binary").target(np.ones((1, 1), "float32"), student, teachers, None, 0.5, 0.7)
    assert_close(target, [[[0.9, 0.1], [0.4, 0.6]]])
    assert_close(share, [0.5])


def test_masked_positions_have_no_part_in_the_share_that_counts():
    teachers = np.float32([[[[0.9, 0.1], [0.5, 0.5], [0.5, 0.5]]]])
    mask, one = ops.convert_to_tensor([[True, True, False]]), np.ones((1, 1), "float32")
    assert_close(probabilities("categorical").target(one, teachers[:, 0], teachers, mask, 1.0, 0.7)[1], [0.5])


def test_regression_has_no_threshold():
    student, teachers = outputs((4,))
    target, share = probabilities("regression").target(WEIGHTS, student, teachers, None, 0.5, 0.9)
    assert_close(target, reference.target(WEIGHTS, teachers))
    assert share is None


@every_classification
def test_probabilities_agree_with_logits(kind):
    student, teachers = outputs((5, 4))
    activation = {"categorical": reference.softmax, "binary": reference.sigmoid}[kind]
    given = [activation(x).astype("float32") for x in (student, teachers)]
    of_logits, of_probabilities = logits(kind, 3.0), probabilities(kind, 3.0)
    assert_close(of_probabilities.scores(*given), of_logits.scores(student, teachers))
    assert_close(distil(of_probabilities, *given), distil(of_logits, student, teachers))


@every_classification
def test_certain_probabilities_stay_finite(kind):
    student, teachers = np.float32([[0, 1]]), np.float32([[[1, 0], [0, 1]]])
    output = probabilities(kind)
    value, gradient = value_and_gradient(lambda s: distil(output, s, teachers, np.float32([[1, 0]])), student)
    assert 10 < value < 20
    assert np.isfinite(gradient).all()
    assert np.isfinite(ops.convert_to_numpy(output.scores(student, teachers))).all()


@every_output
def test_scores(kind, shape, expected):
    """Minus the divergence of each teacher, alone, without T^2 and without a gradient to the student."""
    student, teachers = outputs(shape)
    output = logits(kind, 2.0)
    factor = 1 / 2 if kind == "regression" else 1 / 4
    one, divergence = np.ones((1, 1)), np.zeros((B, N))
    for b, i in np.ndindex(B, N):
        divergence[b, i] = expected(teachers[b : b + 1, i : i + 1], one, student[b : b + 1], 2.0)
    assert_close(output.scores(student, teachers), -factor * divergence)
    assert not value_and_gradient(lambda s: ops.sum(output.scores(s, teachers)), student)[1].any()


@every_volume
@pytest.mark.parametrize("bad, sharpness", [(math.nan, (1.0, 0.0)), (math.inf, (0.5, 0.1))], ids=["mean", "sharpened"])
def test_non_finite_teachers_leave_no_term(kind, shape, expected, bad, sharpness):
    """Also where the gradient could come back through weights that depend on the student."""
    student, teachers = outputs(shape)
    teachers[0, 1].flat[0] = bad
    output, representations, factors = logits(kind, 2.0), normal(B, N, 4, seed=3), normal(4, math.prod(shape), seed=4)

    def loss(hidden, sample_weight=None):
        own = ops.reshape(ops.matmul(hidden, factors), student.shape)
        weights = guidance_weights(similarity_scores(hidden, representations, "dot"), 5.0, 0.0)
        return output.loss(output.target(weights, own, teachers, None, *sharpness)[0], own, sample_weight)

    hidden, second = normal(B, 4, seed=5), for_samples([0, 1], shape)
    value, gradient = value_and_gradient(loss, hidden)
    assert_close(gradient[0], np.zeros(4))
    assert gradient[1].all()
    alone, gradient_alone = value_and_gradient(lambda s: loss(s, second), hidden)
    assert_close(value, alone)
    assert_close(gradient, gradient_alone)
    scores = ops.convert_to_numpy(output.scores(student, teachers))
    assert np.isnan(scores[0, 1]) and np.isfinite(scores).sum() == B * N - 1


# Sample weights


def for_samples(sample_weight, shape):
    """As for any loss of Keras, the weights of outputs in time have a time axis."""
    return np.float32(sample_weight).reshape((B,) + (1,) * (len(shape) - 1))


@every_output
def test_sample_weight(kind, shape, expected):
    """Reduced as Keras' "sum_over_batch_size": weighted terms are summed, and divided by the number of all."""
    (student, teachers), sample_weight = outputs(shape), [3, 0]
    each = [expected(teachers[b : b + 1], WEIGHTS[b : b + 1], student[b : b + 1], 1.0) for b in range(B)]
    given = for_samples(sample_weight, shape)
    value, gradient = value_and_gradient(lambda s: distil(logits(kind), s, teachers, WEIGHTS, given), student)
    assert_close(value, np.dot(sample_weight, each) / B)
    assert gradient[0].any() and not gradient[1].any()


def test_sample_weight_for_each_position():
    student, teachers = outputs((5, 4))
    sample_weight = np.zeros((B, 5), "float32")
    sample_weight[1, 2] = 2
    one = reference.tempered_kl(teachers[1:, :, 2], WEIGHTS[1:], student[1:, 2], 1.0)
    assert_close(distil(logits("categorical"), student, teachers, sample_weight=sample_weight), 2 * one / 10)


def test_mean_weight():
    assert mean_weight([None, None]) is None
    assert_close(mean_weight([np.float32([[1, 3], [0, 4]])]), [2, 2])
    assert_close(mean_weight([np.float32([1, 2]), None, np.float32([[1, 5], [0, 0]])]), [2, 1])
    assert_close(mean_weight([np.float32(0.5)]), 0.5)


# Low precision, empty batches


@every_kind
def test_float16_outputs(kind, shape, expected):
    student, teachers = (x.astype("float16") for x in outputs(shape))
    student[0] = teachers[0, 0] = 60000  # twice it is infinite
    value = distil(logits(kind, 3.0), student, teachers)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    student, teachers = student.astype("float64"), teachers.astype("float64")
    if kind == "regression":
        assert float(value) == pytest.approx(expected(teachers, WEIGHTS, student), rel=1e-6)
    assert np.isfinite(float(value))


@every_kind
def test_the_loss_of_an_empty_batch_is_a_scalar(kind, shape, expected):
    student, teachers = (x[:0] for x in outputs(shape))
    loss = distil(logits(kind, 2.0), student, teachers, WEIGHTS[:0])
    assert ops.shape(loss) == () and float(loss) == 0


# Representations


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


# Masks


@pytest.mark.parametrize("kind, shape", [one[:2] for one in OUTPUTS.values() if len(one[1]) > 1])
def test_scores_of_unmasked_positions(kind, shape):
    student, teachers = outputs(shape)
    mask = np.zeros((B, *shape[:-1]), "bool")
    mask[0, :1] = True
    teachers[0, 0, 1:] = math.nan  # where it is masked
    scores = logits(kind, 2.0).scores(student, teachers, ops.convert_to_tensor(mask))
    assert_close(scores[:1], logits(kind, 2.0).scores(student[:1, :1], teachers[:1, :, :1]))
    assert_close(scores[1], np.zeros(N))


@every_classification
def test_disagreement_at_unmasked_positions(kind):
    """At the first position one of three teachers is outside the majority, at the second none is."""
    first, second = [[2, -1], [2, -1], [-1, 2]], [[2, -1], [2, -1], [2, -1]]
    teachers = ops.convert_to_tensor(np.float32([[first, second]] * 2).swapaxes(1, 2))
    assert_close(logits(kind).disagreement(teachers), [1 / 6, 1 / 6])
    mask = ops.convert_to_tensor(np.array([[True, False], [False, False]]))
    assert_close(logits(kind).disagreement(teachers, mask), [1 / 3, 0])
    # What the teachers return counts, not what the student does: logits vote by their sign.
    of_logits = Output(kind, from_logits=False, temperature=1.0, teacher_from_logits=True)
    assert_close(of_logits.disagreement(teachers / 5), [1 / 6, 1 / 6])


SEQUENCES = [
    ("categorical", "kl", "outputs", 1.0),
    ("binary", "kl", "both", 1.0),
    ("regression", "kl", "outputs", 0.5),
    ("categorical", "dot", "representation", 0.5),
]


@pytest.mark.parametrize("kind, similarity, distill, fraction", SEQUENCES)
def test_padding_changes_neither_weights_nor_term_nor_statistics(kind, similarity, distill, fraction):
    """Of masked sequences whose noise is that of the sequence, however long its padding is."""
    activation, loss = {
        "categorical": ("softmax", "sparse_categorical_crossentropy"),
        "binary": ("sigmoid", "binary_crossentropy"),
        "regression": (None, "mse"),
    }[kind]
    x, y = normal(4, 4, 3), normal(4, 4, 2, seed=2)
    x[0, 2:] = x[3] = 0  # the last sample is masked entirely
    y = {"categorical": np.argmax(y, axis=-1), "binary": (y > 0).astype("float32"), "regression": y}[kind]
    options = dict(similarity=similarity, distill=distill, temperature=1.0, guidance_temperature=0.1, percentile=0.0)
    weights, terms = [], []
    for padding in (0, 28):
        keras.utils.set_random_seed(1)
        stack = [layers.Masking(), layers.Dense(6, activation="tanh"), layers.SpatialDropout1D(0.5, seed=1)]
        model = keras.Sequential([keras.Input((None, 3)), *stack, layers.Dense(2, activation=activation)])
        ssd = keras_ssd.wrap(model, "snapshot", num_teachers=3, seed=1, kd_fraction=fraction, **options)
        ssd.compile(keras.optimizers.SGD(0.0), loss)
        padded, targets = (np.concatenate([a, np.zeros((4, padding, *a.shape[2:]), a.dtype)], axis=1) for a in (x, y))
        weights.append(ssd.guidance_weights(padded))
        monitor = keras_ssd.callbacks.TeacherMonitor()
        history = ssd.fit(padded, targets, shuffle=False, verbose=0, callbacks=[monitor]).history
        terms.append({name: history[name][0] for name in history if name in (*TeacherStatistics.names, "kd_loss")})
    np.testing.assert_allclose(weights[0], weights[1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(weights[0][3], np.full(3, 1 / 3), rtol=1e-6)
    assert np.ptp(weights[0][:3]) > 0.01
    assert terms[0] == pytest.approx(terms[1], rel=1e-4)
