"""Changes of the student between two calls: the wrapper follows each, or refuses it with the remedy."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_ssd
from models import sequential_network
from same_weights import arrays, assert_same

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")
LOSS = "sparse_categorical_crossentropy"


def test_compiling_the_student_compiles_the_wrapper():
    """Freeze, fit, unfreeze, compile, fit: the recipe of transfer learning."""
    model = sequential_network()
    model.get_layer("features").trainable = False
    model.compile("adam", LOSS)
    ssd = keras_ssd.wrap(model)
    before = model.get_layer("features").get_weights()
    ssd.fit(X, Y, verbose=0)
    assert_same(model.get_layer("features").get_weights(), before)
    model.get_layer("features").trainable = True
    model.compile(keras.optimizers.SGD(0.25), LOSS)
    ssd.fit(X, Y, epochs=3, verbose=0)
    assert float(ssd.optimizer.learning_rate) == 0.25 and isinstance(ssd.optimizer, keras.optimizers.SGD)
    assert np.abs(model.get_layer("features").get_weights()[0] - before[0]).max() > 1e-3


def test_a_layer_frozen_between_two_fits_keeps_its_weights():
    model = sequential_network()
    ssd = keras_ssd.wrap(model)
    ssd.fit(X, Y, epochs=3, verbose=0)
    model.get_layer("features").trainable = False
    ssd.compile("adam", LOSS)
    before = model.get_layer("features").get_weights()
    ssd.fit(X, Y, epochs=3, verbose=0)
    assert_same(model.get_layer("features").get_weights(), before)


def test_learning_rate_set_by_a_closure_applies_in_the_same_epoch():
    weights = []
    for wrap in (lambda model: model, lambda model: keras_ssd.wrap(model, kd_weight=0)):
        keras.utils.set_random_seed(1)
        model = sequential_network()

        def fall(epoch, logs, optimizer=model.optimizer):
            optimizer.learning_rate = [0.05, 0.5, 0.0][epoch]

        callback = keras.callbacks.LambdaCallback(on_epoch_begin=fall)
        wrap(model).fit(X, Y, epochs=3, shuffle=False, verbose=0, callbacks=callback)
        weights.append(arrays(model.weights))
    assert_same(*weights)


@pytest.mark.parametrize("who", ["student", "wrapper"])
def test_closure_can_stop_the_training(who):
    model = sequential_network()
    ssd = keras_ssd.wrap(model)

    def stop(epoch, logs):
        (model if who == "student" else ssd).stop_training = epoch == 1

    history = ssd.fit(X, Y, epochs=5, verbose=0, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=stop)])
    assert len(history.epoch) == 2
    assert len(ssd.fit(X, Y, epochs=3, verbose=0).epoch) == 3


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")  # Keras of layers without weights
@pytest.mark.parametrize("quantizer", ["student", "wrapper"])
def test_a_quantised_student_predicts_and_has_to_be_wrapped_again(quantizer):
    model = sequential_network()
    ssd = keras_ssd.wrap(model)
    if quantizer == "student":
        ssd.fit(X, Y, verbose=0)
    else:
        ssd.train_on_batch(X, Y)
        model.get_layer("head").bias.assign([3.0, -3.0])  # the raw weights differ from their average
    before = ssd.predict(X, verbose=0)
    (model if quantizer == "student" else ssd).quantize("int8")
    np.testing.assert_allclose(ssd.predict(X, verbose=0), before, atol=0.02)
    np.testing.assert_array_equal(ssd.predict(X, verbose=0), model.predict(X, verbose=0))
    with pytest.raises(ValueError, match="LoRA, quantisation.*Wrap the model again"):
        ssd.fit(X, Y, verbose=0)


@pytest.mark.parametrize(
    "options", [{}, {"ema_momentum": 0}, {"teacher": "snapshot"}], ids=["self", "none", "snapshot"]
)
def test_lora_works_before_wrapping_and_raises_after(options):
    model = sequential_network()
    ssd = keras_ssd.wrap(model, **options)
    ssd.fit(X, Y, verbose=0)
    model.get_layer("features").enable_lora(2)
    ssd.compile("adam", LOSS)
    if ssd.average is not None or options.get("teacher"):
        with pytest.raises(ValueError, match="LoRA, quantisation.*Wrap the model again"):
            ssd.fit(X, Y, verbose=0)
    ssd = keras_ssd.wrap(model, **options)
    ssd.compile("adam", LOSS)
    kernel = arrays(model.get_layer("features")._kernel)
    ssd.fit(X, Y, verbose=0)
    assert_same(arrays(model.get_layer("features")._kernel), kernel)


def test_scikeras_trains_a_wrapped_model():
    """With SciKeras, where it is installed."""
    scikeras = pytest.importorskip("scikeras.wrappers")

    def make():
        return keras_ssd.wrap(sequential_network())

    classifier = scikeras.KerasClassifier(make, epochs=2, verbose=0)
    classifier.fit(X, Y)
    assert classifier.predict(X).shape == (16,)
    assert ops.shape(classifier.predict_proba(X)) == (16, 2)
