"""Few labels: what do teachers that see other views add to augmentation? UCI HAR, validation rows only.

    KERAS_BACKEND=jax python benchmarks/views_search.py --data-dir path [--fraction 0.1] [--only NAME ...]

The split is that of `unlabelled_search.py`: validation on other windows of the same people, no row of the test split is
read. The network is `conv` of the accuracy benchmark behind augmentation, the learning rate constant, and the
averaged weights are scored. All variants take the same number of steps of 16 labelled windows. One row of CSV for each
variant and seed; those that are there already are not run again. Without `--only` it prints the table of all rows:
each variant against the control on the seeds that both have.
"""

import argparse
import pathlib
import sys
import time

import keras
import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, log_loss

sys.path += [str(pathlib.Path(__file__).parents[1] / "examples"), str(pathlib.Path(__file__).parent / "accuracy")]
import keras_ssd
from _support import comparison, har_data
from few_labels import augmented
from keras_ssd.augmentation import Jitter, Rotation, Scaling, TimeMask, TimeShift
from unlabelled_search import split

EPOCHS, BATCH_SIZE = 20, 16
CONTROL = "averaged"
SETTING = ["augmentation", "every", "n_steps", "fraction"]
# In the sensors' units, and after the normalisation.
AUGMENTATION = {
    "strong": lambda: ([Rotation(30)], [Scaling(0.2), Jitter(0.1), TimeMask(0.5)]),
    "mild": lambda: ([Rotation(10)], [Scaling(0.2), Jitter(0.1), TimeMask(0.25), TimeShift(0.25)]),
}
# A moving teacher of four views whose mean is sharpened; its weight rises over a fifth of the steps.
VIEWS = dict(
    teacher="ema",
    num_teachers=4,
    similarity="uniform",
    augmented_teachers="each",
    temperature=1.0,
    target_temperature=0.5,
    kd_weight=1.0,
    kd_sample_weight=False,
    kd_fraction=1,
    ratio=3,
)
ONE = dict(VIEWS, num_teachers=1)
VARIANTS = {
    CONTROL: dict(kd_weight=0, ema_momentum=0.99),
    "4 views": VIEWS,
    "4 teachers, clean": dict(VIEWS, augmented_teachers=False),
    "4 teachers, student's view": dict(VIEWS, augmented_teachers=True),
    "1 view": ONE,
    "2 views": dict(VIEWS, num_teachers=2),
    "8 views": dict(VIEWS, num_teachers=8),
    "4 views, not sharpened": dict(VIEWS, target_temperature=1.0),
    "4 views, T 0.25": dict(VIEWS, target_temperature=0.25),
    "4 views, hard": dict(VIEWS, target_temperature=0.01),
    "4 views, hard, threshold 0.9": dict(VIEWS, target_temperature=0.01, target_threshold=0.9),
    **{
        f"hard 0.9, {name}": dict(VIEWS, **(dict(target_temperature=0.01, target_threshold=0.9) | options))
        for name, options in {
            "no ramp": dict(ramp=0),
            "clean": dict(augmented_teachers=False),
            "student's view": dict(augmented_teachers=True),
            "1 view": dict(num_teachers=1),
            "weight 3": dict(kd_weight=3.0),
            "ratio 7": dict(ratio=7),
            "guided": dict(similarity="kl"),
            "momentum 0.999": dict(ema_momentum=0.999),
            "threshold 0.95": dict(target_threshold=0.95),
            "threshold 0.8": dict(target_threshold=0.8),
            "bounded": dict(kd_fraction=None),
            "bounded, no ramp": dict(kd_fraction=None, ramp=0),
            "bounded, no ramp, weight 3": dict(kd_fraction=None, ramp=0, kd_weight=3.0),
            "bounded, no ramp, T 0.5": dict(kd_fraction=None, ramp=0, target_temperature=0.5),
            "no dropout": dict(stochastic_layers=()),
        }.items()
    },
    "4 views, threshold 0.7": dict(VIEWS, target_threshold=0.7),
    "4 views, threshold 0.9": dict(VIEWS, target_threshold=0.9),
    "4 views, weight 0.3": dict(VIEWS, kd_weight=0.3),
    "4 views, weight 3": dict(VIEWS, kd_weight=3.0),
    "4 views, no ramp": dict(VIEWS, ramp=0),
    "4 views, ratio 1": dict(VIEWS, ratio=1),
    "4 views, ratio 7": dict(VIEWS, ratio=7),
    "4 views, labelled only": dict(VIEWS, ratio=0),
    "4 views, momentum 0.9": dict(VIEWS, ema_momentum=0.9),
    "4 views, momentum 0.999": dict(VIEWS, ema_momentum=0.999),
    "4 views, guided": dict(VIEWS, similarity="kl"),
    "4 views, no dropout": dict(VIEWS, stochastic_layers=()),
    "4 views, bounded": dict(VIEWS, kd_fraction=None),
    "4 views, teacher self": dict(VIEWS, teacher="self"),
}


