"""Keras layers that randomly augment windows `(batch, steps, channels)`, for example of wearable sensors.

The names follow the literature (Um et al. 2017, arXiv 1706.00527; the mask is from SpecAugment, arXiv 1904.08779). The
layers work in training only and have no weights. They belong in the model, after the normalisation of its inputs if
their strength is given in standard deviations. They do not count as noise of the teachers, as Keras' `GaussianNoise`
does: teachers see the student's augmented sample, the clean sample (`augmented_teachers=False`) or a view of their own
(`augmented_teachers="each"`).
"""

import math
from typing import Any

import keras
from keras import ops

from keras_ssd._typing import Shape, Tensor
from keras_ssd.settings import check_number


class Augmentation(keras.layers.Layer):
    """Base class of the layers of this module; a custom layer derived from it is recognised as augmentation.

    A subclass defines `augment(x)`, which is called in training only, and draws from `self.seed_generator`.

    Args:
        seed: integer or `None`.
    """

    def __init__(self, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seed, self.seed_generator = seed, keras.random.SeedGenerator(seed)
        self.supports_masking = self.built = True
        self._strength: tuple[str, ...] = ()  # the name of the other argument, of a layer of this module

    def _set_strength(self, name: str, value: float, interval: str) -> None:
        check_number(name, value, interval)
        self._strength = (name,)
        setattr(self, name, float(value))

    def augment(self, x: Tensor) -> Tensor:
        """Return augmented windows, `(batch, steps, channels)` as `x`; subclasses define it."""
        raise NotImplementedError(f"{type(self).__name__} should define `augment(x)`.")

    def call(self, x: Tensor, training: bool | None = False) -> Tensor:
        """Augment in training; return `x` unchanged otherwise."""
        return self.augment(x) if training else x

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return {**super().get_config(), "seed": self.seed, **{name: getattr(self, name) for name in self._strength}}


@keras.saving.register_keras_serializable(package="keras_ssd")
class Jitter(Augmentation):
    """Adds independent Gaussian noise to every value: the noise of the sensor.

    Args:
        stddev: standard deviation of the noise, > 0, in the unit of the input: after a `Normalization` layer, in
            standard deviations of the channel. Defaults to `0.05`.
        seed: integer or `None`.
    """

    def __init__(self, stddev: float = 0.05, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(seed, **kwargs)
        self._set_strength("stddev", stddev, "(0, inf)")

    def augment(self, x: Tensor) -> Tensor:
        return x + keras.random.normal(ops.shape(x), 0.0, self.stddev, self.compute_dtype, self.seed_generator)


@keras.saving.register_keras_serializable(package="keras_ssd")
class Scaling(Augmentation):
    """Multiplies every channel of every window by a random factor of mean 1: stronger or weaker movements.

    Args:
        stddev: standard deviation of the normally distributed factor, > 0. Defaults to `0.1`.
        seed: integer or `None`.
    """

    def __init__(self, stddev: float = 0.1, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(seed, **kwargs)
        self._set_strength("stddev", stddev, "(0, inf)")

    def augment(self, x: Tensor) -> Tensor:
        batch, _, channels = ops.shape(x)
        return x * keras.random.normal((batch, 1, channels), 1.0, self.stddev, self.compute_dtype, self.seed_generator)


@keras.saving.register_keras_serializable(package="keras_ssd")
class TimeMask(Augmentation):
    """Sets a random span of every window to 0, in all channels: values that the sensor missed.

    Args:
        max_fraction: the longest span, as a fraction of the window, in (0, 1]. The length is uniform between 0 and
            this maximum, the position uniform over all positions at which the span fits. Defaults to `0.25`.
        seed: integer or `None`.
    """

    def __init__(self, max_fraction: float = 0.25, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(seed, **kwargs)
        self._set_strength("max_fraction", max_fraction, "(0, 1]")

    def augment(self, x: Tensor) -> Tensor:
        batch, steps, _ = ops.shape(x)
        drawn = keras.random.uniform((2, batch, 1, 1), dtype="float32", seed=self.seed_generator)
        longest = ops.floor(self.max_fraction * ops.cast(steps, "float32"))
        length = ops.floor(drawn[0] * (longest + 1))
        start = ops.floor(drawn[1] * (ops.cast(steps, "float32") - length + 1))
        step = ops.reshape(ops.arange(steps, dtype="float32"), (1, -1, 1))
        masked = ops.logical_and(step >= start, step < start + length)
        return ops.where(masked, ops.zeros_like(x), x)


@keras.saving.register_keras_serializable(package="keras_ssd")
class TimeShift(Augmentation):
    """Shifts every window in time; the steps that leave it at one end enter at the other.

    For movements that repeat, of which a window may begin at any step. Not for padded windows: masks are not shifted,
    so Keras warns and drops them.

    Args:
        max_fraction: the largest shift to either side, as a fraction of the window, in (0, 1]; 0.5 makes all shifts
            possible. The shift is a uniform number of whole steps. Defaults to `0.25`.
        seed: integer or `None`.
    """

    def __init__(self, max_fraction: float = 0.25, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(seed, **kwargs)
        self._set_strength("max_fraction", max_fraction, "(0, 1]")
        self.supports_masking = False

    def augment(self, x: Tensor) -> Tensor:
        batch, steps, _ = ops.shape(x)
        longest = ops.floor(self.max_fraction * ops.cast(steps, "float32"))
        drawn = keras.random.uniform((batch, 1), dtype="float32", seed=self.seed_generator)
        shift = ops.floor(drawn * (2 * longest + 1)) - longest
        step = (ops.reshape(ops.arange(steps, dtype="int32"), (1, -1)) - ops.cast(shift, "int32")) % steps
        return ops.take_along_axis(x, ops.broadcast_to(ops.expand_dims(step, 2), ops.shape(x)), axis=1)


@keras.saving.register_keras_serializable(package="keras_ssd")
class Rotation(Augmentation):
    """Rotates the sensor about a random axis, drawn for every window: a different way to wear the device.

    The channels are consecutive triples (x, y, z) of the same device; all triples are rotated alike. The channels must
    not have been scaled separately: put this layer before a `Normalization`.

    Args:
        max_angle: the largest angle in degrees, in (0, 180]. Angles are uniform between 0 and this maximum, axes
            uniform on the sphere. Defaults to `30.0`.
        seed: integer or `None`.
    """

    def __init__(self, max_angle: float = 30.0, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(seed, **kwargs)
        self._set_strength("max_angle", max_angle, "(0, 180]")

    def augment(self, x: Tensor) -> Tensor:
        batch, steps, channels = ops.shape(x)
        if channels % 3:
            raise ValueError(
                f"`Rotation` rotates triples of channels (x, y, z). Received: windows of {channels} channels."
            )
        axis = keras.random.normal((batch, 3), dtype="float32", seed=self.seed_generator)
        angle = keras.random.uniform((batch,), 0.0, math.radians(self.max_angle), "float32", seed=self.seed_generator)
        rotation = ops.cast(rotation_matrices(axis, angle), self.compute_dtype)
        turned = ops.matmul(ops.reshape(x, (batch, -1, 3)), ops.swapaxes(rotation, 1, 2))
        # On PyTorch a product of float64 is float32.
        return ops.cast(ops.reshape(turned, (batch, steps, channels)), self.compute_dtype)


def rotation_matrices(axis: Tensor, angle: Tensor) -> Tensor:
    """Return matrices `(batch, 3, 3)` that rotate column vectors about an axis (Rodrigues' formula).

    Args:
        axis: `(batch, 3)`, of any length above 0.
        angle: `(batch,)` in radians, anticlockwise seen from the tip of the axis.
    """
    x, y, z = ops.unstack(axis / ops.sqrt(ops.sum(ops.square(axis), axis=1, keepdims=True) + 1e-12), axis=1)
    zero = ops.zeros_like(x)
    cross = ops.reshape(ops.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1), (-1, 3, 3))
    sine, cosine = ops.reshape(ops.sin(angle), (-1, 1, 1)), ops.reshape(ops.cos(angle), (-1, 1, 1))
    return ops.eye(3) + sine * cross + (1 - cosine) * ops.matmul(cross, cross)
