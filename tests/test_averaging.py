"""The moving average of the weights: its values, and its deployment while training continues with raw weights."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_ssd
from models import CLASSES as Y
from models import WINDOWS as X
from models import compiled, network
from same_weights import assert_close, assert_same

# The average is deployed with "ema", and with any other teachers if that is asked for.
averaging = pytest.mark.parametrize(
    "options",
    [
        pytest.param({"teacher": "ema"}, id="ema"),
        pytest.param({}, id="self"),
        pytest.param({"teacher": "snapshot"}, id="snapshot", marks=pytest.mark.slow),
        pytest.param({"kd_weight": 0}, id="no teachers", marks=pytest.mark.slow),
    ],
)


@pytest.mark.compiled
@averaging
def test_moving_average_of_the_weights(options):
    """Of the weights behind each step: first a copy, then m = min(momentum, t / (t + 9))."""
    model = compiled(network())
    ssd = keras_ssd.wrap(model, ema_momentum=0.15, **options)
    expected, seen = None, []
    for t in range(4):
        ssd.train_on_batch(X, Y)
        now = model.get_weights()
        m = min(0.15, t / (t + 9))
        expected = [m * e + (1 - m) * w for e, w in zip(expected or now, now, strict=True)]
        seen.append(now)
    assert_close(ssd._averaged_weights.held, expected, tolerance=1e-6)
    assert not np.allclose(seen[0][0], seen[-1][0])


def test_the_average_that_teaches_is_the_one_that_is_deployed():
    ssd = keras_ssd.wrap(network(), teacher="ema")
    assert ssd._averaged_weights is ssd._held_weights


@pytest.mark.parametrize("kd_weight", [0, 0.1])
def test_averaging_beside_other_teachers_does_not_touch_the_training(kd_weight):
    weights = []
    for ema_momentum in (0.99, 0):
        keras.utils.set_random_seed(5)
        ssd = keras_ssd.wrap(compiled(network()), kd_weight=kd_weight, ema_momentum=ema_momentum, seed=1)
        for _ in range(3):
            ssd.train_on_batch(X, Y)
        weights.append(ssd.student.get_weights())
    assert_same(*weights)


@averaging
def test_fits_with_an_average_go_on_where_the_last_one_ended(options):
    """Between them the student carries the average; the raw weights are what is trained."""
    results = []
    for epochs in ([3], [2, 1]):  # after two steps the average differs from the weights
        keras.utils.set_random_seed(5)
        ssd = keras_ssd.wrap(compiled(network()), ema_momentum=0.5, seed=1, **options)
        for n in epochs:
            ssd.fit(X, Y, batch_size=24, epochs=n, shuffle=False, verbose=0)
        results.append(ssd.student.get_weights())
    assert_close(*results, tolerance=1e-6)


@averaging
def test_weights_loaded_after_a_fit_with_an_average_are_respected(options):
    ssd = keras_ssd.wrap(compiled(network(), optimizer=keras.optimizers.SGD(0.0)), ema_momentum=0.05, **options)
    ssd.student.set_weights([w + 1 for w in ssd.student.get_weights()])
    np.testing.assert_allclose(ssd.predict(X, verbose=0), ssd.student.predict(X, verbose=0), atol=1e-6)
    ssd.fit(X, Y, verbose=0)
    ssd.student.set_weights([w + 1 for w in ssd.student.get_weights()])
    kernel = ssd.student.get_weights()[0]
    ssd.fit(X, Y, epochs=4, verbose=0)
    np.testing.assert_allclose(ssd.student.get_weights()[0], kernel, atol=1e-3)


@averaging
def test_average_is_evaluated_and_deployed(options):
    model = compiled(network(), optimizer=keras.optimizers.SGD(0.5))
    ssd = keras_ssd.wrap(model, ema_momentum=0.9, **options)
    for _ in range(5):
        ssd.train_on_batch(X, Y)
    raw = model.predict(X, verbose=0)
    averaged = ssd.predict(X, verbose=0)
    assert np.abs(raw - averaged).max() > 1e-3
    copy = network()
    copy.set_weights([ops.convert_to_numpy(v) for v in ssd._averaged_weights.held])
    np.testing.assert_allclose(averaged, copy.predict(X, verbose=0), atol=1e-6)
    ssd.write_average()
    np.testing.assert_array_equal(model.predict(X, verbose=0), averaged)


@pytest.mark.parametrize("teacher, ema_momentum", [("self", 0.9), ("self", 0), ("ema", 0.9)])
def test_after_fit_the_student_is_what_was_validated(teacher, ema_momentum):
    model = compiled(network(), optimizer=keras.optimizers.SGD(0.5))
    ssd = keras_ssd.wrap(model, teacher=teacher, ema_momentum=ema_momentum)
    history = ssd.fit(X, Y, epochs=2, batch_size=12, verbose=0, validation_data=(X, Y)).history
    plain = compiled(network())
    plain.set_weights(model.get_weights())
    assert history["val_accuracy"][-1] == pytest.approx(plain.evaluate(X, Y, verbose=0, return_dict=True)["accuracy"])
    np.testing.assert_allclose(ssd.predict(X, verbose=0), plain.predict(X, verbose=0), atol=1e-6)
    if ssd._averaged_weights is not None:
        held = map(ops.convert_to_numpy, ssd._averaged_weights.held)
        assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), held, strict=True))


# What is done to the student between two trainings, and trainings that are cut short.


@averaging
@pytest.mark.parametrize(
    "change", ["fit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("set_weights", "load_weights"))]
)
def test_an_average_of_other_weights_is_not_used(tmp_path, options, change):
    """As in the usual loop over folds: nothing of what one fold learnt is left in the next."""
    model = compiled(network(), optimizer=keras.optimizers.SGD(0.5))
    start = model.get_weights()
    model.optimizer.build(model.trainable_variables)
    model.save_weights(tmp_path / "start.weights.h5")
    ssd = keras_ssd.wrap(model, ema_momentum=0.9, **options)
    ssd.fit(X, Y, epochs=3, batch_size=8, verbose=0)
    if change == "set_weights":
        model.set_weights(start)
    elif change == "load_weights":
        model.load_weights(tmp_path / "start.weights.h5")
    else:
        model.fit(X, Y, verbose=0)
    given = model.get_weights()
    if change != "fit":
        assert_same(given, start)
    np.testing.assert_array_equal(ssd.predict(X, verbose=0), model.predict(X, verbose=0))
    scores = (one.evaluate(X, Y, verbose=0, return_dict=True)["accuracy"] for one in (ssd, model))
    assert next(scores) == next(scores)
    model.optimizer.learning_rate = 0.0  # nothing can be learnt
    ssd.fit(X, Y, epochs=2, verbose=0)
    trained = {id(v) for v in model.trainable_variables}
    for variable, value in zip(model.weights, given, strict=True):
        if id(variable) in trained:
            np.testing.assert_allclose(ops.convert_to_numpy(variable), value, atol=1e-6)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError], ids=["Ctrl-C", "an error"])
def test_after_a_fit_that_is_cut_short_the_student_is_what_the_wrapper_says(error):
    def stop(epoch, logs):
        if epoch == 2:
            raise error

    model = compiled(network(), optimizer=keras.optimizers.SGD(0.5))
    ssd = keras_ssd.wrap(model, ema_momentum=0.9)
    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=stop)]
    with pytest.raises(error):
        ssd.fit(X, Y, epochs=9, batch_size=8, verbose=0, callbacks=callbacks)
    assert_same(model.get_weights(), ssd._averaged_weights.held)
    np.testing.assert_array_equal(ssd.predict(X, verbose=0), model.predict(X, verbose=0))
    ssd.fit(X, Y, verbose=0)


def test_a_stateful_layer_keeps_its_state_between_the_batches_of_predict():
    inputs = keras.Input(batch_shape=(4, 5, 2))
    recurrent = keras.layers.LSTM(6, stateful=True)
    x = keras.layers.Dropout(0.5)(recurrent(inputs))
    model = compiled(keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x)), keras.optimizers.SGD(0.5))
    windows = np.random.default_rng(0).normal(size=(16, 5, 2)).astype("float32")
    ssd = keras_ssd.wrap(model)
    for _ in range(4):
        head = model.layers[-1]
        head.set_weights([value + 0.5 for value in head.get_weights()])
        ssd.update_average()
    recurrent.reset_state()
    averaged = ssd.predict(windows, batch_size=4, verbose=0)
    raw = model.get_weights()
    ssd.write_average()
    assert not np.array_equal(raw[-1], model.get_weights()[-1])
    recurrent.reset_state()
    np.testing.assert_allclose(averaged, model.predict(windows, batch_size=4, verbose=0), atol=1e-6)
    if keras.backend.backend() != "jax":  # there `predict` does not carry states on
        recurrent.reset_state()
        assert np.abs(averaged[4:] - model.predict(windows[4:], batch_size=4, verbose=0)).max() > 1e-4
