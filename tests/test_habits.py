"""Models and habits of users that once failed or were ignored: each works as with the plain model."""

import contextlib

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_ssd
from models import compiled, dense_network, softmax_head
from passes import passes
from same_weights import arrays, assert_close, assert_same

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")
SEQUENCES = np.random.default_rng(2).normal(size=(6, 8, 3)).astype("float32")


# What is not needed is not looked up: heads that are no Dense layer.
@keras.saving.register_keras_serializable(package="tests")
class Head(layers.Layer):
    """A head of the user's own."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 2))

    def call(self, x):
        return ops.softmax(x @ self.kernel)


# What comes after dropout.
HEADS = {
    "a convolution": lambda: [layers.Conv1D(2, 1), layers.GlobalAveragePooling1D(), layers.Softmax()],
    "a layer of the user's": lambda: [Head()],
    "weights after Dense": lambda: [layers.Dense(2), layers.BatchNormalization(), layers.Softmax()],
    "recurrent": lambda: [layers.LSTM(2, return_sequences=True, activation="softmax")],
}
SNAPSHOT = {"teacher": "snapshot", "distill": "outputs", "similarity": "kl"}


@pytest.mark.parametrize("name, options", [*((name, {}) for name in HEADS), ("a layer of the user's", SNAPSHOT)])
def test_a_model_without_a_dense_head_is_trained(name, options):
    stack = [keras.Input((8, 3)), layers.Dense(4), layers.Dropout(0.3), *HEADS[name]()]
    model = compiled(keras.Sequential(stack), metrics=())
    y = np.zeros((6, *model.output_shape[1:-1]), "int32")
    history = keras_ssd.wrap(model, **options).fit(SEQUENCES, y, verbose=0).history
    assert np.isfinite(history["loss"]).all() and "kd_loss" in history


def test_an_autoencoder_is_trained():
    stack = [layers.Dense(2), layers.Dropout(0.3), layers.Dense(4), layers.LayerNormalization()]
    model = compiled(keras.Sequential([keras.Input((4,)), *stack]), loss="mse", metrics=())
    assert keras_ssd.wrap(model).fit(X, X, verbose=0).history["kd_loss"][0] > 0


def test_averaging_alone_needs_no_noise_and_no_head():
    model = compiled(keras.Sequential([keras.Input((8, 3)), layers.Conv1D(2, 8, activation="softmax")]), metrics=())
    ssd = keras_ssd.wrap(model, kd_weight=0, ema_momentum=0.9)
    assert "kd_loss" not in ssd.fit(SEQUENCES, np.zeros((6, 1)), verbose=0).history
    assert ssd.average is not None


# The batch.
def folded_windows():
    """Two windows of each sample become rows of the batch, and the first dropout lies among them."""
    inputs = keras.Input((4, 6))
    x = layers.Dense(6, activation="relu")(ops.reshape(inputs, (-1, 2, 6)))
    x = layers.Dense(6)(layers.Dropout(0.3)(x))
    return keras.Model(inputs, softmax_head(layers.Flatten()(ops.reshape(x, (-1, 4, 6)))))


class Positions(layers.Layer):
    """`(length, 6)`, without a batch."""

    def __init__(self):
        super().__init__()
        self.embedding = layers.Embedding(20, 6)

    def call(self, x):
        return self.embedding(ops.arange(ops.shape(x)[1]))

    def compute_output_shape(self, shape):
        return (shape[1], 6)


def positions():
    inputs = keras.Input((None, 6))
    x = layers.Dropout(0.3)(inputs) + Positions()(inputs)
    return keras.Model(inputs, softmax_head(layers.GlobalAveragePooling1D()(x)))


@pytest.mark.parametrize("make", [folded_windows, positions])
def test_teachers_keep_the_rows_of_a_sample_together(make):
    """Without noise they return what `predict` returns; where the batch cannot be tiled, one is run at a time."""
    model, windows = make(), 3 * np.random.default_rng(3).normal(size=(5, 4, 6)).astype("float32")
    predicted = model.predict(windows, verbose=0)
    told = pytest.warns(UserWarning, match="moves samples along the first axis.*one at a time")
    with told if make is folded_windows else contextlib.nullcontext():
        ssd = keras_ssd.wrap(model, dropout_rate=1e-7, num_teachers=3)
    (teachers,) = passes(ssd, windows).teacher_outputs
    np.testing.assert_allclose(teachers, np.repeat(predicted[:, None], 3, axis=1), atol=1e-5)


def test_in_batch_negatives_are_distilled_on_whole_batches():
    """Each teacher drops features of the first factor only, so that they can be computed back from its scores.

    The second factor is the student's own, of the whole batch, so that a teacher may take rows of the first.
    """
    inputs = keras.Input((4,))
    features = layers.Dense(4)
    model = keras.Model(inputs, ops.matmul(layers.Dropout(0.5)(features(inputs)), ops.transpose(inputs)))
    compiled(model, loss="mse", metrics=())
    ssd = keras_ssd.wrap(model, num_teachers=8, kd_fraction=1)
    x = X[:4]
    (scores,) = passes(ssd, x).teacher_outputs
    factors = np.moveaxis(scores, 1, 0) @ np.linalg.inv(x.T)
    kept = np.abs(factors) > 1e-3
    whole = 2 * ops.convert_to_numpy(features(x))
    np.testing.assert_allclose(factors[kept], np.broadcast_to(whole, factors.shape)[kept], rtol=1e-2)
    assert 0.3 < kept.mean() < 0.7 and len({k.tobytes() for k in kept}) == 8
    assert np.isfinite(ssd.fit(x, np.eye(4), verbose=0).history["kd_loss"]).all()
    assert keras_ssd.predict_stochastic(model, X, 3, batch_size=4, verbose=0).mean.shape == (16, 4)


def test_teacher_passes_keep_a_fixed_batch_size():
    inputs = keras.Input(batch_shape=(8, 4))
    x = ops.reshape(layers.Dropout(0.3)(inputs), (8, 2, 2))
    model = compiled(keras.Model(inputs, softmax_head(layers.Flatten()(x))), metrics=())
    ssd = keras_ssd.wrap(model, num_teachers=3)
    (teachers,) = passes(ssd, X[:8]).teacher_outputs
    assert teachers.shape == (8, 3, 2) and np.ptp(teachers, axis=1).max() > 1e-3
    assert ssd.fit(X, Y, batch_size=8, verbose=0).history["kd_loss"][0] > 0


# Calls as Keras makes them.
class WithoutTraining(keras.Model):
    """Keras says nothing of training to such a `call`, so that its dropout is off."""

    def __init__(self):
        super().__init__()
        self.hidden, self.drop, self.head = layers.Dense(8), layers.Dropout(0.5), layers.Dense(2, activation="softmax")

    def call(self, x):
        return self.head(self.drop(self.hidden(x)))


def test_call_without_training_argument_trains_as_in_keras():
    weights = []
    for wrap in (lambda model: model, lambda model: keras_ssd.wrap(model, kd_weight=0)):
        keras.utils.set_random_seed(0)
        model = WithoutTraining()
        model(X)
        wrap(compiled(model, metrics=())).fit(X, Y, batch_size=8, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    assert_same(*weights)


class Maybe(layers.Layer):
    """Adds an input where there is one."""

    def call(self, a, b=None):
        return a if b is None else a + b

    def compute_output_shape(self, a_shape, b_shape=None):
        return a_shape


def test_optional_inputs_may_be_left_out():
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((4,), name="b", optional=True)}
    model = keras.Model(inputs, softmax_head(layers.Dropout(0.3)(Maybe()(*inputs.values()))))
    ssd, x = keras_ssd.wrap(compiled(model, metrics=())), {"a": X, "b": None}
    assert ssd.fit(x, Y, verbose=0).history["kd_loss"][0] > 0
    np.testing.assert_array_equal(ssd.predict(x, verbose=0), model.predict(x, verbose=0))
    assert keras_ssd.predict_stochastic(model, x, num_passes=3, verbose=0).mean.shape == (16, 2)
    ssd.train_on_batch({"a": X, "b": X}, Y)


# Losses, weights and targets.
def test_outputs_in_a_nested_dictionary():
    inputs = keras.Input((4,))
    a, b, c = (layers.Dense(1)(layers.Dropout(0.3)(inputs)) for _ in range(3))
    model = keras.Model(inputs, {"a": a, "g": {"b": b, "c": c}})
    compiled(model, keras.optimizers.SGD(0.0), {"a": "mse", "g": {"b": "mse", "c": "mae"}}, metrics=())
    y = keras.tree.map_structure(lambda _: X[:, :1], model.output)
    ssd = keras_ssd.wrap(model)
    own, plain = (one.evaluate(X, y, verbose=0, return_dict=True) for one in (ssd, model))
    assert own == pytest.approx(plain)
    assert ssd.fit(X, y, verbose=0).history["kd_loss"][0] > 0


def test_loss_weights_may_be_variables():
    weights = [keras.Variable(1.0), keras.Variable(1.0)]

    def raise_weights(epoch, logs):
        for weight in weights:
            weight.assign(1.0 if epoch == 0 else 100.0)

    def run(wrap):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((4,))
        heads = [softmax_head(inputs), layers.Dense(1, activation="sigmoid")(inputs)]
        # In a compiled step of JAX, Keras itself keeps the values that it was traced with.
        options = dict(loss_weights=weights, jit_compile=False if keras.backend.backend() == "jax" else "auto")
        loss = ["sparse_categorical_crossentropy", "binary_crossentropy"]
        model = compiled(keras.Model(inputs, heads), keras.optimizers.SGD(0.0), loss, (), **options)
        callback = keras.callbacks.LambdaCallback(on_epoch_begin=raise_weights)
        return wrap(model).fit(X, [Y, Y[:, None]], epochs=2, verbose=0, callbacks=[callback]).history

    plain = run(lambda model: model)
    taught = run(lambda model: keras_ssd.wrap(model, dropout_rate=0.5, kd_weight=1e-9, kd_fraction=1.0, seed=1))
    assert taught["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert taught["loss"][1] == pytest.approx(100 * taught["loss"][0], rel=1e-5)
    assert taught["kd_loss"][1] > 20 * taught["kd_loss"][0] > 0  # the terms of the outputs are weighted alike


def test_sparse_targets_work_where_keras_accepts_them():
    sparse = pytest.importorskip("scipy.sparse")
    y = sparse.csr_matrix((np.random.default_rng(0).random((16, 3)) < 0.3).astype("float32"))

    def make():
        return compiled(dense_network(activation="sigmoid"), loss="binary_crossentropy", metrics=())

    def outcome(method):
        try:
            return method(X, y, verbose=0)
        except Exception as error:  # where Keras refuses them, the wrapper passes on what it says
            return str(error)[:40]

    ssd = keras_ssd.wrap(make())
    fitted, expected = outcome(ssd.fit), outcome(ssd.student.evaluate)
    assert fitted == outcome(make().fit) if isinstance(fitted, str) else np.isfinite(fitted.history["loss"][0])
    assert outcome(ssd.evaluate) == (expected if isinstance(expected, str) else pytest.approx(expected, rel=1e-5))


# Modules of PyTorch.
@pytest.mark.skipif(keras.backend.backend() != "torch", reason="modules of PyTorch")
def test_torch_module_is_rejected_where_weights_are_replaced():
    import torch

    inputs = keras.Input((4,))
    part = layers.TorchModuleWrapper(torch.nn.Linear(4, 8), output_shape=(None, 8))
    model = compiled(keras.Model(inputs, softmax_head(part(layers.Dropout(0.3)(inputs)))), metrics=())
    for options in ({}, {"teacher": "snapshot"}, {"teacher": "ema"}, {"kd_weight": 0, "ema_momentum": 0.9}):
        with pytest.raises(ValueError, match='torch.nn.Module.*teacher="self" with ema_momentum=0'):
            keras_ssd.wrap(model, **options)
    assert keras_ssd.wrap(model, ema_momentum=0).fit(X, Y, verbose=0).history["kd_loss"][0] > 0


# Models that are not built, and models that are called twice.
@pytest.mark.parametrize(
    "make",
    [lambda: keras.Sequential([layers.Dropout(0.3), layers.Dense(2)]), WithoutTraining],
    ids=["Sequential", "subclassed"],
)
def test_an_unbuilt_model_is_refused_with_the_remedy(make):
    model = make()
    with pytest.raises(ValueError, match=r"`model` is not built.*`model\(x\[:1\]\)`.*keras\.Input"):
        keras_ssd.wrap(model)
    model(X[:1])
    keras_ssd.wrap(model)


def test_a_siamese_model_learns_as_the_plain_one():
    """The statistics and masks of an encoder that is called twice are those of plain training."""
    weights = []
    for wrap in (lambda m: m, lambda m: keras_ssd.wrap(m, kd_weight=1e-12, ema_momentum=0)):
        keras.utils.set_random_seed(0)
        a, b = keras.Input((4,)), keras.Input((4,))
        stack = [layers.Dense(6), layers.BatchNormalization(), layers.Dropout(0.3, seed=1), layers.Dense(4)]
        encoder = keras.Sequential([keras.Input((4,)), *stack])
        model = keras.Model([a, b], layers.Dense(1, activation="sigmoid")(abs(encoder(a) - encoder(b))))
        compiled(model, loss="binary_crossentropy", metrics=())
        wrap(model).fit([X, X[::-1].copy()], Y[:, None], batch_size=8, epochs=1, shuffle=False, verbose=0)
        weights.append(arrays(model.weights))
    assert_close(*weights, tolerance=1e-6)
