"""Files of a wrapped model: plain Keras reads the plain model from them, `keras_ssd.load_model` the wrapped model."""

import functools
import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_ssd
from keras_ssd import files
from keras_ssd.average import WeightAverage
from models import compiled, dense_network, precision
from same_weights import arrays, assert_close, assert_same
from structures import Subclassed

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 16)

VERSION = [int(part) for part in keras.__version__.split(".")[:2]]


@keras.saving.register_keras_serializable(package="tests")
def negative_distance(student, teachers):
    return -ops.sum(ops.abs(teachers - ops.expand_dims(student, 1)), axis=-1)


def network(**options):
    return compiled(dense_network(layers.Dropout(0.4, seed=1), **options), keras.optimizers.Adam(0.01))


def trained():
    ssd = keras_ssd.wrap(network(), seed=1)
    ssd.fit(X, Y, batch_size=8, verbose=0)
    return ssd


def in_training(**options):
    """Wrapped and not at the end of a training: the student holds raw weights, `predict` uses the average."""
    ssd = keras_ssd.wrap(network(), seed=1, **options)
    for _ in range(3):
        ssd.train_on_batch(X, Y)
    return ssd


# For tests that leave the model as it is.
shared = functools.cache(in_training)


# The forms of a file, and how each is written.
SAVE = {
    "file.keras": lambda ssd, path: ssd.save(path),
    "folder": lambda ssd, path: ssd.save(path, zipped=False),
    "file.weights.h5": lambda ssd, path: ssd.save_weights(path),
    "file.h5": lambda ssd, path: ssd.save(path),
}
# Those that hold what training needs to go on; a folder holds the members of a .keras file.
WITH_STATE = ["file.keras", "folder", "file.weights.h5"]


def save(ssd, path):
    SAVE[path.name](ssd, path)


def load_wrapped(path, **options):
    if not path.name.endswith(".weights.h5"):
        return keras_ssd.load_model(path)
    ssd = keras_ssd.wrap(network(), seed=1, **options)
    ssd.fit(X, Y, verbose=0)  # raw weights other than those of the file
    ssd.load_weights(path)
    return ssd


def held(ssd):
    """Both sets of weights: the student's and those that the average holds."""
    return arrays(ssd.student.weights + ssd.average.other)


def one_epoch(ssd, get=lambda ssd: arrays(ssd.student.weights)):
    """Train for an epoch, and return the weights from which it started."""
    begun = []
    note = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: begun.extend(get(ssd)))
    ssd.fit(X, Y, epochs=1, verbose=0, callbacks=[note])
    return begun


# What plain Keras reads.


@pytest.mark.parametrize(
    "name, options", [*((name, {}) for name in SAVE), ("file.weights.h5", {"ema_momentum": 0})], ids=str
)
@pytest.mark.filterwarnings("ignore:.*HDF5")
def test_plain_and_wrapped_models_load_the_deployed_weights_and_the_optimizer(tmp_path, name, options):
    """Also from a file written during training; plain Keras loads the compiled model."""
    # Having written its older format, Keras writes no optimizer of that model any more.
    ssd = in_training() if name == "file.h5" else shared(**options)
    raw, predicted = ssd.student.get_weights(), ssd.predict(X, verbose=0)
    save(ssd, tmp_path / name)
    assert_same(ssd.student.get_weights(), raw)
    models = []
    if name != "folder":
        models = [network(), keras_ssd.wrap(network(), **options)]
        for model in models:
            model.optimizer.build(model.trainable_variables)
            model.load_weights(tmp_path / name)
    if name != "file.weights.h5":
        models.append(keras.models.load_model(tmp_path / name))
        assert int(ops.convert_to_numpy(models[-1].optimizer.iterations)) == 3
    for model in models:
        assert_close(model.predict(X, verbose=0), predicted, 1e-6)
        assert type(getattr(model, "student", model)) is type(ssd.student)
        if name != "file.h5":  # what Keras loads from its older format cannot always be trained on
            assert_same(arrays(model.optimizer.variables), arrays(ssd.optimizer.variables))
            model.fit(X, Y, verbose=0)


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
        expected = keras.models.load_model("file.keras").predict(x, verbose=0)
        for name in ("file.keras", "folder", "file.h5", "file.weights.h5"):
            if name == "file.weights.h5":
                model.load_weights(name)
            else:
                model = keras.models.load_model(name)
            assert int(model.optimizer.iterations) == 3, name
            np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-6)
        np.save("predicted.npy", expected)
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, check=True, timeout=300)
    assert_close(np.load(tmp_path / "predicted.npy"), ssd.predict(X, verbose=0), 1e-6)


