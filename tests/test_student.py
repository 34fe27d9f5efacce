"""The user's model inside the wrapper: overridden methods, shared attributes, and changes between two calls."""

import keras
import numpy as np
import pytest

import keras_ssd
from models import classifier, compiled, sequential_network
from same_weights import assert_same
from structures import Subclassed

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")


def subclassed():
    model = Subclassed()
    model(X)
    return model


@pytest.mark.parametrize(
    "names, options", [(["compute_loss", "train_step"], {}), (["predict"], {"kd_weight": 0}), (["compile"], {})]
)
def test_overridden_methods_are_named_and_refused_with_remedies_that_work(names, options):
    plain = classifier()
    kind = type("Own", (keras.Model,), {name: lambda *args, **kwargs: None for name in names})
    own = kind(plain.inputs[0], plain.outputs[0])
    with pytest.raises(ValueError, match="overrides.*would never be called") as error:
        keras_ssd.wrap(own, **options)
    assert str(names) in str(error.value) and "of type Own" in str(error.value)
    keras_ssd.wrap(keras.Model(own.inputs[0], own.outputs[0]), **options)


def test_a_subclass_of_the_wrapper_may_override_compute_loss():
    class Weighted(keras_ssd.SSDModel):
        def compute_loss(self, *args, **kwargs):
            return 100 * super().compute_loss(*args, **kwargs)

    losses = []
    for kind in (keras_ssd.SSDModel, Weighted):
        keras.utils.set_random_seed(0)
        losses.append(kind(compiled(classifier(), metrics=())).train_on_batch(X, Y)[0])
    assert losses[1] == pytest.approx(100 * losses[0])


def test_wrapper_shares_the_students_attributes():
    model = sequential_network()
    model = keras.Model(model.inputs[0], model.outputs[0])
    ssd = keras_ssd.wrap(model)
    attributes = "layers inputs outputs input output input_shape output_shape output_names".split()
    for name in attributes:
        pairs = zip(keras.tree.flatten(getattr(ssd, name)), keras.tree.flatten(getattr(model, name)), strict=True)
        assert all(a is b or a == b for a, b in pairs), name
    assert ssd.get_layer("features") is model.get_layer("features") is ssd.get_layer(index=1)
    assert ssd.compute_output_shape((None, 4)) == model.compute_output_shape((None, 4))
    assert ssd.count_params() == model.count_params()


def test_summary_shows_the_student_and_repr_the_main_options():
    model, lines, own = sequential_network(), [], []
    keras_ssd.wrap(model).summary(print_fn=lambda line, **_: lines.append(line))
    model.summary(print_fn=lambda line, **_: own.append(line))
    assert lines[0] == "SSDModel(teacher='self', num_teachers=8, kd_weight=0.1, kd_fraction=1/8, ema_momentum=0.99)"
    assert lines[1:] == own
    assert repr(keras_ssd.wrap(model, kd_weight=0)) == "SSDModel(kd_weight=0, ema_momentum=0.0)"
    expected = "SSDModel(teacher='snapshot', num_teachers=30, kd_weight=1.0, kd_fraction=1, ema_momentum=0.0)"
    assert repr(keras_ssd.wrap(model, **keras_ssd.PAPER)) == expected


def test_attributes_of_the_students_class_are_found():
    """Callbacks read `self.model.counter`."""
    model = subclassed()
    model.counter = 3
    ssd = keras_ssd.wrap(model)
    assert ssd.counter == 3 and ssd.noise is model.noise
    ssd.counter += 1
    ssd.own = 2
    assert model.counter == 4 and not hasattr(model, "own")
    with pytest.raises(AttributeError):
        getattr(ssd, "no_such_thing")  # noqa: B009
    with pytest.raises((AttributeError, ValueError)):
        ssd.get_layer("no_such_layer")


def test_weights_of_the_plain_model_can_be_set():
    model, other = sequential_network(), sequential_network()
    ssd = keras_ssd.wrap(model)
    ssd.train_on_batch(X, Y)
    ssd.set_weights(other.get_weights())
    assert_same(ssd.predict(X, verbose=0), other.predict(X, verbose=0))
    assert_same(model.get_weights(), other.get_weights())
    values = ssd.get_weights()
    ssd.set_weights([value + 1 for value in values])
    assert_same(ssd.get_weights(), [value + 1 for value in values])


def test_features_of_a_layer_can_be_extracted():
    """The recipe `keras.Model(model.input, model.get_layer(name).output)`, with the output, as for Grad-CAM."""
    model = sequential_network()
    ssd = keras_ssd.wrap(keras.Model(model.inputs[0], model.outputs[0]))
    features, output = keras.Model(ssd.input, [ssd.get_layer("features").output, ssd.output]).predict(X, verbose=0)
    kernel, bias = ssd.get_layer("features").get_weights()
    np.testing.assert_allclose(features, X @ kernel + bias, atol=1e-5)
    np.testing.assert_allclose(output, ssd.predict(X, verbose=0), atol=1e-5)


# Exports.


@pytest.mark.compiled
@pytest.mark.filterwarnings("ignore")  # of the exporters
@pytest.mark.parametrize("kind", ["functional", "subclassed"])
def test_exported_model_returns_what_predict_returns(tmp_path, kind):
    """In the middle of training, when the student holds raw weights."""
    model = sequential_network() if kind == "functional" else compiled(subclassed(), metrics=())
    ssd = keras_ssd.wrap(model)
    for _ in range(3):
        ssd.train_on_batch(X, Y)
    raw, predicted = model.get_weights(), ssd.predict(X, verbose=0)
    path, is_onnx = str(tmp_path / "exported.onnx"), keras.backend.backend() == "torch"
    if is_onnx:
        pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime" if is_onnx else "tensorflow")
    ssd.export(path, format="onnx" if is_onnx else "tf_saved_model", verbose=False)
    assert_same(model.get_weights(), raw)
    if is_onnx:
        session = runtime.InferenceSession(path)
        served = session.run(None, {session.get_inputs()[0].name: X})[0]
    else:
        loaded = runtime.saved_model.load(path)  # without a reference its variables are deleted
        served = np.array(loaded.serve(X))
    np.testing.assert_allclose(served, predicted, atol=1e-5)


@pytest.mark.compiled
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the converter is TensorFlow's")
@pytest.mark.filterwarnings("ignore")
def test_tensorflow_saves_the_wrapper_and_lite_rt_converts_it(tmp_path):
    tf = pytest.importorskip("tensorflow")
    ssd = keras_ssd.wrap(sequential_network())
    ssd.fit(X, Y, verbose=0)
    tf.saved_model.save(ssd, tmp_path)
    assert "serving_default" in tf.saved_model.load(tmp_path).signatures
    content = tf.lite.TFLiteConverter.from_keras_model(ssd).convert()
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(model_content=content)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], X[:1])
    interpreter.invoke()
    served = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(served, ssd.predict(X[:1], verbose=0), atol=1e-5)


def test_a_wrapped_sequential_model_is_called_inside_another_model():
    """A Sequential has an `output` only where it was called itself."""
    stack = [keras.Input((4,)), keras.layers.Dropout(0.3), keras.layers.Dense(2)]
    ssd = keras_ssd.wrap(keras.Sequential(stack))
    inputs = keras.Input((4,))
    whole = keras.Model(inputs, keras.layers.Dense(1)(ssd(inputs)))
    assert whole.predict(np.zeros((3, 4)), verbose=0).shape == (3, 1)
