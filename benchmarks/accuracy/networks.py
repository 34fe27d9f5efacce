"""The networks of the accuracy benchmark: small ones for windows of sensors, all with dropout, and one for images.

Those of the field, which have no dropout, stand in published.py.
"""

import keras
from keras.layers import (
    Activation,
    Add,
    BatchNormalization,
    Conv1D,
    Conv2D,
    Dense,
    Dropout,
    GlobalAveragePooling1D,
    GlobalAveragePooling2D,
    LayerNormalization,
    MultiHeadAttention,
    RandomFlip,
    RandomTranslation,
)

import published


def conv(shape, n_classes, filters=(32, 64, 32), normalised=True):
    """Three convolutions, dropout behind the pooling."""
    inputs = x = keras.Input(shape)
    for n_filters, width in zip(filters, (8, 5, 3), strict=True):
        x = Conv1D(n_filters, width, padding="same", use_bias=not normalised)(x)
        if normalised:
            x = BatchNormalization(momentum=0.9)(x)
        x = Activation("relu")(x)
    x = Dropout(0.3, name="representation")(GlobalAveragePooling1D()(x))
    return keras.Model(inputs, Dense(n_classes, activation="softmax")(x))


def small(shape, n_classes):
    """`conv` with a quarter of its filters, hence a fourteenth of its weights: for the smallest devices."""
    return conv(shape, n_classes, filters=(8, 16, 8))


def unnormalised(shape, n_classes):
    """`conv` without BatchNormalization: all that changes in training is a trained weight."""
    return conv(shape, n_classes, normalised=False)


def resnet(shape, n_classes):
    """Three residual blocks of two convolutions, dropout in each."""
    inputs = x = keras.Input(shape)
    for filters in (32, 64, 64):
        shortcut = Conv1D(filters, 1, padding="same", use_bias=False)(x)
        x = Activation("relu")(BatchNormalization(momentum=0.9)(Conv1D(filters, 7, padding="same", use_bias=False)(x)))
        x = Dropout(0.2)(x)
        x = BatchNormalization(momentum=0.9)(Conv1D(filters, 3, padding="same", use_bias=False)(x))
        x = Activation("relu")(Add()([x, shortcut]))
    x = Dropout(0.3, name="representation")(GlobalAveragePooling1D()(x))
    return keras.Model(inputs, Dense(n_classes, activation="softmax")(x))


def transformer(shape, n_classes):
    """Patches of the series, two encoder blocks with dropout in attention and behind it."""
    inputs = keras.Input(shape)
    width = max(1, shape[0] // 32)
    x = Conv1D(32, width, strides=width, padding="same")(inputs)
    x = Conv1D(32, 3, padding="same", activation="relu")(x)  # tells the order of the patches
    for _ in range(2):
        normal = LayerNormalization()(x)
        x = Add()([x, Dropout(0.1)(MultiHeadAttention(4, 8, dropout=0.1)(normal, normal))])
        hidden = Dense(64, activation="gelu")(LayerNormalization()(x))
        x = Add()([x, Dropout(0.1)(Dense(32)(hidden))])
    x = Dropout(0.3, name="representation")(GlobalAveragePooling1D()(LayerNormalization()(x)))
    return keras.Model(inputs, Dense(n_classes, activation="softmax")(x))


def image_resnet(shape, n_classes, filters=(16, 32, 64)):
    """Three residual blocks of two convolutions for images that are mirrored and shifted; dropout behind the pooling.

    The augmentation is the model's, so that teachers see the very image that the student sees.
    """
    inputs = keras.Input(shape)
    x = RandomTranslation(0.125, 0.125, fill_mode="constant")(RandomFlip("horizontal")(inputs))
    x = Conv2D(filters[0], 3, padding="same", use_bias=False)(x)
    x = Activation("relu")(BatchNormalization(momentum=0.9)(x))
    for number, n_filters in enumerate(filters):
        strides = 1 if number == 0 else 2
        shortcut = Conv2D(n_filters, 1, strides, use_bias=False)(x)
        x = Conv2D(n_filters, 3, strides, padding="same", use_bias=False)(x)
        x = Activation("relu")(BatchNormalization(momentum=0.9)(x))
        x = BatchNormalization(momentum=0.9)(Conv2D(n_filters, 3, padding="same", use_bias=False)(x))
        x = Activation("relu")(Add()([x, shortcut]))
    x = Dropout(0.3, name="representation")(GlobalAveragePooling2D()(x))
    return keras.Model(inputs, Dense(n_classes, activation="softmax")(x))


NETWORKS = {
    "conv": conv,
    "small": small,
    "unnormalised": unnormalised,
    "resnet": resnet,
    "transformer": transformer,
    "image_resnet": image_resnet,
    **published.NETWORKS,
}
