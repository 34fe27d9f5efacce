"""What a distilled training step costs, over a plain one: time, memory, time to compile.

    KERAS_BACKEND=jax python benchmarks/step_cost.py --quick

Every way to train a network is timed in one process, a few steps of each in turn, so that what disturbs the machine
disturbs all alike. Memory is the peak of a fresh process. `cases.py` holds the networks.
"""

import argparse
import csv
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import keras
import numpy as np

import keras_ssd
from cases import CASES, batch_of, build_variant

BACKEND = keras.backend.backend()
RESULTS = pathlib.Path(__file__).parent / "results"
EXPERIMENTS = ("table", "sweep", "calls", "memory")
COLUMNS = (
    "backend experiment case variant num_teachers batch chunk step_ms ratio ratio_min ratio_max cpu_ratio fraction "
    "floor target first_step_s first_step_ratio first_step_cpu_ratio peak_mb memory_ratio"
).split()


class Stepper:
    """A model's own compiled training step on a batch at hand; nothing else of `fit`."""

    def __init__(self, model, batch):
        self.model = model
        start, start_cpu = time.perf_counter(), time.process_time()
        self._prepare(batch)
        self.run(1)
        self.first_step = time.perf_counter() - start, time.process_time() - start_cpu

    def _prepare(self, batch):
        if BACKEND == "tensorflow":
            import tensorflow as tf

            self.data = iter(tf.data.Dataset.from_tensors(batch).repeat())
        else:
            self.data = tuple(map(keras.ops.convert_to_tensor, batch))
        if BACKEND == "jax":
            self.model.train_on_batch(*batch)  # creates the metrics' variables
            kinds = ("trainable", "non_trainable", "optimizer", "metrics")
            owners = {"optimizer": self.model.optimizer}
            names = {"optimizer": "variables"}
            self.state = tuple(
                [v.value for v in getattr(owners.get(k, self.model), names.get(k, f"{k}_variables"))] for k in kinds
            )
        self.model.make_train_function()

    def run(self, n_steps):
        """Run steps and wait for them; the seconds that one took, by the clock and of the processors."""
        step = self.model.train_function
        start, start_cpu = time.perf_counter(), time.process_time()
        if BACKEND == "tensorflow":
            for _ in range(n_steps):
                logs = step(self.data)
            float(logs["loss"])
        elif BACKEND == "jax":
            import jax

            for _ in range(n_steps):
                _, self.state = step(self.state, iter([self.data]))
            jax.block_until_ready(self.state)
        else:
            for _ in range(n_steps):
                logs = step([self.data])
            float(logs["loss"])
        return (time.perf_counter() - start) / n_steps, (time.process_time() - start_cpu) / n_steps


def compare(steppers, seconds, repeats=5):
    """Time several steppers in turn.

    Returns:
        For each name a list of `repeats` pairs, seconds of one step by the clock and of the processors. Each is the
        median of short bursts, in which the steppers take turns; those that are slow take part in few of them.
    """
    once = {name: min(s.run(1)[0], s.run(1)[0]) for name, s in steppers.items()}
    bursts = {name: max(1, round(0.03 / once[name])) for name in steppers}
    slow = {name for name in steppers if once[name] > 5 * min(once.values())}
    per_repeat = seconds / repeats - sum(once[name] * bursts[name] for name in slow)
    turns = max(3, round(per_repeat / sum(once[name] * bursts[name] for name in set(steppers) - slow)))
    times = {name: [] for name in steppers}
    for _ in range(repeats):
        bouts = {name: [] for name in steppers}
        for turn in range(turns):
            for name in steppers:
                if turn == 0 or name not in slow:
                    bouts[name].append(steppers[name].run(bursts[name]))
        for name, bout in bouts.items():
            times[name].append(tuple(map(statistics.median, zip(*bout, strict=True))))
    return times


def measure(case_name, variants, seconds, batch=64, experiment="table"):
    """Compare variants, `(name, num_teachers, chunk)`, with the plain model; a row of results for each."""
    case = CASES[case_name]
    steppers, rows = {}, []
    for variant in [("plain", 0, None), *variants]:
        model = build_variant(case, *variant)
        steppers[variant] = Stepper(model, batch_of(case, batch))
        note(f"{case_name}, {variant[0]}, N={variant[1]}: first step {steppers[variant].first_step[0]:.1f} s")
    times = compare(steppers, seconds)
    plain, *_ = times.values()
    first_steps = [stepper.first_step for stepper in steppers.values()]
    for (name, num_teachers, chunk), first_step in zip(steppers, first_steps, strict=True):
        own = times[name, num_teachers, chunk]
        ratios = [one[0] / other[0] for one, other in zip(own, plain, strict=True)]
        row = {
            "backend": BACKEND,
            "experiment": experiment,
            "case": case_name,
            "variant": name,
            "num_teachers": num_teachers,
            "batch": batch,
            "chunk": chunk,
            "step_ms": 1000 * _median(own, 0),
            "ratio": _median(own, 0) / _median(plain, 0),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "cpu_ratio": _median(own, 1) / _median(plain, 1),
            "first_step_s": first_step[0],
            "first_step_ratio": first_step[0] / first_steps[0][0],
            "first_step_cpu_ratio": first_step[1] / first_steps[0][1],
        }
        if name in case.teachers:
            # The step of the teachers' multiplications alone, by the library's own count.
            cost = steppers[name, num_teachers, chunk].model.teacher_cost
            row["fraction"], row["floor"] = cost.fraction, 1 + cost.relative
            row["target"] = case.targets[name][BACKEND]
        rows.append(row)
    keras.backend.clear_session()
    return rows


