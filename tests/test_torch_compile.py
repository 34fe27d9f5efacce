"""`jit_compile=True` on PyTorch: `torch.compile` follows a step, and compiles it once."""

import functools
import logging

import keras
import numpy as np
import pytest
from keras import layers

import keras_ssd

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.once,
    pytest.mark.skipif(keras.backend.backend() != "torch", reason="about torch.compile"),
    # PyTorch's compiler warns of what it meets within PyTorch and Keras.
    pytest.mark.filterwarnings("ignore"),
]


def network():
    stack = [layers.Dense(8, activation="relu"), layers.Dropout(0.3), layers.Dense(3)]
    return keras.Sequential([keras.Input((8,)), *stack])


X = np.random.default_rng(0).normal(size=(24, 8)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 24)
# A minute each. The other teachers were tried once; they differ in nothing that a compiler follows.
OPTIONS = {"average": {"kd_weight": 0, "ema_momentum": 0.9}, "self": {}}


@pytest.fixture(autouse=True)
def traced_only(monkeypatch):
    """Functions are traced by the compiler, and then run without the machine code that takes seconds to make."""
    torch._dynamo.reset()
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)  # pytest would record all of it
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


def wrapped(options):
    keras.utils.set_random_seed(1)
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"], jit_compile=True)
    return keras_ssd.wrap(model, seed=1, **options)


def fit(model, **options):
    return model.fit(X, Y, batch_size=8, shuffle=False, validation_data=(X, Y), verbose=0, **options)


def results(model, callbacks):
    return [fit(model, callbacks=callbacks).history, model.evaluate(X, Y, verbose=0), model.predict(X, verbose=0)]


@pytest.mark.parametrize("name", OPTIONS)
def test_fit_evaluate_and_predict_compile_once(name):
    ssd = wrapped(OPTIONS[name])
    callbacks = [keras_ssd.callbacks.TeacherMonitor()] if name == "self" else []
    for limit in (False, True):
        with torch._dynamo.config.patch(error_on_recompile=limit):
            history, evaluated, predicted = results(ssd, callbacks)
    assert ("kd_loss" in history) == (ssd.distillation is not None)
    assert np.isfinite(keras.tree.flatten([history, evaluated])).all() and predicted.shape == (24, 3)
    assert evaluated[0] == pytest.approx(history["val_loss"][-1], rel=1e-4)
    np.testing.assert_allclose(predicted, ssd.student.predict(X, verbose=0), rtol=1e-4, atol=1e-6)
