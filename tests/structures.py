"""Small models of every structure that the library supports, with inputs and targets."""

import keras
import numpy as np
from keras import layers, ops


@keras.saving.register_keras_serializable(package="tests")
class Doubling(layers.Layer):
    """Noise that can be computed by hand: it doubles its input while training. Holds a generator, as noise does."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1)
        self.supports_masking = True

    def call(self, x, training=False):
        return x * 2 if training else x


def noise_named(name):
    return Doubling() if name == "doubling" else layers.Dropout(0.5)


@keras.saving.register_keras_serializable(package="tests")
class Block(layers.Layer):
    """A layer of layers: noise and BatchNormalization in one, which only the layer itself can call."""

    def __init__(self, noise="doubling", **kwargs):
        super().__init__(**kwargs)
        self.noise_name, self.noise = noise, noise_named(noise)
        self.inner = [layers.Dense(6), layers.BatchNormalization()]

    def build(self, input_shape):
        self.inner[0].build(input_shape)
        self.inner[1].build((*input_shape[:-1], 6))

    def call(self, x, training=False):
        for layer in self.inner:
            x = layer(x, training=training)
        return self.noise(x, training=training)

    def get_config(self):
        return {**super().get_config(), "noise": self.noise_name}


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """A model without a graph of layers."""

    def __init__(self, noise="doubling", **kwargs):
        super().__init__(**kwargs)
        self.noise_name, self.noise = noise, noise_named(noise)
        self.hidden, self.normalization = layers.Dense(6, activation="relu"), layers.BatchNormalization()
        self.head = layers.Dense(3, activation="softmax")

    def call(self, x, training=False):
        x = self.normalization(self.hidden(x), training=training)
        return self.head(self.noise(x, training=training))

    def get_config(self):
        return {**super().get_config(), "noise": self.noise_name}


def head(x, name=None):
    return layers.Dense(3, activation="softmax", name=name)(x)


def sequential(noise):
    return keras.Sequential([keras.Input((4,)), layers.Dense(6), noise(), layers.Dense(3, activation="softmax")])


def branches(noise):
    inputs = keras.Input((4,))
    stem = layers.Dense(6, activation="relu")(inputs)
    left, right = layers.Dense(4)(noise()(stem)), layers.Dense(4)(stem)
    return keras.Model(inputs, head(layers.Concatenate()([left, ops.tanh(right)])))


def shared_layers(noise):
    inputs = keras.Input((6,))
    dense, drop = layers.Dense(6, activation="relu"), noise()
    x = dense(drop(dense(inputs)))
    return keras.Model(inputs, head(drop(x)))


def several_inputs_and_outputs(noise):
    a, b = keras.Input((4,), name="a"), keras.Input((5, 2), name="b")
    x = layers.Concatenate()([layers.Dense(6)(a), layers.Flatten()(b)])
    x = noise()(layers.BatchNormalization()(x))
    return keras.Model([a, b], [head(x, "first"), layers.Dense(2, name="second")(x)])


def dictionaries(noise):
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((3,), name="b")}
    x = noise()(layers.Concatenate()([inputs["a"], inputs["b"]]))
    x = layers.Dense(6)(x)
    return keras.Model(inputs, {"first": head(x, "first"), "second": layers.Dense(2, name="second")(x)})


def nested_twice_with_equal_names(noise):
    def tower():
        inputs = keras.Input((4,))
        x = noise(name="noise")(layers.Dense(6, name="dense")(inputs))
        return keras.Model(inputs, layers.BatchNormalization(name="normalization")(x))

    left, right = tower(), tower()
    inputs = keras.Input((4,))
    return keras.Model(inputs, head(layers.Add()([left(inputs), right(inputs)])))


def nested_with_several_outputs(noise):
    inner_inputs = keras.Input((4,))
    x = layers.Dense(6)(inner_inputs)
    inner = keras.Model(inner_inputs, {"deep": noise()(x), "skip": x})
    inputs = keras.Input((4,))
    outputs = inner(inputs)
    return keras.Model(inputs, head(layers.Add()([outputs["deep"], outputs["skip"]])))


def block(noise):
    inputs, kind = keras.Input((4,)), "doubling" if noise is Doubling else "dropout"
    return keras.Model(inputs, head(Block(kind)(layers.BatchNormalization()(inputs))))


def subclassed(noise):
    model = Subclassed("doubling" if noise is Doubling else "dropout")
    model(np.zeros((2, 4)))
    return model


def masked(noise):
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(7, 4, mask_zero=True)(inputs)
    x = layers.GRU(4, return_sequences=True)(noise()(x))
    return keras.Model(inputs, head(layers.GlobalAveragePooling1D()(x)))


def masked_through_nesting(noise):
    stem = keras.Sequential([keras.Input((5,), dtype="int32"), layers.Embedding(7, 4, mask_zero=True)])
    inputs = keras.Input((5,), dtype="int32")
    return keras.Model(inputs, head(layers.LSTM(4)(noise()(stem(inputs)))))


def time_steps(noise):
    inputs = keras.Input((None, 2))
    return keras.Model(inputs, head(noise()(layers.Dense(5, activation="relu")(inputs))))


def noise_at_the_input(noise):
    inputs = keras.Input((4,))
    return keras.Model(inputs, head(layers.BatchNormalization()(layers.Dense(6)(noise()(inputs)))))


def recurrent_dropout(_):
    inputs = keras.Input((5, 2))
    x = layers.Bidirectional(layers.LSTM(4, dropout=0.4, recurrent_dropout=0.4))(inputs)
    return keras.Model(inputs, head(x))


def attention_dropout(_):
    inputs = keras.Input((5, 4))
    x = layers.MultiHeadAttention(2, 4, dropout=0.5)(inputs, inputs)
    return keras.Model(inputs, head(layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x + inputs))))


# Those whose noise is a layer that can be exchanged, so that the expected teacher can be computed by hand.
EXCHANGEABLE = {
    f.__name__: f
    for f in (
        *(sequential, branches, shared_layers, several_inputs_and_outputs, dictionaries),
        *(nested_twice_with_equal_names, nested_with_several_outputs, block, subclassed, masked),
        *(masked_through_nesting, time_steps, noise_at_the_input),
    )
}
BUILT_IN = {f.__name__: f for f in (recurrent_dropout, attention_dropout)}


def batch(model, size=6, seed=3):
    """Random inputs of a model, structured as it takes them; zeros (masked) among integers."""
    generator = np.random.default_rng(seed)
    if isinstance(model, Subclassed):
        return generator.normal(size=(size, 4)).astype("float32")
    structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input

    def values(x):
        shape = (size, *(dimension or 5 for dimension in x.shape[1:]))
        if "int" in str(x.dtype):
            return np.sort(generator.integers(0, 7, shape))[:, ::-1].astype("int32").copy()
        return generator.normal(size=shape).astype("float32")

    return keras.tree.map_structure(values, structure)


def targets(model, x, seed=4):
    """Random targets and matching losses: classes for softmax outputs, values for the others."""
    generator = np.random.default_rng(seed)
    outputs = keras.tree.map_structure(lambda y: ops.convert_to_numpy(y), model(x, training=False))

    def target(y):
        return generator.integers(0, 3, y.shape[:-1]) if y.shape[-1] == 3 else generator.normal(size=y.shape)

    def loss(y):
        return "sparse_categorical_crossentropy" if y.shape[-1] == 3 else "mse"

    return keras.tree.map_structure(target, outputs), keras.tree.map_structure(loss, outputs)
