"""How far the student's outputs are from the teachers', for every kind of output a Keras model has."""

import functools
import math

import keras
from keras import ops, tree

from keras_ssd import _backend, guidance

_REGRESSION_LOSSES = frozenset(
    "meansquarederror mse meanabsoluteerror mae meanabsolutepercentageerror mape meansquaredlogarithmicerror msle "
    "huber logcosh cosinesimilarity poisson".split()
)


class OutputDistance:
    """Scores, targets and loss for one output of a model.

    An output is one of
    - `"categorical"`: logits or probabilities of exclusive classes, the last axis;
    - `"binary"`: one logit or probability per unit;
    - `"regression"`: values.

    The first two are distilled by the Kullback-Leibler divergence of tempered distributions,
    `T^2 * KL(sum_i a_i softmax(z_T,i / T) || softmax(z_S / T))`, the last by the mean squared error. A unit of a binary
    output is a distribution over two classes; its divergence is averaged over the units, as Keras' binary
    cross-entropy is.

    Args:
        kind: one of the three above.
        from_logits: whether the output holds logits, not probabilities.
        temperature: T > 0.
        weight: factor of this output's term.
    """

    def __init__(self, kind, from_logits, temperature, weight=1.0):
        self.kind = kind
        self.from_logits = from_logits
        self.temperature = temperature
        self.weight = weight

    def __repr__(self):
        return f"OutputDistance({self.kind!r}, from_logits={self.from_logits}, weight={self.weight})"

    def scores(self, student, teachers):
        """Minus the divergence of each teacher from the student, averaged over positions.

        Args:
            student: `(batch, ...)`.
            teachers: `(batch, teachers, ...)`.

        Returns:
            `(batch, teachers)`. For regression, minus half the mean squared difference: the divergence of two normal
            distributions of unit variance.
        """
        batch, n_teachers = ops.shape(student)[0], teachers.shape[1]
        student, teachers = ops.stop_gradient(self._features(student)), self._features(teachers)
        if self.kind == "regression":
            student = ops.reshape(student, (batch, -1))
            teachers = ops.reshape(teachers, (batch, n_teachers, -1))
            width = ops.cast(ops.shape(student)[1], student.dtype)
            return guidance.similarity_scores(student, teachers, "euclidean") / (2 * width)
        # One row for each position, so that the equations see (batch * positions, teachers, classes).
        n_classes = teachers.shape[-1]
        teachers = ops.swapaxes(ops.reshape(teachers, (batch, n_teachers, -1, n_classes)), 1, 2)
        scores = guidance.similarity_scores(
            ops.reshape(student, (-1, n_classes)), ops.reshape(teachers, (-1, n_teachers, n_classes)), "kl"
        )
        return ops.mean(ops.reshape(scores, (batch, -1, n_teachers)), axis=1)

    def target(self, weights, student, teachers):
        """The weighted mean of the teachers' tempered distributions (or values), no gradient through the teachers.

        Where a sample's target is not finite, the student's own distribution takes its place: no term, no gradient.

        Args:
            weights: `(batch, teachers)`.
            student: `(batch, ...)`.
            teachers: `(batch, teachers, ...)`.

        Returns:
            `(batch, ...)`, for a binary output `(batch, ..., 2)`.
        """
        own = ops.stop_gradient(self._probabilities(student))
        teachers = self._probabilities(teachers)
        flat = ops.reshape(teachers, (ops.shape(teachers)[0], teachers.shape[1], -1))
        target = ops.reshape(guidance.guided_target(weights, flat), ops.shape(own))
        return finite_or(target, own)

    def confidence(self, weights, teachers):
        """How sure the teachers are: `1 - entropy / log(classes)` of their weighted mean of untempered probabilities.

        Args:
            weights: `(batch, teachers)`.
            teachers: `(batch, teachers, ...)`.

        Returns:
            A value in [0, 1] for each sample and position (binary: and unit), without gradient; `None` for a
            regression, which has no entropy. 0 where the target is not finite.
        """
        if self.kind == "regression":
            return None
        untempered = OutputDistance(self.kind, self.from_logits, temperature=1.0)
        teachers = untempered._probabilities(teachers)
        shape = ops.shape(teachers)
        flat = ops.reshape(teachers, (shape[0], teachers.shape[1], -1))
        mean = guidance.guided_target(weights, flat)
        mean = ops.reshape(finite_or(mean, ops.ones_like(mean)), (shape[0], *shape[2:]))
        mean = mean / ops.sum(mean, axis=-1, keepdims=True)
        entropy = -ops.sum(mean * ops.log(ops.maximum(mean, 1e-30)), axis=-1)
        # Rounding must not make it negative.
        return ops.stop_gradient(ops.maximum(1 - entropy / math.log(max(teachers.shape[-1], 2)), 0.0))

    def loss(self, target, student, sample_weight, confidence=None):
        """The distillation loss, reduced, weighted, masked and scaled over replicas as Keras reduces its own losses.

        Args:
            target: from `target`.
            student: `(batch, ...)`.
            sample_weight: the user's, or `None`.
            confidence: from `confidence`, or `None`; it multiplies the loss of each sample and position.
        """
        loss = _OutputLoss(self, confidence, dtype=keras.backend.standardize_dtype(target.dtype))
        return self.weight * loss(target, student, sample_weight=sample_weight)

    def values(self, target, student, confidence=None):
        """The loss for each sample and position."""
        if self.kind == "regression":
            return ops.mean(ops.square(target - student), axis=-1)
        log_student = ops.log_softmax(self._features(student), axis=-1)
        # 0 log 0 = 0
        log_target = ops.log(ops.maximum(target, 1e-30))
        divergence = ops.sum(target * (log_target - log_student), axis=-1) * self.temperature**2
        if confidence is not None:
            divergence = ops.cast(confidence, divergence.dtype) * divergence
        return ops.mean(divergence, axis=-1) if self.kind == "binary" else divergence

    def _features(self, x):
        """Tempered logits, over two classes where the output is binary; values as they are."""
        x = _backend.wide(x)
        if self.kind == "regression":
            return x
        if not self.from_logits:
            floor = keras.config.epsilon()
            x = ops.clip(x, floor, 1.0 - floor) if self.kind == "binary" else ops.maximum(x, floor)
            x = ops.log(x) - ops.log1p(-x) if self.kind == "binary" else ops.log(x)
        x = x / self.temperature
        return ops.stack([x, ops.zeros_like(x)], axis=-1) if self.kind == "binary" else x

    def _probabilities(self, x):
        return self._features(x) if self.kind == "regression" else ops.softmax(self._features(x), axis=-1)


