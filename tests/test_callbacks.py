"""The snapshot, the weight schedule, the monitor and the seeds: what they do between epochs."""

import copy
import math
import pickle
import warnings

import keras
import numpy as np
import pytest

import keras_ssd
from keras_ssd.callbacks import (
    KDWeightSchedule,
    SeedEachEpoch,
    TeacherMonitor,
    TeacherSnapshot,
    restart_optimizer,
)
from keras_ssd.figures import TeacherFigures

X = np.random.default_rng(0).normal(size=(24, 6)).astype("float32")
Y = np.arange(24) % 3


def make_model(optimizer=None, seed=0, jit_compile=False):
    # Compiling takes most of the time: only those tests ask for it that are about it.
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, "relu")(inputs)
    x = keras.layers.Dropout(0.5)(x)
    x = keras.layers.Dense(6)(x)
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(x))
    optimizer = optimizer or keras.optimizers.Adam(0.05)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=jit_compile)
    return model


def make_snapshot_model(optimizer=None, jit_compile=False, **options):
    options = {"n_teachers": 4, "percentile": 50, **options}
    return keras_ssd.wrap(make_model(optimizer, jit_compile=jit_compile), teacher="snapshot", **options)


def fit(model, callbacks=(), epochs=2, seed=1, **options):
    keras.utils.set_random_seed(seed)
    return model.fit(X, Y, batch_size=12, epochs=epochs, verbose=0, callbacks=list(callbacks), **options).history


def arrays(variables):
    return [np.array(keras.ops.convert_to_numpy(v.value)) for v in variables]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


class Script(keras.callbacks.Callback):
    """Puts values of our choice into the logs."""

    def __init__(self, values, name="val_loss"):
        super().__init__()
        self.values = values
        self.name = name

    def on_epoch_end(self, epoch, logs=None):
        logs[self.name] = self.values[epoch]


