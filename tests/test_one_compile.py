"""One compile: the wrapped model is trained with the model's own optimizer, loss and metrics."""

import copy

import keras
import numpy as np
import pytest
from keras import ops

import keras_ssd
from models import CLASSES as Y
from models import WINDOWS as X
from models import compiled, network, precision, sequential_network
from same_weights import arrays, assert_same

LOSS = "sparse_categorical_crossentropy"


def fit(model, **options):
    return model.fit(X, Y, batch_size=8, shuffle=False, verbose=0, **options)


@pytest.mark.parametrize("options", [{}, {"kd_weight": 0}], ids=["self", "plain"])
def test_optimizer_loss_and_metrics_are_the_same_objects(options):
    metric, optimizer = keras.metrics.SparseCategoricalAccuracy(), keras.optimizers.Adam(0.01)
    loss = keras.losses.SparseCategoricalCrossentropy()
    metrics = dict(metrics=[metric, "accuracy"], weighted_metrics=["sparse_categorical_crossentropy"])
    model = compiled(network(), optimizer, loss, **metrics)
    ssd = keras_ssd.wrap(model, **options)
    assert ssd.optimizer is model.optimizer is optimizer and ssd.loss is model.loss is loss
    seen = []
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append((float(metric.result()), int(optimizer.iterations)))
    )
    history = fit(ssd, epochs=2, callbacks=[note]).history
    assert [steps for _, steps in seen] == [3, 6]
    assert "sparse_categorical_crossentropy" in history
    np.testing.assert_allclose([accuracy for accuracy, _ in seen], history["sparse_categorical_accuracy"], atol=1e-6)
    # Those given by name, too.
    assert {m.name for m in model.metrics} <= {m.name for m in ssd.metrics}
    assert float(model.get_metrics_result()["accuracy"]) == pytest.approx(history["accuracy"][-1])
    best = keras.callbacks.EarlyStopping("accuracy")
    best.set_model(model)  # "auto" asks the metric of this name whether more is better
    best.on_train_begin()
    best.on_epoch_end(0, {"accuracy": 0.5})
    assert best.monitor_op is ops.greater


def test_wrapped_training_continues_as_a_second_fit():
    """Moments, step count and schedule: equal to the plain model bit for bit."""
    weights = []
    for wrapped in (False, True):
        keras.utils.set_random_seed(3)
        schedule = keras.optimizers.schedules.ExponentialDecay(0.05, 1, 0.9)
        model = compiled(network(), keras.optimizers.Adam(schedule))
        fit(model)
        trained = keras_ssd.wrap(model, kd_weight=0) if wrapped else model
        fit(trained)
        fit(model)
        weights.append([*arrays(model.weights), *arrays(model.optimizer.variables)])
        assert int(model.optimizer.iterations) == 9
        assert float(trained.optimizer.learning_rate) == pytest.approx(0.05 * 0.9**9)
    assert_same(*weights)


def test_compiling_student_or_wrapper_compiles_both():
    model = compiled(network())
    ssd = keras_ssd.wrap(model)
    loss = keras.losses.SparseCategoricalCrossentropy()
    ssd.compile(keras.optimizers.SGD(0.125), loss)
    assert model.optimizer is ssd.optimizer and float(model.optimizer.learning_rate) == 0.125
    assert model.loss is ssd.loss is loss
    model.compile(keras.optimizers.SGD(0.25), LOSS, metrics=["accuracy"])
    assert ssd.optimizer is model.optimizer
    assert set(fit(ssd).history) == {"loss", "kd_loss", "accuracy"}


def test_a_model_that_was_wrapped_without_compile_can_be_compiled_afterwards():
    model = network()
    ssd = keras_ssd.wrap(model)
    with pytest.raises(ValueError, match="compile"):
        fit(ssd)
    model.compile("sgd", LOSS)
    assert fit(ssd).history["kd_loss"][0] > 0
    assert keras_ssd.SSDModel(model).compiled


def test_two_wrappers_of_one_model_share_its_optimizer():
    model = compiled(network(), keras.optimizers.Adam(0.01))
    first, second = keras_ssd.wrap(model), keras_ssd.wrap(model, kd_weight=0)
    for ssd in (first, second):
        ssd.train_on_batch(X, Y)
    assert first.optimizer is second.optimizer and int(model.optimizer.iterations) == 2


@pytest.mark.parametrize("scales", [True, False])
def test_loss_scaling_is_the_compiled_one(scales):
    with precision("mixed_float16"):
        model = sequential_network()
        model.compile(keras.optimizers.SGD(0.1), LOSS, auto_scale_loss=scales)
        assert keras_ssd.wrap(model).optimizer is model.optimizer
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == scales


class Forgetful(keras.metrics.Metric):
    """Has no `get_config` that could make another one."""

    def __init__(self, given):
        super().__init__(name="forgetful")
        self.count = self.add_variable((), "zeros", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.count.assign(self.count + 1)

    def result(self):
        return self.count + 0


def test_classes_of_the_user_need_no_get_config():
    metric = Forgetful(3)
    ssd = keras_ssd.wrap(compiled(network(), metrics=[metric]))
    assert fit(ssd).history["forgetful"] == [3.0] == [float(ops.convert_to_numpy(metric.result()))]


def test_a_learning_rate_that_is_a_function_is_followed():
    rate = [0.5]
    model = compiled(network(), keras.optimizers.SGD(lambda: rate[0]), run_eagerly=True)
    ssd = keras_ssd.wrap(model)
    assert float(ssd.optimizer.learning_rate) == 0.5
    rate[0] = 0.25
    assert float(ssd.optimizer.learning_rate) == 0.25


def test_a_schedule_that_has_ended_warns():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 6)
    model = compiled(network(), keras.optimizers.SGD(schedule))
    keras_ssd.wrap(model)  # no step was made
    model.optimizer.iterations.assign(6)
    with pytest.warns(UserWarning, match=r"after 6 steps the rate is .* model\.compile\(\.\.\.\)"):
        keras_ssd.wrap(model)
    model.compile(keras.optimizers.SGD(0.1), LOSS)
    keras_ssd.wrap(model)


def test_copy_has_its_own_optimizer_and_trains_as_the_original():
    ssd = keras_ssd.wrap(compiled(network(), keras.optimizers.Adam(0.01)), seed=1)
    fit(ssd)
    other = copy.deepcopy(ssd)
    assert other.optimizer is other.student.optimizer is not ssd.optimizer
    assert other.settings == ssd.settings
    for model in (ssd, other):
        keras.utils.set_random_seed(1)
        noise = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
        for state in (part.seed_generator.state for part in [model.distillation, *noise]):
            state.assign(np.zeros((2,), keras.backend.standardize_dtype(state.dtype)))
        fit(model)
    assert_same(arrays(ssd.student.weights), arrays(other.student.weights))
