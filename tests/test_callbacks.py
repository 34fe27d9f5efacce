"""The weight schedule, the monitor and the seeds: their effects between epochs, and all callbacks together."""

import copy
import math
import pickle

import keras
import numpy as np
import pytest

import keras_ssd
from callback_runs import Raise, Shuffled, X, Y, fit, make_model, make_snapshot_model
from keras_ssd.callbacks import AtomicBackup, KDWeightSchedule, SeedEachEpoch, TeacherMonitor, TeacherSnapshot
from keras_ssd.callbacks.statistics import TeacherStatistics
from same_weights import arrays, assert_same

# KDWeightSchedule


@pytest.mark.compiled
def test_the_weight_follows_the_schedule():
    ssd = keras_ssd.wrap(make_model(), num_teachers=2)
    ramp = keras.optimizers.schedules.PolynomialDecay(0.0, decay_steps=2, end_learning_rate=1.0)
    history = fit(ssd, [KDWeightSchedule(ramp)], epochs=3)
    assert history["kd_weight"] == [0.0, 0.5, 1.0]
    assert ssd.kd_weight == 1.0
    # Each step has the weight of its epoch: only with a weight of 0 is the loss that of the plain model.
    plain = fit(make_model(), epochs=2)["loss"]
    assert history["loss"][0] == pytest.approx(plain[0], rel=1e-5)
    assert history["loss"][1] > plain[1] * 1.001


def test_schedule_that_returns_an_invalid_weight_raises():
    ssd = keras_ssd.wrap(make_model(), num_teachers=2)
    for weight in (-0.5, math.nan, math.inf, None):
        callback = KDWeightSchedule(lambda epoch, weight=weight: weight if epoch else 1.0)
        callback.set_model(ssd)
        callback.on_epoch_begin(0)
        with pytest.raises(ValueError, match=f"not negative. Received: {weight} for epoch 1"):
            callback.on_epoch_begin(1)
        assert ssd.kd_weight == 1.0


# TeacherMonitor


def test_the_monitor_shows_statistics_in_the_logs_and_changes_nothing():
    options = dict(epochs=3, validation_data=(X, Y), validation_freq=3)
    expected = fit(keras_ssd.wrap(make_model(), num_teachers=3, seed=5), **options)
    ssd = keras_ssd.wrap(make_model(), num_teachers=3, seed=5)
    history = fit(ssd, [TeacherMonitor(every=2)], **options)
    assert set(history) == {*expected, *TeacherStatistics.names, "kd_fraction", "teacher_cost"}
    assert (history["kd_fraction"][0], history["teacher_cost"][0]) == ssd.teacher_cost
    for name, values in expected.items():
        np.testing.assert_allclose(values, history[name], rtol=1e-6, err_msg=name)
    for name in TeacherStatistics.names:
        assert [math.isnan(value) for value in history[name]] == [False, True, False], name
    assert 0 < history["teacher_spread"][0] < 1
    assert 1 < history["effective_teachers"][0] <= 3.001
    assert history["teachers_kept"][0] == 1.0
    assert 0 <= history["teacher_disagreement"][0] <= 2 / 3
    assert set(ssd.evaluate(X, Y, verbose=0, return_dict=True)) == {"loss", "accuracy"}


def test_the_monitor_sees_the_teachers_of_the_training_step():
    # Little noise on the inputs and nothing in between: what student and teachers are compared by is known.
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(keras.layers.GaussianNoise(0.01)(inputs)))
    model.compile("sgd", "sparse_categorical_crossentropy")
    ssd = keras_ssd.wrap(model, teacher="snapshot", num_teachers=10, percentile=70)
    history = fit(ssd, [TeacherMonitor()], epochs=1)
    norms = np.linalg.norm(X, axis=1)
    assert "teacher_disagreement" not in history
    assert history["teachers_kept"][0] == pytest.approx(0.3)
    assert history["effective_teachers"][0] == pytest.approx(3.0, rel=1e-3)
    assert history["target_similarity"][0] == pytest.approx(1.0, abs=1e-3)
    assert history["representation_norm"][0] == pytest.approx(norms.mean(), rel=0.01)
    assert history["teacher_spread"][0] == pytest.approx((0.01 * math.sqrt(6 * 0.9) / norms).mean(), rel=0.15)


def healthy(**changes):
    statistics = dict(teacher_spread=0.3, effective_teachers=2.0, teachers_kept=1.0)
    return {**statistics, "target_similarity": 0.9, "representation_norm": 1.0, **changes}


def test_a_collapse_warns_once_with_the_remedy():
    ssd, monitor = keras_ssd.wrap(make_model(), num_teachers=3), TeacherMonitor()
    monitor.set_model(ssd)
    for logs, message in (
        (healthy(teacher_spread=0.0), "All teachers are identical .* Check the rates"),
        (healthy(teacher_spread=math.nan), "not finite: .'teacher_spread'.. Lower the"),
        (healthy(representation_norm=11.0), "run away, from 1 to 11 in epoch 2. Distil"),
    ):
        monitor.on_train_begin()
        monitor.on_epoch_end(0, healthy())
        with pytest.warns(UserWarning, match=message):
            monitor.on_epoch_end(1, logs)
        monitor.on_epoch_end(2, logs)  # a second warning would be an error here
        monitor.on_epoch_end(3, {})


def test_identical_teachers_are_found_in_training_unless_there_is_one():
    ssd = keras_ssd.wrap(make_model(), num_teachers=3)
    for layer in ssd.student.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    with pytest.warns(UserWarning, match="All teachers are identical"):
        fit(ssd, [TeacherMonitor()], epochs=1)
    ssd = keras_ssd.wrap(make_model(), num_teachers=1, similarity="uniform", stochastic_layers=())
    assert fit(ssd, [TeacherMonitor()], epochs=1)["teacher_spread"] == [0.0]


