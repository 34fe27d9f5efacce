"""The wrapper is saved and loaded during training; the student alone is a plain model."""

import json
import zipfile

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_ssd
from models import compiled, dense_network
from same_weights import arrays, assert_same
from structures import Subclassed

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 16)


@keras.saving.register_keras_serializable(package="tests")
def negative_distance(student, teachers):
    return -ops.sum(ops.abs(teachers - ops.expand_dims(student, 1)), axis=-1)


def network(seed=1):
    return compiled(dense_network(layers.Dropout(0.4, seed=seed)), keras.optimizers.Adam(0.01))


@pytest.mark.parametrize(
    "teacher", ["self", "snapshot", pytest.param("ema", marks=pytest.mark.compiled), "model", "file"]
)
def test_training_goes_on_from_a_file(tmp_path, teacher):
    """Generators are not in a Keras file; with their states set by hand the next steps are the same."""
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
    loaded = keras.models.load_model(tmp_path / "ssd.keras")
    assert loaded.get_config()["num_teachers"] == ssd.get_config()["num_teachers"]
    assert loaded.kd_weight == 0.75
    np.testing.assert_array_equal(loaded.student.predict(X, verbose=0), loaded.predict(X, verbose=0))
    assert_same(arrays(ssd.optimizer.variables), arrays(loaded.optimizer.variables))
    np.testing.assert_array_equal(ssd.predict(X, verbose=0), loaded.predict(X, verbose=0))
    if ssd._averages:
        ssd.write_average()  # the file's student carries it
    assert_same(arrays(ssd.weights), arrays(loaded.weights))
    weights = {id(v) for v in ssd.weights}
    states = [v for v in ssd.variables if id(v) not in weights and "seed" in v.path]
    for old, new in zip(states, [v for v in loaded.variables if "seed" in v.path], strict=True):
        new.assign(ops.convert_to_numpy(old))
    for model in (ssd, loaded):
        model.reset_metrics()
    logs = [model.train_on_batch(X, Y, return_dict=True) for model in (ssd, loaded)]
    assert logs[0] == logs[1]
    assert_same(arrays(ssd.weights), arrays(loaded.weights))


def test_a_teacher_compiled_with_an_unregistered_loss(tmp_path):
    def local(y_true, y_pred):
        return ops.mean(ops.square(y_true - y_pred), axis=-1)

    teacher = network(3)
    teacher.compile("sgd", local)
    ssd = keras_ssd.wrap(network(), teacher=teacher)
    ssd.fit(X, Y, verbose=0)
    ssd.save(tmp_path / "ssd.keras")
    loaded = keras.models.load_model(tmp_path / "ssd.keras")
    assert_same(arrays(ssd._held_weights.held), arrays(loaded._held_weights.held))


def test_an_averaging_wrapper_teaches_its_average(tmp_path):
    source = keras_ssd.wrap(network(), teacher="ema", ema_momentum=0.9)
    for _ in range(3):
        source.train_on_batch(X, Y)
    source.save(tmp_path / "ema.keras")
    for teacher in (source, tmp_path / "ema.keras"):
        ssd = keras_ssd.wrap(network(), teacher=teacher)
        assert_same(arrays(ssd._held_weights.held), arrays(source._held_weights.held))


def test_options_survive(tmp_path):
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
    loaded = keras.models.load_model(tmp_path / "ssd.keras")
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
    assert_same(arrays(ssd.weights), arrays(other.weights))


# Files that are damaged, foreign, or not to be trusted.


