"""The moving average of the weights: its values, and its deployment while training continues with raw weights."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_ssd
from keras_ssd.average import WeightAverage
from keras_ssd.copies import WeightCopies
from models import CLASSES as Y
from models import WINDOWS as X
from models import compiled, network, precision
from same_weights import arrays, assert_close, assert_same


def fast():
    """Its weights change much in a step."""
    return compiled(network(), optimizer=keras.optimizers.SGD(0.5))


@pytest.mark.compiled
@pytest.mark.parametrize("options", [{"teacher": "ema"}, {"kd_weight": 0}])
def test_moving_average_of_the_weights(options):
    """Of the weights after each step: first a copy, then m = min(momentum, t / (t + 9))."""
    model = compiled(network())
    ssd = keras_ssd.wrap(model, ema_momentum=0.15, **options)
    expected, seen = None, []
    for t in range(4):
        ssd.train_on_batch(X, Y)
        now = model.get_weights()
        m = min(0.15, t / (t + 9))
        expected = [m * e + (1 - m) * w for e, w in zip(expected or now, now, strict=True)]
        seen.append(now)
    assert_close(ssd.average.other, expected, tolerance=1e-6)
    assert not np.allclose(seen[0][0], seen[-1][0])
    assert getattr(ssd.distillation, "teacher_weights", None) is None  # the teachers use the average that is deployed


def test_averaging_alone_trains_the_weights_of_the_plain_model():
    weights = []
    for averages in (False, True):
        keras.utils.set_random_seed(5)
        model = compiled(network(seeds=(1, None)))
        trained = keras_ssd.wrap(model, **keras_ssd.AVERAGING) if averages else model
        for _ in range(2):
            trained.train_on_batch(X, Y)
        weights.append(model.get_weights())
    assert_same(*weights)


def test_averaging_does_not_change_training_with_other_teachers():
    weights = []
    for ema_momentum in (0.99, 0):
        keras.utils.set_random_seed(5)
        ssd = keras_ssd.wrap(compiled(network()), ema_momentum=ema_momentum, seed=1)
        for _ in range(2):
            ssd.train_on_batch(X, Y)
        weights.append(ssd.student.get_weights())
    assert_same(*weights)


@pytest.mark.parametrize("policy, options", [("float32", {"teacher": "ema"}), ("bfloat16", {"kd_weight": 0})])
def test_next_fit_continues_from_the_raw_weights(policy, options):
    """Between them the student holds the average, rounded in low precision; training continues from both themselves."""
    ends = []
    with precision(policy):
        for epochs in ([3], [2, 1]):  # after two steps the average differs from the weights
            keras.utils.set_random_seed(5)
            # Without regularisers: Keras on TensorFlow cannot add losses of two types.
            stack = [layers.Flatten(), layers.Dense(8), layers.BatchNormalization(), layers.Dropout(0.3, seed=1)]
            model = keras.Sequential([keras.Input((6, 2)), *stack, layers.Dense(3, activation="softmax")])
            ssd = keras_ssd.wrap(compiled(model), ema_momentum=0.5, seed=1, **options)
            note = lambda logs, ssd=ssd: ends.append(arrays(ssd.student.weights + ssd.average.other))  # noqa: E731
            for n in epochs:
                callbacks = [keras.callbacks.LambdaCallback(on_train_end=note)]
                ssd.fit(X, Y, batch_size=24, epochs=n, shuffle=False, verbose=0, callbacks=callbacks)
            ends[-1] += arrays(model.weights)
    assert_same(ends[0], ends[2])


def test_average_is_evaluated_and_deployed():
    model = fast()
    ssd = keras_ssd.wrap(model, ema_momentum=0.9)
    for _ in range(3):
        ssd.train_on_batch(X, Y)
    raw = model.predict(X, verbose=0)
    averaged = ssd.predict(X, verbose=0)
    assert np.abs(raw - averaged).max() > 1e-3
    copy = network()
    copy.set_weights(arrays(ssd.average.other))
    np.testing.assert_allclose(averaged, copy.predict(X, verbose=0), atol=1e-6)
    ssd.write_average()
    np.testing.assert_array_equal(model.predict(X, verbose=0), averaged)


# What is done to the student between two trainings, and trainings that are cut short.


def test_average_restarts_from_weights_set_between_fits():
    """As in the usual loop over folds: nothing of what one fold learnt is left in the next."""
    model = fast()
    start = model.get_weights()
    ssd = keras_ssd.wrap(model, ema_momentum=0.9)
    ssd.fit(X, Y, batch_size=8, verbose=0)
    model.set_weights(start)
    np.testing.assert_array_equal(ssd.predict(X, verbose=0), model.predict(X, verbose=0))
    assert ssd.evaluate(X, Y, verbose=0) == pytest.approx(model.evaluate(X, Y, verbose=0), rel=1e-6)
    given = arrays(model.trainable_variables)
    model.optimizer.learning_rate = 0.0  # nothing can be learnt
    ssd.fit(X, Y, epochs=2, verbose=0)
    assert_close(model.trainable_variables, given, tolerance=1e-6)


def test_student_predicts_as_the_wrapper_after_an_interrupted_fit():
    def stop(epoch, logs):
        raise KeyboardInterrupt

    model = fast()
    ssd = keras_ssd.wrap(model, ema_momentum=0.9)
    with pytest.raises(KeyboardInterrupt):
        ssd.fit(X, Y, batch_size=8, verbose=0, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=stop)])
    assert int(ops.convert_to_numpy(ssd.average.is_deployed)) == 1
    np.testing.assert_array_equal(ssd.predict(X, verbose=0), model.predict(X, verbose=0))
    ssd.fit(X, Y, verbose=0)


def test_a_stateful_layer_keeps_its_state_between_the_batches_of_predict():
    recurrent, head = layers.LSTM(6, stateful=True), layers.Dense(3, activation="softmax")
    stack = [keras.Input(batch_shape=(4, 5, 2)), recurrent, layers.Dropout(0.5), head]
    model = compiled(keras.Sequential(stack))
    windows = np.random.default_rng(0).normal(size=(16, 5, 2)).astype("float32")
    ssd = keras_ssd.wrap(model)
    for _ in range(4):
        head.set_weights([value + 0.5 for value in head.get_weights()])
        ssd.update_average()
    recurrent.reset_state()
    averaged = ssd.predict(windows, batch_size=4, verbose=0)
    raw = model.get_weights()
    ssd.write_average()
    assert not np.array_equal(raw[-1], model.get_weights()[-1])
    recurrent.reset_state()
    np.testing.assert_allclose(averaged, model.predict(windows, batch_size=4, verbose=0), atol=1e-6)
    if keras.backend.backend() != "jax":  # there `predict` does not pass states on
        recurrent.reset_state()
        assert np.abs(averaged[4:] - model.predict(windows[4:], batch_size=4, verbose=0)).max() > 1e-4


# The layer by itself.


def narrow(policy):
    """A Dense layer whose kernel is 0.5, and its average, which is 0.45 after many steps."""
    dense = layers.Dense(1, dtype=policy)
    model = keras.Sequential([keras.Input((2,)), dense])
    dense.kernel.assign(np.full((2, 1), 0.5))
    average = WeightAverage(model, 0.99)
    average.steps.assign(10_000)
    average.other[0].assign(np.full((2, 1), 0.45))
    return model, average


@pytest.mark.parametrize("policy", ["bfloat16", "float16"])
def test_the_average_moves_in_low_precision(policy):
    """In 16 bits a step of 1 % of 0.05 would be rounded to none."""
    model, average = narrow(policy)
    for _ in range(100):
        average.update()
    np.testing.assert_allclose(arrays(average.other)[0], 0.5 - 0.05 * 0.99**100, atol=1e-5)
    average.deploy()
    deployed = ops.convert_to_numpy(ops.cast(model.weights[0].value, "float32"))
    np.testing.assert_allclose(deployed, 0.5 - 0.05 * 0.99**100, atol=2e-3)


def test_a_frozen_copy_has_the_types_of_the_weights():
    """Unlike the average, it does not move."""
    model, _ = narrow("bfloat16")
    copies = WeightCopies(model.weights).copies
    assert [copy.dtype for copy in copies] == ["bfloat16"] * 2
    assert_same(arrays(copies), arrays(model.weights))


def test_weights_are_exchanged_and_exchanged_back():
    """A second call changes nothing, and a weight that is not a number counts as unchanged."""
    model, average = narrow("float32")
    model.weights[1].assign([np.nan])
    for _ in range(2):
        average.deploy()
        assert (arrays(model.weights)[0] == np.float32(0.45)).all() and (arrays(average.other)[0] == 0.5).all()
    for _ in range(2):
        average.resume()
        assert (arrays(model.weights)[0] == 0.5).all() and (arrays(average.other)[0] == np.float32(0.45)).all()


def test_the_average_teaches_in_a_custom_loop_wherever_it_is_held():
    _, average = narrow("float32")
    for _ in range(2):
        (_, kernel), _ = average.values(is_training=False)
        assert (ops.convert_to_numpy(kernel) == np.float32(0.45)).all()
        average.deploy()


def test_the_average_restarts_from_weights_that_were_changed_from_outside():
    model, average = narrow("float32")
    average.deploy()
    model.weights[0].assign(np.full((2, 1), 7.0))
    average.resume()
    assert (arrays(model.weights)[0] == 7).all() and (arrays(average.other)[0] == 7).all()
    assert int(ops.convert_to_numpy(average.steps)) == 0


def test_an_update_after_deployment_restarts_the_average():
    """In a custom loop that goes on after `write_average`."""
    model, average = narrow("float32")
    average.deploy()
    average.update()
    assert (arrays(average.other)[0] == np.float32(0.45)).all()
    assert average.holds_average


def test_evaluation_during_training_leaves_the_average_as_it_is():
    model, average = narrow("float32")
    with average.deployed(), average.deployed():  # a callback of `evaluate` may save a file
        assert (arrays(model.weights)[0] == np.float32(0.45)).all()
        assert (average.state()["raw_0"] == 0.5).all()
    assert (arrays(model.weights)[0] == 0.5).all() and average.holds_average


def test_zeros_and_constraints_of_the_raw_weights_hold_in_the_deployed_weights():
    dense = layers.Dense(2, kernel_constraint=keras.constraints.UnitNorm(axis=0))
    model = keras.Sequential([keras.Input((2,)), dense])
    average = WeightAverage(model, 0.5)
    average.steps.assign(10_000)
    dense.kernel.assign([[0.0, 1.0], [1.0, 0.0]])
    average.other[0].assign([[0.3, 0.3], [0.4, 0.4]])  # of norm 0.5; divided by it 0.6 and 0.8
    average.deploy()
    np.testing.assert_allclose(arrays(dense.kernel)[0], [[0.0, 0.6], [0.8, 0.0]], atol=1e-6)


def test_a_pruned_model_stays_pruned():
    """A callback sets half of a kernel to 0 after every batch."""
    model = compiled(network(), keras.optimizers.Adam(0.05))
    kernel = model.layers[1].kernel
    mask = np.abs(arrays(kernel)[0]) > np.median(np.abs(arrays(kernel)[0]))

    def prune(batch=None, logs=None):
        if keras.backend.backend() == "jax":
            ssd.jax_state_sync()
        kernel.assign(arrays(kernel)[0] * mask)

    ssd = keras_ssd.wrap(model)
    kernel.assign(arrays(kernel)[0] * mask)
    callbacks = [keras.callbacks.LambdaCallback(on_train_batch_end=prune)]
    ssd.fit(X, Y, batch_size=8, verbose=0, callbacks=callbacks)
    assert ((arrays(kernel)[0] == 0) == ~mask).all()


class Counting(layers.Layer):
    """Counts its calls in a float, as a power iteration or a codebook keeps its state."""

    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def call(self, x, training=False):
        if training:
            self.count.assign(self.count + 1)
        return x


def test_counters_are_not_averaged():
    inputs = keras.Input((6, 2))
    x = Counting()(layers.Flatten()(inputs))
    x = layers.BatchNormalization()(x)
    model = compiled(keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.Dropout(0.3)(x))))
    ssd = keras_ssd.wrap(model)
    assert len(ssd.average.other) == 6  # gamma, beta and both statistics of the normalization, kernel and bias
    ssd.fit(X, Y, batch_size=8, verbose=0)
    assert float(ops.convert_to_numpy(model.layers[2].count)) == 3


def test_write_average_raises_while_fit_runs():
    ssd = keras_ssd.wrap(compiled(network()))
    write = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: ssd.write_average())
    with pytest.raises(ValueError, match=r"write_average\(\) cannot be called while `fit` runs.* use `save`"):
        ssd.fit(X, Y, verbose=0, callbacks=[write])
    ssd.write_average()