class Record(keras.callbacks.Callback):
    """Notes the weights and the optimizer at the end of every epoch."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher, self.optimizer, self.rate = [], [], [], []

    def on_epoch_end(self, epoch, logs=None):
        self.student.append(arrays(self.model.student.weights))
        self.teacher.append(arrays(self.model.held_weights.held))
        self.optimizer.append(arrays(self.model.optimizer.variables))
        self.rate.append(float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)))


class Raise(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        raise RuntimeError("stop here")


# TeacherSnapshot


def test_the_plain_stage_is_plain_training_and_its_weights_become_the_teachers():
    plain = make_model(jit_compile="auto")
    expected = fit(plain, epochs=2)
    ssd = make_snapshot_model(task_weight=0.5, jit_compile="auto")
    snapshot = TeacherSnapshot(at_epoch=2, restore_best_weights=False)
    optimizer = ssd.optimizer
    history = fit(ssd, [snapshot], epochs=4)
    assert history["loss"][:2] == expected["loss"]
    assert history["accuracy"][:2] == expected["accuracy"]
    assert_same(arrays(ssd.held_weights.held), arrays(plain.weights))
    assert history["kd_loss"][:2] == [0.0, 0.0]
    assert min(history["kd_loss"][2:]) > 0
    assert snapshot.generation == 1
    assert snapshot.snapshot_epochs == [1]
    assert ssd.optimizer is optimizer
    assert ssd.teaching


def test_the_best_weights_become_teacher_and_student_in_every_generation():
    ssd = make_snapshot_model(jit_compile="auto")
    values = [3.0, 1.0, 2.0, 2.0, 5.0, 4.0, 6.0, 7.0, 1.0]
    before, after = Record(), Record()
    snapshot = TeacherSnapshot(patience=2, generations=2)
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    start = arrays(ssd.student.weights)
    history = fit(ssd, [halve, Script(values), before, snapshot, after], epochs=9)
    assert snapshot.snapshot_epochs == [3, 7]
    # Epoch 1 was the best of the plain stage, epoch 5 of the first generation.
    for epoch, best in ((3, 1), (7, 5)):
        assert_same(after.teacher[epoch], before.student[best])
        assert_same(after.student[epoch], before.student[best])
        assert after.rate[epoch] == np.float32(0.05)
        fresh = [np.zeros_like(x) for x in after.optimizer[epoch]]
        fresh[1] = np.float32(0.05)
        assert_same(after.optimizer[epoch], fresh)
    # Between the snapshots only the student moves.
    assert_same(after.teacher[2], start)
    assert_same(after.teacher[6], after.teacher[3])
    assert any((a != b).any() for a, b in zip(after.student[6], after.student[3], strict=True))
    assert before.rate[3] == np.float32(0.05 / 16)
    assert [loss > 0 for loss in history["kd_loss"]] == [False] * 4 + [True] * 5


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="PyTorch runs eagerly, there is nothing to compile")
def test_the_switch_compiles_once():
    ssd = make_snapshot_model(jit_compile="auto")
    traces, compute_loss = [], ssd.compute_loss

    def count(x=None, y=None, y_pred=None, sample_weight=None, training=True):
        traces.append(epoch_of[-1])
        return compute_loss(x, y, y_pred, sample_weight, training)

    epoch_of = [-1]
    ssd.compute_loss = count
    note = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: epoch_of.append(epoch))
    fit(ssd, [note, TeacherSnapshot(at_epoch=2, restore_best_weights=False)], epochs=5)
    assert [epoch for epoch in traces if epoch > 0] == [2]


@pytest.mark.parametrize(
    "options, values, expected",
    [
        pytest.param(dict(patience=1), [1, 2, 3, 3], [1], id="patience-1"),
        pytest.param(dict(patience=0), [1, 0.5, 3, 3], [2], id="patience-0"),
        pytest.param(dict(patience=2), [3, 2, 1, 0], [], id="improves-to-the-end"),
        pytest.param(dict(patience=1, min_delta=0.5), [1, 0.8, 0.2, 3], [1], id="min-delta"),
        pytest.param(dict(patience=1, mode="max"), [1, 2, 1, 3], [2], id="max"),
        pytest.param(dict(patience=1, start_from_epoch=2), [1, 2, 3, 4, 3], [3], id="start-from-epoch"),
        pytest.param(dict(patience=1), [1, math.nan, 3, 3], [1], id="nan-is-no-improvement"),
        pytest.param(dict(patience=1), [1, None, 3, 3], [2], id="epochs-without-validation"),
        pytest.param(dict(patience=3), [1, 2, 3, 4], [], id="not-after-the-last-epoch"),
        pytest.param(dict(at_epoch=1, generations=2), [1, 2, 3, 3], [0, 1], id="at-epoch-twice"),
        pytest.param(dict(at_epoch=3, start_from_epoch=9), [1, 1, 1, 1], [2], id="at-epoch-unmonitored"),
    ],
)
def test_when_the_snapshot_is_taken(options, values, expected):
    ssd = make_snapshot_model()
    snapshot = TeacherSnapshot(monitor="val_accuracy" if options.get("mode") == "max" else "val_loss", **options)
    snapshot.set_model(ssd)
    snapshot.set_params({"epochs": len(values)})
    snapshot.on_train_begin()
    for epoch, value in enumerate(values):
        snapshot.on_epoch_begin(epoch)
        snapshot.on_epoch_end(epoch, {} if value is None else {snapshot.monitor: value})
    assert snapshot.snapshot_epochs == expected


@pytest.mark.parametrize(
    "monitor, values",
    [("val_accuracy", [0.1, 0.3, 0.2]), ("val_auc", [0.1, 0.3, 0.2]), ("mean_absolute_error", [0.3, 0.1, 0.2])],
)
def test_the_direction_is_told_by_the_name(monitor, values):
    snapshot = TeacherSnapshot(monitor, patience=1)
    snapshot.set_model(make_snapshot_model())
    snapshot.set_params({"epochs": 9})
    snapshot.on_train_begin()
    for epoch, value in enumerate(values):
        snapshot.on_epoch_begin(epoch)
        snapshot.on_epoch_end(epoch, {monitor: value})
    assert snapshot.snapshot_epochs == [2]


def test_a_run_that_goes_on_keeps_its_stage():
    ssd = make_snapshot_model()
    fit(ssd, [TeacherSnapshot(at_epoch=1, restore_best_weights=False)], epochs=2)
    teacher = arrays(ssd.held_weights.held)
    snapshot = TeacherSnapshot(at_epoch=1, restore_best_weights=False)
    history = fit(ssd, [snapshot], epochs=3, initial_epoch=2)
    assert history["kd_loss"][0] > 0
    assert_same(arrays(ssd.held_weights.held), teacher)
    # From the first epoch on it is a new run.
    with pytest.warns(UserWarning, match="nothing was distilled"):
        history = fit(ssd, [TeacherSnapshot("loss")], epochs=1)
    assert history["kd_loss"] == [0.0]


def test_early_stopping_and_reduce_lr_on_plateau_beside_it():
    ssd = make_snapshot_model()
    values = [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    stopping = keras.callbacks.EarlyStopping(patience=4)
    plateau = keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.1, min_delta=0)
    snapshot = TeacherSnapshot(patience=2, restart=[stopping, plateau])
    rates = Record()
    history = fit(ssd, [Script(values), stopping, plateau, snapshot, rates], epochs=10)
    # Two epochs without improvement end the plain stage; then stopping counts anew: four epochs without, after a best
    # one in Keras versions that forget the old best. Without `restart` it would have been five epochs altogether.
    assert snapshot.snapshot_epochs == [2]
    assert len(history["loss"]) in (3 + 4, 3 + 1 + 4)
    np.testing.assert_allclose(rates.rate[:5], [0.05, 0.005, 0.05, 0.05, 0.005], rtol=1e-6)


def test_early_stopping_with_too_little_patience_is_told():
    ssd = make_snapshot_model()
    stopping = keras.callbacks.EarlyStopping(patience=1)
    with pytest.warns(UserWarning, match="EarlyStopping beside it needs more patience"):
        history = fit(ssd, [Script([1.0, 2.0, 2.0]), stopping, TeacherSnapshot(patience=1)], epochs=3)
    assert len(history["loss"]) == 2
    assert ssd.teaching


def test_another_learning_rate_for_the_distilling_stage():
    ssd = make_snapshot_model()
    rates = Record()
    fit(ssd, [TeacherSnapshot(at_epoch=1, restore_best_weights=False, learning_rate=0.01), rates], epochs=2)
    assert rates.rate == [np.float32(0.01)] * 2


def test_a_snapshot_is_announced(capsys):
    ssd = make_snapshot_model()
    fit(ssd, [Script([1.0, 2.0, 3.0]), TeacherSnapshot(patience=1, verbose=1)], epochs=3)
    assert "Epoch 2: TeacherSnapshot 1 of 1, weights of epoch 1, the best" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(generations=0), "`generations` should be an integer of at least 1. Received: generations=0"),
        (dict(patience=-1), "`patience` should be an integer of at least 0. Received: patience=-1"),
        (dict(at_epoch=0), "`at_epoch` should be an integer of at least 1. Received: at_epoch=0"),
        (dict(start_from_epoch=1.5), "`start_from_epoch` should be an integer"),
        (dict(mode="down"), '`mode` should be "auto", "min" or "max". Received: mode=\'down\''),
        (dict(monitor="val_strange"), "`mode` cannot be told from the name of the monitored value"),
        (dict(monitor=None), "`monitor` should be a name in the logs. Received: monitor=None"),
        (dict(min_delta=-1.0), "`min_delta` should be a float that is not negative"),
        (dict(learning_rate=0.0), "`learning_rate` should be a positive float"),
        (dict(restart="all"), "`restart` should hold callbacks of the same fit. Received: 'all'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_options_of_the_snapshot(options, message):
    with pytest.raises(ValueError) as error:
        TeacherSnapshot(**options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "make, message",
    [
        pytest.param(make_model, "TeacherSnapshot needs a model from keras_ssd.wrap", id="plain"),
        pytest.param(lambda: keras_ssd.wrap(make_model()), "Received: teacher='self'", id="self"),
        pytest.param(lambda: make_snapshot_model(kd_weight=0), "was wrapped with kd_weight=0", id="weight-0"),
    ],
)
def test_models_the_snapshot_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        fit(make(), [TeacherSnapshot()], epochs=1)


def test_a_learning_rate_beside_a_schedule_is_refused():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    ssd = make_snapshot_model(keras.optimizers.Adam(schedule))
    with pytest.raises(ValueError, match="`learning_rate` cannot be set on an optimizer that follows a schedule"):
        fit(ssd, [TeacherSnapshot(learning_rate=0.1)], epochs=1)


def test_a_monitored_value_that_does_not_exist_is_named_with_those_that_do():
    ssd = make_snapshot_model()
    with pytest.raises(ValueError) as error:
        fit(ssd, [TeacherSnapshot()], epochs=2)
    assert "monitor='val_loss'; the logs hold ['accuracy', 'kd_loss', 'loss']" in str(error.value)
    assert ssd.teaching


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.1),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "nadam": lambda: keras.optimizers.Nadam(0.1),
    "loss-scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.1)),
    "schedule": lambda: keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)),
    "moving-average": lambda: keras.optimizers.Adam(0.1, use_ema=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restarted_optimizer_is_as_new(name):
    model = make_model(OPTIMIZERS[name]())
    fit(model, epochs=1)
    if name != "schedule":
        model.optimizer.learning_rate = 0.3
    rate = None if name == "schedule" else 0.1
    restart_optimizer(model.optimizer, model.trainable_variables, rate)
    new = OPTIMIZERS[name]()
    new.build(model.trainable_variables)
    assert_same(arrays(model.optimizer.variables), arrays(new.variables))
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 0


# KDWeightSchedule


def test_the_weight_follows_the_schedule():
    ssd = keras_ssd.wrap(make_model(), n_teachers=2)
    ramp = keras.optimizers.schedules.PolynomialDecay(0.0, decay_steps=2, end_learning_rate=1.0)
    history = fit(ssd, [KDWeightSchedule(ramp)], epochs=3)
    assert history["kd_weight"] == [0.0, 0.5, 1.0]
    assert ssd.kd_weight == 1.0
    history = fit(ssd, [KDWeightSchedule(lambda epoch: 3)], epochs=1)
    assert history["kd_weight"] == [3.0]


def test_a_weight_of_0_from_a_schedule_trains_as_the_plain_model():
    plain = fit(make_model())
    history = fit(keras_ssd.wrap(make_model(), n_teachers=2), [KDWeightSchedule(lambda epoch: 0.0)])
    np.testing.assert_allclose(history["loss"], plain["loss"], rtol=1e-6)


@pytest.mark.parametrize("weight", [-0.5, math.nan, math.inf, None], ids=str)
def test_a_schedule_that_returns_no_weight(weight):
    ssd = keras_ssd.wrap(make_model(), n_teachers=2)
    callback = KDWeightSchedule(lambda epoch: weight if epoch else 1.0)
    callback.set_model(ssd)
    callback.on_epoch_begin(0)
    with pytest.raises(ValueError, match=f"not negative. Received: {weight} for epoch 1"):
        callback.on_epoch_begin(1)
    assert ssd.kd_weight == 1.0


def test_bad_use_of_the_schedule():
    with pytest.raises(ValueError, match="`schedule` should be a callable"):
        KDWeightSchedule(0.5)
    with pytest.raises(ValueError, match="was wrapped with kd_weight=0"):
        fit(keras_ssd.wrap(make_model(), kd_weight=0), [KDWeightSchedule(lambda epoch: 1.0)])
    with pytest.raises(ValueError, match="KDWeightSchedule needs a model from keras_ssd.wrap"):
        fit(make_model(), [KDWeightSchedule(lambda epoch: 1.0)])


# TeacherMonitor


def test_the_monitor_shows_figures_in_the_logs_and_changes_nothing():
    expected = fit(keras_ssd.wrap(make_model(), n_teachers=3, seed=5), epochs=3, validation_data=(X, Y))
    ssd = keras_ssd.wrap(make_model(), n_teachers=3, seed=5)
    history = fit(ssd, [TeacherMonitor(every=2)], epochs=3, validation_data=(X, Y))
    assert set(history) == {*expected, *TeacherFigures.names}
    for name, values in expected.items():
        np.testing.assert_allclose(values, history[name], rtol=1e-6, err_msg=name)
    for name in TeacherFigures.names:
        assert [math.isnan(value) for value in history[name]] == [False, True, False], name
    assert 0 < history["teacher_spread"][0] < 1
    assert 1 < history["effective_teachers"][0] <= 3.001
    assert history["teachers_kept"][0] == 1.0
    assert 0 <= history["teacher_disagreement"][0] <= 2 / 3
    assert set(ssd.evaluate(X, Y, verbose=0, return_dict=True)) == {"loss", "accuracy"}
    assert set(fit(ssd, epochs=1)) == set(expected) - {"val_loss", "val_accuracy"}


def test_the_monitor_sees_the_teachers_of_the_training_step():
    # Little noise on the inputs and nothing in between: what student and teachers are compared by is known.
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(keras.layers.GaussianNoise(0.01)(inputs)))
    model.compile("sgd", "sparse_categorical_crossentropy")
    ssd = keras_ssd.wrap(model, teacher="snapshot", n_teachers=10, percentile=70)
    history = fit(ssd, [TeacherMonitor()], epochs=1)
    norms = np.linalg.norm(X, axis=1)
    assert "teacher_disagreement" not in history
    assert history["teachers_kept"][0] == pytest.approx(0.3)
    assert history["effective_teachers"][0] == pytest.approx(3.0, rel=1e-3)
    assert history["target_similarity"][0] == pytest.approx(1.0, abs=1e-3)
    assert history["representation_norm"][0] == pytest.approx(norms.mean(), rel=0.01)
    assert history["teacher_spread"][0] == pytest.approx((0.01 * math.sqrt(6 * 0.9) / norms).mean(), rel=0.15)


def test_the_monitor_beside_the_snapshot_is_silent_in_the_plain_stage():
    ssd = make_snapshot_model()
    history = fit(ssd, [TeacherSnapshot(at_epoch=1, restore_best_weights=False), TeacherMonitor()], epochs=2)
    for name in TeacherFigures.names[:-1]:
        assert [math.isnan(value) for value in history[name]] == [True, False], name


def healthy(**changes):
    figures = dict(teacher_spread=0.3, effective_teachers=2.0, teachers_kept=1.0)
    return {**figures, "target_similarity": 0.9, "representation_norm": 1.0, **changes}


@pytest.mark.parametrize(
    "logs, message",
    [
        pytest.param(healthy(teacher_spread=0.0), "All teachers are identical .* Check the rates", id="spread"),
        pytest.param(healthy(teacher_spread=math.nan), "not finite: .'teacher_spread'.. Lower the", id="nan"),
        pytest.param(healthy(representation_norm=11.0), "run away, from 1 to 11 in epoch 2. Distil", id="norm"),
    ],
)
def test_a_collapse_warns_once_with_the_remedy(logs, message):
    monitor = TeacherMonitor()
    monitor.set_model(keras_ssd.wrap(make_model(), n_teachers=3))
    monitor.on_train_begin()
    monitor.on_epoch_end(0, healthy())
    with pytest.warns(UserWarning, match=message):
        monitor.on_epoch_end(1, logs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.on_epoch_end(2, logs)
        monitor.on_epoch_end(3, {})


def test_identical_teachers_are_found_in_training():
    ssd = keras_ssd.wrap(make_model(), n_teachers=3)
    for layer in ssd.student.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    with pytest.warns(UserWarning, match="All teachers are identical"):
        fit(ssd, [TeacherMonitor()])


def test_one_deterministic_teacher_has_no_spread_and_no_warning():
    options = dict(n_teachers=1, similarity="uniform", stochastic_layers=())
    history = fit(keras_ssd.wrap(make_model(), **options), [TeacherMonitor()], epochs=1)
    assert history["teacher_spread"] == [0.0]


def test_bad_options_of_the_monitor():
    with pytest.raises(ValueError, match="`every` should be an integer of at least 1. Received: every=0"):
        TeacherMonitor(every=0)
    with pytest.raises(ValueError, match="`norm_factor` should be a float above 1. Received: norm_factor=1"):
        TeacherMonitor(norm_factor=1)
    with pytest.raises(ValueError, match="TeacherMonitor needs a model from keras_ssd.wrap"):
        fit(make_model(), [TeacherMonitor()])


# SeedEachEpoch


class Shuffled(keras.utils.PyDataset):
    """A data set that draws its order from NumPy, as the docstring of SeedEachEpoch has it."""

    def on_epoch_begin(self):
        self.order = np.random.permutation(len(X)).reshape(-1, 12)

    def __len__(self):
        return 2

    def __getitem__(self, index):
        rows = self.order[index] if hasattr(self, "order") else slice(12)
        return X[rows], Y[rows]


@pytest.mark.parametrize(
    "wrapped, data", [(False, "dataset"), (True, "arrays")], ids=["plain-dataset", "wrapped-arrays"]
)
def test_epochs_draw_the_same_wherever_the_run_began(wrapped, data):
    def train(model, **options):
        # What a script does first; on TensorFlow the order of arrays follows from it.
        keras.utils.set_random_seed(2)
        given = dict(x=X, y=Y, batch_size=12) if data == "arrays" else dict(x=Shuffled())
        return model.fit(**given, verbose=0, callbacks=[SeedEachEpoch(3)], **options).history["loss"]

    def make():
        return keras_ssd.wrap(make_model(), n_teachers=2, seed=4) if wrapped else make_model()

    model, resumed = make(), make()
    whole = train(model, epochs=3)
    # One epoch drawn in vain moves every generator on.
    halves = train(resumed, epochs=1) + train(resumed, epochs=3, initial_epoch=1)
    assert halves == whole
    assert_same(arrays(resumed.weights), arrays(model.weights))


def test_seeds_depend_on_seed_and_epoch_and_the_student_draws_as_the_plain_model():
    model = make_model()
    ssd = keras_ssd.wrap(make_model(), n_teachers=2)

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


def test_a_bad_seed():
    with pytest.raises(ValueError, match="`seed` should be an integer of at least 0. Received: seed='a'"):
        SeedEachEpoch("a")


# All of them


def ramp(epoch):
    return 0.5 * epoch


def all_callbacks():
    stopping = keras.callbacks.EarlyStopping("loss", patience=20)
    snapshot = TeacherSnapshot(at_epoch=1, restore_best_weights=False, restart=[stopping])
    return [snapshot, stopping, KDWeightSchedule(ramp), TeacherMonitor(), SeedEachEpoch(1)]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_of_callbacks_do_the_same(copied):
    callbacks = copied(all_callbacks())
    assert callbacks[0].restart[0] is callbacks[1]
    expected = fit(make_snapshot_model(seed=3), all_callbacks())
    ssd = make_snapshot_model(seed=3)
    history = fit(ssd, callbacks)
    assert set(history) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(values, history[name], err_msg=name)
    # After a run they hold the model, which Keras copies as an archive.
    again = copied(callbacks)
    assert again[0].snapshot_epochs == [0]
    assert_same(arrays(again[0].model.student.weights), arrays(ssd.student.weights))


def test_everything_is_as_before_after_an_exception():
    ssd = make_snapshot_model()
    metrics = [metric.name for metric in ssd.metrics]
    with pytest.raises(RuntimeError, match="stop here"):
        fit(ssd, [TeacherSnapshot(at_epoch=1), TeacherMonitor(), Raise()])
    assert ssd.teaching
    assert [metric.name for metric in ssd.metrics] == metrics
    history = fit(ssd, epochs=1)
    assert set(history) == {"loss", "accuracy", "kd_loss"}
    assert history["kd_loss"][0] > 0
    assert ssd.predict(X, verbose=0).shape == (24, 3)


def test_teaching_can_be_switched_off_by_hand():
    plain = fit(make_model(), epochs=1)
    ssd = make_snapshot_model()
    ssd.teaching = False
    history = fit(ssd, epochs=1)
    assert history["loss"] == plain["loss"]
    assert history["kd_loss"] == [0.0]
    assert not ssd.teaching
    ssd.teaching = True
    assert fit(ssd, epochs=1)["kd_loss"][0] > 0
