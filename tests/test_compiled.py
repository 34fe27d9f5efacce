"""Copies of what the model is compiled with: the same settings as the user's objects, a state of their own."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_ssd
from models import classifier, compiled
from same_weights import arrays, assert_same

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")


class Constant(keras.optimizers.schedules.LearningRateSchedule):
    """A user's schedule without a configuration."""

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, step):
        return self.rate


class Registered(Constant):
    """A user's schedule with a configuration, which no registry knows."""

    def get_config(self):
        return {"rate": self.rate}


class Scaled(keras.optimizers.SGD):
    """A user's optimizer whose `get_config` lacks its argument."""

    def __init__(self, scale=1.0, **options):
        super().__init__(**options)
        self.scale = scale

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient * self.scale, variable, learning_rate)


class ScaledTwice(Scaled):
    """A subclass that adds nothing."""

    def __init__(self, **options):
        super().__init__(**options)


def without_decay_of_biases():
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


def scaled_loss(inner):
    return keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0)


class Fixed(keras.optimizers.SGD):
    """A user's optimizer with a rate of its own."""

    def __init__(self):
        super().__init__(0.5)
        self.learning_rate = 0.25


OPTIMIZERS = {
    "weights excluded from decay": without_decay_of_biases,
    "a schedule without a configuration": lambda: keras.optimizers.SGD(Constant(0.5)),
    "a schedule that is not registered": lambda: keras.optimizers.SGD(Registered(0.5)),
    "a callable": lambda: keras.optimizers.SGD(lambda: 0.5),
    "an argument that the configuration lacks": lambda: Scaled(5.0, learning_rate=0.1),
    "a class without arguments": Fixed,
    "the same in a subclass": lambda: ScaledTwice(scale=5.0, learning_rate=0.1),
    "the same within a scaled loss": lambda: scaled_loss(Scaled(5.0, learning_rate=0.1)),
    "a schedule within a scaled loss": lambda: scaled_loss(keras.optimizers.SGD(Constant(0.5))),
    "excluded weights within a scaled loss": lambda: scaled_loss(without_decay_of_biases()),
}


def trained(wrapped, make):
    keras.utils.set_random_seed(1)
    model = compiled(classifier(), make(), metrics=())
    trained = keras_ssd.wrap(model, kd_weight=0) if wrapped else model
    trained.fit(X, Y, epochs=2, batch_size=8, shuffle=False, verbose=0)
    return arrays(model.weights)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_optimizer_trains_as_the_users_own(make):
    assert_same(trained(True, make), trained(False, make))


def test_excluded_weights_stay_excluded():
    model = compiled(classifier(), without_decay_of_biases(), metrics=())
    optimizer = keras_ssd.wrap(model).optimizer
    excluded = {v.name: not optimizer._use_weight_decay(v) for v in model.trainable_variables}
    assert excluded == {"kernel": False, "bias": True}


class Confident(keras.metrics.Metric):
    """A user's metric without `get_config`: the share of samples whose second class is above a threshold."""

    def __init__(self, threshold=0.5, name="confident", **options):
        super().__init__(name=name, **options)
        self.threshold = threshold
        self.above = self.add_weight(shape=(), initializer="zeros", name="above")
        self.seen = self.add_weight(shape=(), initializer="zeros", name="seen")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.above.assign_add(ops.sum(ops.cast(y_pred[:, 1] > self.threshold, "float32")))
        self.seen.assign_add(ops.cast(ops.shape(y_pred)[0], "float32"))

    def result(self):
        return self.above / self.seen


class Positive(keras.metrics.BinaryAccuracy):
    """A user's metric whose `__init__` takes a name only."""

    def __init__(self, name="positive"):
        super().__init__(name=name, threshold=0.4)


class Second(keras.metrics.MeanMetricWrapper):
    """A user's metric that brings its own function."""

    def __init__(self, name="second", **options):
        super().__init__(fn=lambda y_true, y_pred, power: y_pred[:, 1] ** power, power=2.0, name=name, **options)


METRICS = {
    "an argument that the configuration lacks": lambda: Confident(0.6),
    "the axis of a similarity": lambda: keras.metrics.CosineSimilarity(axis=0),
    "a lambda": lambda: keras.metrics.MeanMetricWrapper(lambda y_true, y_pred: y_pred[:, 1], name="mean"),
    "an argument of the function": lambda: keras.metrics.MeanMetricWrapper(_power, name="power", exponent=3.0),
    "a class with its own function": Second,
    "a class that fixes the arguments of its base": lambda: Positive("above"),
}


def _power(y_true, y_pred, exponent):
    return y_pred[:, 1] ** exponent


@pytest.mark.parametrize("make", METRICS.values(), ids=METRICS)
def test_a_metric_measures_as_the_users_own(make):
    targets = np.eye(2, dtype="float32")[Y]
    model = compiled(classifier(), loss="categorical_crossentropy", metrics=[make()])
    ssd = keras_ssd.wrap(model)
    plain = model.evaluate(X, targets, verbose=0, return_dict=True)
    assert ssd.evaluate(X, targets, verbose=0, return_dict=True) == pytest.approx(plain)
    assert not {id(m) for m in model.metrics} & {id(m) for m in ssd.metrics}


class Forgetful(keras.optimizers.SGD):
    """A user's optimizer whose argument is in no attribute."""

    def __init__(self, scale=1.0, **options):
        super().__init__(**options)
        self.factor = 2 * scale


class Demanding(keras.optimizers.SGD):
    """A user's optimizer that says that it has no configuration."""

    def get_config(self):
        raise NotImplementedError("none")


@pytest.mark.parametrize(
    "optimizer, message", [(Forgetful, "argument 'scale'"), (Demanding, "none"), (Fixed, "not take 'learning_rate'")]
)
def test_what_cannot_be_copied_is_refused(optimizer, message):
    model = compiled(classifier(), optimizer(), metrics=())
    if optimizer is Fixed:
        model.optimizer.learning_rate = 0.125
    with pytest.raises(ValueError, match=f"cannot be copied.*{message}.*SSDModel"):
        keras_ssd.wrap(model)
    keras_ssd.SSDModel(model).compile(optimizer(), "mse")
