"""Small models and runs of `fit` for the tests of callbacks."""

import keras
import numpy as np

import keras_ssd
from same_weights import arrays

X = np.random.default_rng(0).normal(size=(24, 6)).astype("float32")
Y = np.arange(24) % 3


def make_model(optimizer=None, seed=0, jit_compile=False):
    # Compiling takes most of the time: only those tests ask for it that are about it.
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, "relu")(inputs)
    x = keras.layers.Dropout(0.5)(x)
    x = keras.layers.Dense(6)(x)
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(x))
    optimizer = optimizer or keras.optimizers.Adam(0.05)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=jit_compile)
    return model


def make_snapshot_model(optimizer=None, jit_compile=False, **options):
    options = {"num_teachers": 4, "percentile": 50, **options}
    return keras_ssd.wrap(make_model(optimizer, jit_compile=jit_compile), teacher="snapshot", **options)


def fit(model, callbacks=(), epochs=2, seed=1, **options):
    keras.utils.set_random_seed(seed)
    return model.fit(X, Y, batch_size=12, epochs=epochs, verbose=0, callbacks=list(callbacks), **options).history


class Shuffled(keras.utils.PyDataset):
    """Three batches in another order in every epoch, drawn from NumPy as in the docstring of SeedEachEpoch."""

    order = np.arange(len(X))

    def on_epoch_begin(self):
        self.order = np.random.permutation(len(X))

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rows = self.order[index::3]
        return X[rows], Y[rows]


class Script(keras.callbacks.Callback):
    """Puts values of our choice into the logs."""

    def __init__(self, values, name="val_loss"):
        super().__init__()
        self.values = values
        self.name = name

    def on_epoch_end(self, epoch, logs=None):
        logs[self.name] = self.values[epoch]


class Record(keras.callbacks.Callback):
    """Notes the weights and the optimizer at the end of every epoch."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher, self.optimizer, self.rate = [], [], [], []

    def on_epoch_end(self, epoch, logs=None):
        self.student.append(arrays(self.model.student.weights))
        self.teacher.append(arrays(self.model.distillation.teacher_weights.copies))
        self.optimizer.append(arrays(self.model.optimizer.variables))
        self.rate.append(float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)))


class Raise(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        raise RuntimeError("stop here")
