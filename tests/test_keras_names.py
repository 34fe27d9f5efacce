"""Names that Keras does not export: each function against what a model of Keras does."""

import keras
import pytest
from keras import layers, ops

from keras_ssd import keras_names


def test_probe_agrees_with_keras_about_training_fixed_in_a_graph():
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dropout(0.5)(x, training=False))
    is_fixed = bool(ops.all(model(ops.ones((64, 4)), training=True) == 1))
    assert keras_names.graph_fixes_training() == is_fixed


def test_classes_and_packages_of_keras_are_known():
    x = keras.Input((4,))
    assert type(keras.Model(x, x)) is keras_names.functional_class()
    assert {keras.Model, keras.Sequential, keras_names.functional_class()} <= keras_names.model_classes()
    assert keras_names.is_of_keras(keras.Model) and keras_names.is_of_keras(keras.activations.relu)
    assert not keras_names.is_of_keras(test_classes_and_packages_of_keras_are_known)
    assert keras_names.package_of(dict) == "builtins"
    task = type("Task", (keras.Model,), {"__module__": "keras_hub.src.models.task"})
    assert keras_names.is_hub_task(type("Mine", (task,), {"__module__": "mine"})())
    assert not keras_names.is_hub_task(type("Task", (keras.Model,), {"__module__": "mine"})())


def test_every_call_of_set_random_seed_has_a_number_and_changes_nothing_else():
    keras.utils.set_random_seed(3)
    first = keras_names.seeding_number()
    if first is None:
        pytest.skip("this Keras does not store the seed")
    assert keras_names.seeding_number() == first
    drawn = ops.convert_to_numpy(keras.random.uniform((4,)))
    keras.utils.set_random_seed(3)
    assert keras_names.seeding_number() != first
    assert (ops.convert_to_numpy(keras.random.uniform((4,))) == drawn).all()


def test_operations_on_each_value_are_told_from_others():
    x = keras.KerasTensor((None, 4))
    made = [y._keras_history.operation for y in (x + x, ops.tanh(x), ops.mean(x, axis=0), ops.transpose(x))]
    assert [keras_names.is_elementwise(operation) for operation in made] == [True, True, False, False]


def test_slices_of_rows_are_told_from_slices_along_the_batch():
    x = keras.Input((4, 3))
    found = []

    def call(layer, *args, **kwargs):
        found.append(keras_names.slices_within_rows(layer, args))
        return layer(*args, **kwargs)

    for y in (x[:, 0], x[:, 1:], x[..., 0], x[1:, 0]):
        keras.models.clone_model(keras.Model(x, y), call_function=call, clone_function=lambda layer: layer)
    assert found == [True, True, False, False]


def test_cells_of_convolutional_lstms_nodes_of_graphs_and_masks_are_found():
    assert keras_names.is_conv_lstm_cell(layers.ConvLSTM2D(1, 1).cell)
    assert not keras_names.is_conv_lstm_cell(layers.LSTMCell(1))
    x = keras.Input((4,))
    y = layers.Embedding(3, 2, mask_zero=True)(x)
    node = y._keras_history.operation._inbound_nodes[0]
    assert keras_names.is_graph_node(node) and node.operation is y._keras_history.operation
    assert not keras_names.is_graph_node(y)
    assert keras_names.automatic_mask(y).shape == (None, 4) and keras_names.automatic_mask(x) is None


def compiled_model():
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(2)(x))
    model.compile(keras.optimizers.SGD(0.5), "mse", metrics=["mae"])
    return model


def test_what_compile_was_called_with_is_told_as_objects():
    model, loss = compiled_model(), lambda y_true, y_pred: y_pred - y_true
    assert keras_names.compile_record(keras.Sequential([layers.Dense(2)])) is None
    record = keras_names.compile_record(model)
    assert keras_names.compile_record(model) is record
    model.compile("sgd", loss)
    assert keras_names.compile_record(model) is not record
    assert keras_names.compile_arguments(model)["loss"] is loss


def test_a_noted_shape_is_that_of_build_without_its_lock():
    built, noted = keras.Sequential([layers.Dense(2)]), keras.Sequential([layers.Dense(2)])
    built.build((None, 3))
    keras_names.note_input_shape(noted, (None, 3))
    assert noted.get_build_config() == built.get_build_config()
    noted.add_weight(shape=())


def test_models_that_were_compiled_alike_share_loss_and_metrics():
    source, target = compiled_model(), compiled_model()
    keras_names.share_compiled(source, target)
    assert [id(m) for m in target.metrics] == [id(m) for m in source.metrics]
    own = compiled_model()
    keras_names.share_compiled(source, own, metrics=False)
    assert [a is b for a, b in zip(own.metrics, source.metrics, strict=True)] == [True, False]
    logs = target.evaluate(ops.ones((2, 4)), ops.ones((2, 2)), verbose=0, return_dict=True)
    assert source.get_metrics_result()["mae"] == logs["mae"]


def test_the_learning_rate_is_a_number_or_a_schedule():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 1, 0.9)
    constant, scheduled = keras.optimizers.SGD(0.5), keras.optimizers.SGD(schedule)
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(schedule))
    assert [keras_names.constant_learning_rate(one) for one in (constant, scheduled)] == [0.5, None]
    schedules = [keras_names.learning_rate_schedule(one) for one in (constant, scheduled, scaled)]
    assert schedules == [None, schedule, schedule]


def test_the_state_behind_a_step_is_told_by_variable():
    model = compiled_model()
    trainable, others = [object(), object()], []
    pairs, rebuild = keras_names.trained_state(model, ("logs", (trainable, others, "optimizer", "metrics")))
    expected = zip(model.trainable_variables, trainable, strict=True)
    assert [(id(v), value) for v, value in pairs] == [(id(v), value) for v, value in expected]
    assert rebuild(["new"]) == ("logs", (trainable, ["new"], "optimizer", "metrics"))


def test_nnx_mode_is_refused(monkeypatch):
    keras_names.check_mode()
    monkeypatch.setattr(keras.config, "is_nnx_enabled", lambda: True, raising=False)
    with pytest.raises(RuntimeError, match="NNX"):
        keras_names.check_mode()


def test_new_layers_are_not_recomputed_within_a_remat_scope():
    if not hasattr(keras, "RematScope"):
        pytest.skip("this Keras has no RematScope")
    modes = []

    class Probe(layers.Layer):
        def __init__(self):
            super().__init__()
            modes.append(getattr(self, "_remat_mode", None))

    with keras.RematScope("full"):
        Probe()
        with keras_names.no_rematerialization():
            Probe()
    assert modes[0].mode == "full" and (modes[1] is None or modes[1].mode is None)


def test_arguments_of_a_loss_are_read_from_its_attributes_or_its_configuration():
    class WithoutConfiguration(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return ops.mean(y_pred, axis=-1)

        def get_config(self):
            raise NotImplementedError

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    names = ("from_logits", "ignore_class", "nothing")
    assert [keras_names.loss_argument(loss, name) for name in names] == [True, -1, None]
    assert keras_names.loss_argument(keras.losses.CategoricalCrossentropy(axis=1), "axis") == 1
    assert keras_names.loss_argument(WithoutConfiguration(), "from_logits") is None
    assert keras_names.loss_argument(keras.losses.mean_squared_error, "from_logits") is None
