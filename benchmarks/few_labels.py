"""Few labels: do teachers that see other views gain over augmentation with averaged weights?

    KERAS_BACKEND=jax python benchmarks/few_labels.py --data-dir path --task "UCI HAR 2 %" [--arms NAME ...]
    python benchmarks/few_labels.py                                        # prints the tables of the stored rows

few_labels.md declares the comparisons. A run takes labelled rows and rows whose labels nothing sees, and scores other
rows once. All arms of a seed start from the same weights, behind the same augmentation, at a constant learning rate;
unless their name says otherwise they take as many steps of 16 labelled rows, and the averaged weights are scored. With
`--search` rows of the training split stand in for the test rows, which are not read.
"""

import argparse
import functools
import pathlib
import sys
from typing import NamedTuple

import keras
import numpy as np
import pandas as pd
from keras import ops
from matplotlib.figure import Figure
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, log_loss

sys.path += [str(pathlib.Path(__file__).parents[1] / "examples"), str(pathlib.Path(__file__).parent / "accuracy")]
import data as accuracy_data
import keras_ssd
from _support import comparison, empatica, har_data, sp_sw_har
from analysis import holm, markdown
from experiments import Watch
from keras_ssd.augmentation import Jitter, Rotation, Scaling, TimeMask, TimeShift
from methods import TwoPasses
from networks import conv, image_resnet

EPOCHS, BATCH_SIZE, RATIO = 20, 16, 3
SEEDS = list(range(200, 210))
RESULTS = pathlib.Path(__file__).parent / "results" / "few_labels"


class Task(NamedTuple):
    """Rows of one data set and seed.

    Attributes:
        labelled: `(x, y)`.
        unlabelled: `x`, in training.
        hidden: the labels of `unlabelled`, which only the arm "all labels" sees.
        scored: `(x, y)`.
        n_classes: number of classes.
        network: makes the network with its augmentation, from `(x, n_classes)`.
    """

    labelled: tuple
    unlabelled: np.ndarray
    hidden: np.ndarray
    scored: tuple
    n_classes: int
    network: object


def augmented(x, n_classes, first=(), then=()):
    """`conv` on windows, which are augmented, standardised as all of `x`, and augmented again."""
    inputs = windows = keras.Input(x.shape[1:])
    normal = keras.layers.Normalization(mean=x.mean(axis=(0, 1)), variance=x.var(axis=(0, 1)))
    for layer in (*first, normal, *then):
        windows = layer(windows)
    return keras.Model(inputs, conv(windows.shape[1:], n_classes)(windows))


def of_sensors(x, n_classes, rotations=(), shift=0.25):
    """Windows of movements: scaled, jittered, a part masked, shifted; `rotations` need the sensors' own units."""
    return augmented(x, n_classes, rotations, [Scaling(0.2), Jitter(0.1), TimeMask(0.25), TimeShift(shift)])


def of_turned_sensors(x, n_classes):
    return of_sensors(x, n_classes, [Rotation(10)])


def of_series(x, n_classes):
    """Series whose events have their time."""
    return of_sensors(x, n_classes, shift=0.05)


def of_images(x, n_classes):
    return image_resnet(x.shape[1:], n_classes)