class Caller:
    """`train_on_batch` of a model: a step, and what Keras and the wrapper do around it."""

    def __init__(self, model):
        self.model = model
        self.batch = np.zeros((16, 16), "float32"), np.zeros(16, "int32")
        self.run(3)

    def run(self, n_steps):
        start, start_cpu = time.perf_counter(), time.process_time()
        for _ in range(n_steps):
            self.model.train_on_batch(*self.batch)
        return (time.perf_counter() - start) / n_steps, (time.process_time() - start_cpu) / n_steps


def measure_calls(seconds):
    """Time `train_on_batch` of sixty small layers; a row for each way to wrap the model."""
    options = {"plain": None, "no teachers": {"kd_weight": 0}, "averaged": keras_ssd.AVERAGING, "self": {}}
    callers = {}
    for name, chosen in options.items():
        layers = [keras.layers.Dense(16, activation="relu") for _ in range(60)]
        head = [keras.layers.Dropout(0.3), keras.layers.Dense(3, activation="softmax")]
        model = keras.Sequential([keras.Input((16,)), *layers, *head])
        model.compile("adam", "sparse_categorical_crossentropy")
        callers[name] = Caller(model if chosen is None else keras_ssd.wrap(model, **chosen))
    times = compare(callers, seconds)
    for name, own in times.items():
        ratios = [one[0] / other[0] for one, other in zip(own, times["plain"], strict=True)]
        yield {
            "backend": BACKEND,
            "experiment": "train_on_batch",
            "case": "deep",
            "variant": name,
            "num_teachers": 8 if name == "self" else 0,
            "batch": 16,
            "chunk": None,
            "step_ms": 1000 * _median(own, 0),
            "ratio": _median(own, 0) / _median(times["plain"], 0),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "cpu_ratio": _median(own, 1) / _median(times["plain"], 1),
        }
    keras.backend.clear_session()


def _median(times, index):
    return statistics.median(pair[index] for pair in times)


def peak_memory():
    """Peak memory of this process in bytes: the accelerator's if there is one, else resident memory."""
    if BACKEND == "torch":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
    if BACKEND == "jax":
        import jax

        statistics_of_device = jax.local_devices()[0].memory_stats()
        if statistics_of_device:
            return statistics_of_device["peak_bytes_in_use"]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        if tf.config.list_physical_devices("GPU"):
            return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    # Not `getrusage`: its maximum is inherited from the process that started this one.
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def memory_of(case_name, variant, batch):
    """Peak memory of a few steps in a fresh process, in MB."""
    task = json.dumps([case_name, variant, batch])
    command = [sys.executable, __file__, "--memory-of", task]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    peak = int(result.stdout.split()[-1]) / 2**20
    note(f"{case_name}, {variant[0]}, N={variant[1]}, chunk {variant[2]}: {peak:.0f} MB")
    return peak


def measure_memory(case_name, variants, batch=64):
    """Peak memory of the plain model and of variants, `(name, num_teachers, chunk)`; a row of results for each."""
    variants = [("plain", 0, None), *variants]
    peaks = [memory_of(case_name, variant, batch) for variant in variants]
    rows = []
    for (name, num_teachers, chunk), peak in zip(variants, peaks, strict=True):
        rows.append(
            {
                "backend": BACKEND,
                "experiment": "memory",
                "case": case_name,
                "variant": name,
                "num_teachers": num_teachers,
                "batch": batch,
                "chunk": chunk,
                "peak_mb": peak,
                "memory_ratio": peak / peaks[0],
            }
        )
    return rows


