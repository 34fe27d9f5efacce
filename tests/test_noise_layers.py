"""Every layer of Keras, and layers of the user's: which of them make noise, which augment, and which do neither."""

import inspect

import keras
import numpy as np
import pytest
from keras import layers

import keras_ssd
from keras_ssd.noise import is_augmentation, is_noise
from passes import passes
from structures import Block, Doubling

RATE = 0.5
MADE_OF = {
    "Activation": lambda kind: kind("relu"),
    "Bidirectional": lambda kind: kind(layers.LSTM(2, dropout=0.5)),
    "CategoryEncoding": lambda kind: kind(3),
    "Discretization": lambda kind: kind(bin_boundaries=[0.0]),
    "InputLayer": lambda kind: kind(shape=(2,)),
    "Lambda": lambda kind: kind(lambda x: x),
    "RNN": lambda kind: kind(layers.LSTMCell(2, dropout=0.5)),
    "RandomPosterization": lambda kind: kind(4),
    "RandomTranslation": lambda kind: kind(0.1, 0.1),
    "RandomZoom": lambda kind: kind(0.1),
    "SpectralNormalization": lambda kind: kind(layers.Dense(2)),
    "StackedRNNCells": lambda kind: kind([layers.LSTMCell(2), layers.GRUCell(2, dropout=0.5)]),
    "TimeDistributed": lambda kind: kind(layers.Dropout(0.5)),
    "Wrapper": lambda kind: kind(layers.Dropout(0.5)),
    "Pipeline": lambda kind: kind([layers.RandomFlip(), layers.RandomContrast(0.5)]),
}
FOREIGN = {"FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper"}  # they hold what is not Keras'
NOISE = {
    *("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "AlphaDropout", "GaussianDropout"),
    *("GaussianNoise", "Attention", "AdditiveAttention", "MultiHeadAttention", "GroupQueryAttention"),
    *("LSTM", "GRU", "SimpleRNN", "LSTMCell", "GRUCell", "SimpleRNNCell", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"),
    *("Bidirectional", "RNN", "StackedRNNCells", "TimeDistributed", "Wrapper"),
}
AUGMENTATION = {"AugMix", "CutMix", "MixUp", "Pipeline", "RandAugment", "Solarization"}  # and all Random...
# What is not given by name: every argument without a default.
VALUES = {"factor": 0.5, "dims": (1,), "target_shape": (2,)}
RATES = ("rate", "dropout", "recurrent_dropout", "stddev")


def layer_classes():
    named = {name: getattr(layers, name) for name in dir(layers)}
    return {name: kind for name, kind in named.items() if inspect.isclass(kind) and issubclass(kind, layers.Layer)}


def instance(name, kind, rate):
    """A layer with as much noise as `rate` where it has any such argument."""
    if name in MADE_OF:
        return MADE_OF[name](kind)
    parameters = inspect.signature(kind.__init__).parameters.values()
    given = {p.name: rate for p in parameters if p.name in RATES}
    for p in parameters:
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in ("self", *given):
            given[p.name] = VALUES.get(p.name, 2)
    layer = kind(**given)
    if name in ("GroupQueryAttention", "MultiHeadAttention"):
        layer.build((2, 3, 4), (2, 3, 4))  # only then they have a Dropout
    return layer


@pytest.mark.parametrize("name", sorted(set(layer_classes()) - FOREIGN))
def test_a_layer_of_keras_is_noise_or_augmentation_or_neither(name):
    layer = instance(name, layer_classes()[name], RATE)
    assert is_augmentation(layer) == (name in AUGMENTATION or name.startswith("Random"))
    assert is_noise(layer) == (name in NOISE)
    if name in NOISE and name not in MADE_OF:
        assert not is_noise(instance(name, layer_classes()[name], 0.0))


class DropPath(layers.Layer):
    """Stochastic depth, as many repositories write it, with the attribute that declares its rate."""

    keras_ssd_rates = ("drop_prob",)

    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob
        self.generator = keras.random.SeedGenerator(1)

    def call(self, x, training=False):
        return keras.random.dropout(x, self.drop_prob, seed=self.generator) if training else x


class Derived(layers.Dropout):
    """A class of the user's that inherits its rate."""


def passes_of(layer, shape=(16,), **options):
    """The passes on ones of a model that ends in the layer."""
    inputs = keras.Input(shape)
    ssd = keras_ssd.wrap(keras.Model(inputs, layers.Identity()(layer(inputs))), ema_momentum=0, **options)
    return passes(ssd, np.ones((16, *shape), "float32"))


@pytest.mark.parametrize("make, rate", [(DropPath, 0.1), (layers.Dropout, np.float32(0.1)), (Derived, 0.1)])
def test_dropout_rate_reaches_the_rates_of_layers_in_the_teachers_only(make, rate):
    found = passes_of(make(rate), dropout_rate=0.9)
    assert 0 < (found.outputs[0] == 0).mean() < 0.3
    assert 0.85 < (found.teacher_outputs[0] == 0).mean() < 0.95


class Sampled(DropPath):
    """Has attributes with the names of rates that are none, and declares no rate."""

    keras_ssd_rates = None

    def __init__(self):
        super().__init__(0.5)
        self.rate, self.dropout = 50.0, 0.0


def test_an_attribute_is_a_rate_only_if_it_is_declared():
    layer = Sampled()
    assert is_noise(layer)
    with pytest.warns(UserWarning, match=r'no effect.*`keras_ssd_rates = \("rate",\)`'):
        (teachers,) = passes_of(layer, dropout_rate=0.9).teacher_outputs
    assert 0.4 < (teachers == 0).mean() < 0.6
    assert layer.rate == 50.0


def test_a_custom_layer_with_a_seed_generator_is_noise_unless_all_declared_rates_are_0():
    assert is_noise(Doubling()) and is_noise(Block("dropout")) and not is_augmentation(Block("dropout"))
    assert is_noise(DropPath(0.1)) and not is_noise(DropPath(0.0))


def test_a_declared_rate_that_does_not_exist_is_an_error():
    layer = DropPath(0.1)
    layer.keras_ssd_rates = ("drop_prob", "drop_rate")
    with pytest.raises(ValueError, match=r"`keras_ssd_rates` should name attributes.*\['drop_rate'\]"):
        is_noise(layer)


@pytest.mark.parametrize(
    "layer, shape",
    [(layers.LSTM(8, dropout=0.01), (4, 3)), (layers.ConvLSTM1D(8, 2, recurrent_dropout=0.01), (2, 3, 2))],
    ids=["LSTM", "ConvLSTM1D"],
)
def test_dropout_rate_reaches_recurrent_cells(layer, shape):
    found = [passes_of(layer, shape, dropout_rate=rate).teacher_outputs[0] for rate in (None, 0.9)]
    spreads = [np.ptp(one, axis=1).mean() for one in found]
    assert spreads[1] > 3 * spreads[0] > 0


def test_a_dropout_rate_without_effect_warns():
    with pytest.warns(UserWarning, match=r"`dropout_rate` has no effect: the noise layers \['noise'\]"):
        passes_of(layers.GaussianNoise(0.1, name="noise"), dropout_rate=0.5)
