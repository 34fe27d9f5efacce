"""`wrap`: the short way from a Keras model to an `SSDModel`, and the documentation of all options."""

from keras_ssd.model import SSDModel


def wrap(
    model,
    teacher="self",
    n_teachers=None,
    distill=None,
    kd_weight=None,
    task_weight=1.0,
    similarity=None,
    guidance_temperature=None,
    percentile=None,
    temperature=3.0,
    representation=None,
    stochastic_layers=None,
    dropout_rate=None,
    teacher_chunk=None,
    seed=None,
    momentum=0.99,
    average=None,
    augmented_teachers=True,
    confidence_weighted=False,
    name=None,
):
    """Wrap a Keras model so that `fit` trains it by stochastic self-distillation.

    The model itself is trained, in place: `ssd.student` is the very object that was passed, ready to be saved, exported
    and deployed, of the same architecture, size and latency. If it was compiled, its optimizer's settings (the state is
    fresh), loss and metrics are taken over; otherwise call `ssd.compile(...)` as usual.

    Args:
        model: a built `keras.Model` for any task, trained or not. Functional or Sequential; a subclassed one has no
            graph of layers, so only its outputs can be distilled, and all of it is run for every teacher.
        teacher: where the teachers' weights come from.
            `"self"`: the student's own of this step; they branch off its forward pass at the first noise layer.
            `"snapshot"`: a frozen copy of what the model has when it is wrapped (`take_snapshot` renews it).
            `"ema"`: an exponential moving average of the student's.
            A `keras.Model`, or the path of a `.keras` file: another network, frozen. It is not changed.
        n_teachers: N, stochastic passes per step, at least 1 (2 with guidance).
        distill: `"outputs"` (KL divergence of tempered softmaxes, binary likewise; mean squared error for regression),
            `"representation"` (mean squared error), or `"both"`.
        kd_weight: weight of the distillation term, >= 0. With 0 no teacher is evaluated and training is that of the
            plain model, bit for bit.
        task_weight: weight of the task loss, >= 0. Regularisation losses are not weighted. Defaults to `1.0`.
        similarity: `"dot"`, `"cosine"`, `"euclidean"` (of representations), `"kl"` (of outputs), `"uniform"` (no
            guidance), or a callable `(student, teachers) -> scores` of shapes `(batch, features)`,
            `(batch, teachers, features)` and `(batch, teachers)`.
        guidance_temperature: h > 0, temperature of the softmax over teachers. Defaults to that of the similarity:
            5 (dot, euclidean), 0.1 (cosine), 1 (kl).
        percentile: epsilon, 0-100: teachers whose weight lies below this percentile are left out. 0 keeps all.
        temperature: T > 0 of the softmax when outputs are distilled or compared. Defaults to `3.0`.
        representation: name of the layer whose output, flattened, is the representation. Defaults to `None`: what feeds
            the last Dense layer.
        stochastic_layers: names of the layers that are random in the teachers, or a predicate on layers. Defaults to
            `None`: every noise layer except augmentation, see `augmented_teachers`. An empty tuple makes one
            deterministic teacher, the control of stochasticity.
        dropout_rate: dropout rate in (0, 1) of those layers in the teachers only. Defaults to `None`: their own.
        teacher_chunk: how many teachers are evaluated in one batch; less memory, same result in distribution. Defaults
            to `None`: all.
        seed: integer that fixes the teachers' noise. Defaults to `None`: follows `keras.utils.set_random_seed`.
        momentum: of the moving average, in [0, 1). Defaults to `0.99`.
        average: whether an exponential moving average of the student's weights is held, which validation, `evaluate`
            and `predict` use and which the student carries after `fit`. Defaults to `None`: with `"ema"`, and with
            `"self"` unless `kd_weight` is 0. What is trained is the same with and without.
        augmented_teachers: whether teachers see the sample that augmentation layers in the model (Keras' own and those
            of `keras_ssd.augmentation`) made for the student, or the clean one, so that the student learns to give the
            same answer for both (consistency, as in mean teacher and FixMatch). The clean sample is run through what
            the teachers otherwise share with the student: with `"self"` one pass more, without gradient, by
            BatchNormalization's moving statistics. Another model always sees the clean sample. Defaults to `True`.
        confidence_weighted: whether outputs are distilled the less the less sure their target is: each sample's term
            (each position's, each unit's) is multiplied by `1 - entropy / log(classes)` of the teachers' weighted mean
            of probabilities at T = 1, through which no gradient flows. Representations are not weighted, nor are the
            values of a regression, which have no entropy. Defaults to `False`.
        name: name of the wrapper. Defaults to `"ssd_"` and the model's.

    | | `"self"`, `"ema"` | a model | `"snapshot"` (the paper) |
    |---|---|---|---|
    | n_teachers | 8 | 8 | 30 |
    | distill | outputs | outputs | representation |
    | kd_weight | 0.1 | 1 | 1 |
    | similarity | kl | kl | dot |
    | guidance_temperature | 1 | 1 | 5 |
    | percentile | 0 | 0 | 90 |

    Moving teachers get a small weight because larger ones, and representations with dot products, cost accuracy. A
    subclassed model with `"snapshot"` takes the middle column: it has no representation.

    Returns:
        An `SSDModel`.

    Raises:
        ValueError: if an option is out of range, no layer makes noise, or the model cannot be distilled this way; the
            message names the argument, what was received and what to do.

    Example:
        >>> model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        >>> ssd = keras_ssd.wrap(model)
        >>> ssd.fit(x, y, epochs=50, validation_split=0.2)
        >>> ssd.student.save("student.keras")
    """
    ssd = SSDModel(
        model,
        teacher=teacher,
        n_teachers=n_teachers,
        distill=distill,
        kd_weight=kd_weight,
        task_weight=task_weight,
        similarity=similarity,
        guidance_temperature=guidance_temperature,
        percentile=percentile,
        temperature=temperature,
        representation=representation,
        stochastic_layers=stochastic_layers,
        dropout_rate=dropout_rate,
        teacher_chunk=teacher_chunk,
        seed=seed,
        momentum=momentum,
        average=average,
        augmented_teachers=augmented_teachers,
        confidence_weighted=confidence_weighted,
        name=name,
    )
    if model.compiled:
        ssd.compile_as(model)
    return ssd