def warm_up():
    """One step of a small model, so that what a backend loads once is not counted as the first model's compiling."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.1), keras.layers.Dense(2)])
    model.compile("adam", "mse")
    model.train_on_batch(keras.ops.zeros((2, 4)), keras.ops.zeros((2, 2)))


def table_variants(case, quick):
    own = [(teacher, case.num_teachers, None) for teacher in case.teachers]
    rivals = [] if quick and case is not CASES["head"] else case.rivals
    return own + [(rival, 1 if rival == "distiller" else case.num_teachers, None) for rival in rivals]


def run(case_names, experiments, quick):
    """Yield the rows of all experiments as they come."""
    seconds = 5 if quick else 30
    for name in case_names if "table" in experiments else ():
        yield from measure(name, table_variants(CASES[name], quick), seconds)
    if "sweep" in experiments:
        counts = (1, 16, 256) if quick else (1, 2, 4, 8, 16, 32, 64, 128, 256)
        for name in ("head", "blocks"):
            yield from measure(name, [("self", n, None) for n in counts], seconds, experiment="teachers")
        if not quick:
            yield from measure("head", [("snapshot", n, None) for n in counts], seconds, experiment="teachers")
            yield from measure("head", [("naive", n, None) for n in counts[:5]], seconds, experiment="teachers")
        for batch in (16, 512) if quick else (16, 32, 64, 128, 256, 512):
            for name in ("head", "blocks"):
                variants = [("self", CASES[name].num_teachers, None)]
                yield from measure(name, variants, seconds / 2, batch=batch, experiment="batch")
    if "calls" in experiments:
        yield from measure_calls(seconds)
    if "memory" in experiments:
        for name in case_names:
            variants = [("self", CASES[name].num_teachers, None)]
            if name == "blocks":
                variants += [("self", 256, 8)] + ([] if quick else [("self", 8, 1), ("naive", 8, None)])
            yield from measure_memory(name, variants)


def note(text):
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def print_table(rows):
    print(f"{BACKEND}, {os.cpu_count()} cores, keras {keras.__version__}")
    head = (
        "case, variant, N, batch, chunk, step ms, ratio (range), CPU ratio, fraction, floor, target, "
        "first step (CPU ratio), MB (ratio)"
    )
    print("| " + head.replace(", ", " | ") + " |\n" + "|---" * len(head.split(", ")) + "|")
    for row in rows:
        cells = [row["case"], row["variant"], row["num_teachers"], row["batch"], row["chunk"] or ""]
        if "ratio" in row:
            missed = " !" if row["ratio"] > row.get("target", float("inf")) else ""
            cells.append(f"{row['step_ms']:.2f}")
            cells.append(f"{row['ratio']:.2f} ({row['ratio_min']:.2f}-{row['ratio_max']:.2f}){missed}")
            cells.append(f"{row['cpu_ratio']:.2f}")
            cells += [f"{row[name]:.3g}" if name in row else "" for name in ("fraction", "floor", "target")]
            known = "first_step_s" in row
            cells += [f"{row['first_step_s']:.1f} s ({row['first_step_cpu_ratio']:.2f})" if known else "", ""]
        else:
            cells += [""] * 7 + [f"{row['peak_mb']:.0f} ({row['memory_ratio']:.2f})"]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def write_csv(rows, path):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def draw(rows, path):
    """Cost against the number of teachers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    rows = [row for row in rows if row["experiment"] == "teachers" and row["num_teachers"]]
    for case, variant in dict.fromkeys((row["case"], row["variant"]) for row in rows):
        line = [row for row in rows if (row["case"], row["variant"]) == (case, variant)]
        counts = [row["num_teachers"] for row in line]
        color = axes.plot(counts, [row["ratio"] for row in line], "o-", label=f"{case}, {variant}")[0].get_color()
        if "floor" in line[0]:
            axes.plot(counts, [row["floor"] for row in line], ":", color=color)
    axes.set(xscale="log", yscale="log", xlabel="teachers N", ylabel="step time / plain step time")
    axes.set_title(f"{BACKEND}; dotted: teachers' multiplications alone")
    axes.legend()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller run, six to twenty-four minutes on two cores")
    parser.add_argument("--case", action="append", choices=CASES, help="only these networks in table and memory")
    parser.add_argument("--only", action="append", choices=EXPERIMENTS, help="only these experiments")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="folder for the CSV and the plot")
    parser.add_argument("--memory-of", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        case_name, variant, batch = arguments.memory_of
        case = CASES[case_name]
        Stepper(build_variant(case, *variant), batch_of(case, batch)).run(2)
        print(peak_memory())
        return
    warm_up()
    rows = []
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"step_cost_{BACKEND}{'_quick' if arguments.quick else ''}.csv"
    for row in run(arguments.case or list(CASES), arguments.only or EXPERIMENTS, arguments.quick):
        rows.append(row)
        write_csv(rows, path)  # what is done is kept, should the rest fail
    print_table(rows)
    if any(row["experiment"] == "teachers" for row in rows):
        draw(rows, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
