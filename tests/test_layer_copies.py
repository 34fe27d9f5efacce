"""The noise layers that the passes run: copies with other rates, which share the variables of the user's layers."""

import functools

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_ssd
from keras_ssd.noise import layers_for_passes, parts_of

X = np.ones((200, 8), "float32")


def parts():
    """Dropout of 0.3 and a normalisation whose statistics are those of no batch."""
    normalization = layers.BatchNormalization()
    normalization.build((None, 8))
    normalization.moving_mean.assign(np.full(8, 0.5))
    normalization.moving_variance.assign(np.full(8, 0.25 - 1e-3))
    return layers.Dropout(0.3), normalization


class Attributes(layers.Layer):
    def __init__(self):
        super().__init__()
        self.drop, self.normalization = parts()

    def call(self, x, training=False):
        return self.drop(self.normalization(x, training=training), training=training)


class InContainers(layers.Layer):
    def __init__(self):
        super().__init__()
        drop, normalization = parts()
        self.stages = {"first": [normalization], "second": ((drop,), None)}

    def call(self, x, training=False):
        x = self.stages["first"][0](x, training=training)
        return self.stages["second"][0][0](x, training=training)


class Functions(Attributes):
    """Refers to its layers by a closure, a bound method and a partial function, too."""

    def __init__(self):
        super().__init__()
        drop = self.drop
        self.closure = lambda x, training: drop(x, training=training)
        self.bound = self.normalize
        self.partial = functools.partial(self.closure)

    def normalize(self, x, training):
        return self.normalization(x, training=training)

    def call(self, x, training=False):
        return self.partial(self.bound(x, training), training)


class NestedModels(layers.Layer):
    def __init__(self):
        super().__init__()
        drop, normalization = parts()
        inputs = keras.Input((8,))
        self.functional = keras.Model(inputs, normalization(inputs) * 1)
        self.sequential = keras.Sequential([keras.Input((8,)), drop])

    def call(self, x, training=False):
        return self.sequential(self.functional(x, training=training), training=training)


class ParentAndChild(Attributes):
    """A cycle: the child refers to its parent by a function."""

    def __init__(self):
        super().__init__()
        self.child = layers.Identity()
        self.child.parent = lambda: self


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = Attributes()

    def call(self, x, training=False):
        return self.inner(x, training=training)


KINDS = [InContainers, Functions, NestedModels, ParentAndChild, Subclassed]


def state(layer):
    """What the user can see of a layer: rates, whether it is trained, variables."""
    rates = [part.rate for part in parts_of(layer) if isinstance(part, layers.Dropout)]
    values = [ops.convert_to_numpy(v.value).tolist() for v in layer.variables]
    return rates, [part.trainable for part in parts_of(layer)], [v.trainable for v in layer.variables], values


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_has_the_rate_of_the_passes_and_normalises_as_in_inference(kind):
    layer = kind()
    layer(X[:2])
    before = state(layer)
    (copy,) = layers_for_passes([layer], 0.9)
    with keras.StatelessScope():  # as in the passes: it draws from the layer's own generator
        values = ops.convert_to_numpy(copy(X, training=True))
    # (1 - 0.5) / 0.5 = 1, which is dropped, or kept and multiplied by 1 / (1 - 0.9).
    kept = values != 0
    assert 0.05 < kept.mean() < 0.15
    np.testing.assert_allclose(values[kept], 10.0, rtol=1e-4)
    assert state(layer) == before
    assert [id(v) for v in copy.variables] == [id(v) for v in layer.variables]


def test_a_layer_that_is_held_twice_has_one_copy_or_none_if_nothing_changes():
    class Holder(layers.Layer):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

    drop = layers.Dropout(0.3)
    first, second, copy = layers_for_passes([Holder(drop), Holder(drop), drop], 0.9)
    assert first.inner is second.inner is copy is not drop
    noise = layers.GaussianNoise(0.3)
    assert layers_for_passes([noise], None)[0] is noise


def test_the_users_layer_keeps_its_rate_while_the_passes_run():
    """Another thread may call it at the same time."""
    rates = []

    class Noting(Attributes):
        def call(self, x, training=False):
            rates.append((self.drop.rate, block.drop.rate))
            return super().call(x, training=training)

    block, inputs = Noting(), keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(block(inputs)))
    keras_ssd.predict_stochastic(model, X[:4], 4, dropout_rate=0.5, loss="mse", verbose=0)
    assert set(rates) == {(0.3, 0.3), (0.5, 0.3)}