def task_of(name, data_dir, seed, search=False):
    """One of `TASKS` with one seed, which draws who or what is labelled."""
    kind, _, what = name.partition(" ")
    if name.startswith("people "):
        return _people(what, data_dir, seed, search)
    if name.startswith("UCI HAR "):
        x, y, test = _uci_har(data_dir)
        fraction, network = float(what.split()[1]) / 100, of_turned_sensors
    else:
        (x, y), test, _ = accuracy_data.read("cifar10" if kind == "CIFAR-10" else what, data_dir)
        fraction, network = 0.1, of_images if kind == "CIFAR-10" else of_series
    rows = np.arange(len(y))
    scored, rest = np.empty(0, int), rows
    if search:  # TFDS shuffles UCI HAR, so people of these rows are in the other parts, too
        is_scored = (
            (rows * 5 // len(y) == seed % 5) if kind == "UCI" else np.random.default_rng(seed).random(len(y)) < 0.2
        )
        scored, rest = rows[is_scored], rows[~is_scored]
    labelled = har_data.label_subset(y, rest, fraction * len(y) / len(rest), seed, least=2)
    unlabelled = np.setdiff1d(rest, labelled)
    test = (x[scored], y[scored]) if search else test
    return Task((x[labelled], y[labelled]), x[unlabelled], y[unlabelled], test, len(np.unique(y)), network)


@functools.cache
def _uci_har(data_dir, every=4):
    """The published split; `every` steps of a window are averaged to one."""
    har = har_data.load("uci_har", data_dir)
    x, x_test = (w.reshape(len(w), -1, every, w.shape[2]).mean(axis=2) for w in (har.x_train, har.x_test))
    return x, har.y_train, (x_test, har.y_test)


@functools.cache
def _recordings(what, data_dir):
    """`(x, y, subjects)`; of UCI HAR the people of both published splits."""
    if what == "UCI HAR":
        (x, y, test), har = _uci_har(data_dir), har_data.load("uci_har", data_dir)
        subjects = np.append(har.subjects_train, har.subjects_test)  # no number is in both
        return np.concatenate([x, test[0]]), np.concatenate([y, test[1]]), subjects
    people = sp_sw_har.load(pathlib.Path(data_dir) / "sp-sw-har-dataset") if what == "smartwatch" else None
    people = people or empatica.load_stress_predict(pathlib.Path(data_dir) / "Stress-Predict-Dataset")
    x = people.x.reshape(len(people.x), -1, 4, people.x.shape[2]).mean(axis=2)
    return x, people.y, people.subjects


def _people(what, data_dir, seed, search):
    """Labels of five people, windows of others, scored on a third of all people, who are in no other part."""
    x, y, subjects = _recordings(what, data_dir)
    people = np.random.default_rng(seed).permutation(np.unique(subjects))
    n_scored = len(people) // 3
    if search:
        raise ValueError("Nothing is chosen on these people: another seed scores others.")
    parts = people[:n_scored], people[n_scored : n_scored + 5], people[n_scored + 5 :]
    scored, labelled, others = (np.flatnonzero(np.isin(subjects, part)) for part in parts)
    network = {"UCI HAR": of_turned_sensors, "smartwatch": of_sensors, "Stress-Predict": of_series}[what]
    n_classes = len(np.unique(y))
    return Task((x[labelled], y[labelled]), x[others], y[others], (x[scored], y[scored]), n_classes, network)


UCR = ("DistalPhalanxTW", "MedicalImages", "MiddlePhalanxTW", "PowerCons", "SyntheticControl")
TASKS = (
    "UCI HAR 2 %",
    "UCI HAR 10 %",
    *(f"people {name}" for name in ("UCI HAR", "smartwatch", "Stress-Predict")),
    *(f"UCR {name}" for name in UCR),
    "CIFAR-10",
)

AVERAGED = dict(keras_ssd.AVERAGING)
RECIPE = dict(keras_ssd.SEMI_SUPERVISED)
CONTROL = "averaged"
# Options of `wrap`; `steps`: as many times the steps of the others; `rows`: which rows, unless both kinds are joined.
ARMS = {
    CONTROL: dict(AVERAGED, rows="labelled"),
    "recipe": RECIPE,
    "averaged, as much time": dict(AVERAGED, rows="labelled", steps=5),
    "Pi-model": dict(by_hand=True),
    "mean teacher": dict(RECIPE, num_teachers=1, target_temperature=1.0, target_threshold=0.0, kd_fraction=1),
    "averaged, all labels": dict(AVERAGED, rows="all labels"),
    # Ablations.
    "one view": dict(RECIPE, num_teachers=1),
    "views without dropout": dict(RECIPE, stochastic_layers=()),
    "dropout, the student's view": dict(RECIPE, augmented_teachers=True),
    "dropout, the clean window": dict(RECIPE, augmented_teachers=False),
    "no threshold": dict(RECIPE, target_threshold=0.0),
    "not sharpened, no threshold": dict(RECIPE, target_temperature=1.0, target_threshold=0.0),
    "guided": dict(RECIPE, similarity="kl"),
    "labelled rows only": dict(RECIPE, rows="labelled"),
    "whole batches": dict(RECIPE, kd_fraction=1),
    "all windows, no teachers": dict(RECIPE, kd_weight=1e-12),  # they reach BatchNormalization
}


class PiModel(TwoPasses):
    """The Pi-model (arXiv 1610.02242) as one writes it by hand: two passes of every row should give the same answer.

    The squared distance of the probabilities counts `weight` times; the second pass is fixed.
    """

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if not training:
            return loss
        second = ops.stop_gradient(self.student(x, training=True))
        return loss + self.weight * ops.mean(ops.square(y_pred - second))


def train(task, seed, n_steps, rows="joined", steps=1, by_hand=False, **options):
    """One training of an arm; returns the model, which holds the averaged weights, and seconds without compilation."""
    every = np.concatenate([task.labelled[0], task.unlabelled])
    model = comparison.new_model(lambda: task.network(every, task.n_classes), seed)
    labelled = task.labelled
    if rows == "all labels":
        labelled = every, np.concatenate([task.labelled[1], task.hidden])
    n_steps = round(n_steps * steps)
    if rows == "joined":
        sizes = dict(batch_size=BATCH_SIZE, seed=seed, steps_per_epoch=n_steps)
        data = keras_ssd.join_unlabelled(labelled, task.unlabelled, ratio=RATIO, **sizes)
    else:
        data = har_data.EvenEpochs(*labelled, n_steps, BATCH_SIZE, seed)
    if by_hand:
        trained = PiModel(model, weight=task.n_classes)
        trained.compile(
            keras.optimizers.Adam(comparison.LEARNING_RATE, use_ema=True), "sparse_categorical_crossentropy"
        )
    else:
        trained = keras_ssd.wrap(model, seed=seed, **options)
    watch = Watch()
    keras.utils.set_random_seed(seed)
    trained.fit(data, epochs=EPOCHS, verbose=0, callbacks=[watch])
    return model, watch.total()


def scores(model, task):
    """Accuracy, of Stress-Predict's two unequal classes their mean recall, and the negative log-likelihood."""
    x, y = task.scored
    predicted = model.predict(x, verbose=0)
    is_right = predicted.argmax(axis=1) == y
    balanced = balanced_accuracy_score(y, predicted.argmax(axis=1))
    nll = log_loss(y, predicted, labels=np.arange(task.n_classes))
    return {"accuracy": is_right.mean(), "balanced_accuracy": balanced, "nll": nll}


def score_of(task):
    return "balanced_accuracy" if task == "people Stress-Predict" else "accuracy"


def table(rows):
    """Each arm of a task: means, the paired differences from the control with their 95 % intervals, and p."""
    lines = []
    for task, of_task in rows.groupby("task", sort=False):
        wide = of_task.pivot_table(index="seed", columns="method", values=score_of(task), sort=False)
        if CONTROL not in wide:
            continue
        for method in [name for name in ARMS if name in wide]:
            gains = (100 * (wide[method] - wide[CONTROL])).dropna()
            chosen = of_task[of_task.method == method]
            half = stats.sem(gains) * stats.t.ppf(0.975, len(gains) - 1) if len(gains) > 1 else np.nan
            line = {"task": task, "arm": method, "seeds": len(chosen), "score": wide[method].mean()}
            line |= {"nll": chosen.nll.mean(), "points": gains.mean(), "+-": half, "seconds": chosen.seconds.mean()}
            line |= {"above": f"{(gains > 0).sum()}/{len(gains)}"}
            lines.append(line)
    return pd.DataFrame(lines)


# As few_labels.md declares them: families of (name, tasks, method, control); Holm's correction is over a family.
FAMILIES = (
    [
        (TASKS[0], TASKS[:1], "recipe", control)
        for control in (CONTROL, "averaged, as much time", "Pi-model", "mean teacher")
    ],
    [
        *((task, (task,), "recipe", CONTROL) for task in TASKS[1:5]),
        ("UCR, five sets", TASKS[5:10], "recipe", CONTROL),
        (TASKS[10], TASKS[10:], "recipe", CONTROL),
    ],
)


def verdicts(rows):
    """The declared comparisons of which there are rows; of several tasks the task is the unit, else the seed."""
    lines = []
    for family in FAMILIES:
        found = []
        for name, tasks, method, control in family:
            score = score_of(name)
            of_tasks = rows[rows.task.isin(tasks)].pivot_table(index=["task", "seed"], columns="method", values=score)
            if not {method, control} <= set(of_tasks):
                continue
            gains = 100 * (of_tasks[method] - of_tasks[control]).dropna()
            gains = gains.groupby("task").mean() if len(tasks) > 1 else gains
            half = stats.sem(gains) * stats.t.ppf(0.975, len(gains) - 1)
            line = {"task": name, "recipe against": control, "units": len(gains), "points": gains.mean(), "+-": half}
            found.append({**line, "above": (gains > 0).sum(), "p": stats.ttest_1samp(gains, 0).pvalue})
        corrected = holm([line["p"] for line in found])
        lines += [{**line, "p (Holm)": p} for line, p in zip(found, corrected, strict=True)]
    return pd.DataFrame(lines)


def plot(rows, path):
    """The gain of the recipe over the control in every task: each seed, the mean, its 95 % interval."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes, names = figure.subplots(), []
    for task in TASKS:
        score = rows[rows.task == task].pivot_table(index="seed", columns="method", values=score_of(task))
        if {"recipe", CONTROL} <= set(score):
            gains = (100 * (score["recipe"] - score[CONTROL])).dropna()
            style = {"color": keras_ssd.plotting.method_styles(["distilled"])["distilled"]["color"]}
            axes.plot(gains, [len(names)] * len(gains), "o", alpha=0.5, **style)
            half = stats.sem(gains) * stats.t.ppf(0.975, len(gains) - 1)
            axes.errorbar(gains.mean(), len(names), xerr=half, fmt="kD", capsize=4)
            names.append(task)
    axes.axvline(0, color="gray", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set(xlabel="points over augmentation with averaged weights: each seed, mean, 95 % interval")
    figure.savefig(path, dpi=100, facecolor="white")


def stored(folder=RESULTS):
    """The rows of a folder, each run once."""
    rows = pd.concat([pd.read_csv(path) for path in sorted(folder.glob("*.csv"))])
    twice = rows[rows.duplicated(["task", "seed", "method"])]
    if len(twice):
        raise ValueError(f"{folder}: a run should be stored once. Received twice: {twice.iloc[0].to_dict()}")
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=pathlib.Path)
    parser.add_argument("--task", nargs="*", default=[], choices=TASKS)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=comparison.seeds, default=SEEDS)
    parser.add_argument("--n-steps", type=int, default=50, help=f"in each of {EPOCHS} epochs; default 50")
    parser.add_argument("--search", action="store_true", help="score rows of the training split")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    if arguments.search and arguments.out == RESULTS:
        parser.error("--search needs another --out: the stored rows are of test rows")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, seed in ((name, seed) for name in arguments.task for seed in arguments.seeds):
        task = task_of(name, arguments.data_dir, seed, arguments.search)
        for arm in arguments.arms:

            def run(name=name, arm=arm, task=task, seed=seed):
                model, seconds = train(task, seed, arguments.n_steps, **ARMS[arm])
                scored = {**scores(model, task), "seconds": seconds, "labels": len(task.labelled[1])}
                keras.backend.clear_session()
                print(name, seed, arm, {key: round(float(value), 4) for key, value in scored.items()}, flush=True)
                return {arm: scored}

            key = {"task": name, "seed": seed, "n_steps": arguments.n_steps, "method": arm}
            comparison.resume(arguments.out / f"{keras.backend.backend()}.csv", key, run)
    rows = stored(arguments.out)
    formats = {"score": "{:.4f}", "nll": "{:.3f}", "points": "{:+.1f}", "+-": "{:.1f}"}
    print(markdown(table(rows).set_index("task"), {**formats, "seconds": "{:.1f}"}) + "\n")
    print(markdown(verdicts(rows).set_index("task"), {**formats, "p": "{:.3f}", "p (Holm)": "{:.3f}"}))


if __name__ == "__main__":
    main()
