"""What is compared: every method trains on the same rows, from the same initial weights, for as many steps.

A *training* is one call of `fit`, or a few; it yields one or more *methods*, because the last weights, their moving
average and so on come from one and the same run. The warm-started ones go on, for the second half of the budget, from
weights that the first half left, stopped early.
"""

import functools
import json

import keras
import numpy as np
from keras import ops

import keras_ssd
import published
from experiments import AVERAGED, LEARNING_RATE, LOSS, WITHOUT_TEACHERS, Outcome, Watch


def plain(experiment, monte_carlo=True):
    """The whole budget without teachers, bit for bit what `model.fit` does; the average is fed behind its back."""
    model = experiment.model()
    watch = experiment.fit_averaged(model, experiment.n_epochs)
    averaged, last = model.get_weights(), watch.weights[-1]
    n_last = max(1, experiment.n_epochs // 4)
    swa = [np.mean(kept, axis=0, dtype="float64") for kept in zip(*watch.weights[-n_last:], strict=True)]

    def with_dropout(x):
        return keras_ssd.predict_stochastic(model, x, num_passes=30, seed=experiment.seed, verbose=0).mean

    score = functools.partial(experiment.outcome, model=model, watch=watch, n_epochs=experiment.n_epochs)
    yield score("plain, averaged", weights=averaged)
    yield score("SWA", weights=swa)
    loss = functools.partial(validation_loss, model=model, experiment=experiment)
    yield score("plain, best epoch", weights=min(watch.weights, key=loss))
    yield score("plain", weights=last)
    if monte_carlo:
        yield score("Monte Carlo dropout", weights=last, predict=with_dropout)


def keras_average(experiment):
    """The optimizer's own average of what it trains; the statistics of BatchNormalization are those of the last step.

    The best epoch is what a checkpoint behind `SwapEMAWeights` keeps.
    """
    model = experiment.model()
    model.compile(keras.optimizers.Adam(LEARNING_RATE, use_ema=True, ema_momentum=0.99), LOSS)
    averaged = Watch()
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    watch = experiment.fit(model, experiment.n_epochs, callbacks=[swap, averaged])
    score = functools.partial(experiment.outcome, model=model, watch=watch, n_epochs=experiment.n_epochs)
    yield score("Keras' average")
    loss = functools.partial(validation_loss, model=model, experiment=experiment)
    yield score("Keras' average, best epoch", weights=min(averaged.weights, key=loss))
    yield score("Keras' average, last weights", weights=watch.weights[-1])


def schedule_free(experiment, name, learning_rate):
    """Keras' ScheduleFreeAdamW as `fit` leaves it: at the point between its average "x" and its last step.

    Keras does not swap "x" in for evaluation; it is worked out of the optimizer's variables. The statistics of
    BatchNormalization are those of the training in all three.
    """
    model = experiment.model()
    optimizer = keras.optimizers.ScheduleFreeAdamW(learning_rate)
    model.compile(optimizer, LOSS)
    watch = experiment.fit(model, experiment.n_epochs)
    score = functools.partial(experiment.outcome, model=model, watch=watch, n_epochs=experiment.n_epochs)
    yield score(name)
    steps = [one for one in optimizer.variables if one.path.endswith("_momentum")]
    for weight, step in zip(model.trainable_variables, steps, strict=True):
        weight.assign((weight - (1 - optimizer.beta_1) * step) / optimizer.beta_1)
    yield score(f"{name}, x")
    loss = functools.partial(validation_loss, model=model, experiment=experiment)
    yield score(f"{name}, best epoch", weights=min(watch.weights, key=loss))


def validation_loss(weights, model, experiment):
    """That of a model which is given the weights."""
    model.set_weights(weights)
    return model.evaluate(*experiment.task.validation, batch_size=256, verbose=0)


def distilled(
    experiment,
    name,
    warm=False,
    unlabelled=False,
    ramp=0,
    generations=1,
    members=0,
    large=None,
    budgets=1,
    behind_blocks=False,
    learning_rate=LEARNING_RATE,
    **options,
):
    """Teachers by `keras_ssd`, from scratch or from the early-stopped weights; last and averaged weights.

    `ramp` is for how many epochs the weight of the term rises; `generations` share the second half of the budget;
    of so many `members`, trained before, the teacher is the mean; or it is the network `large`, trained before.
    From scratch it may take several `budgets`, as the control of a teacher that was trained before.
    `behind_blocks`: the teachers' dropout comes behind every block of a published network.
    """
    n_epochs = experiment.second_stage if warm else round(budgets * experiment.n_epochs)
    weights, seconds = experiment.first_stage[1] if warm else None, 0.0
    before = [experiment.first_stage[0]] if warm else []
    if members:
        watches, models = experiment.members(members)
        options["teacher"] = experiment.mean_of(models)
        before += watches
    if unlabelled:
        options["kd_sample_weight"] = False  # rows without a label have weight 0 in the task only
    if large:
        watch, options["teacher"] = experiment.of_network(large)
        before.append(watch)
    for epochs in np.array_split(np.arange(n_epochs), generations):
        model = experiment.model(weights)
        model.optimizer.learning_rate = learning_rate
        if behind_blocks:
            options["stochastic_layers"] = published.blocks(model)
        ssd = keras_ssd.wrap(model, seed=experiment.seed, **(options | AVERAGED))
        rising = functools.partial(_rising, full=float(ssd.kd_weight), epochs=ramp)
        callbacks = [keras_ssd.callbacks.KDWeightSchedule(rising)] if ramp else []
        data = experiment.joined() if unlabelled else None
        watch = experiment.fit(ssd, len(epochs), data=data, callbacks=callbacks)
        weights, seconds = watch.weights[-1], seconds + watch.total()
    averaged, watch.seconds = model.get_weights(), [seconds]
    yield experiment.outcome(name, model, watch, n_epochs, weights=weights, before=before)
    yield experiment.outcome(f"{name}, averaged", model, watch, n_epochs, weights=averaged, before=before)


def _rising(epoch, full, epochs):
    return full * min(1.0, epoch / epochs)


def several_snapshots(experiment, n=3):
    """A frozen teacher that is the mean of the last `n` epochs of the first half, from the early-stopped weights."""
    snapshots = [experiment.model(kept) for kept in experiment.first_stage[0].weights[-n:]]
    for number, one in enumerate(snapshots):
        one.name = f"snapshot_{number}"
    yield from distilled(experiment, "several snapshots", warm=True, teacher=experiment.mean_of(snapshots))


def continued(experiment):
    """The control of every warm start: the same weights, the same steps, no teachers."""
    watch, weights = experiment.first_stage
    yield experiment.outcome("stopped early", experiment.model(), watch, len(watch.seconds), weights=weights)
    yield from distilled(experiment, "continued", warm=True, **WITHOUT_TEACHERS)


def born_again(experiment, features=False):
    """One deterministic teacher by `keras.distillation`, from the early-stopped weights.

    For features Keras runs the student twice in a step, and moves its BatchNormalization statistics twice.
    """
    weights = experiment.first_stage[1]
    model = experiment.model(weights)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not features)
    if features:
        teacher, student = experiment.model(weights), model
        strategy = keras.distillation.FeatureDistillation(
            loss="mse", teacher_layer_name="representation", student_layer_name="representation"
        )
    else:
        # Keras takes the softmax itself.
        teacher, student = _logits(experiment.model(weights)), _logits(model)
        strategy = keras.distillation.LogitsDistillation(temperature=3.0, loss=keras.losses.KLDivergence())
    distiller = keras.distillation.Distiller(teacher, student, strategy, student_loss_weight=0.5)
    distiller.compile(keras.optimizers.Adam(LEARNING_RATE), loss)
    watch = experiment.fit(distiller, experiment.second_stage)
    name = "deterministic features" if features else "deterministic logits"
    yield experiment.outcome(name, model, watch, experiment.second_stage, before=experiment.first_stage[:1])


