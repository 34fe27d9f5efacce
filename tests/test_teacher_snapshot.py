"""`TeacherSnapshot`: when the teacher gets the weights, and with which optimizer the student continues."""

import functools
import math
import re

import keras
import numpy as np
import pytest

import keras_ssd
from callback_runs import Record, Script, fit, make_model, make_snapshot_model
from keras_ssd.callbacks import TeacherMonitor, TeacherSnapshot
from keras_ssd.callbacks.snapshot import restart_optimizer
from keras_ssd.keras_names import constant_learning_rate
from same_weights import arrays, assert_same


def test_the_plain_stage_is_plain_training_and_its_weights_become_the_teachers():
    plain = make_model(jit_compile="auto")
    expected = fit(plain, epochs=1)
    ssd = make_snapshot_model(jit_compile="auto")
    snapshot = TeacherSnapshot(at_epoch=1, restore_best_weights=False)
    optimizer = ssd.optimizer
    history = fit(ssd, [snapshot], epochs=2)
    assert history["loss"][:1] == expected["loss"]
    assert history["accuracy"][:1] == expected["accuracy"]
    assert_same(arrays(ssd.distillation.teacher_weights.copies), arrays(plain.weights))
    assert history["kd_loss"][0] == 0 < history["kd_loss"][1]
    assert snapshot.generation == 1
    assert snapshot.snapshot_epochs == [0]
    assert ssd.optimizer is optimizer
    assert ssd._fit_state.kind.teaches


def test_the_best_weights_become_teacher_and_student_in_every_generation():
    ssd = make_snapshot_model(jit_compile="auto")
    before, after, snapshot = Record(), Record(), TeacherSnapshot(patience=1, generations=2)
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    start = arrays(ssd.student.weights)
    history = fit(ssd, [halve, Script([3.0, 1.0, 2.0, 5.0, 4.0, 6.0, 1.0]), before, snapshot, after], epochs=7)
    assert snapshot.snapshot_epochs == [2, 5]
    # Epoch 1 was the best of the plain stage, epoch 4 of the first generation.
    for epoch, best in ((2, 1), (5, 4)):
        assert_same(after.teacher[epoch], before.student[best])
        assert_same(after.student[epoch], before.student[best])
        assert after.rate[epoch] == np.float32(0.05)
        fresh = [np.zeros_like(x) for x in after.optimizer[epoch]]
        fresh[1] = np.float32(0.05)
        assert_same(after.optimizer[epoch], fresh)
    # Between the snapshots only the student moves.
    assert_same(after.teacher[1], start)
    assert_same(after.teacher[4], after.teacher[2])
    assert any((a != b).any() for a, b in zip(after.student[4], after.student[2], strict=True))
    assert before.rate[2] == np.float32(0.05 / 8)
    assert [loss > 0 for loss in history["kd_loss"]] == [False] * 3 + [True] * 4


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="PyTorch runs eagerly, there is nothing to compile")
@pytest.mark.compiled
def test_each_kind_of_step_compiles_once():
    ssd = make_snapshot_model(jit_compile=keras.backend.backend() == "jax")
    traces, epoch_of, compute_loss = [], [-1], ssd.compute_loss

    def count(x=None, y=None, y_pred=None, sample_weight=None, training=True):
        traces.append(epoch_of[-1])
        return compute_loss(x, y, y_pred, sample_weight, training)

    ssd.compute_loss = count
    note = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: epoch_of.append(epoch))
    fit(ssd, [note, TeacherSnapshot(at_epoch=2, restore_best_weights=False)], epochs=4)
    assert [epoch for epoch in traces if epoch > 0] == [2]
    # Later trainings compile one more kind, that of the monitored steps.
    epoch_of.append("later")
    for callbacks in ([], [TeacherMonitor()], [], [TeacherMonitor()]):
        logs = fit(ssd, callbacks, epochs=1)
        assert ("teacher_spread" in logs) == bool(callbacks)
    assert traces.count("later") == traces.count(2)


# For snapshots that begin anew with an epoch 0.
shared_model = functools.cache(make_snapshot_model)

