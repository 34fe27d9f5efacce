"""The networks that the field compares on the UCR archive, as hfawaz/dl-4-tsc and hfawaz/InceptionTime have them.

FCN and ResNet: Wang, Yan, Oates (arXiv 1611.06455); InceptionTime: Ismail Fawaz et al. (arXiv 1909.04939), a single
network of its five. None of them has dropout. What feeds the head is called `representation`, what a block puts out
`block_1`, `block_2` and so on. `width` scales all filters; BatchNormalization moves as fast as in networks.py, as the
budget here is short.
"""

import functools

import keras
from keras.layers import (
    Activation,
    Add,
    BatchNormalization,
    Concatenate,
    Conv1D,
    Dense,
    GlobalAveragePooling1D,
    MaxPooling1D,
)


def fcn(shape, n_classes, width=1.0):
    """Three blocks of one convolution."""
    inputs = x = keras.Input(shape)
    for number, (filters, kernel) in enumerate(((128, 8), (256, 5), (128, 3)), 1):
        x = Activation("relu", name=f"block_{number}")(_convolution(x, round(width * filters), kernel))
    return _classifier(inputs, x, n_classes)


def resnet(shape, n_classes, width=1.0):
    """Three residual blocks of three convolutions."""
    inputs = x = keras.Input(shape)
    for number, filters in enumerate((64, 128, 128), 1):
        shortcut, filters = x, round(width * filters)
        for kernel in (8, 5):
            x = Activation("relu")(_convolution(x, filters, kernel))
        x = _convolution(x, filters, 3)
        if shortcut.shape[-1] == filters:
            shortcut = _normalised(shortcut)
        else:
            shortcut = _convolution(shortcut, filters, 1)
        x = Activation("relu", name=f"block_{number}")(Add()([x, shortcut]))
    return _classifier(inputs, x, n_classes)


def inception_time(shape, n_classes, width=1.0):
    """Six inception modules, each a block, and a shortcut over every three, which is part of the third."""
    filters = round(width * 32)
    inputs = x = shortcut = keras.Input(shape)
    for number in range(1, 7):
        with_shortcut = number % 3 == 0
        x = _inception(x, filters, name=None if with_shortcut else f"block_{number}")
        if with_shortcut:
            joined = Add()([x, _convolution(shortcut, 4 * filters, 1)])
            x = shortcut = Activation("relu", name=f"block_{number}")(joined)
    return _classifier(inputs, x, n_classes)


def _inception(x, filters, name):
    bottleneck = Conv1D(filters, 1, use_bias=False)(x) if x.shape[-1] > 1 else x
    parts = [Conv1D(filters, kernel, padding="same", use_bias=False)(bottleneck) for kernel in (40, 20, 10)]
    parts.append(Conv1D(filters, 1, use_bias=False)(MaxPooling1D(3, 1, padding="same")(x)))
    return Activation("relu", name=name)(_normalised(Concatenate()(parts)))


def _convolution(x, filters, kernel):
    return _normalised(Conv1D(filters, kernel, padding="same")(x))


def _normalised(x):
    return BatchNormalization(momentum=0.9)(x)


def _classifier(inputs, x, n_classes):
    x = GlobalAveragePooling1D(name="representation")(x)
    return keras.Model(inputs, Dense(n_classes, activation="softmax")(x))


def blocks(model):
    """The names of the layers that end a block, of a published network."""
    names = tuple(layer.name for layer in model.layers if layer.name.startswith("block_"))
    if not names:  # an empty tuple would ask for teachers without noise
        raise ValueError(f"`model` should be a network of published.py, whose blocks are named. Received: {model.name}")
    return names


NETWORKS = {
    name + suffix: functools.partial(function, width=width)
    for name, function in (("fcn", fcn), ("resnet_published", resnet), ("inception_time", inception_time))
    for suffix, width in (("", 1.0), ("_half", 0.5))
}
