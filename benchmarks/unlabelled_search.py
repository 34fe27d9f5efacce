"""What makes unlabelled windows pay? Variants of distillation on UCI HAR with few labels, on validation data only.

    KERAS_BACKEND=jax python benchmarks/unlabelled_search.py --data-dir path [--fraction 0.1] [--only NAME ...]

Of the training split a fifth, another for every seed, is held out for validation. TFDS shuffles the windows, so its
people are in the other parts, too: what is chosen on it is chosen on known people. The test split is not read. Of the
rest as many windows keep their labels as `--fraction` of the whole training split. Every variant has the same number of
labelled windows in a step and the same number of steps; `warm` ones spend the first half on plain training. One row of
CSV for each variant and seed; those that are there already are not run again.
"""

import argparse
import pathlib
import sys
import time

import keras
import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, log_loss

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
import har
import keras_ssd
from _support import comparison, har_data
from keras_ssd import augmentation as aug

EPOCHS, STEPS, BATCH_SIZE = 20, 50, 16
# Layers before and behind the normalisation.
AUGMENTATION = {
    "none": lambda: ([], []),
    "jitter": lambda: ([], [aug.Jitter(0.1)]),
    "scaling": lambda: ([], [aug.Scaling(0.2)]),
    "mask": lambda: ([], [aug.TimeMask(0.5)]),
    "rotation": lambda: ([aug.Rotation(30)], []),
    "weak": lambda: ([aug.Rotation(15)], [aug.Scaling(0.1), aug.Jitter(0.05)]),
    "strong": lambda: ([aug.Rotation(30)], [aug.Scaling(0.2), aug.Jitter(0.1), aug.TimeMask(0.5)]),
    "unturned": lambda: ([], [aug.Scaling(0.2), aug.Jitter(0.1), aug.TimeMask(0.5)]),
}
# `teacher=None`: no wrapper at all; `kd_weight=0`: averaged weights only.
PLAIN = dict(augmentation="none", teacher=None)
AVERAGED = dict(augmentation="none", teacher="ema", kd_weight=0)
EMA = dict(
    augmentation="strong",
    teacher="ema",
    kd_weight=3.0,
    temperature=1.0,
    ratio=3,
    augmented_teachers=False,
    num_teachers=8,
    kd_sample_weight=False,
)
WARM = dict(EMA, teacher="snapshot", kd_weight=1.0, distill="outputs", similarity="kl", percentile=0, warm=True)
ONE = dict(num_teachers=1, similarity="uniform", stochastic_layers=())
RAMPED = dict(EMA, ramp=10)
VARIANTS = {
    "plain": PLAIN,
    "averaged": AVERAGED,
    "averaged, strong": dict(AVERAGED, augmentation="strong"),
    "snapshot, 1": WARM,
    "ema, 1, ramp": dict(RAMPED, kd_weight=1.0),
    "warm ema, 3": dict(WARM, teacher="ema", kd_weight=3.0),
    "averaged, weak": dict(AVERAGED, augmentation="weak"),
    "averaged, rotation": dict(AVERAGED, augmentation="rotation"),
    "averaged, unturned": dict(AVERAGED, augmentation="unturned"),
    "snapshot, 4, T 0.5": dict(WARM, kd_weight=4.0, temperature=0.5),
    "warm ema, 1": dict(WARM, teacher="ema"),
    "snapshot, 10": dict(WARM, kd_weight=10.0),
    "snapshot, 1, teachers augmented": dict(WARM, augmented_teachers=True),
    "snapshot, 1, T 3": dict(WARM, temperature=3.0),
    "snapshot, 1, 2 generations": dict(WARM, generations=2),
    "snapshot, 1, ratio 7": dict(WARM, ratio=7),
    "snapshot, 1, labelled only": dict(WARM, ratio=0),
    "snapshot, 1, nothing augmented, T 3": dict(WARM, augmentation="none", temperature=3.0),
    "snapshot, 1, uniform": dict(WARM, similarity="uniform"),
    "snapshot, 1, one deterministic": dict(WARM, **ONE),
    "ema, 3": EMA,
    "ema, 3, ramp": RAMPED,
    "ema, 10, ramp": dict(RAMPED, kd_weight=10.0),
}


