"""Common Keras callbacks with a wrapped model."""

import csv

import keras
import numpy as np
import pytest

import callback_runs
import keras_ssd
from callback_runs import X, Y
from keras_ssd.callbacks import SeedEachEpoch, TeacherMonitor
from same_weights import arrays, assert_same


def make_model(optimizer=None, teacher="ema", **options):
    return keras_ssd.wrap(callback_runs.make_model(optimizer), teacher=teacher, num_teachers=2, **options)


def fit(model, *callbacks, epochs=2, **options):
    keras.utils.set_random_seed(1)
    options = {"validation_data": (X, Y), **options}
    return model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=list(callbacks), **options).history


def test_early_stopping_restores_the_best_weights():
    """Those that a validation would use: the average."""
    model, averages = make_model(teacher="self"), []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: averages.append(arrays(model.average.other)))
    stopping = keras.callbacks.EarlyStopping(patience=1, restore_best_weights=True)
    script = callback_runs.Script([2.0, 1.0, 3.0])
    history = fit(model, script, note, stopping, epochs=4, validation_data=None)
    assert len(history["loss"]) == 3
    assert_same(arrays(model.student.weights), averages[1])


def test_csv_logger_keeps_its_columns(tmp_path):
    path = tmp_path / "log.csv"
    history = fit(make_model(), TeacherMonitor(every=2), keras.callbacks.CSVLogger(str(path)))
    with open(path) as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == {"epoch", *history}
    for name, values in history.items():
        np.testing.assert_allclose([float(row[name]) for row in rows], values, rtol=1e-6, err_msg=name)


def test_backup_and_restore_ends_as_the_uninterrupted_run(tmp_path):
    class Break(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if (self.model.optimizer.iterations, batch) == (5, 1):  # within the second epoch
                raise KeyboardInterrupt

    def run(folder, *callbacks):
        model = make_model(teacher="self")
        backup = keras.callbacks.BackupAndRestore(tmp_path / folder)
        history = fit(model, SeedEachEpoch(1), backup, *callbacks, validation_data=None)
        return len(history["loss"]), arrays(model.student.weights + model.optimizer.variables)

    with pytest.raises(KeyboardInterrupt):
        run("broken", Break())
    epochs, resumed = run("broken")
    assert epochs == 1
    assert_same(resumed, run("whole")[1])


# TensorBoard imports TensorFlow and tensorboard, and those warn of themselves.
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_writes_the_scalars(tmp_path):
    pytest.importorskip("tensorflow")
    model = make_model()
    board = keras.callbacks.TensorBoard(str(tmp_path), write_graph=False, histogram_freq=1)
    fit(model, TeacherMonitor(), board)
    train, validation = (next((tmp_path / part).iterdir()).read_bytes() for part in ("train", "validation"))
    assert all(name in train for name in (b"epoch_loss", b"epoch_kd_loss", b"epoch_teacher_spread"))
    assert b"kd_loss" not in validation


def test_swap_ema_weights():
    """The optimizer's own average: validation sees it, and the student has it after `fit`."""
    model = make_model(keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.5), teacher="self", ema_momentum=0)
    history = fit(model, keras.callbacks.SwapEMAWeights(swap_on_epoch=True))
    np.testing.assert_allclose(model.evaluate(X, Y, verbose=0)[0], history["val_loss"][-1], rtol=1e-5)


def test_terminate_on_nan():
    model = make_model(keras.optimizers.SGD(1e30), teacher="self")
    history = fit(model, keras.callbacks.TerminateOnNaN(), epochs=5, validation_data=None)
    assert len(history["loss"]) < 5
    assert not np.isfinite(history["loss"][-1])


@pytest.mark.parametrize("of", ["student", "wrapper"])
def test_weights_that_a_callback_loads_at_the_end_are_deployed(tmp_path, of):
    """Those of the first epoch, set in the student or loaded into the wrapper from a file."""
    ssd, path, noted = make_model(), str(tmp_path / "first.weights.h5"), []

    def end(epoch, logs):
        if epoch == 0:
            noted.extend(arrays(ssd.student.weights))
            ssd.save_weights(path)

    def load(logs):
        if of == "student":
            ssd.student.set_weights(noted)
        else:
            ssd.load_weights(path)

    fit(ssd, keras.callbacks.LambdaCallback(on_epoch_end=end, on_train_end=load), validation_data=None)
    if of == "wrapper":  # the average, which is what the file holds
        plain = keras.models.clone_model(ssd.student)
        plain.load_weights(path)
        assert_same(ssd.student.get_weights(), plain.get_weights())
    else:
        assert_same(ssd.student.get_weights(), noted)
        fit(ssd, epochs=1, validation_data=None)  # the average restarts from them
        assert int(keras.ops.convert_to_numpy(ssd.average.steps.value)) == len(X) // 8


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
