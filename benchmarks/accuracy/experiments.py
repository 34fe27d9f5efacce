"""What all methods of the benchmark share: data set, network, batches, budget, schedule, and what a run cost."""

import functools
import time
from typing import NamedTuple

import keras
import numpy as np

import keras_ssd
from data import har_data  # of the examples
from networks import NETWORKS

LEARNING_RATE = 1e-3
LOSS = "sparse_categorical_crossentropy"
BATCH_SIZE = 16
STEPS_PER_EPOCH = 50
PATIENCE = 4  # epochs
# Of `keras_ssd.wrap`: whatever trains is averaged, which does not change what is trained.
AVERAGED = {"ema_momentum": 0.99}
# With weight 0 no teacher is evaluated; a network without dropout could not have several.
WITHOUT_TEACHERS = dict(kd_weight=0, stochastic_layers=(), num_teachers=1, similarity="uniform", percentile=0.0)


class Outcome(NamedTuple):
    """What one method predicts, `(rows, classes)`, and what its training cost: seconds of processor time, steps.

    `has_likelihood`: whether the predictions are probabilities; shares of votes are not.
    """

    method: str
    validation: np.ndarray
    test: np.ndarray
    seconds: float
    steps: int
    has_likelihood: bool = True


class Watch(keras.callbacks.Callback):
    """Keeps the student's weights of each epoch, and processor time without that of the first, which compiles."""

    def on_train_begin(self, logs=None):
        self.weights, self.seconds = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.began = time.process_time()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.process_time() - self.began)
        self.weights.append(getattr(self.model, "student", self.model).get_weights())

    def total(self):
        return float(np.mean(self.seconds[1:] or self.seconds) * len(self.seconds))


class Experiment:
    """One data set, network, schedule, seed and budget.

    Args:
        task: a `data.Task`.
        network: name of one of `NETWORKS`.
        schedule: `"constant"` or `"cosine"`.
        seed: of weights, batches and dropout.
        n_epochs: the budget, in epochs of 50 steps of 16 rows.
    """

    def __init__(self, task, network, schedule, seed, n_epochs):
        self.task, self.network, self.schedule, self.seed, self.n_epochs = task, network, schedule, seed, n_epochs
        # Trained once for all that need them, and gone with the experiment.
        self.members, self.of_network, self.of_another_seed = map(
            functools.cache, (self.members, self.of_network, self.of_another_seed)
        )

    def model(self, weights=None, seed=None, network=None):
        keras.utils.set_random_seed(self.seed if seed is None else seed)
        model = NETWORKS[network or self.network](self.task.training[0].shape[1:], self.task.n_classes)
        if weights is not None:
            model.set_weights(weights)
        model.compile(keras.optimizers.Adam(LEARNING_RATE), LOSS)
        return model

    def fit(self, model, n_epochs, data=None, validate=False, callbacks=(), seed=None):
        """Trains; returns `Watch`."""
        seed = self.seed if seed is None else seed
        keras.utils.set_random_seed(seed)  # the same batches for all
        watch = Watch()
        callbacks = [watch, *callbacks]
        if self.schedule == "cosine":
            falling = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, n_epochs)
            callbacks.append(keras.callbacks.LearningRateScheduler(lambda epoch: float(falling(epoch))))
        data = self.labelled(seed) if data is None else data
        validation = self.task.validation if validate else None
        model.fit(**data, epochs=n_epochs, verbose=0, callbacks=callbacks, validation_data=validation)
        return watch

    def fit_averaged(self, model, n_epochs, seed=None):
        """Trains without teachers and leaves the moving average of the weights in the model; returns `Watch`.

        The weights of its epochs are, bit for bit, those of `model.fit`.
        """
        return self.fit(keras_ssd.wrap(model, **WITHOUT_TEACHERS, **AVERAGED), n_epochs, seed=seed)

    def outcome(self, method, model, watch, n_epochs, weights=None, predict=None, before=()):
        """What a trained model, or one that is given `weights`, predicts; what was trained before it costs, too."""
        if weights is not None:
            model.set_weights(weights)
        predict = predict or (lambda x: model.predict(x, batch_size=256, verbose=0))
        seconds = watch.total() + sum(one.total() for one in before)
        steps = (n_epochs + sum(len(one.seconds) for one in before)) * STEPS_PER_EPOCH
        return Outcome(method, predict(self.task.validation[0]), predict(self.task.test[0]), seconds, steps)

    @functools.cached_property
    def first_stage(self):
        """`(watch, weights)` of the first half of the budget, stopped early."""
        model = self.model()
        stop = keras.callbacks.EarlyStopping(patience=PATIENCE, restore_best_weights=True)
        watch = self.fit(model, self.n_epochs // 2, validate=True, callbacks=[stop])
        return watch, model.get_weights()

    def members(self, n):
        """`n` networks from initial weights of their own, each trained for half the budget and averaged.

        Returns:
            `(watches, models)`.
        """
        watches, models = [], []
        for number in range(n):
            seed = self.seed + 1000 * (number + 1)
            models.append(self.model(seed=seed))
            models[-1].name = f"member_{number}"
            watches.append(self.fit_averaged(models[-1], self.n_epochs // 2, seed=seed))
        return watches, models

    def of_network(self, network):
        """Another network, trained for the whole budget and averaged.

        Returns:
            `(watch, model)`.
        """
        model = self.model(network=network)
        return self.fit_averaged(model, self.n_epochs), model

    def of_another_seed(self, number):
        """What a plain network from initial weights and with batches of its own predicts."""
        seed = self.seed + 1000 * number
        model = self.model(seed=seed)
        return self.outcome("", model, self.fit(model, self.n_epochs, seed=seed), self.n_epochs)

    def mean_of(self, models):
        """One network that puts out the mean of several."""
        inputs = keras.Input(self.task.training[0].shape[1:])
        return keras.Model(inputs, keras.layers.average([one(inputs) for one in models]))

    def labelled(self, seed):
        """The labelled rows in epochs of one length; where they are fewer, each comes as often, but for one."""
        (x, y), n = self.task.training, STEPS_PER_EPOCH * BATCH_SIZE
        if len(y) > n:
            return {"x": har_data.EvenEpochs(x, y, STEPS_PER_EPOCH, BATCH_SIZE, seed)}
        rows = np.resize(np.arange(len(y)), n)
        return {"x": x[rows], "y": y[rows], "batch_size": BATCH_SIZE}

    @property
    def second_stage(self):
        return self.n_epochs - self.n_epochs // 2

    def joined(self):
        """Three rows without a label beside each that has one."""
        if self.task.unlabelled is None:
            raise ValueError("All rows are labelled: trainings with unlabelled rows need a regime such as 'labels 0.1'")
        joined = keras_ssd.join_unlabelled(
            self.task.training,
            self.task.unlabelled,
            ratio=3,
            batch_size=BATCH_SIZE,
            seed=self.seed,
            steps_per_epoch=STEPS_PER_EPOCH,
        )
        return {"x": joined}
