"""`wrap`, which makes an `SSDModel`, and the documentation of all options."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_ssd import keras_names
from keras_ssd._typing import Distill, Kind, Similarity
from keras_ssd.model import SSDModel


def wrap(
    model: keras.Model,
    teacher: Kind | str | keras.Model = "self",
    *,
    num_teachers: int | None = None,
    teacher_chunk: int | None = None,
    seed: int | None = None,
    distill: Distill | None = None,
    kd_weight: float | None = None,
    kd_sample_weight: bool = True,
    kd_fraction: float | None = None,
    temperature: float = 3.0,
    target_temperature: float = 1.0,
    target_threshold: float = 0.0,
    representation: str | None = None,
    similarity: Similarity | None = None,
    guidance_temperature: float | None = None,
    percentile: float | None = None,
    stochastic_layers: str | Sequence[str] | Callable | None = None,
    dropout_rate: float | None = None,
    augmented_teachers: bool | str = True,
    ema_momentum: float | None = None,
) -> SSDModel:
    """Wrap a Keras model so that `fit` trains it by stochastic self-distillation.

    The model is trained in place: `ssd.student` is the object that was passed, with the same architecture, size and
    latency. If it is compiled, its optimizer (with its state), loss and metrics are used, as in a further `model.fit`;
    otherwise call `ssd.compile(...)`. Two wrappers of one model share its optimizer. For a fresh optimizer compile the
    model again.

    Args:
        model: a built `keras.Model` for any task, trained or not. A subclassed model has no graph of layers, so only
            its outputs can be distilled, and the whole model is run for every teacher.
        teacher: where the teachers' weights come from.
            `"self"`: the student's current weights; the teachers branch off its forward pass at the first noise layer.
            `"snapshot"`: a frozen copy of the model's weights at the time of wrapping (`take_snapshot` renews it).
            `"ema"`: the exponential moving average of the student's weights.
            A `keras.Model`, or the path of a `.keras` file: another network, frozen.

        num_teachers: (teacher) N, number of stochastic passes per step, at least 1 (2 with guidance).
        teacher_chunk: number of teachers evaluated in one batch; fewer need less memory, with the same result in
            distribution. Defaults to `None`: all.
        seed: integer that fixes the teachers' noise. Defaults to `None`: follows `keras.utils.set_random_seed`.

        distill: (term) `"outputs"` (KL divergence of tempered softmaxes, binary likewise; mean squared error for
            regression), `"representation"` (mean squared error), or `"both"`.
        kd_weight: weight of the distillation term, >= 0. With 0 no teacher is evaluated and training is that of the
            plain model, bit for bit.
        kd_sample_weight: whether `sample_weight` and `class_weight` weigh the distillation term, too. With `False` a
            sample of weight 0, which needs no label, is distilled as any other (`keras_ssd.join_unlabelled`), and
            `metrics` given to `compile` are weighted. Defaults to `True`.
        kd_fraction: fraction of each batch used for the term, in (0, 1]: evenly spaced rows, at least one, which are
            redrawn in every step, so the estimate is unbiased. Defaults to `None`: with `"snapshot"` 1, as in the
            paper; else the largest of 1, 1/2, 1/4, ... for which the multiplications of the passes stay below a quarter
            of a plain training step. The attribute `teacher_cost` of the result reports both.
        temperature: T > 0 of the softmax when outputs are distilled or compared. Defaults to `3.0`.
        target_temperature: > 0, sharpens the target of a classification: all of its probabilities are raised to the
            power of 1 / `target_temperature` and normalised (MixMatch, arXiv 1905.02249, eq. 7). 0.01 makes it nearly a
            hard label. Defaults to `1.0`: the weighted mean of the teachers.
        target_threshold: probability in [0, 1): of a classification, only samples (positions) whose target, before it
            is sharpened, gives at least this probability to one class count in the term (FixMatch, arXiv 2001.07685,
            eq. 4). The logs show their share as `kd_share`. It is a probability at `temperature`, so pass
            `temperature=1` with it. Defaults to `0.0`: all count.
        representation: name of the layer whose output, flattened, is the representation. Defaults to `None`: the input
            of the last Dense layer. It is looked up only if representations are distilled or compared.

        similarity: (guidance) `"dot"`, `"cosine"`, `"euclidean"` (of representations), `"kl"` (of outputs), `"uniform"`
            (no guidance), or a callable `(student, teachers) -> scores` of shapes `(batch, features)`,
            `(batch, teachers, features)` and `(batch, teachers)`.
        guidance_temperature: h > 0, temperature of the softmax over teachers. Defaults to that of the similarity:
            5 (dot, euclidean), 0.1 (cosine), 1 (kl).
        percentile: epsilon, 0-100: teachers whose weight is below this percentile are left out. 0 keeps all.

        stochastic_layers: (noise) names of the layers that are random in the teachers, or a predicate on layers. A
            noise layer makes its own noise; the output of any other layer goes through dropout at `dropout_rate` (of
            whole channels if there are positions). Defaults to `None`: every noise layer except augmentation. An empty
            tuple makes one deterministic teacher, as a control, or teachers that differ only in their augmentation.
        dropout_rate: dropout rate in (0, 1) in the teachers only. It replaces the rates of Keras' layers, and of custom
            layers whose class names theirs, `keras_ssd_rates = ("rate",)`. In a model without noise layers the input of
            the head (the last layer with weights) goes through dropout. Defaults to `None`: the rates of the noise
            layers.
        augmented_teachers: what teachers see of the augmentation that layers in the model make (from Keras or
            `keras_ssd.augmentation`): `True`, the student's augmented sample; `False`, the clean sample, so that the
            student learns to give the same answer for both (consistency, as in mean teacher and FixMatch); `"each"`,
            a view of its own for every teacher, so that the target is the mean over views (MixMatch, eq. 6). With
            `"self"` the clean sample takes one more pass of the layers before the noise, without gradient, with
            BatchNormalization's moving statistics. With `"each"` the layers from the first augmentation on are run for
            every teacher, at a price that `kd_fraction` bounds; dropout is on beside it, unless `stochastic_layers` is
            empty. Another model sees the clean sample, or its own augmentation. Defaults to `True`.

        ema_momentum: (average) momentum in [0, 1) of an exponential moving average of the student's weights, which
            validation uses and which the student holds after `fit`. 0 switches it off. Except with `"ema"` it does
            not change the raw weights. Defaults to `None`: 0.99 with `"ema"`, and with `"self"` unless `kd_weight` is
            0; else 0.

    | | `"self"`, `"ema"` | a model | `"snapshot"` (the paper) |
    |---|---|---|---|
    | num_teachers | 8 | 8 | 30 |
    | distill | outputs | outputs | representation |
    | kd_weight | 0.1 | 1 | 1 |
    | similarity | kl | kl | dot |
    | percentile | 0 | 0 | 90 |

    With moving teachers, larger weights and representations with dot products cost accuracy. A subclassed model with
    `"snapshot"` takes the middle column: it has no representation. `keras_ssd.PAPER` and `keras_ssd.SEMI_SUPERVISED`
    are dicts of options: `wrap(model, **keras_ssd.PAPER)`.

    Returns:
        An `SSDModel`.

    Raises:
        ValueError: if an option is out of range, no layer makes noise, or the model cannot be distilled this way.

    Example:
        >>> model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        >>> ssd = keras_ssd.wrap(model)
        >>> history = ssd.fit(x, y, epochs=2, validation_split=0.2, verbose=0)
        >>> ssd.student.save("student.keras")
    """
    options: dict[str, Any] = {name: value for name, value in locals().items() if name not in ("model", "teacher")}
    ssd = SSDModel(model, teacher, **options)
    if model.compiled:
        _warn_of_an_ended_schedule(model.optimizer)
    return ssd


def _warn_of_an_ended_schedule(optimizer: Any) -> None:
    """Warn if a learning-rate schedule has come to (nearly) 0, so that training would change nothing."""
    schedule: Any = None if optimizer is None else keras_names.learning_rate_schedule(optimizer)
    steps = 0 if schedule is None else int(keras.ops.convert_to_numpy(optimizer.iterations))
    is_schedule = isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule)
    start = float(schedule(0)) if is_schedule else 0.0  # that of another callable is not known
    if steps and float(optimizer.learning_rate) <= 1e-3 * start:
        warnings.warn(
            f"`model` has an optimizer whose learning-rate schedule has ended: after {steps} steps the rate is "
            f"{float(optimizer.learning_rate):.3g}. The wrapped model goes on with this optimizer and its state. For a "
            "fresh start compile the model again before wrapping: model.compile(...).",
            stacklevel=3,
        )
