"""The wrapper is saved and loaded in mid-training; the student alone is a plain model."""

import json
import zipfile

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_ssd
from structures import Subclassed

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 16)


@keras.saving.register_keras_serializable(package="tests")
def negative_distance(student, teachers):
    return -ops.sum(ops.abs(teachers - ops.expand_dims(student, 1)), axis=-1)


def network(seed=1):
    inputs = keras.Input((4,))
    x = layers.Dropout(0.4, seed=seed)(layers.BatchNormalization()(layers.Dense(6)(inputs)))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.Dropout(0.2, seed=seed)(x)))
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def arrays(variables):
    return [ops.convert_to_numpy(v) for v in variables]


def assert_equal(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("teacher", ["self", "snapshot", "ema", "model", "file"])
def test_training_goes_on_from_a_file(tmp_path, teacher):
    """Generators are not in a Keras file; with their states set by hand the next steps are the same."""
    if teacher == "file":
        network(3).save(tmp_path / "teacher.keras")
    source = {"model": lambda: network(3), "file": lambda: tmp_path / "teacher.keras"}.get(teacher, lambda: teacher)()
    ssd = keras_ssd.wrap(network(), teacher=source, seed=4, kd_weight=0.5)
    ssd.kd_weight = 0.75
    ssd.fit(X, Y, epochs=2, batch_size=8, verbose=0)
    for _ in range(2):
        ssd.train_on_batch(X, Y)
    ssd.save(tmp_path / "ssd.keras")
    loaded = keras.models.load_model(tmp_path / "ssd.keras")
    assert loaded.get_config()["n_teachers"] == ssd.get_config()["n_teachers"]
    assert loaded.kd_weight == 0.75
    assert_equal(arrays(ssd.weights), arrays(loaded.weights))
    assert_equal(arrays(ssd.optimizer.variables), arrays(loaded.optimizer.variables))
    np.testing.assert_array_equal(ssd.predict(X, verbose=0), loaded.predict(X, verbose=0))
    weights = {id(v) for v in ssd.weights}
    states = [v for v in ssd.variables if id(v) not in weights and "seed" in v.path]
    for old, new in zip(states, [v for v in loaded.variables if "seed" in v.path], strict=True):
        new.assign(ops.convert_to_numpy(old))
    for model in (ssd, loaded):
        model.reset_metrics()
    logs = [model.train_on_batch(X, Y, return_dict=True) for model in (ssd, loaded)]
    assert logs[0] == logs[1]
    assert_equal(arrays(ssd.weights), arrays(loaded.weights))


def test_a_teacher_compiled_with_an_unregistered_loss(tmp_path):
    def local(y_true, y_pred):
        return ops.mean(ops.square(y_true - y_pred), axis=-1)

    teacher = network(3)
    teacher.compile("sgd", local)
    ssd = keras_ssd.wrap(network(), teacher=teacher)
    ssd.fit(X, Y, verbose=0)
    ssd.save(tmp_path / "ssd.keras")
    loaded = keras.models.load_model(tmp_path / "ssd.keras")
    assert_equal(arrays(ssd.held_weights.held), arrays(loaded.held_weights.held))


def test_an_averaging_wrapper_teaches_its_average(tmp_path):
    source = keras_ssd.wrap(network(), teacher="ema", momentum=0.9)
    for _ in range(3):
        source.train_on_batch(X, Y)
    source.save(tmp_path / "ema.keras")
    for teacher in (source, tmp_path / "ema.keras"):
        ssd = keras_ssd.wrap(network(), teacher=teacher)
        assert_equal(arrays(ssd.held_weights.held), arrays(source.held_weights.held))


def test_options_survive(tmp_path):
    options = dict(
        n_teachers=5,
        distill="both",
        task_weight=0.5,
        guidance_temperature=2.0,
        percentile=40.0,
        temperature=2.0,
        representation="middle",
        dropout_rate=0.3,
        teacher_chunk=2,
        seed=9,
        momentum=0.5,
        name="wrapped",
    )
    inputs = keras.Input((4,))
    x = layers.Dense(5, name="middle")(layers.Dropout(0.5, seed=1, name="noise")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dropout(0.5, seed=2)(x)))
    model.compile("sgd", "mse")
    ssd = keras_ssd.wrap(
        model, "ema", similarity=negative_distance, stochastic_layers=lambda layer: layer.name == "noise", **options
    )
    ssd.save(tmp_path / "ssd.keras")
    loaded = keras.models.load_model(tmp_path / "ssd.keras")
    config = loaded.get_config()
    assert {name: config[name] for name in options} == options
    assert config["stochastic_layers"] == ["noise"] and config["teacher"] == "ema"
    assert loaded.settings.similarity is negative_distance
    np.testing.assert_array_equal(loaded.teacher_weights(X), ssd.teacher_weights(X))


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
    loaded = keras.models.load_model(tmp_path / "ssd.keras")
    np.testing.assert_array_equal(ssd.predict(X, verbose=0), loaded.predict(X, verbose=0))
    loaded.fit(X, Y, verbose=0)


def test_a_lambda_is_refused_when_loading(tmp_path):
    ssd = keras_ssd.wrap(network(), distill="representation", similarity=lambda s, t: ops.sum(t, axis=-1))
    with pytest.warns(UserWarning, match="lambda"):
        ssd.save(tmp_path / "ssd.keras")
    with pytest.raises(ValueError, match="lambda.*safe_mode=False"):
        keras.models.load_model(tmp_path / "ssd.keras")


def test_the_student_is_a_plain_model(tmp_path):
    plain, model = network(), network()
    ssd = keras_ssd.wrap(model, teacher="ema")
    ssd.fit(X, Y, verbose=0)
    assert ssd.student is model
    ssd.student.save(tmp_path / "student.keras")
    plain.fit(X, Y, verbose=0)
    plain.save(tmp_path / "plain.keras")
    with zipfile.ZipFile(tmp_path / "student.keras") as archive:
        config = archive.read("config.json").decode()
        size = archive.getinfo("model.weights.h5").file_size
    with zipfile.ZipFile(tmp_path / "plain.keras") as archive:
        assert size == archive.getinfo("model.weights.h5").file_size
    assert "ssd" not in config
    loaded = keras.models.load_model(tmp_path / "student.keras")
    assert type(loaded) is type(plain)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), ssd.predict(X, verbose=0))
    assert [layer.__class__ for layer in loaded.layers] == [layer.__class__ for layer in plain.layers]


def test_weights_file(tmp_path):
    ssd, other = (keras_ssd.wrap(network(), teacher="ema") for _ in range(2))
    for model in (ssd, other):
        model.fit(X, Y, verbose=0)
    ssd.save_weights(tmp_path / "a.weights.h5")
    other.load_weights(tmp_path / "a.weights.h5")
    assert_equal(arrays(ssd.weights), arrays(other.weights))
