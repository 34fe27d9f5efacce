"""Names that Keras does not export: each function against what a model of Keras does."""

import keras
from keras import layers, ops

from keras_ssd import keras_names


def test_training_given_in_a_graph_is_fixed_where_a_call_of_the_model_does_not_change_it():
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dropout(0.5)(x, training=False))
    is_fixed = bool(ops.all(model(ops.ones((64, 4)), training=True) == 1))
    assert keras_names.graph_fixes_training() == is_fixed


def test_a_functional_model_is_of_the_functional_class():
    x = keras.Input((4,))
    assert type(keras.Model(x, x)) is keras_names.functional_class()
    assert {keras.Model, keras.Sequential, keras_names.functional_class()} <= keras_names.model_classes()


def test_the_package_is_that_of_the_definition():
    assert keras_names.is_of_keras(keras.Model) and keras_names.is_of_keras(keras.activations.relu)
    assert not keras_names.is_of_keras(test_the_package_is_that_of_the_definition)
    assert keras_names.package_of(dict) == "builtins"


def test_only_classes_of_keras_hub_are_its_tasks():
    task = type("Task", (keras.Model,), {"__module__": "keras_hub.src.models.task"})
    assert keras_names.is_hub_task(type("Mine", (task,), {"__module__": "mine"})())
    assert not keras_names.is_hub_task(type("Task", (keras.Model,), {"__module__": "mine"})())
