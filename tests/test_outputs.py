import math

import keras
import numpy as np
import pytest
from keras import ops

import reference
from gradients import assert_close, value_and_gradient
from keras_ssd.distillation import representation_loss
from keras_ssd.guidance import guidance_weights, similarity_scores
from keras_ssd.output_records import describe_outputs
from keras_ssd.outputs import Output

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
    return distance.loss(distance.target(weights, student, teachers), student, sample_weight)


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
    assert_close(distance.target(np.float32([[5 / 6, 1 / 6]]), student, teachers), [[2 / 3, 1 / 3]])


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
def test_non_finite_teachers_leave_no_term(kind, shape, expected, bad):
    """Also where the gradient could come back through weights that depend on the student."""
    student, teachers = outputs(shape)
    teachers[0, 1].flat[0] = bad
    distance = Output(kind, from_logits=True, temperature=2.0)
    representations = normal(B, N, 4, seed=3)
    factors = normal(4, math.prod(shape), seed=4)

    def loss(hidden, sample_weight=None):
        output = ops.reshape(ops.matmul(hidden, factors), student.shape)
        weights = guidance_weights(similarity_scores(hidden, representations, "dot"), 5.0, 0.0)
        return distil(distance, output, teachers, weights, sample_weight)

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


# describe_outputs


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
    (distance,) = describe_outputs([activation], 0, ["out"], 2.5, loss)
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
    distances = describe_outputs(["softmax", None], [0, 0], ["a", "b"], 3.0, loss, loss_weights)
    assert [(distance.kind, distance.weight) for distance in distances] == expected


def test_repr():
    assert repr(Output("binary", True, 3.0)) == "Output('binary', from_logits=True, weight=1.0)"
