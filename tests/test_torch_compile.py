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


X = np.random.default_rng(0).normal(size=(24, 8)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 24)


@pytest.fixture(autouse=True)
def traced_only(monkeypatch):
    """Functions are traced by the compiler, and then run without the machine code that takes seconds to make."""
    torch._dynamo.reset()
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)  # pytest would record all of it
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


def test_fit_evaluate_and_predict_compile_once():
    """It takes minutes. Other teachers, and the average alone, differ in nothing that a compiler follows."""
    stack = [layers.Dense(8, activation="relu"), layers.Dropout(0.3), layers.Dense(3)]
    model = keras.Sequential([keras.Input((8,)), *stack])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"], jit_compile=True)
    ssd = keras_ssd.wrap(model, seed=1)
    monitor = keras_ssd.callbacks.TeacherMonitor()
    options = dict(batch_size=8, shuffle=False, validation_data=(X, Y), callbacks=[monitor], verbose=0)
    for limit in (False, True):
        with torch._dynamo.config.patch(error_on_recompile=limit):
            history = ssd.fit(X, Y, **options).history
            evaluated, predicted = ssd.evaluate(X, Y, verbose=0), ssd.predict(X, verbose=0)
    assert "kd_loss" in history
    assert np.isfinite(keras.tree.flatten([history, evaluated])).all() and predicted.shape == (24, 3)
    assert evaluated[0] == pytest.approx(history["val_loss"][-1], rel=1e-4)
    np.testing.assert_allclose(predicted, model.predict(X, verbose=0), rtol=1e-4, atol=1e-6)
