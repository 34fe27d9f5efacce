"""Trains by every method on every data set and seed, and writes one row of scores for each to a CSV file.

    python benchmarks/accuracy/run.py --quick                             # 4 sets, 2 seeds, needs no download of data
    python benchmarks/accuracy/run.py --data-dir path --jobs 2            # path holds UCRArchive_2018, UCI HAR Dataset
    python benchmarks/accuracy/run.py --data-dir path --regime "labels 0.1" --trainings plain unlabelled --seeds 5
    python benchmarks/accuracy/run.py --data-dir path --trainings 'ema {"teacher": "ema", "kd_weight": 1.0}'
    python benchmarks/accuracy/run.py --data-dir path --regime "search all labels" --seeds 100,101  # on validation rows
    python benchmarks/accuracy/run.py --data-dir path --datasets cifar10 --network image_resnet

What is compared and why stands in protocol.md, written before the runs. What the CSV file holds already is not run
again, so that a run can be interrupted or extended at any time. It can be shared out, too: runs that go on at the same
time each write a file of their own, and analysis.py, which makes tables and plots of the rows, takes them all.
The test split is scored once for each row and never looked at otherwise. KERAS_BACKEND chooses the backend.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import sys
import threading
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

N_BINS = 15
OPTIONS = ["network", "schedule", "regime", "n_epochs"]
SECTION = [*OPTIONS, "backend"]  # what is compared with each other
KEY = [*SECTION, "dataset", "seed"]


def tempered(probabilities, temperature):
    return softmax(np.log(np.clip(probabilities, 1e-12, 1)) / temperature, axis=-1)


def negative_log_likelihood(probabilities, labels):
    return float(-np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, 1)).mean())


def best_temperature(probabilities, labels):
    """The temperature in 1/20 to 20 at which the likelihood of the validation rows is highest."""
    logits = np.log(np.clip(probabilities, 1e-12, 1))

    def loss(log_temperature):
        log_p = log_softmax(logits / np.exp(log_temperature), axis=-1)
        return -log_p[np.arange(len(labels)), labels].mean()

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def reliability(probabilities, labels):
    """For each of 15 bins of confidence: `[rows, sum of confidences, rows that are right]`."""
    confidence, right = probabilities.max(axis=-1), probabilities.argmax(axis=-1) == labels
    bins = np.minimum((confidence * N_BINS).astype(int), N_BINS - 1)
    of_bin = [bins == number for number in range(N_BINS)]
    return [[int(one.sum()), round(float(confidence[one].sum()), 4), int(right[one].sum())] for one in of_bin]


def scores(outcome, validation, test):
    """All that is known of one method: from `y` of validation and test, and the predictions for them."""
    finite = bool(np.isfinite(outcome.validation).all() and np.isfinite(outcome.test).all())
    row = {"method": outcome.method, "status": "finished" if finite else "diverged"}
    row |= {"seconds": round(outcome.seconds, 3), "steps": outcome.steps}
    if not finite:
        return row | {"accuracy": 0.0, "validation_accuracy": 0.0}
    row |= {
        "accuracy": float((outcome.test.argmax(-1) == test).mean()),
        "validation_accuracy": float((outcome.validation.argmax(-1) == validation).mean()),
    }
    if not outcome.has_likelihood:
        return row
    own, predictions = (np.asarray(one, "float64") for one in (outcome.validation, outcome.test))
    temperature = best_temperature(own, validation)
    bins = reliability(predictions, test)
    gaps = [abs(right - confidence) for _, confidence, right in bins]
    return row | {
        "nll": negative_log_likelihood(predictions, test),
        "nll_calibrated": negative_log_likelihood(tempered(predictions, temperature), test),
        "temperature": temperature,
        "ece": sum(gaps) / len(test),
        "brier": float(np.square(predictions - np.eye(predictions.shape[-1])[test]).sum(-1).mean()),
        "validation_nll": negative_log_likelihood(own, validation),
        "reliability": json.dumps(bins, separators=(",", ":")),
    }


def work(dataset, seed, trainings, options):
    """One data set and seed, by several trainings: the rows of all, and what failed. Runs in a process of its own."""
    import keras

    import data
    from experiments import Experiment
    from methods import training

    task = data.load(dataset, options["data_dir"], options["regime"], seed)
    experiment = Experiment(task, options["network"], options["schedule"], seed, options["n_epochs"])
    rows, failures = [], []
    for name in trainings:
        function, _ = training(name)
        try:
            rows += [scores(outcome, task.validation[1], task.test[1]) for outcome in function(experiment)]
        except Exception as error:  # the other trainings took their time
            failures.append(f"{name} FAILED: {error!r}")
    keras.backend.clear_session()
    shared = {name: options[name] for name in OPTIONS} | {"backend": keras.backend.backend()}
    shared |= {"dataset": dataset, "seed": seed, "n_training": len(task.training[1])}
    return [shared | row for row in rows], failures


def pending(table, arguments):
    """`(dataset, seed, trainings)` of which the table lacks a row."""
    import data
    from methods import training

    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    fixed = {name: getattr(arguments, name) for name in OPTIONS} | {"backend": backend}
    same = table[(table[list(fixed)] == pd.Series(fixed)).all(axis=1)] if len(table) else table
    done = set(zip(same.dataset, same.seed, same.method, strict=True)) if len(same) else set()
    for seed in arguments.seeds:
        for dataset in arguments.datasets or data.names(arguments.data_dir):
            lacking = [
                name
                for name in arguments.trainings
                if any((dataset, seed, method) not in done for method in training(name)[1])
            ]
            if lacking:
                yield dataset, seed, lacking


def end_with_parent():
    """Lets a process of the pool end when the script is killed; it would train on, for nobody."""

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def results(todo, options, n_jobs):
    """Yields what was to do, its rows and what failed, as each is through.

    Now and then the processes are replaced: the backends never give back what they compiled.
    """
    for start in range(0, len(todo), 8 * n_jobs):
        with concurrent.futures.ProcessPoolExecutor(
            n_jobs, multiprocessing.get_context("spawn"), end_with_parent
        ) as pool:
            jobs = {pool.submit(work, *one, options): one for one in todo[start : start + 8 * n_jobs]}
            for job in concurrent.futures.as_completed(jobs):
                error = job.exception()
                yield jobs[job], *(job.result() if error is None else ([], [f"FAILED: {error!r}"]))


def read(path):
    """A table as it was written, to the last digit, so that its rows stay as they are when they are written again."""
    return pd.read_csv(path, float_precision="round_trip")


def write(table, path):
    """A table is never half written."""
    from keras_ssd.files import written_beside

    with written_beside(path) as written:
        table.to_csv(written, index=False)


def parse(argv):
    from _support import comparison  # of the examples, found through data
    from methods import TRAININGS
    from networks import NETWORKS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=pathlib.Path, help="of UCRArchive_2018, UCI HAR Dataset, CIFAR-10-dataset")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="default: all that are there")
    parser.add_argument(
        "--trainings",
        nargs="+",
        metavar="NAME",
        default=["plain", "continued", "self", "ema", "paper"],
        help=f"of {', '.join(TRAININGS)}; or a variant, see methods.training",
    )
    parser.add_argument("--seeds", type=comparison.seeds, default=[0, 1, 2], help="how many, or which (0,5,7)")
    parser.add_argument("--network", default="conv", choices=list(NETWORKS))
    parser.add_argument("--schedule", default="constant", choices=["constant", "cosine"])
    parser.add_argument("--regime", default="all labels", help="`all labels`, `labels 0.1`, `noise 0.4`; see data.load")
    parser.add_argument("--epochs", dest="n_epochs", type=int, default=20, help="of 50 steps; the budget; default 20")
    parser.add_argument("--jobs", type=int, default=1, help="processes; default 1")
    parser.add_argument("--quick", action="store_true", help="4 sets, 2 seeds, 4 epochs")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/accuracy.csv"))
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.seeds, arguments.n_epochs = [0, 1], 4
    if arguments.n_epochs < 2:
        parser.error("--epochs should be at least 2: half of them are a warm start's first stage")
    return arguments


def main(argv=None):
    import data  # noqa: F401  makes the examples importable

    arguments = parse(argv)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    table = read(arguments.out) if arguments.out.exists() else pd.DataFrame()
    todo = list(pending(table, arguments))
    options = {name: getattr(arguments, name) for name in (*OPTIONS, "data_dir")}
    began, failed = time.perf_counter(), 0
    for number, (one, rows, failures) in enumerate(results(todo, options, arguments.jobs), 1):
        dataset, seed, trainings = one
        failed += len(failures)
        for failure in failures:
            print(f"{dataset}, seed {seed}: {failure}", flush=True)
        if not rows:
            continue
        table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
        table = table.drop_duplicates([*KEY, "method"], keep="first")  # what was scored stays
        write(table, arguments.out)
        elapsed = time.perf_counter() - began
        left = elapsed / number * (len(todo) - number)
        print(
            f"{number}/{len(todo)} {dataset}, seed {seed}: {len(trainings)} trainings; "
            f"{elapsed / 60:.1f} min, {left / 60:.1f} min left",
            flush=True,
        )
    return int(failed > 0 or (len(table) > 0 and (table.status == "diverged").any()))


if __name__ == "__main__":
    sys.exit(main())