def conv_net(x, n_classes, augmentation):
    """The net of `examples/har.py`, with augmentation before and behind its normalisation."""
    return har.conv_net(x, n_classes, *AUGMENTATION[augmentation]())


def train(x, y, labelled, unlabelled, n_classes, seed, augmentation, teacher, ratio=0, warm=False, ramp=0, **options):
    """One training; returns the fitted model."""
    generations = options.pop("generations", 1)

    def new_model(weights=None):
        return comparison.new_model(lambda: conv_net(x, n_classes, augmentation), seed, weights)

    def fit(model, epochs, data, callbacks=()):
        task = comparison.Task("uci_har", None, (data,), None, batch_size=None)
        comparison.fit(f"{augmentation} {teacher} {options}", model, task, seed, epochs, callbacks=callbacks)
        return model

    if ratio:
        options["kd_sample_weight"] = False
    known = x[labelled], y[labelled]
    few = data = har_data.EvenEpochs(*known, STEPS, BATCH_SIZE, seed)
    if ratio:
        sizes = dict(batch_size=BATCH_SIZE, seed=seed, steps_per_epoch=STEPS)
        data = keras_ssd.join_unlabelled(known, x[unlabelled], ratio=ratio, **sizes)
    if teacher is None:
        return fit(new_model(), EPOCHS, few)
    if not warm:
        ssd = keras_ssd.wrap(new_model(), teacher=teacher, seed=seed, **options)
        schedule = lambda epoch: options["kd_weight"] * min(1.0, epoch / max(ramp, 1))  # noqa: E731
        callbacks = [keras_ssd.callbacks.KDWeightSchedule(schedule)] if ramp else []
        return fit(ssd, EPOCHS, data, callbacks).student
    weights = fit(new_model(), EPOCHS // 2, few).get_weights()
    for _ in range(generations):
        ssd = keras_ssd.wrap(new_model(weights), teacher=teacher, seed=seed, **options)
        weights = fit(ssd, EPOCHS // 2 // generations, data).student.get_weights()
    return ssd.student


def split(dataset, fraction, seed):
    """`(labelled, unlabelled, validation)` rows of the training split."""
    n = len(dataset.y_train)
    first = n * (seed % 5) // 5
    validation = np.arange(first, n * (seed % 5 + 1) // 5)
    rest = np.setdiff1d(np.arange(n), validation)
    labelled = har_data.label_subset(dataset.y_train, rest, fraction * n / len(rest), seed)
    return labelled, np.setdiff1d(rest, labelled), validation


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=pathlib.Path, required=True)
    parser.add_argument("--fraction", type=float, default=0.02)
    parser.add_argument("--seeds", type=comparison.seeds, default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/unlabelled_search.csv"))
    parser.add_argument(
        "--every", type=int, default=1, help="how many steps of a window are averaged to one; default 1"
    )
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    dataset = har_data.load("uci_har", arguments.data_dir)
    x, y, n_classes = dataset.x_train, dataset.y_train, dataset.n_classes
    x = x.reshape(len(x), -1, arguments.every, x.shape[2]).mean(axis=2)
    for variant in arguments.only:
        for seed in arguments.seeds:

            def run(seed=seed, variant=variant):
                labelled, unlabelled, validation = split(dataset, arguments.fraction, seed)
                began = time.perf_counter()
                model = train(x, y, labelled, unlabelled, n_classes, seed, **VARIANTS[variant])
                seconds = time.perf_counter() - began
                predicted = model.predict(x[validation], verbose=0)
                keras.backend.clear_session()
                accuracy = accuracy_score(y[validation], predicted.argmax(axis=1))
                nll = log_loss(y[validation], predicted, labels=range(n_classes))
                return {variant: {"accuracy": accuracy, "nll": nll, "seconds": seconds}}

            key = {"every": arguments.every, "fraction": arguments.fraction, "seed": seed, "method": variant}
            comparison.resume(arguments.out, key, run)
    rows = pd.read_csv(arguments.out)
    print(
        rows.groupby(["every", "fraction", "method"], sort=False)[["accuracy", "nll", "seconds"]]
        .mean()
        .round(4)
        .to_string()
    )


if __name__ == "__main__":
    main()