def test_a_checkpoint_of_the_best_epoch_is_the_plain_model(tmp_path):
    """And one of weights only, here of the last epoch, holds its weights."""
    path, ssd = tmp_path / "best.keras", keras_ssd.wrap(network())
    best = keras.callbacks.ModelCheckpoint(path, save_best_only=True)
    last = keras.callbacks.ModelCheckpoint(tmp_path / "last.weights.h5", save_weights_only=True)
    history = ssd.fit(X, Y, batch_size=8, epochs=3, validation_data=(X, Y), verbose=0, callbacks=[best, last]).history
    plain = keras.models.load_model(path)
    assert plain.evaluate(X, Y, verbose=0)[0] == pytest.approx(min(history["val_loss"]), abs=1e-5)
    plain.load_weights(tmp_path / "last.weights.h5")
    assert_same(plain.get_weights(), ssd.student.get_weights())
    ssd.student.load_weights(path)
    assert ssd.evaluate(X, Y, verbose=0)[0] == pytest.approx(min(history["val_loss"]), abs=1e-5)


# What training needs to go on.


def unregistered_loss(y_true, y_pred):
    return ops.mean(ops.square(y_true - y_pred), axis=-1)


@pytest.mark.parametrize("teacher", ["self", "snapshot", pytest.param("ema", marks=pytest.mark.compiled), "model"])
def test_training_goes_on_from_a_file_bit_for_bit(tmp_path, teacher):
    student = network()
    if teacher == "model":
        student, teacher = compiled(Subclassed()), compiled(dense_network(), loss=unregistered_loss)
        student(X)
    ssd = keras_ssd.wrap(student, teacher=teacher, seed=4, kd_weight=0.5)
    ssd.kd_weight = 0.75
    for _ in range(2):
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


@pytest.mark.parametrize(
    "name, teacher, policy", [("file.keras", "ema", "bfloat16"), ("file.weights.h5", "self", "float32")]
)
def test_a_file_holds_the_raw_weights(tmp_path, name, teacher, policy):
    """After `fit` the student holds the average, of a loaded model, too; the next `fit` starts from raw weights.

    And from the average itself, which narrow weights hold rounded.
    """
    with precision(policy):
        raw, ssd = [], keras_ssd.wrap(network(), teacher, seed=1)
        note = keras.callbacks.LambdaCallback(on_train_end=lambda logs: raw.extend(held(ssd)))
        ssd.fit(X, Y, batch_size=4, verbose=0, callbacks=[note])
        deployed, loaded = arrays(ssd.student.weights), ssd
        for _ in range(2):
            save(loaded, tmp_path / name)
            loaded = load_wrapped(tmp_path / name, teacher=teacher)
            assert_same(arrays(loaded.student.weights), deployed)
        assert any((a != b).any() for a, b in zip(raw, deployed, strict=False))
        assert_same(one_epoch(loaded, held), raw)


@pytest.mark.parametrize("name", ["file.keras", "file.weights.h5"])
def test_weights_set_by_the_user_before_saving_or_after_loading_are_trained(tmp_path, name):
    ssd = trained()
    ssd.student.set_weights([w + 1 for w in ssd.student.get_weights()])
    given = arrays(ssd.student.weights)
    save(ssd, tmp_path / name)
    loaded, again = load_wrapped(tmp_path / name), load_wrapped(tmp_path / name)
    assert_same(arrays(loaded.student.weights), given)
    assert_same(one_epoch(loaded), given)
    again.student.set_weights([w + 1 for w in given])
    assert_same(one_epoch(again), [w + 1 for w in given])


