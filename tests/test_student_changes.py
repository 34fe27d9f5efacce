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


def test_layers_frozen_between_two_fits_keep_their_weights():
    """All of `ssd.layers` but the last, as in the plain model."""
    model = sequential_network()
    ssd = keras_ssd.wrap(model)
    ssd.fit(X, Y, epochs=3, verbose=0)
    for layer in ssd.layers[:-1]:
        layer.trainable = False
    ssd.compile(keras.optimizers.Adam(0.05), LOSS)
    before = model.get_weights()
    ssd.fit(X, Y, epochs=3, verbose=0)
    moved = [bool(np.abs(a - b).max() > 1e-4) for a, b in zip(model.get_weights(), before, strict=True)]
    assert moved == [False, False, True, True]
    assert_same(model.get_weights()[:2], before[:2])


def test_closure_can_stop_the_training():
    model = sequential_network()
    ssd = keras_ssd.wrap(model)
    for stopped in (model, ssd):

        def stop(epoch, logs, stopped=stopped):
            stopped.stop_training = epoch == 1

        history = ssd.fit(X, Y, epochs=5, verbose=0, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=stop)])
        assert len(history.epoch) == 2
    assert len(ssd.fit(X, Y, epochs=3, verbose=0).epoch) == 3


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")  # Keras of layers without weights
@pytest.mark.parametrize("quantizer", ["student", "wrapper"])
def test_a_quantised_student_predicts_and_has_to_be_wrapped_again(quantizer):
    model = sequential_network()
    ssd = keras_ssd.wrap(model)
    ssd.train_on_batch(X, Y)
    if quantizer == "student":
        ssd.write_average()
    else:
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
