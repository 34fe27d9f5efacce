"""Files of a model that averages its weights: the student carries the average, the raw weights are beside it."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_ssd
from keras_ssd.averaging import HeldWeights
from models import compiled, dense_network
from same_weights import arrays, assert_close, assert_same

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 16)

either_format = pytest.mark.parametrize("name", ["file.keras", "file.weights.h5"])


def network(seed=1, **options):
    return compiled(dense_network(layers.Dropout(0.4, seed=seed), **options), keras.optimizers.Adam(0.01))


def trained(seed=1):
    ssd = keras_ssd.wrap(network(seed), seed=1)
    ssd.fit(X, Y, batch_size=8, verbose=0)
    return ssd


def save(ssd, path):
    (ssd.save if path.suffix == ".keras" else ssd.save_weights)(path)


def one_epoch(ssd):
    """Train for an epoch, and return the weights from which it started."""
    begun, student = [], ssd.student
    note = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: begun.extend(arrays(student.weights)))
    ssd.fit(X, Y, epochs=1, verbose=0, callbacks=[note])
    return begun


def load_in_a_new_model(path, teacher="self"):
    if path.suffix == ".keras":
        return keras.models.load_model(path)
    ssd = keras_ssd.wrap(network(), teacher, seed=1)
    ssd.fit(X, Y, epochs=3, verbose=0)  # raw weights of its own, which are not those of the file
    ssd.load_weights(path)
    return ssd


@either_format
@pytest.mark.parametrize("teacher, times", [("self", 1), ("self", 2), ("ema", 1)])
def test_a_file_holds_the_weights_before_the_average(tmp_path, name, teacher, times):
    """After `fit` the student carries the average, of a loaded model, too; the next `fit` starts from raw weights."""
    raw, ssd = [], keras_ssd.wrap(network(), teacher, seed=1)
    note = keras.callbacks.LambdaCallback(on_train_end=lambda logs: raw.extend(arrays(ssd.student.weights)))
    ssd.fit(X, Y, batch_size=8, verbose=0, callbacks=[note])
    deployed, loaded = arrays(ssd.student.weights), ssd
    for _ in range(times):
        save(loaded, tmp_path / name)
        loaded = load_in_a_new_model(tmp_path / name, teacher)
    assert_same(arrays(loaded.student.weights), deployed)
    assert not np.allclose(raw[0], deployed[0])
    assert_same(one_epoch(loaded), raw)


@either_format
def test_a_file_of_weights_that_a_user_set_holds_no_others(tmp_path, name):
    ssd = trained()
    ssd.student.set_weights([w + 1 for w in ssd.student.get_weights()])
    given = arrays(ssd.student.weights)
    save(ssd, tmp_path / name)
    loaded = load_in_a_new_model(tmp_path / name)
    assert_same(arrays(loaded.student.weights), given)
    assert_same(one_epoch(loaded), given)


@either_format
def test_of_a_run_that_is_going_on_the_student_in_the_file_is_what_was_validated(tmp_path, name):
    """And training goes on from the raw weights."""
    path, raw = tmp_path / name, []
    ssd = keras_ssd.wrap(network(), seed=1)
    checkpoint = keras.callbacks.ModelCheckpoint(path, save_weights_only=path.suffix == ".h5")
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: raw.append(arrays(ssd.student.weights)))
    validated = ssd.fit(X, Y, batch_size=8, verbose=0, validation_data=(X, Y), callbacks=[checkpoint, note]).history
    loaded = load_in_a_new_model(path)
    student = compiled(loaded.student)
    assert student.evaluate(X, Y, verbose=0)[0] == pytest.approx(validated["val_loss"][0], rel=1e-5)
    assert_close(loaded.student.predict(X, verbose=0), loaded.predict(X, verbose=0), 1e-6)
    assert_same(one_epoch(loaded), raw[0])


@pytest.mark.parametrize("options", [{"ema_momentum": 0}, {"teacher": "snapshot"}], ids=str)
def test_a_wrapper_without_an_average_loads_what_was_validated(tmp_path, options):
    """Of a file that was written while `fit` ran; so does the plain model."""
    path, ssd = tmp_path / "file.weights.h5", keras_ssd.wrap(network(), seed=1)
    checkpoint = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    ssd.fit(X, Y, batch_size=8, verbose=0, callbacks=[checkpoint])
    for model in (network(), keras_ssd.wrap(network(), **options)):
        model.optimizer.build(model.trainable_variables)
        model.load_weights(path)
        assert_same(arrays(getattr(model, "student", model).weights), arrays(ssd.student.weights))


class Again(keras.callbacks.Callback):
    """Goes back to the end of the first epoch when the third ends."""

    def __init__(self, path):
        super().__init__()
        self.path, self.saved, self.begun = path, [], []

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            self.saved = arrays(self.model.student.weights)
            save(self.model, self.path)
        elif epoch == 2:
            self.model.load_weights(self.path)

    def on_epoch_begin(self, epoch, logs=None):
        self.begun.append(arrays(self.model.student.weights))


@either_format
def test_a_file_loaded_while_fit_runs_gives_the_raw_weights(tmp_path, name):
    again = Again(tmp_path / name)
    keras_ssd.wrap(network(), seed=1).fit(X, Y, batch_size=8, epochs=4, verbose=0, callbacks=[again])
    assert_same(again.begun[3], again.saved)
    assert not np.allclose(again.begun[2][0], again.saved[0])


@either_format
def test_weights_set_after_loading_are_trained(tmp_path, name):
    """Those of another wrapper, average included; not the raw weights of the file."""
    ssd, other = trained(), trained(seed=2)
    save(ssd, tmp_path / name)
    loaded = load_in_a_new_model(tmp_path / name)
    loaded.set_weights(other.get_weights())
    given = arrays(other.student.weights)
    assert_same(one_epoch(loaded), given)


@either_format
@pytest.mark.filterwarnings("ignore:.*could not be loaded", "ignore:Skipping", "ignore:Layer ")  # the head is another
def test_what_is_loaded_for_a_part_of_the_layers_is_trained(tmp_path, name):
    source = trained()
    save(source, tmp_path / name)
    ssd = keras_ssd.wrap(network(units=5), seed=1)
    ssd.optimizer.build(ssd.trainable_variables)
    head = arrays(ssd.student.layers[-1].weights)
    ssd.load_weights(tmp_path / name, skip_mismatch=True)
    loaded = arrays(ssd.student.weights)
    assert_same(loaded, [*arrays(source.student.weights)[:-2], *head])
    assert_same(one_epoch(ssd), loaded)


@either_format
def test_an_interruption_while_the_average_is_written_leaves_the_raw_weights(tmp_path, name, monkeypatch):
    ssd = keras_ssd.wrap(network(), seed=1)
    for _ in range(3):
        ssd.train_on_batch(X, Y)
    raw, write = arrays(ssd.student.weights), HeldWeights.write

    def interrupted(held, weights):
        write(held, weights)
        raise KeyboardInterrupt

    monkeypatch.setattr(HeldWeights, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(ssd, tmp_path / name)
    monkeypatch.undo()
    assert_same(arrays(ssd.student.weights), raw)
    assert not list(tmp_path.iterdir())
    ssd._begin_training()
    assert_same(arrays(ssd.student.weights), raw)


def test_a_weight_that_is_not_a_number_does_not_hide_the_raw_weights():
    """Of a row of an embedding that is never looked up."""
    stack = [layers.Embedding(4, 3), layers.Flatten(), layers.Dropout(0.5), layers.Dense(3, activation="softmax")]
    ssd = keras_ssd.wrap(compiled(keras.Sequential([keras.Input((2,)), *stack])))
    table = ssd.student.weights[0]
    table.assign(np.where(np.arange(4)[:, None] == 3, np.nan, arrays(table)[0]))
    tokens = np.arange(32).reshape(16, 2) % 3
    for _ in range(3):
        ssd.train_on_batch(tokens, Y)
    raw = arrays(ssd.student.weights)
    ssd.write_average()
    assert not np.allclose(arrays(ssd.student.weights)[-1], raw[-1], atol=1e-6)
    ssd._begin_training()
    assert_same(arrays(ssd.student.weights), raw)


def test_a_loaded_model_evaluates_the_weights_that_its_student_is_given(tmp_path):
    trained().save(tmp_path / "file.keras")
    loaded = keras.models.load_model(tmp_path / "file.keras")
    loaded.student.set_weights([w + 1 for w in loaded.student.get_weights()])
    assert_same(loaded(X), loaded.student(X))


def test_the_average_is_not_written_while_fit_runs():
    ssd = keras_ssd.wrap(network())
    write = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: ssd.write_average())
    with pytest.raises(ValueError, match=r"write_average\(\) cannot be called while `fit` runs.* use `save`"):
        ssd.fit(X, Y, verbose=0, callbacks=[write])
    ssd.write_average()


def test_copies_of_other_weights_are_not_saved(tmp_path):
    """Keras could not load such a file."""
    ssd = trained()
    ssd.student.layers[1].enable_lora(2)
    with pytest.raises(ValueError, match="no longer the wrapped ones.* or save the model itself"):
        ssd.save(tmp_path / "file.keras")
    ssd.student.save(tmp_path / "student.keras")
    # Its optimizer is the one of before LoRA.
    assert_same(keras.models.load_model(tmp_path / "student.keras", compile=False)(X), ssd.student(X))
