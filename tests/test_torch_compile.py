"""`jit_compile=True` on PyTorch: `torch.compile` follows a step, and compiles it once."""

import functools
import logging

import keras
import numpy as np
import pytest

import keras_ssd
from models import compiled, sequential_network

torch = pytest.importorskip("torch")

X = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")


@pytest.fixture
def traced_only(monkeypatch):
    """Functions are traced by the compiler, and then run without the machine code that takes seconds to make."""
    torch._dynamo.reset()
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)  # pytest would record all of it
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.skipif(keras.backend.backend() != "torch", reason="about torch.compile")
@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns of what it meets within PyTorch and Keras
@pytest.mark.usefixtures("traced_only")
def test_fit_evaluate_and_predict_compile_once():
    """It takes minutes. Other teachers, and the average alone, differ in nothing that a compiler follows."""
    model = compiled(sequential_network(), jit_compile=True)
    ssd = keras_ssd.wrap(model, seed=1)
    monitor = keras_ssd.callbacks.TeacherMonitor()
    options = dict(batch_size=8, validation_data=(X, Y), callbacks=[monitor], verbose=0)
    for limit in (False, True):
        with torch._dynamo.config.patch(error_on_recompile=limit):
            history = ssd.fit(X, Y, **options).history
            evaluated, predicted = ssd.evaluate(X, Y, verbose=0), ssd.predict(X, verbose=0)
    assert "kd_loss" in history and np.isfinite(keras.tree.flatten([history, evaluated])).all()
    assert evaluated[0] == pytest.approx(history["val_loss"][-1], rel=1e-4)
    np.testing.assert_allclose(predicted, model.predict(X, verbose=0), rtol=1e-4, atol=1e-6)