def rewritten(path, change):
    """A copy of a .keras file with another configuration."""
    new = path.with_name("rewritten.keras")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(new, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
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
        (lambda content: content[: len(content) // 2], "only a part of one: save it again"),
        (lambda content: content[:-10], "only a part of one: save it again"),
        (lambda content: b"", "only a part of one: save it again"),
        (lambda content: b"no archive", "only a part of one: save it again"),
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


def test_an_archive_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "pictures.keras", "w") as archive:
        archive.writestr("a.png", "")
    with pytest.raises(ValueError, match=r"`teacher` names a file .*pictures\.keras.*config\.json"):
        keras_ssd.wrap(network(), teacher=tmp_path / "pictures.keras")


def test_a_teacher_of_a_class_that_is_not_there(tmp_path):
    keras_ssd.wrap(network()).save(tmp_path / "ssd.keras")

    def change(config):
        layer = config["config"]["model"]["config"]["layers"][1]
        layer.update(module="mine", class_name="Mine", registered_name="mine>Mine")

    path = rewritten(tmp_path / "ssd.keras", change)
    with pytest.raises(ValueError, match=r"(?s)`teacher` .* register them with @keras.*Mine"):
        keras_ssd.wrap(network(), teacher=path)
    with pytest.raises(ValueError, match=r"(?s)`model` of the saved SSDModel .*register_keras_serializable.*Mine"):
        keras.models.load_model(path)


def test_options_of_a_newer_version(tmp_path):
    keras_ssd.wrap(network()).save(tmp_path / "ssd.keras")
    path = rewritten(tmp_path / "ssd.keras", lambda config: config["config"].update(sharpness=2))
    message = rf"options unknown to keras-ssd {keras_ssd.__version__}: \['sharpness'\].*pip install --upgrade keras-ssd"
    with pytest.raises(ValueError, match=message):
        keras.models.load_model(path)
    with pytest.raises(ValueError, match="`teacher` names a file .*" + message):
        keras_ssd.wrap(network(), teacher=path)


@keras.saving.register_keras_serializable(package="tests")
class Sharper(keras_ssd.SSDModel):
    def __init__(self, *args, sharpness=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.sharpness = sharpness

    def get_config(self):
        return {**super().get_config(), "sharpness": self.sharpness}


def test_options_of_a_subclass(tmp_path):
    Sharper(network(), num_teachers=3, sharpness=2).save(tmp_path / "ssd.keras")
    loaded = keras.models.load_model(tmp_path / "ssd.keras")
    assert loaded.sharpness == 2 and loaded.settings.num_teachers == 3


def test_a_configuration_without_a_model():
    config = keras_ssd.wrap(network()).get_config()
    del config["model"]
    with pytest.raises(ValueError, match=r"lacks \['model'\]"):
        keras_ssd.SSDModel.from_config(config)


def calls_nothing(*arguments, **options):
    """What a file could name; it must not be called, nor be what scores the teachers."""
    raise AssertionError("a file ran code")


@pytest.mark.parametrize(
    "module, name", [("test_saving", "calls_nothing"), ("os", "system"), ("builtins", "eval"), ("numpy", "sum")]
)
def test_a_file_that_names_a_function_is_refused(tmp_path, module, name):
    keras_ssd.wrap(network()).save(tmp_path / "ssd.keras")
    function = {"module": module, "class_name": "function", "config": name, "registered_name": name}
    path = rewritten(tmp_path / "ssd.keras", lambda config: config["config"].update(similarity=function))
    message = rf"`similarity` .* not registered: {name}\. Decorate it with @keras\.saving\.register_keras_serializable"
    with pytest.raises(ValueError, match=message):
        keras.models.load_model(path)
    with pytest.raises(ValueError, match="`teacher` names a file .*" + message):
        keras_ssd.wrap(network(), teacher=path)


@pytest.mark.parametrize("place", ["similarity", "student", "teacher", "stochastic_layers"])
@pytest.mark.filterwarnings("ignore:(?s).*lambda")
def test_a_lambda_is_refused_wherever_it_stands(tmp_path, place):
    """And the remedy, for those who trust the file."""
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
    if ssd.compiled:
        ssd.train_on_batch(X, Y)
    path = tmp_path / "ssd.keras"
    ssd.save(path)
    if place == "stochastic_layers":

        def change(config):
            config["config"].update(similarity="cosine", stochastic_layers=config["config"]["similarity"])

        with pytest.raises(ValueError, match="`stochastic_layers` should"):
            keras.models.load_model(rewritten(path, change))
        return
    with pytest.raises(ValueError, match="safe_mode=False"):
        keras.models.load_model(path)
    with pytest.raises(ValueError, match="`teacher` names a file .* safe_mode=False if you trust it"):
        keras_ssd.wrap(network(), teacher=path)
    loaded = keras.models.load_model(path, safe_mode=False)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), ssd.predict(X, verbose=0))
