"""Small networks for windows of sensors; all have dropout, and a representation that feeds their head."""

import keras
from keras import layers


def conv(shape, n_classes):
    """Three convolutions, dropout behind the pooling."""
    inputs = x = keras.Input(shape)
    for filters, width in [(32, 8), (64, 5), (32, 3)]:
        x = convolution(x, filters, width, "relu")
    x = layers.Dropout(0.3, name="representation")(layers.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, layers.Dense(n_classes, activation="softmax")(x))


def pain_attn(shape, n_classes, n_features=32):
    """A small network of the kind of PainAttnNet, the paper's for biosignals, for windows of any length.

    Lu, Ozek, Kamarthi: Transformer Encoder With Multiscale Deep Learning for Pain Classification Using Physiological
    Signals, arXiv 2303.06845. Convolutions at three scales, squeeze and excitation in a residual block, a transformer
    encoder. `examples/affective.py` has the published network, which is made for 5.5 seconds at 512 Hz.
    """
    inputs = keras.Input(shape)
    stride = max(1, shape[0] // 32)
    scales = []
    for width in (stride * 2, stride * 4, stride * 8):
        x = convolution(inputs, n_features // 2, width, "gelu", strides=stride)
        x = layers.Dropout(0.3)(x)
        scales.append(convolution(x, n_features // 2, 5, "gelu"))
    x = layers.Dropout(0.3)(layers.Concatenate()(scales))
    x = squeeze_and_excite(x, n_features)
    normal = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(4, n_features // 4, dropout=0.1)(normal, normal)])
    hidden = layers.Dense(2 * n_features, activation="relu")(layers.LayerNormalization()(x))
    x = layers.Add()([x, layers.Dropout(0.1)(layers.Dense(n_features)(hidden))])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    x = layers.Dropout(0.3, name="representation")(x)
    return keras.Model(inputs, layers.Dense(n_classes, activation="softmax")(x))


def convolution(x, filters, width, activation, strides=1):
    x = layers.Conv1D(filters, width, strides, padding="same", use_bias=False)(x)
    return layers.Activation(activation)(layers.BatchNormalization(momentum=0.9)(x))  # small sets make few steps


def squeeze_and_excite(x, filters, reduction=8):
    """Two convolutions beside a shortcut; what they add is weighted by feature."""
    shortcut = convolution(x, filters, 1, "linear")
    x = convolution(convolution(x, filters, 3, "relu"), filters, 3, "linear")
    squeezed = layers.GlobalAveragePooling1D(keepdims=True)(x)
    squeezed = layers.Dense(filters // reduction, activation="relu")(squeezed)
    excitation = layers.Dense(filters, activation="sigmoid")(squeezed)
    return layers.Activation("relu")(layers.Add()([shortcut, layers.Multiply()([x, excitation])]))


NETWORKS = {"conv": conv, "pain_attn": pain_attn}
