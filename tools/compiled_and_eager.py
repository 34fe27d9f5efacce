"""Train the same wrapped models compiled and eagerly, and tell where they differ.

    KERAS_BACKEND=jax python tools/compiled_and_eager.py

The quick tests run eagerly on TensorFlow; users' models run compiled. Combinations of rank, kind of output, type of
numbers, kind of teacher, what is distilled and sizes of the batches are drawn so that every pair of values occurs.
Each is trained, evaluated and asked for predictions in both ways, from the same weights and seeds. A line is printed
for each that fails or differs, also if the plain model takes what the wrapped one does not. On PyTorch both ways are
eager.
"""

import itertools
import sys
import traceback

import keras
import numpy as np

import keras_ssd

AXES = {
    "rank": (2, 3, 4, 5),
    "kind": ("categorical", "sparse", "binary", "regression"),
    "policy": ("float32", "float64", "mixed_float16", "mixed_bfloat16", "bfloat16"),
    "teacher": ("self", "ema", "snapshot"),
    "distill": ("outputs", "representation", "both"),
    "batches": ((3, 1), (1, 1), (3, 0), (0, 3)),
    "weighted": (False, True),
}
UNITS = {"categorical": 3, "sparse": 3, "binary": 1, "regression": 2}
ACTIVATIONS = {"categorical": "softmax", "sparse": "softmax", "binary": "sigmoid", "regression": None}
LOSSES = {
    "categorical": "categorical_crossentropy",
    "sparse": "sparse_categorical_crossentropy",
    "binary": "binary_crossentropy",
    "regression": "mse",
}
# Two orders of the same sums differ by this much.
TOLERANCES = {"float32": 1e-4, "float64": 1e-4, "mixed_float16": 2e-2, "mixed_bfloat16": 5e-2, "bfloat16": 5e-2}


class Batches(keras.utils.PyDataset):
    """Batches of the given sizes; an empty one has the shapes of the others."""

    def __init__(self, case, output_shape):
        super().__init__()
        generator = np.random.default_rng(0)
        self.batches = []
        for size in case["batches"]:
            x = generator.normal(size=(size, *[4] * (case["rank"] - 2), 2)).astype("float32")
            shape = (size, *output_shape)
            y = generator.normal(size=shape).astype("float32")
            if case["kind"] == "binary":
                y = (y > 0).astype("float32")
            elif case["kind"] != "regression":
                y = generator.integers(0, 3, shape[:-1])
                y = np.eye(3, dtype="float32")[y] if case["kind"] == "categorical" else y.astype("int32")
            weight = generator.uniform(0.5, 1.5, (size, *[1] * (y.ndim - 1))).astype("float32")
            self.batches.append((x, y, weight) if case["weighted"] else (x, y))

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def combinations(seed=0):
    """Cases, so that every pair of values of two axes occurs in one of them."""
    names, generator = list(AXES), np.random.default_rng(seed)
    pairs = {
        (a, i, b, j)
        for a, b in itertools.combinations(names, 2)
        for i, j in itertools.product(range(len(AXES[a])), range(len(AXES[b])))
    }

    def new(case):
        return {(a, case[a], b, case[b]) for a, b in itertools.combinations(names, 2)} & pairs

    while pairs:
        drawn = [{name: int(generator.integers(len(AXES[name]))) for name in names} for _ in range(200)]
        best = max(drawn, key=lambda case: len(new(case)))
        if not new(best):
            a, i, b, j = min(pairs)
            best = {**best, a: i, b: j}
        pairs -= new(best)
        yield {name: AXES[name][number] for name, number in best.items()}


def network(case):
    """A layer for each position, dropout of single values, and a head for each position."""
    inputs = x = keras.Input((*[4] * (case["rank"] - 2), 2))
    x = keras.layers.Dense(5, activation="relu")(x)
    x = keras.layers.Dropout(0.4, name="representation")(x)
    outputs = keras.layers.Dense(UNITS[case["kind"]], dtype=None if "mixed" not in case["policy"] else "float32")(x)
    outputs = keras.layers.Activation(ACTIVATIONS[case["kind"]] or "linear", dtype=outputs.dtype)(outputs)
    return keras.Model(inputs, outputs)


def run(case, wrapped, eagerly):
    """What a user sees: the logs of `fit`, `evaluate`, and the predictions, as one list of arrays."""
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy(case["policy"])
    model = network(case)
    model.compile(keras.optimizers.SGD(0.1), LOSSES[case["kind"]], metrics=["mse"], run_eagerly=eagerly)
    data = Batches(case, model.output_shape[1:])
    trained = model
    if wrapped:
        trained = keras_ssd.wrap(
            model,
            num_teachers=3,
            seed=5,
            ema_momentum=0.5,
            **{name: case[name] for name in ("teacher", "distill")},
            **({} if case["distill"] == "outputs" else {"representation": "representation"}),
        )
    logs = trained.fit(data, validation_data=data, epochs=2, verbose=0, shuffle=False).history
    results = [np.array(logs[name]) for name in sorted(logs)]
    results += [np.array(trained.evaluate(data, verbose=0)), trained.predict(data, verbose=0)]
    if wrapped:
        predicted = keras_ssd.predict_stochastic(
            trained, max((x for x, *_ in data.batches), key=len), num_passes=3, seed=2, verbose=0
        )
        results += [np.asarray(value) for value in predicted if value is not None]
    return results


def main():
    cases, bad = list(combinations()), 0
    for number, case in enumerate(cases):
        outcome = {}
        ways = {
            "plain": (False, False),
            "plain, eager": (False, True),
            "compiled": (True, False),
            "eager": (True, True),
        }
        for name, options in ways.items():
            try:
                outcome[name] = run(case, *options)
            except Exception as error:
                outcome[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:150] if str(error) else ''}"
                if "--trace" in sys.argv:
                    traceback.print_exc()
        keras.backend.clear_session()
        texts = {name: result for name, result in outcome.items() if isinstance(result, str)}
        message = None
        if texts and not ("plain" in texts and len(texts) == len(ways)):
            message = str(texts)
        elif not texts:
            tolerance = TOLERANCES[case["policy"]]

            def agree(a, b, tolerance=tolerance, outcome=outcome):
                pairs = zip(outcome[a], outcome[b], strict=True)
                return all(np.allclose(*pair, rtol=tolerance, atol=tolerance, equal_nan=True) for pair in pairs)

            # On TensorFlow Keras' own loss of an empty batch is NaN eagerly.
            if agree("plain", "plain, eager") and not agree("compiled", "eager"):
                message = f"differ: {outcome['compiled'][:6]} and {outcome['eager'][:6]}"
            elif not all(np.isfinite(one).all() for one in outcome["compiled"]) and all(
                np.isfinite(one).all() for one in outcome["plain"]
            ):
                message = f"not finite, the plain model is: {outcome['compiled'][:6]}"
        bad += message is not None
        if message:
            print(case, message, flush=True)
        elif sys.stderr.isatty():
            print(f"{number + 1}/{len(cases)}", end="\r", file=sys.stderr)
    print(f"{len(cases)} combinations on {keras.backend.backend()}, {bad} fail or differ")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