def test_callbacks_reject_bad_arguments_and_models_without_teachers():
    schedule = KDWeightSchedule(lambda epoch: 1.0)
    for make, message in (
        (lambda: KDWeightSchedule(0.5), "`schedule` should be a callable"),
        (lambda: fit(keras_ssd.wrap(make_model(), kd_weight=0), [schedule]), "was wrapped with kd_weight=0"),
        (lambda: fit(make_model(), [schedule]), "KDWeightSchedule needs a model from keras_ssd.wrap"),
        (lambda: TeacherMonitor(every=0), "`every` should be an integer of at least 1. Received: every=0"),
        (lambda: TeacherMonitor(norm_factor=1), "`norm_factor` should be a float in .1, inf.. Received: norm_factor=1"),
        (lambda: SeedEachEpoch("a"), "`seed` should be an integer of at least 0. Received: seed='a'"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


# SeedEachEpoch


@pytest.mark.parametrize("wrapped, data", [(False, "dataset"), (True, "arrays")])
def test_epochs_draw_the_same_wherever_the_run_began(wrapped, data):
    def train(model, **options):
        # What a script does first; on TensorFlow the order of arrays follows from it.
        keras.utils.set_random_seed(2)
        given = dict(x=X, y=Y, batch_size=12) if data == "arrays" else dict(x=Shuffled())
        return model.fit(**given, verbose=0, callbacks=[SeedEachEpoch(3)], **options).history["loss"]

    def make():
        return keras_ssd.wrap(make_model(), num_teachers=2, seed=4) if wrapped else make_model()

    model, resumed = make(), make()
    whole = train(model, epochs=2)
    halves = train(resumed, epochs=1) + train(resumed, epochs=2, initial_epoch=1)
    assert halves == whole
    assert_same(arrays(resumed.weights), arrays(model.weights))


def test_seeds_depend_on_seed_and_epoch_and_the_student_draws_as_the_plain_model():
    model = make_model()
    ssd = keras_ssd.wrap(make_model(), num_teachers=2)

    def states(model, seed, epoch):
        callback = SeedEachEpoch(seed)
        callback.set_model(model)
        callback.on_epoch_begin(epoch)
        weights = {id(v) for v in model.weights}
        drawn = [v for v in model.variables if id(v) not in weights]
        return [tuple(x) for x in arrays(drawn)] + [np.random.random()]

    assert states(model, 1, 0) == states(model, 1, 0)
    draws = [states(model, 1, 0), states(model, 1, 1), states(model, 2, 0)]
    assert len({draw[0] for draw in draws}) == len({draw[-1] for draw in draws}) == 3
    wrapped = states(ssd, 1, 0)
    assert len(wrapped) == 3
    assert set(states(model, 1, 0)) < set(wrapped)


# All of them


class UsersMonitor(TeacherMonitor):
    pass


def test_needs_teachers_is_set_on_callbacks_that_need_them():
    for callback in (TeacherSnapshot, KDWeightSchedule, TeacherMonitor, UsersMonitor):
        assert callback.needs_teachers is True
    for callback in (SeedEachEpoch, AtomicBackup):
        assert getattr(callback, "needs_teachers", False) is False


def ramp(epoch):
    return 0.5 * epoch


def all_callbacks(folder):
    stopping = keras.callbacks.EarlyStopping("loss", patience=20)
    snapshot = TeacherSnapshot(at_epoch=1, restore_best_weights=False, restart=[stopping])
    return [snapshot, stopping, KDWeightSchedule(ramp), TeacherMonitor(), SeedEachEpoch(1), AtomicBackup(folder)]


def test_copied_callbacks_behave_alike(tmp_path):
    every = {getattr(keras_ssd.callbacks, name) for name in keras_ssd.callbacks.__all__}
    expected = fit(make_snapshot_model(seed=3), all_callbacks(tmp_path / "originals"))
    for name in TeacherStatistics.names[:-1]:  # the plain stage has no teachers
        assert [math.isnan(value) for value in expected[name]] == [True, False], name
    callbacks = pickle.loads(pickle.dumps(copy.deepcopy(all_callbacks(tmp_path / "copies"))))
    assert every < {type(callback) for callback in callbacks}
    assert callbacks[0].restart[0] is callbacks[1]
    ssd = make_snapshot_model(seed=3)
    history = fit(ssd, callbacks)
    assert set(history) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(values, history[name], err_msg=name)
    for copied in (copy.deepcopy(callbacks), pickle.loads(pickle.dumps(callbacks))):
        # After a run they hold the model, which Keras copies as an archive.
        assert copied[0].snapshot_epochs == [0]
        assert_same(arrays(copied[0].model.student.weights), arrays(ssd.student.weights))


def test_fit_restores_its_state_after_an_exception():
    ssd = make_snapshot_model()
    metrics = [metric.name for metric in ssd.metrics]
    with pytest.raises(RuntimeError, match="stop here"):
        fit(ssd, [TeacherSnapshot(at_epoch=1), TeacherMonitor(), Raise()])
    assert ssd._fit_state.kind.teaches
    assert [metric.name for metric in ssd.metrics] == metrics
    history = fit(ssd, epochs=1)
    assert set(history) == {"loss", "accuracy", "kd_loss"} and history["kd_loss"][0] > 0


def test_a_train_step_assigned_to_the_wrapper_is_kept():
    ssd, calls = make_snapshot_model(), []
    train_step = ssd.train_step

    def own(*args):
        calls.append(len(calls))
        return train_step(*args)

    ssd.train_step = own
    for callbacks in ([], [TeacherMonitor()]):
        before = len(calls)
        fit(ssd, callbacks, epochs=1)
        assert len(calls) > before and ssd.train_step is own
