"""Files of a wrapped model: plain Keras reads the plain model from them, `keras_ssd.load_model` the wrapped model."""

import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_ssd
from keras_ssd.average import WeightAverage
from models import compiled, dense_network
from same_weights import arrays, assert_close, assert_same
from structures import Subclassed

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 16)

VERSION = [int(part) for part in keras.__version__.split(".")[:2]]


@keras.saving.register_keras_serializable(package="tests")
def negative_distance(student, teachers):
    return -ops.sum(ops.abs(teachers - ops.expand_dims(student, 1)), axis=-1)


def network(seed=1, **options):
    return compiled(dense_network(layers.Dropout(0.4, seed=seed), **options), keras.optimizers.Adam(0.01))


def trained(seed=1, **options):
    ssd = keras_ssd.wrap(network(seed), seed=1, **options)
    ssd.fit(X, Y, batch_size=8, verbose=0)
    return ssd


def in_training(**options):
    """Wrapped and not at the end of a training: the student holds raw weights, `predict` uses the average."""
    ssd = keras_ssd.wrap(network(), seed=1, **options)
    for _ in range(3):
        ssd.train_on_batch(X, Y)
    return ssd


# The forms of a file, and how each is written.
SAVE = {
    "file.keras": lambda ssd, path: ssd.save(path),
    "folder": lambda ssd, path: ssd.save(path, zipped=False),
    "file.weights.h5": lambda ssd, path: ssd.save_weights(path),
    "file.h5": lambda ssd, path: ssd.save(path),
}
every_form = pytest.mark.parametrize("name", SAVE)
# Those that hold what training needs to go on.
forms_with_state = pytest.mark.parametrize("name", ["file.keras", "folder", "file.weights.h5"])
OPTIONS = {
    "self": {},
    "not averaged": {"ema_momentum": 0},
    "snapshot": {"teacher": "snapshot"},
    "plain": {"kd_weight": 0},
}


def save(ssd, path):
    SAVE[path.name](ssd, path)


def load_wrapped(path, **options):
    if not path.name.endswith(".weights.h5"):
        return keras_ssd.load_model(path)
    ssd = keras_ssd.wrap(network(), seed=1, **options)
    ssd.fit(X, Y, epochs=3, verbose=0)  # raw weights other than those of the file
    ssd.load_weights(path)
    return ssd


def one_epoch(ssd):
    """Train for an epoch, and return the weights from which it started."""
    begun, student = [], ssd.student
    note = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: begun.extend(arrays(student.weights)))
    ssd.fit(X, Y, epochs=1, verbose=0, callbacks=[note])
    return begun


# What plain Keras reads.


@every_form
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.filterwarnings("ignore:.*HDF5")
def test_plain_keras_loads_the_plain_compiled_model(tmp_path, name, options):
    """With the deployed weights, also of a file written during training, and the state of the optimizer."""
    ssd = in_training(**options)
    raw, predicted = ssd.student.get_weights(), ssd.predict(X, verbose=0)
    save(ssd, tmp_path / name)
    assert_same(ssd.student.get_weights(), raw)
    if name == "file.weights.h5":
        plain = network()
        plain.optimizer.build(plain.trainable_variables)
        plain.load_weights(tmp_path / name)
    else:
        plain = keras.models.load_model(tmp_path / name)
    assert type(plain) is type(ssd.student)
    assert_close(plain.predict(X, verbose=0), predicted, 1e-6)
    assert int(ops.convert_to_numpy(plain.optimizer.iterations)) == 3
    if name != "file.h5":  # what Keras loads from its older format cannot always be trained on
        assert_same(arrays(plain.optimizer.variables), arrays(ssd.optimizer.variables))
        plain.fit(X, Y, verbose=0)