class _OutputLoss(keras.losses.Loss):
    """`OutputDistance.values` as a Keras loss: the base class knows about weights, masks, reduction and replicas."""

    def __init__(self, distance, confidence, dtype):
        super().__init__(name="kd_loss", dtype=dtype)
        self.distance = distance
        self.confidence = confidence

    def call(self, y_true, y_pred):
        return self.distance.values(y_true, y_pred, self.confidence)


def representation_loss(target, student, sample_weight):
    """Mean squared error over batch and features, `mean_{b,d} (f_S - f_hat)^2`.

    Args:
        target: `(batch, features)`.
        student: `(batch, features)`.
        sample_weight: `(batch,)` or `None`.
    """
    loss = keras.losses.MeanSquaredError(dtype=keras.backend.standardize_dtype(target.dtype))
    return loss(target, student, sample_weight=sample_weight)


def output_distances(activations, names, temperature, loss=None, loss_weights=None):
    """Tell for each output what it is, from the compiled loss first and the last activation second.

    A categorical or binary cross-entropy says so itself, and by `from_logits` what the output holds. Where the loss is
    of another kind (a custom one, say), a softmax or sigmoid activation tells; any other output is a regression. An
    output that is given no loss where others are is not distilled.

    Args:
        activations: for each output `"softmax"`, `"sigmoid"` or `None`.
        loss: as given to `compile`: one, a list, or a dict by output name.
        loss_weights: likewise; the terms of several outputs are weighted as the task's.
        names: names of the outputs, or `None`.
        temperature: T.

    Returns:
        A list of `OutputDistance`.
    """
    losses = per_output(loss, len(activations), names)
    weights = per_output(loss_weights, len(activations), names)
    distances = []
    for activation, one, weight in zip(activations, losses, weights, strict=True):
        kind, from_logits = _kind(one, activation)
        weight = 1.0 if weight is None else float(weight)
        if one is None and loss is not None:
            # What the user does not train is not taught, either.
            weight = 0.0
        distances.append(OutputDistance(kind, from_logits, temperature, weight))
    return distances


