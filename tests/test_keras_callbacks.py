"""Common Keras callbacks with a wrapped model."""

import csv
import glob

import keras
import numpy as np
import pytest

import keras_ssd
from keras_ssd.callbacks import TeacherMonitor
from same_weights import arrays, assert_same

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = np.arange(16) % 2


def make_model(optimizer=None, teacher="ema", **options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = keras.layers.Dropout(0.5)(keras.layers.Dense(5, "relu")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, "softmax")(x))
    model.compile(
        optimizer or keras.optimizers.Adam(0.1),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,
    )
    return keras_ssd.wrap(model, teacher=teacher, num_teachers=2, **options)


def fit(model, *callbacks, epochs=2, **options):
    keras.utils.set_random_seed(1)
    options = {"validation_data": (X, Y), **options}
    return model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=list(callbacks), **options).history


class Script(keras.callbacks.Callback):
    """Writes losses of our choice into the logs, and notes the weights of every epoch."""

    def __init__(self, values):
        super().__init__()
        self.values = values
        self.weights = []
        self.averages = []

    def on_epoch_end(self, epoch, logs=None):
        logs["val_loss"] = self.values[epoch]
        self.weights.append(self.model.get_weights())
        self.averages.append(arrays(self.model.average.other) if self.model.average is not None else [])


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"teacher": "self"}, id="self"),
        pytest.param({"teacher": "self", "ema_momentum": 0}, id="self, not averaged"),
        pytest.param({"teacher": "ema"}, id="ema"),
    ],
)
def test_early_stopping_restores_the_best_weights(options):
    model = make_model(**options)
    script = Script([2.0, 1.0, 3.0, 3.0, 3.0])
    stopping = keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True)
    history = fit(model, script, stopping, epochs=5)
    assert len(history["loss"]) == 4
    if model.average is not None:
        # The student holds the best epoch's average: `fit` deploys it at its end.
        assert_same(arrays(model.student.weights), script.averages[1])
    else:
        assert_same(model.get_weights(), script.weights[1])


def test_model_checkpoint_of_weights_only(tmp_path):
    path = str(tmp_path / "last.weights.h5")
    model = make_model()
    fit(model, keras.callbacks.ModelCheckpoint(path, save_weights_only=True))
    other = make_model()
    other.optimizer.build(other.trainable_variables)
    other.load_weights(path)
    np.testing.assert_allclose(other.predict(X, verbose=0), model.predict(X, verbose=0), rtol=1e-5, atol=1e-6)


def test_backup_and_restore_begins_where_the_run_broke_off(tmp_path):
    class Break(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    backup = str(tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), keras.callbacks.BackupAndRestore(backup), Break(), epochs=3)
    history = fit(make_model(), keras.callbacks.BackupAndRestore(backup), epochs=3)
    assert len(history["loss"]) == 1


def test_reduce_lr_on_plateau():
    model = make_model()
    plateau = keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.5)
    history = fit(model, Script([1.0, 2.0, 2.0]), plateau, epochs=3)
    np.testing.assert_allclose(history["learning_rate"], [0.1, 0.1, 0.05], rtol=1e-6)


def test_learning_rate_scheduler():
    model = make_model()
    history = fit(model, keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1)))
    np.testing.assert_allclose(history["learning_rate"], [0.1, 0.05], rtol=1e-6)


def test_csv_logger_keeps_its_columns(tmp_path):
    path = tmp_path / "log.csv"
    history = fit(make_model(), TeacherMonitor(every=2), keras.callbacks.CSVLogger(str(path)))
    with open(path) as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == {"epoch", *history}
    for name, values in history.items():
        np.testing.assert_allclose([float(row[name]) for row in rows], values, rtol=1e-6, err_msg=name)


# TensorBoard imports TensorFlow and tensorboard, and those warn of themselves.
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_writes_the_scalars(tmp_path):
    pytest.importorskip("tensorflow")
    model = make_model()
    board = keras.callbacks.TensorBoard(str(tmp_path), write_graph=False, histogram_freq=1)
    fit(model, TeacherMonitor(), board)
    (path,) = glob.glob(str(tmp_path / "train" / "*"))
    with open(path, "rb") as file:
        content = file.read()
    for name in (b"epoch_loss", b"epoch_kd_loss", b"epoch_teacher_spread"):
        assert name in content
    (path,) = glob.glob(str(tmp_path / "validation" / "*"))
    with open(path, "rb") as file:
        assert b"kd_loss" not in file.read()


@pytest.mark.parametrize("teacher", ["self", "ema"])
def test_swap_ema_weights(teacher):
    """The optimizer's own average: validation sees it, and the student has it after `fit`."""
    model = make_model(
        keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.5),
        teacher=teacher,
        ema_momentum=None if teacher == "ema" else 0,
    )
    history = fit(model, keras.callbacks.SwapEMAWeights(swap_on_epoch=True))
    assert np.isfinite(history["val_loss"]).all()
    if teacher == "self":
        loss = model.evaluate(X, Y, verbose=0)[0]
        np.testing.assert_allclose(loss, history["val_loss"][-1], rtol=1e-5)


def test_terminate_on_nan():
    model = make_model(keras.optimizers.SGD(1e30), teacher="self")
    history = fit(model, keras.callbacks.TerminateOnNaN(), epochs=5, validation_data=None)
    assert len(history["loss"]) < 5
    assert not np.isfinite(history["loss"][-1])


def test_a_counter_of_the_users_class_is_read_through_the_wrapped_model():
    class Counting(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = keras.layers.Dense(1)
            self.counter = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, inputs):
            self.counter.assign(self.counter + 1)
            return self.head(inputs)

    model, seen = Counting(), []
    x = np.ones((8, 1), "float32")
    model(x)
    model.compile("sgd", "mse")
    ssd = keras_ssd.wrap(model, kd_weight=0)
    assert int(model.counter) == 1  # wrapping does not run the model, as far as anyone can see
    note = keras.callbacks.LambdaCallback(on_train_end=lambda logs: seen.append(int(ssd.counter)))
    ssd.fit(x, x, batch_size=2, callbacks=[note], verbose=0)
    assert seen == [5]
