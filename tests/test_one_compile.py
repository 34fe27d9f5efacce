"""One compile: the wrapped model is trained with the model's own optimizer, loss and metrics."""

import copy

import keras
import numpy as np
import pytest
from keras import ops

import keras_ssd
from models import CLASSES as Y
from models import WINDOWS as X
from models import Highest, compiled, network, precision, sequential_network
from same_weights import arrays, assert_same

LOSS = "sparse_categorical_crossentropy"


def fit(model, batch_size=8, **options):
    return model.fit(X, Y, batch_size=batch_size, shuffle=False, verbose=0, **options)


def test_optimizer_loss_and_metrics_are_the_same_objects():
    metric, optimizer = keras.metrics.SparseCategoricalAccuracy(), keras.optimizers.Adam(0.01)
    loss = keras.losses.SparseCategoricalCrossentropy()
    metrics = dict(metrics=[metric, "accuracy", Highest()], weighted_metrics=["sparse_categorical_crossentropy"])
    model = compiled(network(), optimizer, loss, **metrics)
    ssd = keras_ssd.wrap(model)
    assert ssd.optimizer is model.optimizer is optimizer and ssd.loss is model.loss is loss
    seen = []
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append((float(metric.result()), int(optimizer.iterations)))
    )
    history = fit(ssd, epochs=2, callbacks=[note]).history
    assert [steps for _, steps in seen] == [3, 6]
    assert "sparse_categorical_crossentropy" in history and 1 / 3 <= history["highest"][-1] <= 1
    np.testing.assert_allclose([accuracy for accuracy, _ in seen], history["sparse_categorical_accuracy"], atol=1e-6)
    # Those given by name, too.
    assert {m.name for m in model.metrics} <= {m.name for m in ssd.metrics}
    assert float(model.get_metrics_result()["accuracy"]) == pytest.approx(history["accuracy"][-1])
    best = keras.callbacks.EarlyStopping("accuracy")
    best.set_model(model)  # "auto" asks the metric of this name whether more is better
    best.on_train_begin()
    best.on_epoch_end(0, {"accuracy": 0.5})
    assert best.monitor_op is ops.greater


@pytest.mark.parametrize("is_function", [False, True])
def test_a_closure_or_function_sets_the_learning_rate_of_each_epoch(is_function):
    rate, ends = [0.1], []
    optimizer = keras.optimizers.SGD((lambda: rate[0]) if is_function else 0.1)
    ssd = keras_ssd.wrap(compiled(network(), optimizer, run_eagerly=is_function), kd_weight=0)

    def fall(epoch, logs):
        rate[0] = 0.0 if epoch == 1 else 0.1
        if not is_function:
            optimizer.learning_rate = rate[0]

    note = lambda epoch, logs: ends.append(arrays(ssd.student.trainable_variables))  # noqa: E731
    fit(ssd, epochs=2, callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=fall, on_epoch_end=note)])
    assert_same(*ends)
    fit(ssd, callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=fall, on_epoch_end=note)])
    assert any((a != b).any() for a, b in zip(*ends[1:], strict=True))


def test_wrapped_training_continues_as_a_second_fit():
    """Moments, step count and schedule: equal to the plain model bit for bit."""
    weights = []
    for wrapped in (False, True):
        keras.utils.set_random_seed(3)
        schedule = keras.optimizers.schedules.ExponentialDecay(0.05, 1, 0.9)
        model = compiled(network(), keras.optimizers.Adam(schedule))
        fit(model, 24)
        trained = keras_ssd.wrap(model, kd_weight=0) if wrapped else model
        fit(trained, 24)
        fit(model, 24)
        weights.append([*arrays(model.weights), *arrays(model.optimizer.variables)])
        assert int(model.optimizer.iterations) == 3
        assert float(trained.optimizer.learning_rate) == pytest.approx(0.05 * 0.9**3)
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
    assert ssd.train_on_batch(X, Y, return_dict=True).keys() == {"loss", "kd_loss", "accuracy"}


def test_a_model_that_was_wrapped_without_compile_can_be_compiled_afterwards():
    model = network()
    ssd = keras_ssd.wrap(model)
    with pytest.raises(ValueError, match="compile"):
        fit(ssd)
    model.compile("sgd", LOSS)
    assert fit(ssd).history["kd_loss"][0] > 0
    assert keras_ssd.SSDModel(model).compiled


def test_loss_scaling_is_the_compiled_one():
    with precision("mixed_float16"):
        model = sequential_network()
        for scales in (True, False):
            model.compile(keras.optimizers.SGD(0.1), LOSS, auto_scale_loss=scales)
            assert keras_ssd.wrap(model).optimizer is model.optimizer
            assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == scales


def test_two_wrappers_of_a_model_share_its_steps_and_go_on_from_each_others_weights():
    model = compiled(network())
    first, second = keras_ssd.wrap(model), keras_ssd.wrap(model, teacher="ema")
    for ssd, steps in ((first, 3), (second, 6), (first, 9)):
        before, begun = arrays(model.weights), []
        note = lambda epoch, logs, begun=begun: begun.extend(arrays(model.weights))  # noqa: E731
        fit(ssd, callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=note)])
        assert_same(begun, before)
        assert int(model.optimizer.iterations) == steps


def test_a_schedule_that_has_ended_warns():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 6)
    model = compiled(network(), keras.optimizers.SGD(schedule))
    keras_ssd.wrap(model)  # no step was made
    model.optimizer.iterations.assign(6)
    with pytest.warns(UserWarning, match=r"after 6 steps the rate is .* model\.compile\(\.\.\.\)"):
        keras_ssd.wrap(model)
    model.compile(keras.optimizers.SGD(lambda: 0.1), LOSS)
    model.optimizer.iterations.assign(6)
    assert float(keras_ssd.wrap(model).optimizer.learning_rate) == pytest.approx(0.1)  # a function has no known end


def test_copy_has_its_own_optimizer_and_trains_as_the_original():
    ssd = keras_ssd.wrap(compiled(network(), keras.optimizers.Adam(0.01)), seed=1)
    fit(ssd, 24)
    other = copy.deepcopy(ssd)
    assert other.optimizer is other.student.optimizer is not ssd.optimizer
    assert other.settings == ssd.settings
    for model in (ssd, other):
        keras.utils.set_random_seed(1)
        noise = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
        for state in (part.seed_generator.state for part in [model.distillation, *noise]):
            state.assign(np.zeros((2,), keras.backend.standardize_dtype(state.dtype)))
        fit(model, 24)
    assert_same(arrays(ssd.student.weights), arrays(other.student.weights))