def _kind(loss, activation):
    from_logits = bool(getattr(loss, "from_logits", False))
    if isinstance(loss, functools.partial):
        from_logits = bool(loss.keywords.get("from_logits", False))
    name = _name(loss)
    if _is_cross_entropy(name):
        kind = "binary" if "binary" in name or name == "bce" else "categorical"
        return kind, from_logits
    if name in _REGRESSION_LOSSES:
        return "regression", False
    return {"softmax": "categorical", "sigmoid": "binary"}.get(activation, "regression"), False


def _is_cross_entropy(name):
    return "crossentropy" in name or name in ("bce", "kldivergence", "kld")


def _name(loss):
    if isinstance(loss, functools.partial):
        loss = loss.func
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    return name.lower().replace("_", "")


def is_hinge(loss):
    """Whether a loss takes classes of -1 and 1."""
    return "hinge" in _name(loss)


def may_take_minus_one(loss):
    """Whether a class of -1 may mean something to a loss by itself; to a cross-entropy only by `ignore_class`."""
    return getattr(loss, "ignore_class", None) == -1 or not _is_cross_entropy(_name(loss))


def loss_values(loss, y, output):
    """What a loss, as given to `compile`, says of each sample and position, before weights and reduction."""
    function = keras.losses.get(loss) if isinstance(loss, str) else loss
    y, output = ops.cast(y, output.dtype), ops.stop_gradient(output)
    if isinstance(function, keras.losses.Loss):
        function = function.call
    elif len(output.shape) == len(y.shape) + 1 and output.shape[-1] == 1:
        # As Keras does before it calls a function.
        y, output = (ops.expand_dims(y, -1), output) if len(y.shape) == 1 else (y, ops.squeeze(output, -1))
    return ops.convert_to_tensor(function(y, output))


def not_masked(output, like):
    """1 where Keras weighs what a loss says of an output, 0 where the output's mask leaves it out; shaped as `like`."""
    return _One(like)(like, output)


class _One(keras.losses.Loss):
    """1 for everything. The base class multiplies by the mask that an output carries, for which nothing is exported."""

    def __init__(self, like):
        super().__init__(name="not_masked", reduction="none")
        self.like = like

    def call(self, y_true, y_pred):
        return ops.ones_like(self.like, dtype=self.dtype)


def per_output(setting, outputs, names):
    """What `compile` was given for each output: one for all, a list, or a dict by name."""
    if isinstance(setting, dict):
        return [setting.get(name) for name in names or [None] * outputs]
    if isinstance(setting, (list, tuple)):
        return list(setting) if len(setting) == outputs else [setting[0]] * outputs
    return [setting] * outputs


def finite_or(target, own):
    """`target`, but for the samples (rows) in which it is not finite, `own`."""
    axes = tuple(range(1, len(target.shape)))
    return ops.where(ops.all(ops.isfinite(target), axis=axes, keepdims=True), target, own)


def weights_per_output(sample_weight, n_outputs):
    """The sample weights of each output, a list: one for all, or a structure as the outputs'."""
    flat = [None] if sample_weight is None else tree.flatten(sample_weight)
    return flat if len(flat) == n_outputs else [flat[0]] * n_outputs


def mean_weight(sample_weights):
    """One weight for each sample, `(batch,)`: the mean over outputs, and over time steps where those are weighted."""
    given = [_backend.wide(weight) for weight in sample_weights if weight is not None]
    if not given:
        return None
    per_sample = [ops.mean(ops.reshape(weight, (ops.shape(weight)[0], -1)), axis=1) for weight in given]
    return sum(per_sample) / len(per_sample)