@pytest.mark.parametrize("name, policy", [("file.keras", "bfloat16"), ("file.weights.h5", "float32")])
def test_a_file_loaded_while_fit_runs_gives_raw_weights_and_average(tmp_path, name, policy):
    begun, ended = [], []

    def end(epoch, logs):
        ended.append(held(ssd))
        if epoch == 0:
            save(ssd, tmp_path / name)
        elif epoch == 1:  # goes back to the end of the first epoch
            ssd.load_weights(tmp_path / name)

    begin = lambda epoch, logs: begun.append(held(ssd))  # noqa: E731
    notes = keras.callbacks.LambdaCallback(on_epoch_begin=begin, on_epoch_end=end)
    with precision(policy):
        ssd = keras_ssd.wrap(network(), seed=1)
        ssd.fit(X, Y, batch_size=8, epochs=3, verbose=0, callbacks=[notes])
    assert_same(begun[2], ended[0])
    assert any((a != b).any() for a, b in zip(ended[1], ended[0], strict=True))


@pytest.mark.filterwarnings("ignore:.*could not be loaded", "ignore:Skipping", "ignore:Layer ")  # the head is another
def test_the_average_restarts_after_a_partial_load_and_that_of_a_plain_file(tmp_path):
    source = trained()
    source.save_weights(tmp_path / "wrapped.weights.h5")
    source.student.save_weights(tmp_path / "plain.weights.h5")
    for name, units, n_loaded in (("plain", 3, None), ("wrapped", 5, -2)):
        ssd = keras_ssd.wrap(network(units=units), seed=1)
        for _ in range(2):
            ssd.train_on_batch(X, Y)
        own = arrays(ssd.student.weights)
        ssd.load_weights(tmp_path / f"{name}.weights.h5", skip_mismatch=name == "wrapped")
        loaded = arrays(ssd.student.weights)
        kept = [] if n_loaded is None else own[n_loaded:]
        assert_same(loaded, [*arrays(source.student.weights)[:n_loaded], *kept])
        np.testing.assert_array_equal(ssd.predict(X, verbose=0), ssd.student.predict(X, verbose=0))
        assert_same(one_epoch(ssd), loaded)


def test_an_interrupted_save_leaves_the_old_file_and_the_raw_weights(tmp_path, monkeypatch):
    ssd = in_training()
    raw, deployable = arrays(ssd.student.weights), WeightAverage._deployable

    def while_weights_are_exchanged(average, weights):
        average._weights[0].assign(deployable(average, weights)[0])
        raise KeyboardInterrupt

    def contents():
        return {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}

    def while_the_file_is_written(*_):
        raise KeyboardInterrupt

    in_exchange, in_writing = (WeightAverage, while_weights_are_exchanged), (files, while_the_file_is_written)
    for name in WITH_STATE:
        save(ssd, tmp_path / name)
        before = contents()
        for function, (owner, interrupted) in {"_deployable": in_exchange, "_write_state": in_writing}.items():
            with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
                patched.setattr(owner, function, interrupted)
                save(ssd, tmp_path / name)
            assert contents() == before
            assert_same(arrays(ssd.student.weights), raw)
            ssd._begin_training()
            assert_same(arrays(ssd.student.weights), raw)


@pytest.mark.parametrize("name", WITH_STATE)
def test_a_file_is_replaced_when_the_user_agrees_and_keeps_its_permissions(tmp_path, monkeypatch, name):
    ssd, plain, path = keras_ssd.wrap(network()), network(), tmp_path / name
    plain.optimizer.build(plain.trainable_variables)
    save(ssd, path)
    path.chmod(0o700)
    ssd.optimizer.iterations.assign(4)
    for answer, steps in (("n", 0), ("y", 4)):
        monkeypatch.setattr("builtins.input", lambda _="", answer=answer: answer)
        if name == "file.weights.h5":
            ssd.save_weights(path, overwrite=False)
            plain.load_weights(path)
        else:
            ssd.save(path, overwrite=False, zipped=False if name == "folder" else None)
        loaded = plain if name == "file.weights.h5" else keras_ssd.load_model(path)
        assert int(loaded.optimizer.iterations) == steps
        assert path.is_dir() or path.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(VERSION < [3, 10], reason="sharded files came with Keras 3.10")
def test_weights_in_several_parts_are_those_of_the_student(tmp_path):
    ssd = shared()
    ssd.save_weights(tmp_path / "a.weights.json", max_shard_size=0.001)
    loaded = keras_ssd.wrap(network())
    loaded.load_weights(tmp_path / "a.weights.json")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), ssd.predict(X, verbose=0))