@pytest.mark.parametrize("name", ["file.keras", "file.weights.h5", "file.h5"])
@pytest.mark.filterwarnings("ignore:.*HDF5")
def test_plain_and_wrapped_models_load_the_weights(tmp_path, name):
    ssd = trained()
    save(ssd, tmp_path / name)
    for model in (network(), ssd.student, keras_ssd.wrap(network()), ssd):
        model.optimizer.build(model.trainable_variables)
        model.load_weights(tmp_path / name)
        assert_close(model.predict(X, verbose=0), ssd.predict(X, verbose=0), 1e-6)


@pytest.mark.slow
def test_a_file_is_read_where_keras_ssd_is_not_installed(tmp_path):
    ssd = in_training()
    for name in SAVE:
        save(ssd, tmp_path / name)
    np.save(tmp_path / "x.npy", X)
    script = """if True:
        import sys, warnings
        sys.modules["keras_ssd"] = None  # an import fails
        import keras, numpy as np
        x = np.load("x.npy")
        for name in ("file.keras", "folder", "file.h5"):
            model = keras.models.load_model(name)
            assert int(model.optimizer.iterations) == 3, name
            if name == "file.keras":
                expected = model.predict(x, verbose=0)
            np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-6)
        model.load_weights("file.weights.h5")
        np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-6)
        np.save("predicted.npy", expected)
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, check=True, timeout=300)
    assert_close(np.load(tmp_path / "predicted.npy"), ssd.predict(X, verbose=0), 1e-6)


def test_a_checkpoint_of_the_best_epoch_is_the_plain_model(tmp_path):
    path, ssd = tmp_path / "best.keras", keras_ssd.wrap(network())
    best = keras.callbacks.ModelCheckpoint(path, save_best_only=True)
    history = ssd.fit(X, Y, batch_size=8, epochs=4, validation_data=(X, Y), verbose=0, callbacks=[best]).history
    plain = keras.models.load_model(path)
    assert plain.evaluate(X, Y, verbose=0)[0] == pytest.approx(min(history["val_loss"]), abs=1e-5)
    plain.layers[-1].get_weights()
    ssd.student.load_weights(path)
    assert ssd.evaluate(X, Y, verbose=0)[0] == pytest.approx(min(history["val_loss"]), abs=1e-5)


# What training needs to go on.


@pytest.mark.parametrize(
    "teacher", ["self", "snapshot", pytest.param("ema", marks=pytest.mark.compiled), "model", "file"]
)
def test_training_goes_on_from_a_file_bit_for_bit(tmp_path, teacher):
    if teacher == "file":
        network(3).save(tmp_path / "teacher.keras")
    source = {"model": lambda: network(3), "file": lambda: tmp_path / "teacher.keras"}.get(teacher, lambda: teacher)()
    ssd = keras_ssd.wrap(network(), teacher=source, seed=4, kd_weight=0.5)
    ssd.kd_weight = 0.75
    for _ in range(4):
        ssd.train_on_batch(X, Y)
    raw = arrays(ssd.student.weights)
    ssd.save(tmp_path / "ssd.keras")
    assert_same(arrays(ssd.student.weights), raw)
    loaded = keras_ssd.load_model(tmp_path / "ssd.keras")
    assert loaded.settings == ssd.settings and loaded.kd_weight == 0.75
    assert_same(arrays(ssd.optimizer.variables), arrays(loaded.optimizer.variables))
    np.testing.assert_array_equal(ssd.predict(X, verbose=0), loaded.predict(X, verbose=0))
    for model in (ssd, loaded):
        model.reset_metrics()
    logs = [model.train_on_batch(X, Y, return_dict=True) for model in (ssd, loaded)]
    assert logs[0] == logs[1]
    assert_same(arrays(ssd.student.weights), arrays(loaded.student.weights))
    if ssd.average is not None:
        assert_same(arrays(ssd.average.other), arrays(loaded.average.other))


@forms_with_state
@pytest.mark.parametrize("teacher, times", [("self", 1), ("self", 2), ("ema", 1)])
def test_a_file_holds_the_raw_weights(tmp_path, name, teacher, times):
    """After `fit` the student holds the average, of a loaded model, too; the next `fit` starts from raw weights."""
    raw, ssd = [], keras_ssd.wrap(network(), teacher, seed=1)
    note = keras.callbacks.LambdaCallback(on_train_end=lambda logs: raw.extend(arrays(ssd.student.weights)))
    ssd.fit(X, Y, batch_size=8, verbose=0, callbacks=[note])
    deployed, loaded = arrays(ssd.student.weights), ssd
    for _ in range(times):
        save(loaded, tmp_path / name)
        loaded = load_wrapped(tmp_path / name, teacher=teacher)
    assert_same(arrays(loaded.student.weights), deployed)
    assert not np.allclose(raw[0], deployed[0])
    assert_same(one_epoch(loaded), raw)


@forms_with_state
def test_file_holds_weights_set_by_the_user(tmp_path, name):
    ssd = trained()
    ssd.student.set_weights([w + 1 for w in ssd.student.get_weights()])
    given = arrays(ssd.student.weights)
    save(ssd, tmp_path / name)
    loaded = load_wrapped(tmp_path / name)
    assert_same(arrays(loaded.student.weights), given)
    assert_same(one_epoch(loaded), given)


@forms_with_state
def test_weights_set_after_loading_are_trained(tmp_path, name):
    ssd, other = trained(), trained(seed=2)
    save(ssd, tmp_path / name)
    loaded = load_wrapped(tmp_path / name)
    loaded.student.set_weights(other.student.get_weights())
    given = arrays(other.student.weights)
    assert_same(one_epoch(loaded), given)


class Again(keras.callbacks.Callback):
    """Goes back to the end of the first epoch when the third ends."""

    def __init__(self, path):
        super().__init__()
        self.path, self.saved, self.begun = path, [], []

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            self.saved = arrays(self.model.student.weights + self.model.average.other)
            save(self.model, self.path)
        elif epoch == 2:
            self.model.load_weights(self.path)

    def on_epoch_begin(self, epoch, logs=None):
        self.begun.append(arrays(self.model.student.weights + self.model.average.other))


@pytest.mark.parametrize("name", ["file.keras", "file.weights.h5"])
@pytest.mark.parametrize("policy", ["float32", "bfloat16"])
def test_a_file_loaded_while_fit_runs_gives_raw_weights_and_average(tmp_path, name, policy):
    keras.config.set_dtype_policy(policy)
    try:
        again = Again(tmp_path / name)
        keras_ssd.wrap(network(), seed=1).fit(X, Y, batch_size=8, epochs=4, verbose=0, callbacks=[again])
    finally:
        keras.config.set_dtype_policy("float32")
    assert_same(again.begun[3], again.saved)
    assert any((a != b).any() for a, b in zip(again.begun[2], again.saved, strict=True))


@pytest.mark.filterwarnings("ignore:.*could not be loaded", "ignore:Skipping", "ignore:Layer ")  # the head is another
def test_average_restarts_after_a_partial_load(tmp_path):
    source = trained()
    source.save_weights(tmp_path / "file.weights.h5")
    ssd = keras_ssd.wrap(network(units=5), seed=1)
    head = arrays(ssd.student.layers[-1].weights)
    ssd.load_weights(tmp_path / "file.weights.h5", skip_mismatch=True)
    loaded = arrays(ssd.student.weights)
    assert_same(loaded, [*arrays(source.student.weights)[:-2], *head])
    assert_same(one_epoch(ssd), loaded)


@forms_with_state
def test_an_interruption_while_a_file_is_written_leaves_the_raw_weights(tmp_path, name, monkeypatch):
    ssd = in_training()
    raw, deployable = arrays(ssd.student.weights), WeightAverage._deployable

    def interrupted(average, weights):
        average._weights[0].assign(deployable(average, weights)[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(WeightAverage, "_deployable", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(ssd, tmp_path / name)
    monkeypatch.undo()
    assert_same(arrays(ssd.student.weights), raw)
    assert not list(tmp_path.iterdir())
    ssd._begin_training()
    assert_same(arrays(ssd.student.weights), raw)


def test_a_file_of_the_older_format_holds_the_student_only(tmp_path):
    other, ssd = network(), in_training()
    other.fit(X, Y, verbose=0)
    other.save_weights(tmp_path / "plain.weights.h5")
    ssd.load_weights(tmp_path / "plain.weights.h5")
    np.testing.assert_array_equal(ssd.predict(X, verbose=0), other.predict(X, verbose=0))
    ssd.optimizer.learning_rate = 0.0
    ssd.fit(X, Y, epochs=3, verbose=0)
    trainable = arrays(ssd.student.trainable_weights)
    assert_close(trainable, arrays(other.trainable_weights), 1e-6)


@pytest.mark.parametrize("name", ["file.keras", "folder", "file.weights.h5"])
@pytest.mark.parametrize("answer, is_kept", [("n", True), ("y", False)])
def test_a_file_is_replaced_when_the_user_agrees(tmp_path, monkeypatch, name, answer, is_kept):
    ssd, path = in_training(), tmp_path / name
    save(ssd, path)
    ssd.train_on_batch(X, Y)
    monkeypatch.setattr("builtins.input", lambda _="": answer)
    if name == "file.weights.h5":
        ssd.save_weights(path, overwrite=False)
    else:
        ssd.save(path, overwrite=False, zipped=False if name == "folder" else None)
    loaded = load_wrapped(path)
    assert (arrays(loaded.optimizer.iterations)[0] == 3) == is_kept


@pytest.mark.skipif(VERSION < [3, 10], reason="sharded files came with Keras 3.10")
def test_weights_in_several_parts_are_those_of_the_student(tmp_path):
    ssd = in_training()
    ssd.save_weights(tmp_path / "a.weights.json", max_shard_size=0.001)
    loaded = keras_ssd.wrap(network())
    loaded.load_weights(tmp_path / "a.weights.json")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), ssd.predict(X, verbose=0))


@pytest.mark.parametrize("name", ["folder", "file.keras", "file.weights.h5"])
def test_a_folder_with_other_files_is_left_alone(tmp_path, name):
    ssd, folder = in_training(), tmp_path / name
    folder.mkdir()
    (folder / "mine.csv").write_text("1")
    with pytest.raises((ValueError, OSError)):
        save(ssd, folder)
    assert [path.name for path in folder.iterdir()] == ["mine.csv"]
    (folder / "mine.csv").unlink()
    if name == "folder":  # empty, and then that of a model
        for _ in range(2):
            save(ssd, folder)
        assert keras_ssd.load_model(folder).settings == ssd.settings


@forms_with_state
def test_training_with_lora_continues_from_a_file(tmp_path, name):
    """Keras stores the merged kernel and adapters of 0, which are not what is trained."""
    model = network()
    model.layers[1].enable_lora(2)
    model.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    ssd = keras_ssd.wrap(model, seed=1, kd_weight=0, ema_momentum=0.9)
    ssd.fit(X, Y, epochs=3, verbose=0)
    before = [weights.copy() for weights in arrays(model.weights)]
    save(ssd, tmp_path / name)
    if name == "file.weights.h5":
        ssd.fit(X, Y, verbose=0)
        ssd.load_weights(tmp_path / name)
        loaded = ssd
    else:
        loaded = keras_ssd.load_model(tmp_path / name)
    assert_same(arrays(loaded.student.weights), before)
    raw = one_epoch(loaded)
    if loaded is not ssd:
        assert_same(raw, one_epoch(ssd))


def test_weights_of_the_student_that_are_set_during_training_are_evaluated():
    ssd, other = in_training(), network(seed=2)
    ssd.set_weights(other.get_weights())
    assert_same(ssd.predict(X, verbose=0), other.predict(X, verbose=0))


def test_a_file_keeps_the_permissions_of_the_file_that_it_replaces(tmp_path):
    ssd = in_training()
    ssd.save(tmp_path / "a.keras")
    (tmp_path / "a.keras").chmod(0o600)
    ssd.save(tmp_path / "a.keras")
    assert (tmp_path / "a.keras").stat().st_mode & 0o777 == 0o600


def test_a_missing_or_damaged_weights_file_is_an_error(tmp_path):
    ssd = in_training()
    with pytest.raises(OSError):
        ssd.load_weights(tmp_path / "nowhere.weights.h5")
    (tmp_path / "damaged.weights.h5").write_bytes(b"nothing")
    with pytest.raises(OSError):
        ssd.load_weights(tmp_path / "damaged.weights.h5")


def test_a_file_of_another_distillation_is_refused(tmp_path):
    trained(teacher="snapshot").save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(ValueError, match="state of another distillation.*student.load_weights"):
        keras_ssd.wrap(network()).load_weights(tmp_path / "a.weights.h5")


def test_the_file_of_a_plain_model_is_refused_with_the_remedy(tmp_path):
    network().save(tmp_path / "plain.keras")
    with pytest.raises(ValueError, match=r"holds no wrapped model.*keras_ssd\.wrap\(model\)"):
        keras_ssd.load_model(tmp_path / "plain.keras")
    with pytest.raises(ValueError, match="does not exist"):
        keras_ssd.load_model(tmp_path / "nowhere.keras")


def test_saving_raises_after_the_student_got_other_variables(tmp_path):
    ssd = trained()
    ssd.student.layers[1].enable_lora(2)
    with pytest.raises(ValueError, match="have changed since it was wrapped.* or save the model itself"):
        ssd.save(tmp_path / "file.keras")
    ssd.student.save(tmp_path / "student.keras")
    # Its optimizer is that of before LoRA.
    assert_same(keras.models.load_model(tmp_path / "student.keras", compile=False)(X), ssd.student(X))


def test_a_teacher_compiled_with_an_unregistered_loss(tmp_path):
    def local(y_true, y_pred):
        return ops.mean(ops.square(y_true - y_pred), axis=-1)

    teacher = network(3)
    teacher.compile("sgd", local)
    ssd = keras_ssd.wrap(network(), teacher=teacher)
    ssd.fit(X, Y, verbose=0)
    ssd.save(tmp_path / "ssd.keras")
    loaded = keras_ssd.load_model(tmp_path / "ssd.keras")
    assert_same(arrays(ssd.distillation.teacher_weights.copies), arrays(loaded.distillation.teacher_weights.copies))


def test_wrapped_teacher_teaches_with_its_average(tmp_path):
    source = in_training(teacher="ema", ema_momentum=0.9)
    source.save(tmp_path / "ema.keras")
    with source.average.deployed():
        deployed = arrays(source.student.weights)
    for teacher in (source, tmp_path / "ema.keras"):
        ssd = keras_ssd.wrap(network(), teacher=teacher)
        assert_same(arrays(ssd.distillation.teacher_weights.copies), deployed)


def test_options_survive_saving(tmp_path):
    options = dict(
        num_teachers=5,
        distill="both",
        guidance_temperature=2.0,
        percentile=40.0,
        temperature=2.0,
        representation="middle",
        dropout_rate=0.3,
        teacher_chunk=2,
        seed=9,
        ema_momentum=0.5,
        name="wrapped",
    )
    inputs = keras.Input((4,))
    x = layers.Dense(5, name="middle")(layers.Dropout(0.5, seed=1, name="noise")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dropout(0.5, seed=2)(x)))
    model.compile("sgd", "mse")
    ssd = keras_ssd.SSDModel(
        model, "ema", similarity=negative_distance, stochastic_layers=lambda layer: layer.name == "noise", **options
    )
    ssd.save(tmp_path / "ssd.keras")
    loaded = keras_ssd.load_model(tmp_path / "ssd.keras")
    config = loaded.get_config()
    assert {name: config[name] for name in options} == options
    assert config["stochastic_layers"] == ["noise"] and config["teacher"] == "ema"
    assert loaded.settings.similarity is negative_distance
    np.testing.assert_array_equal(loaded.guidance_weights(X), ssd.guidance_weights(X))


def test_from_config():
    ssd = keras_ssd.wrap(network(), teacher="snapshot", percentile=50.0)
    copy = keras_ssd.SSDModel.from_config(ssd.get_config())
    assert json.dumps(copy.get_config(), default=str) == json.dumps(ssd.get_config(), default=str)
    assert json.dumps(ssd.get_config())


def test_subclassed_student(tmp_path):
    model = Subclassed("dropout")
    model(X)
    ssd = keras_ssd.wrap(model, teacher="snapshot")
    ssd.compile("adam", "sparse_categorical_crossentropy")
    ssd.fit(X, Y, verbose=0)
    ssd.save(tmp_path / "ssd.keras")
    loaded = keras_ssd.load_model(tmp_path / "ssd.keras")
    np.testing.assert_array_equal(ssd.predict(X, verbose=0), loaded.predict(X, verbose=0))
    loaded.fit(X, Y, verbose=0)


# Files that are damaged, foreign, or not to be trusted.


def rewritten(path, change, member="keras_ssd.json"):
    """A copy of a .keras file with another configuration: the wrapper's, or in `config.json` the student's."""
    new = path.with_name("rewritten.keras")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(new, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == member:
                config = json.loads(content)
                change(config)
                content = json.dumps(config).encode()
            target.writestr(name, content)
    return new


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes(255 - b for b in content[middle : middle + 64]) + content[middle + 64 :]


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda content: content[: len(content) // 2], "not a complete .keras archive: save it again"),
        (lambda content: content[:-10], "not a complete .keras archive: save it again"),
        (lambda content: b"", "not a complete .keras archive: save it again"),
        (lambda content: b"no archive", "not a complete .keras archive: save it again"),
        (flipped, "CRC"),
    ],
    ids=["half", "without its end", "empty", "text", "flipped bits"],
)
@pytest.mark.parametrize("is_wrapped", [True, False], ids=["wrapped", "plain"])
def test_a_damaged_file(tmp_path, damage, message, is_wrapped):
    path = tmp_path / "teacher.keras"
    (keras_ssd.wrap(network()) if is_wrapped else network()).save(path)
    keras_ssd.wrap(network(), teacher=path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"`teacher` names a file .*teacher\.keras.*{message}"):
        keras_ssd.wrap(network(), teacher=path)
    with pytest.raises((ValueError, OSError, zipfile.BadZipFile)):
        keras.models.load_model(path)


def test_archive_of_another_object_raises(tmp_path):
    with zipfile.ZipFile(tmp_path / "pictures.keras", "w") as archive:
        archive.writestr("a.png", "")
    with pytest.raises(ValueError, match=r"`teacher` names a file .*pictures\.keras.*config\.json"):
        keras_ssd.wrap(network(), teacher=tmp_path / "pictures.keras")


def test_teacher_of_an_unregistered_class_raises(tmp_path):
    keras_ssd.wrap(network()).save(tmp_path / "ssd.keras")

    def change(config):
        layer = config["config"]["layers"][1]
        layer.update(module="mine", class_name="Mine", registered_name="mine>Mine")

    path = rewritten(tmp_path / "ssd.keras", change, member="config.json")
    with pytest.raises(ValueError, match=r"(?s)`teacher` .* register them with @keras.*Mine"):
        keras_ssd.wrap(network(), teacher=path)
    with pytest.raises(TypeError, match="Mine"):  # Keras' own
        keras_ssd.load_model(path)


def test_unknown_options_in_a_file_raise(tmp_path):
    keras_ssd.wrap(network()).save(tmp_path / "ssd.keras")
    path = rewritten(tmp_path / "ssd.keras", lambda config: config["config"].update(sharpness=2))
    message = rf"options unknown to keras-ssd {keras_ssd.__version__}: \['sharpness'\].*pip install --upgrade keras-ssd"
    with pytest.raises(ValueError, match=message):
        keras_ssd.load_model(path)


@keras.saving.register_keras_serializable(package="tests")
class Sharper(keras_ssd.SSDModel):
    def __init__(self, *args, sharpness=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.sharpness = sharpness
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False, name="seen")

    def get_config(self):
        return {**super().get_config(), "sharpness": self.sharpness}


def test_options_and_weights_of_a_subclass_survive_saving(tmp_path):
    ssd = Sharper(network(), num_teachers=3, sharpness=2)
    ssd.seen.assign(5.0)
    ssd.save(tmp_path / "ssd.keras")
    loaded = keras_ssd.load_model(tmp_path / "ssd.keras")
    assert (loaded.sharpness, loaded.settings.num_teachers, float(loaded.seen.value)) == (2, 3, 5.0)


@keras.saving.register_keras_serializable(package="tests")
class Renamed(keras_ssd.SSDModel):
    def __init__(self, student, **kwargs):
        super().__init__(student, **kwargs)

    def get_config(self):
        config = super().get_config()
        return {**config, "student": config.pop("model")}


def test_a_subclass_may_call_the_model_student(tmp_path):
    Renamed(network(), num_teachers=3).save(tmp_path / "ssd.keras")
    assert keras.models.load_model(tmp_path / "ssd.keras").layers


def test_configuration_without_a_model_raises():
    config = keras_ssd.wrap(network()).get_config()
    del config["model"]
    with pytest.raises(ValueError, match=r"lacks \['model'\]"):
        keras_ssd.SSDModel.from_config(config)


def calls_nothing(*arguments, **options):
    """What a file could name; it must not be called, nor be what scores the teachers."""
    raise AssertionError("a file ran code")


@pytest.mark.parametrize(
    "module, name", [(__name__, "calls_nothing"), ("os", "system"), ("builtins", "eval"), ("numpy", "sum")]
)
def test_a_file_that_names_a_function_is_refused(tmp_path, module, name):
    keras_ssd.wrap(network()).save(tmp_path / "ssd.keras")
    function = {"module": module, "class_name": "function", "config": name, "registered_name": name}
    path = rewritten(tmp_path / "ssd.keras", lambda config: config["config"].update(similarity=function))
    message = rf"`similarity` .* not registered: {name}\. Decorate it with @keras\.saving\.register_keras_serializable"
    with pytest.raises(ValueError, match=message):
        keras_ssd.load_model(path)


@pytest.mark.parametrize("place", ["similarity", "student", "teacher"])
@pytest.mark.filterwarnings("ignore:(?s).*lambda")
def test_a_lambda_is_refused_unless_the_user_trusts_the_file(tmp_path, place):
    inputs = keras.Input((4,))
    x = layers.Dropout(0.5)(layers.Lambda(lambda x: 2 * x, output_shape=(4,))(inputs))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    if place == "student":
        ssd = keras_ssd.wrap(model)
    elif place == "teacher":
        ssd = keras_ssd.wrap(network(), teacher=model)
    else:
        similarity = lambda student, teachers: ops.sum(teachers, axis=-1)  # noqa: E731
        ssd = keras_ssd.wrap(network(), distill="representation", similarity=similarity)
    path = tmp_path / "ssd.keras"
    ssd.save(path)
    with pytest.raises(ValueError, match="safe_mode=False"):
        keras_ssd.load_model(path)
    if place == "student":
        with pytest.raises(ValueError, match="`teacher` names a file .* safe_mode=False if you trust it"):
            keras_ssd.wrap(network(), teacher=path)
    loaded = keras_ssd.load_model(path, safe_mode=False)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), ssd.predict(X, verbose=0))


@forms_with_state
def test_a_file_holds_the_average_of_narrow_weights(tmp_path, name):
    keras.config.set_dtype_policy("bfloat16")
    try:
        ssd = trained()
        save(ssd, tmp_path / name)
        loaded = load_wrapped(tmp_path / name)
        for model in (ssd, loaded):
            model._begin_training()
        assert_same(arrays(loaded.average.other), arrays(ssd.average.other))
    finally:
        keras.config.set_dtype_policy("float32")
