"""What `predict_stochastic` costs: its time per batch over that of `predict`, beside what its arithmetic says.

    KERAS_BACKEND=jax python benchmarks/passes_cost.py

The floor is the ratio of multiplications: (before the first dropout + N times the rest) / (all of it). The network is
that of the examples, Conv1D 64-128-64 on windows of (128, 9), with its dropout after the pooling ("head") or after
every block ("blocks"). Noise must be drawn, too, which the floor leaves out: so the noise alone is timed, and the same
passes one by one, as `predict` of the network with dropout that is always on. All times are those of the functions that
Keras compiles for `predict`, warm, on batches of 64, taken in turns; medians.
"""

import math
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

from keras_ssd import uncertainty

N_PASSES, BATCH_SIZE, N_BATCHES = 30, 64, 4
WARM_UP, REPEATS = 2, 7


class AlwaysOn(keras.layers.Dropout):
    """On in `predict`, too. (`training=True` in the call of a layer would not do: what `predict` says is stronger.)"""

    def call(self, inputs, training=True):
        """Noise, whatever the argument says."""
        return super().call(inputs, training=True)


def network(case, dropout=keras.layers.Dropout):
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((128, 9))
    for filters, kernel_size in [(64, 8), (128, 5), (64, 3)]:
        x = keras.layers.Conv1D(filters, kernel_size, padding="same", use_bias=False)(x)
        x = keras.layers.Activation("relu")(keras.layers.BatchNormalization()(x))
        x = dropout(0.1)(x) if case == "blocks" else x
    x = dropout(0.3)(keras.layers.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, keras.layers.Dense(6, activation="softmax")(x))


def noise_alone(case):
    """A model that draws the masks of one pass and applies them to one value for each row."""
    inputs = keras.Input((128, 9))
    noisy = []
    for filters in (64, 128, 64) if case == "blocks" else ():
        spread = keras.ops.repeat(inputs[:, :, :1], filters, axis=2)
        noisy.append(keras.ops.mean(AlwaysOn(0.1)(spread), axis=(1, 2)))
    noisy.append(keras.ops.mean(AlwaysOn(0.3)(keras.ops.repeat(inputs[:, 0, :1], 64, axis=1)), axis=1))
    return keras.Model(inputs, sum(noisy))


def floor(model):
    """Multiplications of N passes over those of one."""
    before = behind = 0
    is_random = False
    for layer in model.layers:
        is_random = is_random or isinstance(layer, keras.layers.Dropout)
        if isinstance(layer, (keras.layers.Conv1D, keras.layers.Dense)):
            count = math.prod(layer.kernel.shape) * (math.prod(layer.output.shape[1:-1]) or 1)
            before, behind = (before, behind + count) if is_random else (before + count, behind)
    return (before + N_PASSES * behind) / (before + behind)


def seconds(predict, x):
    began = time.perf_counter()
    predict(x, batch_size=BATCH_SIZE, verbose=0)
    return (time.perf_counter() - began) / N_BATCHES


def main():
    x = np.random.default_rng(0).normal(size=(N_BATCHES * BATCH_SIZE, 128, 9)).astype("float32")
    print(f"{keras.backend.backend()}, N = {N_PASSES}, batch {BATCH_SIZE}")
    for case in ("head", "blocks"):
        model = network(case)
        predictor = uncertainty.Predictor(model, N_PASSES, seed=0)
        timed = (model, predictor, network(case, AlwaysOn), noise_alone(case))
        taken = [[seconds(one.predict, x) for one in timed] for _ in range(WARM_UP + REPEATS)]
        plain, stochastic, single, noise = 1000 * np.median(taken[WARM_UP:], axis=0)
        ratio, least = stochastic / plain, floor(model)
        print(
            f"{case}: predict {plain:.2f} ms, {N_PASSES} passes {stochastic:.2f} ms, "
            f"one by one {N_PASSES * single:.2f} ms, their noise alone {N_PASSES * noise:.2f} ms; "
            f"ratio {ratio:.2f}, floor {least:.2f}, over floor {ratio / least:.2f}, "
            f"without the noise {(stochastic - N_PASSES * noise) / plain / least:.2f}, "
            f"over one by one {stochastic / (N_PASSES * single):.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
