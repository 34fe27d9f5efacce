"""The formulas of arXiv 2504.14307 in NumPy float64, written from the paper, not from the code under test.

Shapes: student (batch, features), teachers (batch, teachers, features), scores and weights (batch, teachers). `keep`
fixes the teachers that pass the filter: the gradient of the filter is that of the teachers it keeps.
"""

import numpy as np


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def kl(p, q):
    return np.sum(p * (np.log(p) - np.log(q)), axis=-1)


def scores(student, teachers, similarity="dot"):
    s, t = np.asarray(student, "float64")[:, None], np.asarray(teachers, "float64")
    if similarity == "dot":
        return np.sum(s * t, axis=-1)
    if similarity == "cosine":
        return np.sum(s * t, axis=-1) / np.linalg.norm(s, axis=-1) / np.linalg.norm(t, axis=-1)
    if similarity == "euclidean":
        return -(np.linalg.norm(s - t, axis=-1) ** 2)
    if similarity == "kl":
        return -kl(softmax(t), softmax(s))
    return {"uniform": np.zeros(t.shape[:2])}[similarity]


def keep(scores, temperature=5.0, percentile=90.0):
    a = softmax(np.asarray(scores, "float64") / temperature)
    return a >= np.percentile(a, percentile, axis=-1, keepdims=True)


def weights(scores, temperature=5.0, percentile=90.0, keep=None):
    keep = globals()["keep"](scores, temperature, percentile) if keep is None else keep
    a = softmax(np.asarray(scores, "float64") / temperature) * keep
    return a / a.sum(axis=-1, keepdims=True)


def target(weights, teachers):
    return np.einsum("bn,bnd->bd", weights, np.asarray(teachers, "float64"))


def paper_loss(student, teachers, similarity="dot", temperature=5.0, percentile=90.0, keep=None):
    student = np.asarray(student, "float64")
    a = weights(scores(student, teachers, similarity), temperature, percentile, keep)
    return np.mean((student - target(a, teachers)) ** 2)


def tempered_kl(teachers, weights, student, temperature):
    """T^2 KL(sum_i a_i softmax(z_T,i / T) || softmax(z_S / T)), the mean over batch and positions.

    Args:
        teachers: logits (batch, teachers, ..., classes).
        weights: (batch, teachers).
        student: logits (batch, ..., classes).
        temperature: T.
    """
    p = np.einsum("bn,bn...->b...", weights, softmax(teachers / temperature))
    return temperature**2 * np.mean(kl(p, softmax(student / temperature)))


def tempered_binary_kl(teachers, weights, student, temperature):
    """The same for independent logits, each a distribution over (1, 0), the mean over batch and units."""
    p = np.einsum("bn,bn...->b...", weights, sigmoid(teachers / temperature))
    q = sigmoid(student / temperature)
    return temperature**2 * np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))


def squared_error(teachers, weights, student, temperature=None):
    return np.mean((np.einsum("bn,bn...->b...", weights, teachers) - student) ** 2)


def gradient(function, x, step=1e-6):
    """Gradient of a scalar function by central differences."""
    x = np.array(x, "float64")
    result = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        centre = x[index]
        x[index] = centre + step
        above = function(x)
        x[index] = centre - step
        below = function(x)
        x[index] = centre
        result[index] = (above - below) / (2 * step)
    return result