def train(
    x,
    y,
    labelled,
    unlabelled,
    n_classes,
    seed,
    n_steps,
    augmentation,
    ratio=0,
    ramp=EPOCHS // 5,
    epochs=EPOCHS,
    **options,
):
    """One training; returns the model, which holds the averaged weights."""
    model = comparison.new_model(lambda: augmented(x, n_classes, *AUGMENTATION[augmentation]()), seed)
    known = x[labelled], y[labelled]
    data = har_data.EvenEpochs(*known, n_steps, BATCH_SIZE, seed)
    if ratio:
        sizes = dict(batch_size=BATCH_SIZE, seed=seed, steps_per_epoch=n_steps)
        data = keras_ssd.join_unlabelled(known, x[unlabelled], ratio=ratio, **sizes)
    ssd = keras_ssd.wrap(model, seed=seed, **options)
    weight = options["kd_weight"]
    rise = keras_ssd.callbacks.KDWeightSchedule(lambda epoch: weight * min(1.0, epoch / max(ramp, 1)))
    keras.utils.set_random_seed(seed)
    ssd.fit(data, epochs=epochs, verbose=0, callbacks=[rise] if weight and ramp else [])
    return model


def table(rows):
    """Means, and the mean difference from the control on the seeds that both have."""
    lines = []
    for (*setting, method), group in rows.groupby([*SETTING, "method"], sort=False):
        of_setting = rows[(rows[SETTING] == setting).all(axis=1)]
        control = of_setting[of_setting.method == CONTROL].set_index("seed")
        both = group.set_index("seed").join(control, rsuffix="_control", how="inner")
        gains = 100 * (both.accuracy - both.accuracy_control)
        lines.append(
            {
                **dict(zip(SETTING, setting, strict=True)),
                "method": method,
                "seeds": len(group),
                "accuracy": round(group.accuracy.mean(), 4),
                "nll": round(group.nll.mean(), 3),
                "points over control": f"{gains.mean():+.1f} ± {gains.std(ddof=1) / max(len(gains), 1) ** 0.5:.1f}",
                "above on": f"{(gains > 0).sum()}/{len(gains)}",
                "seconds": round(group.seconds.mean()),
            }
        )
    return pd.DataFrame(lines).to_string(index=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=pathlib.Path)
    parser.add_argument("--fraction", type=float, default=0.02)
    parser.add_argument("--augmentation", choices=list(AUGMENTATION), default="mild")
    parser.add_argument("--every", type=int, default=4, help="steps of a window that are averaged to one; default 4")
    parser.add_argument("--n-steps", type=int, default=50, help=f"steps in each of {EPOCHS} epochs; default 50")
    parser.add_argument("--seeds", type=comparison.seeds, default=[100, 101, 102, 103])
    parser.add_argument("--only", nargs="*", default=[], choices=list(VARIANTS))
    folder = pathlib.Path(__file__).parent / "results" / "examples"
    parser.add_argument("--out", type=pathlib.Path, default=folder / "views_search.csv")
    arguments = parser.parse_args()
    dataset = har_data.load("uci_har", arguments.data_dir) if arguments.only else None
    for seed in arguments.seeds:
        for variant in arguments.only:

            def run(seed=seed, variant=variant):
                labelled, unlabelled, validation = split(dataset, arguments.fraction, seed)
                x, y, n_classes = dataset.x_train, dataset.y_train, dataset.n_classes
                x = x.reshape(len(x), -1, arguments.every, x.shape[2]).mean(axis=2)
                began = time.perf_counter()
                setting = seed, arguments.n_steps, arguments.augmentation
                model = train(x, y, labelled, unlabelled, n_classes, *setting, **VARIANTS[variant])
                seconds = time.perf_counter() - began
                predicted = model.predict(x[validation], verbose=0)
                keras.backend.clear_session()
                scores = {
                    "accuracy": accuracy_score(y[validation], predicted.argmax(axis=1)),
                    "nll": log_loss(y[validation], predicted, labels=np.arange(n_classes)),
                }
                print(seed, variant, scores, round(seconds), flush=True)
                return {variant: {**scores, "seconds": seconds}}

            key = {name: getattr(arguments, name) for name in SETTING} | {"seed": seed, "method": variant}
            comparison.resume(arguments.out, key, run)
    print(table(pd.read_csv(arguments.out)))


if __name__ == "__main__":
    main()