FOLLOWED = {
    "patience-1": (dict(patience=1), [1, 2, 3, 3], [1]),
    "patience-0": (dict(patience=0), [1, 0.5, 3, 3], [2]),
    "improves-to-the-end": (dict(patience=2), [3, 2, 1, 0], []),
    "min-delta": (dict(patience=1, min_delta=0.5), [1, 0.8, 0.2, 3], [1]),
    "max": (dict(patience=1, mode="max", monitor="strange"), [1, 2, 1, 3], [2]),
    "rising-name": (dict(patience=1, monitor="val_auc"), [1, 2, 1, 3], [2]),
    "falling-name": (dict(patience=1, monitor="mean_absolute_error"), [2, 1, 2, 0], [2]),
    "start-from-epoch": (dict(patience=1, start_from_epoch=2), [1, 2, 3, 4, 3], [3]),
    "nan-is-no-improvement": (dict(patience=1), [1, math.nan, 3, 3], [1]),
    "epochs-without-validation": (dict(patience=1), [1, None, 3, 3], [2]),
    "not-after-the-last-epoch": (dict(patience=3), [1, 2, 3, 4], []),
    "at-epoch-twice": (dict(at_epoch=1, generations=2), [1, 2, 3, 3], [0, 1]),
    "at-epoch-unmonitored": (dict(at_epoch=3, start_from_epoch=9), [1, 1, 1, 1], [2]),
}


@pytest.mark.parametrize("options, values, expected", FOLLOWED.values(), ids=FOLLOWED)
def test_the_snapshot_follows_patience_or_at_epoch(options, values, expected):
    snapshot, model = TeacherSnapshot(**options), shared_model()
    model.optimizer.build(model.trainable_variables)  # as `fit` does
    snapshot.set_model(model)
    snapshot.set_params({"epochs": len(values)})
    snapshot.on_train_begin()
    for epoch, value in enumerate(values):
        snapshot.on_epoch_begin(epoch)
        snapshot.on_epoch_end(epoch, {} if value is None else {snapshot.monitor: value})
    assert snapshot.snapshot_epochs == expected


def test_resumed_run_keeps_its_stage():
    ssd = make_snapshot_model()
    fit(ssd, [TeacherSnapshot(at_epoch=1, restore_best_weights=False)], epochs=2)
    teacher = arrays(ssd.distillation.teacher_weights.copies)
    snapshot = TeacherSnapshot(at_epoch=1, restore_best_weights=False)
    history = fit(ssd, [snapshot], epochs=3, initial_epoch=2)
    assert history["kd_loss"][0] > 0
    assert_same(arrays(ssd.distillation.teacher_weights.copies), teacher)
    # From the first epoch on it is a new run.
    with pytest.warns(UserWarning, match="nothing was distilled"):
        history = fit(ssd, [TeacherSnapshot("loss")], epochs=1)
    assert history["kd_loss"] == [0.0]


def test_early_stopping_and_reduce_lr_on_plateau_restart_with_the_snapshot():
    stopping = keras.callbacks.EarlyStopping(patience=2)
    plateau = keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.1, min_delta=0)
    snapshot, rates = TeacherSnapshot(patience=1, restart=[stopping, plateau]), Record()
    values = [1.0] + [2.0] * 5
    history = fit(make_snapshot_model(), [Script(values), stopping, plateau, snapshot, rates], epochs=6)
    # An epoch without improvement ends the plain stage; then stopping counts from 0: two epochs without improvement,
    # after a best one in Keras versions that forget the old best. Without `restart`: three in all.
    assert snapshot.snapshot_epochs == [1]
    assert len(history["loss"]) in (2 + 2, 2 + 1 + 2)
    np.testing.assert_allclose(rates.rate[:4], [0.05, 0.05, 0.05, 0.005], rtol=1e-6)


def test_a_run_that_ends_before_the_snapshot_warns():
    ssd, stopping = make_snapshot_model(), keras.callbacks.EarlyStopping(patience=1)
    with pytest.warns(UserWarning, match="EarlyStopping needs more patience"):
        history = fit(ssd, [Script([1.0, 2.0, 2.0]), stopping, TeacherSnapshot(patience=1)], epochs=3)
    assert len(history["loss"]) == 2
    assert ssd._fit_state.kind.teaches


def test_learning_rate_of_the_distilling_stage_can_be_set_and_the_snapshot_is_printed(capsys):
    rates, snapshot = Record(), TeacherSnapshot(patience=1, verbose=1, learning_rate=0.01)
    fit(make_snapshot_model(), [Script([1.0, 2.0, 3.0]), snapshot, rates], epochs=3)
    assert rates.rate == [np.float32(0.05)] + [np.float32(0.01)] * 2
    assert "Epoch 2: TeacherSnapshot 1 of 1, weights of epoch 1, the best" in capsys.readouterr().out