@pytest.mark.parametrize("name", ["folder", "file.keras"])
def test_a_folder_with_other_files_is_left_alone(tmp_path, name):
    ssd, folder = keras_ssd.wrap(network()), tmp_path / name
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


def test_training_with_lora_continues_from_a_file(tmp_path):
    """Keras stores the merged kernel and adapters of 0, which are not what is trained."""
    model = network()
    model.layers[1].enable_lora(2)
    model.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    ssd = keras_ssd.wrap(model, seed=1, kd_weight=0, ema_momentum=0.9)
    ssd.fit(X, Y, epochs=3, verbose=0)
    before = arrays(model.weights)
    ssd.save_weights(tmp_path / "file.weights.h5")
    ssd.fit(X, Y, verbose=0)
    ssd.load_weights(tmp_path / "file.weights.h5")
    assert_same(arrays(model.weights), before)
    ssd.save(tmp_path / "file.keras")
    loaded = keras_ssd.load_model(tmp_path / "file.keras")
    assert_same(arrays(loaded.student.weights), before)
    assert_same(one_epoch(loaded), one_epoch(ssd))


def test_files_of_something_else_are_refused_with_the_remedy(tmp_path):
    ssd, weights = keras_ssd.wrap(network()), tmp_path / "a.weights.h5"
    with pytest.raises(OSError):
        ssd.load_weights(weights)
    weights.write_bytes(b"nothing")
    with pytest.raises(OSError):
        ssd.load_weights(weights)
    keras_ssd.wrap(network(), teacher="snapshot").save_weights(weights)
    with pytest.raises(ValueError, match="state of another distillation.*student.load_weights"):
        ssd.load_weights(weights)
    # What is not one local file with the right name is left to Keras.
    with pytest.raises(ValueError, match=r"filepath=a\.txt"):
        ssd.save("a.txt")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ssd.save(tmp_path / "nowhere" / "a.keras")
    with pytest.raises(ValueError, match="does not exist"):
        keras_ssd.load_model(tmp_path / "plain.keras")
    network().save(tmp_path / "plain.keras")
    with pytest.raises(ValueError, match=r"holds no wrapped model.*keras_ssd\.wrap\(model\)"):
        keras_ssd.load_model(tmp_path / "plain.keras")


def test_saving_raises_after_the_student_got_other_variables(tmp_path):
    ssd = keras_ssd.wrap(network())
    ssd.student.layers[1].enable_lora(2)
    with pytest.raises(ValueError, match="have changed since it was wrapped.* or save the model itself"):
        ssd.save(tmp_path / "file.keras")


def test_wrapped_teacher_teaches_with_its_average(tmp_path):
    source = in_training(teacher="ema", ema_momentum=0.9)
    source.save(tmp_path / "ema.keras")
    with source.average.deployed():
        deployed = arrays(source.student.weights)
    for teacher in (source, tmp_path / "ema.keras"):
        ssd = keras_ssd.wrap(network(), teacher=teacher)
        assert_same(arrays(ssd.distillation.teacher_weights.copies), deployed)


def test_options_survive_saving(tmp_path):
    options = dict(num_teachers=5, distill="both", guidance_temperature=2.0, percentile=40.0, temperature=2.0)
    options |= dict(representation="middle", dropout_rate=0.3, teacher_chunk=2, seed=9, ema_momentum=0.5, name="given")
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


def test_a_damaged_file(tmp_path):
    path, student = tmp_path / "teacher.keras", network()
    keras_ssd.wrap(network()).save(path)
    content, middle = path.read_bytes(), path.stat().st_size // 2
    cut, flipped = content[:middle], bytes(255 - b for b in content[middle : middle + 64])
    for damaged in (cut, content[:-10], b"", b"no archive", cut + flipped + content[middle + 64 :]):
        path.write_bytes(damaged)
        message = "CRC" if len(damaged) == len(content) else "not a complete .keras archive: save it again"
        with pytest.raises(ValueError, match=rf"`teacher` names a file .*teacher\.keras.*{message}"):
            keras_ssd.wrap(student, teacher=path)
        for load in (keras.models.load_model, keras_ssd.load_model):
            with pytest.raises((ValueError, OSError, zipfile.BadZipFile)):
                load(path)