def _logits(model):
    """The network up to its softmax, but for a constant, which softmax does not see."""
    return keras.Model(model.inputs[0], ops.log(ops.maximum(model.outputs[0], 1e-7)))


class TwoPasses(keras.Model):
    """A model whose training step adds something to the loss, times `weight`, that needs a second pass of `student`."""

    def __init__(self, student, weight):
        super().__init__()
        self.student, self.weight = student, weight
        self.built = True

    def call(self, x, training=None):
        return self.student(x, training=training)


class RDrop(TwoPasses):
    """R-Drop (arXiv 2106.14448): two passes with dropout, each with the task's loss, drawn together."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if not training:
            return loss
        second = self.student(x, training=True)
        loss = loss + super().compute_loss(x, y, second, sample_weight, training)
        p, q = (ops.clip(one, 1e-7, 1.0) for one in (y_pred, second))
        return loss + self.weight * ops.mean(ops.sum((p - q) * (ops.log(p) - ops.log(q)), axis=-1)) / 2


def r_drop(experiment, weight=1.0):
    model = experiment.model()
    student = RDrop(model, weight)
    student.compile(keras.optimizers.Adam(LEARNING_RATE), LOSS)
    watch = experiment.fit(student, experiment.n_epochs)
    yield experiment.outcome("R-Drop", model, watch, experiment.n_epochs)


def soups(experiment, n=5, **options):
    """Model soups (arXiv 2203.05482) of runs that go on from the same weights; several times the budget.

    With `options` of `keras_ssd.wrap` the runs are distilled, and their averaged weights go into the soup.
    """
    weights, seconds = [], 0.0
    for number in range(n):
        seed = 1000 * (number + 1) + experiment.seed
        model = experiment.model(experiment.first_stage[1], seed)  # with dropout of its own
        student = keras_ssd.wrap(model, **(options | AVERAGED)) if options else model
        watch = experiment.fit(student, experiment.second_stage, seed=seed)
        weights.append(model.get_weights())
        seconds += watch.total()
    watch.seconds = [seconds]
    n_epochs = n * experiment.second_stage
    suffix = " of distilled" if options else ""

    def mean(of):
        return [np.mean(kept, axis=0) for kept in zip(*of, strict=True)]

    loss = functools.partial(validation_loss, model=model, experiment=experiment)
    trained = dict(model=model, watch=watch, n_epochs=n_epochs, before=experiment.first_stage[:1])
    score = functools.partial(experiment.outcome, **trained)
    yield score(f"uniform soup{suffix}", weights=mean(weights))
    ranked = sorted(weights, key=loss)
    kept = ranked[:1]
    for one in ranked[1:]:
        if loss(mean([*kept, one])) <= loss(mean(kept)):
            kept.append(one)
    yield score(f"greedy soup{suffix}", weights=mean(kept))


def members(experiment, n):
    """The mean of `n` networks, each averaged behind half the budget: n times the inference."""
    watches, models = experiment.members(n)
    teacher, *before = watches
    model = experiment.mean_of(models)
    yield experiment.outcome(f"mean of {n}", model, teacher, experiment.n_epochs // 2, before=before)


def larger(experiment, network):
    """A larger network by itself: what a small one could learn from."""
    watch, model = experiment.of_network(network)
    yield experiment.outcome(f"{network}, averaged", model, watch, experiment.n_epochs)


def ensemble(experiment, n):
    """`n` plain models of different seeds: n times the training and n times the inference."""
    outcomes = [experiment.of_another_seed(number) for number in range(n)]
    seconds = sum(one.seconds for one in outcomes)
    steps = sum(one.steps for one in outcomes)
    parts = [np.stack([getattr(one, part) for one in outcomes]) for part in ("validation", "test")]
    yield Outcome(f"ensemble of {n}", *(part.mean(axis=0) for part in parts), seconds, steps)
    votes = [np.eye(part.shape[-1])[part.argmax(axis=-1)].mean(axis=0) for part in parts]
    yield Outcome(f"ensemble of {n}, vote", *votes, seconds, steps, has_likelihood=False)


# Training -> the function, and the methods that it yields.
_PAPER = keras_ssd.PAPER
_UNIFORM = {"similarity": "uniform", "percentile": 0.0}
# A frozen teacher on outputs: `SEMI_SUPERVISED` when the rows were made.
_OUTPUTS = {"teacher": "snapshot", "num_teachers": 8, "distill": "outputs", "kd_weight": 1.0, "kd_sample_weight": False}
_OUTPUTS |= {"similarity": "kl", "percentile": 0.0, "ema_momentum": 0.0}
_DETERMINISTIC = {"stochastic_layers": (), "num_teachers": 1, **_UNIFORM}
_FIVE = {"num_teachers": 8, "distill": "outputs", "kd_weight": 1.0, "similarity": "kl", "percentile": 0.0}


def _ssd(name, **options):
    return functools.partial(distilled, name=name, **options), (name, f"{name}, averaged")


def _semi(name, **options):
    return _ssd(name, warm=True, **(_OUTPUTS | options))


TRAININGS = {
    "plain": (plain, ("plain, averaged", "SWA", "plain, best epoch", "plain", "Monte Carlo dropout")),
    # Networks without dropout: the teachers have some of their own.
    "plain, no dropout": (
        functools.partial(plain, monte_carlo=False),
        ("plain, averaged", "SWA", "plain, best epoch", "plain"),
    ),
    "self, dropout before the head": _ssd("self, dropout before the head", dropout_rate=0.3),
    "self, dropout behind the blocks": _ssd("self, dropout behind the blocks", dropout_rate=0.3, behind_blocks=True),
    "paper, dropout before the head": _ssd("paper, dropout before the head", warm=True, dropout_rate=0.3, **_PAPER),
    "paper, dropout behind the blocks": _ssd(
        "paper, dropout behind the blocks",
        warm=True,
        dropout_rate=0.3,
        behind_blocks=True,
        **_PAPER,
    ),
    "Keras' average": (
        keras_average,
        ("Keras' average", "Keras' average, best epoch", "Keras' average, last weights"),
    ),
    **{  # at the rate of all others, at Keras' default, at a large one
        name: (
            functools.partial(schedule_free, name=name, learning_rate=rate),
            (name, f"{name}, x", f"{name}, best epoch"),
        )
        for name, rate in ((f"ScheduleFreeAdamW {rate}", rate) for rate in (0.001, 0.0025, 0.01))
    },
    "continued": (continued, ("stopped early", "continued", "continued, averaged")),
    "self": _ssd("self"),
    "self, uniform": _ssd("self, uniform", **_UNIFORM),
    "ema": _ssd("ema", teacher="ema"),
    "ema, uniform": _ssd("ema, uniform", teacher="ema", **_UNIFORM),
    "paper": _ssd("paper", warm=True, **_PAPER),
    "paper, deterministic": _ssd("paper, deterministic", warm=True, **(_PAPER | _DETERMINISTIC)),
    "paper, uniform": _ssd("paper, uniform", warm=True, **(_PAPER | _UNIFORM)),
    "deterministic logits": (born_again, ("deterministic logits",)),
    "deterministic features": (functools.partial(born_again, features=True), ("deterministic features",)),
    "R-Drop": (r_drop, ("R-Drop",)),
    "soups": (soups, ("uniform soup", "greedy soup")),
    "soups of distilled": (
        functools.partial(soups, **_OUTPUTS),
        ("uniform soup of distilled", "greedy soup of distilled"),
    ),
    "several snapshots": (several_snapshots, ("several snapshots", "several snapshots, averaged")),
    "ensemble of 5": (functools.partial(ensemble, n=5), ("ensemble of 5", "ensemble of 5, vote")),
    "ensemble of 25": (functools.partial(ensemble, n=25), ("ensemble of 25", "ensemble of 25, vote")),
    "mean of 5": (functools.partial(members, n=5), ("mean of 5",)),
    "conv": (functools.partial(larger, network="conv"), ("conv, averaged",)),
    # Wrong labels: teachers that pull harder.
    "noise": _ssd("noise", kd_weight=1.0),
    "noise, uniform": _ssd("noise, uniform", kd_weight=1.0, **_UNIFORM),
    "noise, deterministic": _ssd("noise, deterministic", kd_weight=1.0, **_DETERMINISTIC),
    # Few labels: the same frozen teacher on all rows, on the labelled ones only, without guidance, without noise.
    "unlabelled": _semi("unlabelled", unlabelled=True),
    "labelled only": _semi("labelled only"),
    "ema, unlabelled": _ssd("ema, unlabelled", teacher="ema", kd_weight=1.0, unlabelled=True),
    # A teacher that is better than the student: the mean of five networks, each behind half of the budget.
    "taught by five": _ssd("taught by five", members=5, unlabelled=True, **_FIVE),
    "taught by five, labelled only": _ssd("taught by five, labelled only", members=5, **_FIVE),
    "plain, as many steps": _ssd("plain, as many steps", budgets=3.5, **WITHOUT_TEACHERS),
    "unlabelled, uniform": _semi("unlabelled, uniform", unlabelled=True, **_UNIFORM),
    "unlabelled, deterministic": _semi("unlabelled, deterministic", unlabelled=True, **_DETERMINISTIC),
}


def training(text):
    """A training by its name, or a variant of `distilled` as `name {"option": value, ...}`.

    Returns:
        `(function, names of the methods)`.
    """
    if text in TRAININGS:
        return TRAININGS[text]
    _, brace, options = text.partition("{")
    if not brace:
        raise ValueError(
            f"There is no training {text!r}. There are {sorted(TRAININGS)}, and variants of `distilled` such as "
            'ema {"teacher": "ema", "kd_weight": 1.0}'
        )
    options = {
        name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(brace + options).items()
    }
    return _ssd(text, **options)