BAD = [
    (dict(generations=0), "`generations` should be an integer of at least 1. Received: generations=0"),
    (dict(patience=-1), "`patience` should be an integer of at least 0. Received: patience=-1"),
    (dict(at_epoch=0), "`at_epoch` should be an integer of at least 1, or None for `patience`. Received: at_epoch=0"),
    (dict(start_from_epoch=1.5), "`start_from_epoch` should be an integer"),
    (dict(mode="down"), '`mode` should be "auto", "min" or "max". Received: mode=\'down\''),
    (dict(monitor="val_strange"), "`mode` cannot be inferred from the name of the monitored value"),
    (dict(monitor=None), "`monitor` should be a name in the logs. Received: monitor=None"),
    (dict(min_delta=-1.0), "`min_delta` should be a float in [0, inf)"),
    (dict(learning_rate=0.0), "`learning_rate` should be a float in (0, inf), or None"),
    (dict(restart="all"), "`restart` should hold callbacks of the same fit. Received: 'all'"),
]


def test_snapshot_rejects_bad_arguments():
    for options, message in BAD:
        with pytest.raises(ValueError, match=re.escape(message)):
            TeacherSnapshot(**options)


def scheduled():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    return make_snapshot_model(keras.optimizers.Adam(schedule))


def test_models_without_a_snapshot_teacher_or_with_a_schedule_beside_a_rate_are_refused():
    for model, message in (
        (make_model(), "TeacherSnapshot needs a model from keras_ssd.wrap"),
        (keras_ssd.wrap(make_model()), "Received: teacher='self'"),
        (make_snapshot_model(kd_weight=0), "was wrapped with kd_weight=0"),
        (scheduled(), "`learning_rate` cannot be set on an optimizer that follows a schedule"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(model, [TeacherSnapshot(learning_rate=0.1)], epochs=1)


def test_unknown_monitor_error_lists_the_logs():
    ssd = make_snapshot_model()
    with pytest.raises(ValueError) as error:
        fit(ssd, [TeacherSnapshot()], epochs=1)
    assert "monitor='val_loss'; the logs hold ['accuracy', 'kd_loss', 'loss']" in str(error.value)
    assert ssd._fit_state.kind.teaches


@pytest.mark.parametrize("restore_best_weights, epoch", [(True, 0), (False, 1)], ids=["best", "last"])
def test_snapshot_of_an_averaging_model_is_the_average(restore_best_weights, epoch):
    """What was validated: the student goes on from there, and so does a new average."""
    ssd, averages, after = make_snapshot_model(ema_momentum=0.9), [], Record()
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: averages.append(arrays(ssd.average.other)))
    snapshot = TeacherSnapshot(patience=1, restore_best_weights=restore_best_weights)
    fit(ssd, [Script([1.0, 2.0, 2.0]), note, snapshot, after], epochs=3)
    assert snapshot.snapshot_epochs == [1]
    assert_same(after.teacher[1], averages[epoch])
    assert_same(after.student[1], averages[epoch])
    assert int(keras.ops.convert_to_numpy(ssd.average.steps)) == 2  # those of the last epoch


def several_optimizers():
    if not hasattr(keras.optimizers, "MultiOptimizer"):
        pytest.skip("of newer Keras")
    optimizers = keras.optimizers.OptimizerMap(keras.optimizers.Adam(0.1))
    optimizers[".*kernel"] = keras.optimizers.SGD(0.1, momentum=0.9)
    return keras.optimizers.MultiOptimizer(optimizers)


OPTIMIZERS = {
    "nadam": lambda: keras.optimizers.Nadam(0.1),
    "loss scale, moving average": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.1, use_ema=True)),
    "schedule": lambda: keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)),
    "several": several_optimizers,  # of which each holds slots and a step count of its own
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restarted_optimizer_is_as_new(name):
    optimizer, new = OPTIMIZERS[name](), OPTIMIZERS[name]()
    variables = [keras.Variable(np.ones(3, "float32"), name=part) for part in ("kernel", "bias")]
    for one in (optimizer, new):
        one.build(variables)
    rate = constant_learning_rate(optimizer)
    for variable in optimizer.variables:
        if rate is not None or "learning_rate" not in variable.path:  # those of several keep what was assigned
            variable.assign(arrays(variable)[0] + 1)
    restart_optimizer(optimizer, variables, rate)
    assert_same(arrays(optimizer.variables), arrays(new.variables))
    assert int(keras.ops.convert_to_numpy(optimizer.iterations)) == 0