def test_archives_of_other_objects_and_of_unknown_classes_and_options_are_refused(tmp_path):
    path = tmp_path / "ssd.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", "")
    with pytest.raises(ValueError, match=r"`teacher` names a file .*ssd\.keras.*config\.json"):
        keras_ssd.wrap(network(), teacher=path)
    keras_ssd.wrap(network()).save(path)
    mine = dict(module="mine", class_name="Mine", registered_name="mine>Mine")
    foreign = rewritten(path, lambda config: config["config"]["layers"][1].update(mine), member="config.json")
    with pytest.raises(ValueError, match=r"(?s)`teacher` .* register them with @keras.*Mine"):
        keras_ssd.wrap(network(), teacher=foreign)
    with pytest.raises(TypeError, match="Mine"):  # Keras' own
        keras_ssd.load_model(foreign)
    newer = rewritten(path, lambda config: config["config"].update(sharpness=2))
    message = rf"options unknown to keras-ssd {keras_ssd.__version__}: \['sharpness'\].*pip install --upgrade keras-ssd"
    with pytest.raises(ValueError, match=message):
        keras_ssd.load_model(newer)
    with pytest.raises(ValueError, match=r"lacks \['similarity'\]"):
        keras_ssd.load_model(rewritten(path, lambda config: config["config"].pop("similarity")))


@keras.saving.register_keras_serializable(package="tests")
class Sharper(keras_ssd.SSDModel):
    """Has an option and a weight of its own, and another name for the model."""

    def __init__(self, *args, sharpness=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.sharpness = sharpness
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False, name="seen")

    def get_config(self):
        config = super().get_config()
        return {**config, "student": config.pop("model"), "sharpness": self.sharpness}


def test_options_and_weights_of_a_subclass_survive_saving(tmp_path):
    ssd = Sharper(network(), num_teachers=3, sharpness=2)
    ssd.seen.assign(5.0)
    ssd.save(tmp_path / "ssd.keras")
    assert type(keras.models.load_model(tmp_path / "ssd.keras")) is type(ssd.student)
    loaded = keras_ssd.load_model(tmp_path / "ssd.keras")
    assert (loaded.sharpness, loaded.settings.num_teachers, float(loaded.seen.value)) == (2, 3, 5.0)


def test_a_file_that_names_a_function_is_refused(tmp_path):
    """And its module is not imported: older versions of Keras import what a file names."""
    keras_ssd.wrap(network()).save(tmp_path / "ssd.keras")
    function = {"module": "this", "class_name": "function", "config": "decode", "registered_name": "decode"}
    path = rewritten(tmp_path / "ssd.keras", lambda config: config["config"].update(similarity=function))
    message = r"`similarity` .* not registered: decode\. Decorate it with @keras\.saving\.register_keras_serializable"
    with pytest.raises(ValueError, match=message):
        keras_ssd.load_model(path)
    assert "this" not in sys.modules


@pytest.mark.parametrize("place", ["similarity", "student", "teacher"])
@pytest.mark.filterwarnings("ignore:(?s).*lambda")
def test_a_lambda_is_refused_unless_the_user_trusts_the_file(tmp_path, place):
    inputs = keras.Input((4,))
    x = layers.Dropout(0.5)(layers.Lambda(lambda x: 2 * x, output_shape=(4,))(inputs))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    similarity = lambda student, teachers: ops.sum(teachers, axis=-1)  # noqa: E731
    ssd = {
        "student": lambda: keras_ssd.wrap(model),
        "teacher": lambda: keras_ssd.wrap(network(), teacher=model),
        "similarity": lambda: keras_ssd.wrap(network(), distill="representation", similarity=similarity),
    }[place]()
    path = tmp_path / "ssd.keras"
    ssd.save(path)
    with pytest.raises(ValueError, match="safe_mode=False"):
        keras_ssd.load_model(path)
    if place == "student":
        with pytest.raises(ValueError, match="`teacher` names a file .* safe_mode=False if you trust it"):
            keras_ssd.wrap(network(), teacher=path)
    loaded = keras_ssd.load_model(path, safe_mode=False)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), ssd.predict(X, verbose=0))
