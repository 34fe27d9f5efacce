"""Prove that the tests notice: break the library in one place at a time, and run the tests that should fail.

    python tools/mutations.py                      # all, at the end the table of docs/mutations.md
    python tools/mutations.py --only percentile    # those whose name holds a word
    python tools/mutations.py --check              # only whether every text is found, in a second
    python tools/mutations.py --tree ../before     # in another working tree, of an older release for example

Each mutation is one line that could be written by mistake. It is applied to a copy of the working tree, where the named
test files run until the first failure. A mutation is caught if a test fails, and has survived if all pass; then the
tests lack a case. CI does not run it.
"""

import argparse
import multiprocessing
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import typing

os.environ["KERAS_BACKEND"] = "torch"  # of this process and its forks

import keras  # noqa: F401, to have it before a fork
import pytest


class Mutation(typing.NamedTuple):
    """One mistake.

    Attributes:
        name: what is wrong then.
        old: text that stands exactly once in the package, wherever that is.
        new: what takes its place.
        tests: names of the test files, without `test_` and `.py`, of which one should fail.
        backend: the one that the tests run on. PyTorch is the quickest; gradients that are cut by `torch.no_grad`
            there, and what a traced step could get wrong, need TensorFlow.
    """

    name: str
    old: str
    new: str
    tests: str
    backend: str = "torch"


MUTATIONS = [
    # The equations.
    Mutation(
        'sign of the score "kl"',
        "scores = -ops.sum(ops.exp(log_teachers)",
        "scores = ops.sum(ops.exp(log_teachers)",
        "guidance",
    ),
    Mutation(
        "cosine without the student's norm",
        "_dot(_unit(student), _unit(teachers))",
        "_dot(student, _unit(teachers))",
        "guidance",
    ),
    Mutation("temperature multiplies", "(scores - best) / temperature", "(scores - best) * temperature", "guidance"),
    Mutation(
        "softmax over the batch",
        "exponentials / ops.sum(exponentials, axis=-1,",
        "exponentials / ops.sum(exponentials, axis=0,",
        "guidance",
    ),
    Mutation("percentile off by one order statistic", "position = math.ceil(", "position = math.floor(", "guidance"),
    Mutation(
        "weights not normalised behind the filter",
        "        weights = weights / ops.sum(weights, axis=-1, keepdims=True)",
        "        weights = weights",
        "guidance",
    ),
    Mutation(
        "a target that is not finite is taken",
        "return ops.where(ops.isfinite(unchecked), target, unchecked - unchecked)",
        "return target",
        "guidance",
    ),
    Mutation("no T^2", "axis=-1) * self.temperature**2", "axis=-1)", "outputs"),
    Mutation(
        "the divergence the other way round",
        "target * (log_target - log_student)",
        "ops.exp(log_student) * (log_student - log_target)",
        "outputs",
    ),
    Mutation(
        "a student that chooses its teachers",
        "student = ops.stop_gradient(self._features(",
        "student = (self._features(",
        "outputs",
    ),
    Mutation(
        "binary units summed",
        "return ops.mean(ops.reshape(divergence, ops.shape(student)), axis=-1)",
        "return ops.sum(ops.reshape(divergence, ops.shape(student)), axis=-1)",
        "outputs",
    ),
    Mutation(
        "scores averaged over masked positions",
        "masked_mean(scores, None if mask is None else ops.expand_dims(mask, -1), axis=1)",
        "ops.mean(scores, axis=1)",
        "outputs",
    ),
    Mutation(
        "masked features compared",
        "return without_masked(student, mask), without_masked(teachers, ops.expand_dims(mask, 1))",
        "return student, teachers",
        "outputs",
    ),
    Mutation(
        "the representation flattened without its mask",
        "        mask = fitted(previous_mask, x)\n        return None if mask is None else merge_axes(mask, 1)",
        "        return None",
        "outputs",
    ),
    Mutation(
        "the largest weight of a sample in place of the mean",
        "ops.mean(merge_axes(weight, 1), axis=1)",
        "ops.max(merge_axes(weight, 1), axis=1)",
        "outputs",
    ),
    Mutation(
        "rows of a large batch in 32 bits",
        'ops.arange(count, dtype="int64") * batch',
        'ops.cast(ops.arange(count, dtype="int32") * ops.cast(batch, "int32"), "int64")',
        "rows",
    ),
    Mutation(
        "loss_weights ignored",
        "weight = 1.0 if weight is None else weight",
        "weight = 1.0",
        "output_records wrap",
    ),
    Mutation(
        "no sample weights for representations",
        "representation_loss(target, own, mean_weight(sample_weights), ",
        "representation_loss(target, own, None, ",
        "training",
    ),
    # The passes of the teachers.
    Mutation(
        "gradient through what the teachers branch off from",
        "ops.repeat(ops.stop_gradient(x), self.times, axis=0)",
        "ops.repeat(x, self.times, axis=0)",
        "training structures",
        "tensorflow",
    ),
    Mutation(
        "gradient through the weights that teacher and student share",
        "(v, ops.stop_gradient(v.value)) for v in self.variables",
        "(v, v.value) for v in self.variables",
        "training structures",
        "tensorflow",
    ),
    Mutation(
        "rows of a sample torn apart",
        "ops.repeat(ops.stop_gradient(x), self.times, axis=0)",
        "ops.tile(ops.stop_gradient(x), [self.times] + [1] * (len(x.shape) - 1))",
        "structures",
    ),
    Mutation(
        "no mask for the teachers",
        "return None if previous_mask is None else ops.repeat(previous_mask",
        "return None if True else ops.repeat(previous_mask",
        "structures",
    ),
    Mutation(
        "BatchNormalization of the teachers in training mode",
        "step.run(values, training=is_noise_on)",
        "step.run(values, training=True)",
        "structures",
    ),
    Mutation(
        "BatchNormalization inside a noise layer in training mode",
        '{id(part): {"trainable": False} for part in frozen}',
        '{id(part): {"trainable": True} for part in frozen}',
        "structures layer_copies",
    ),
    Mutation(
        "teachers without noise",
        "step.run(values, training=is_noise_on)",
        "step.run(values, training=False)",
        "structures",
    ),
    Mutation(
        "one seed for all chunks of teachers",
        "lambda seeds: passes(chunk, seeds), seeds[:n_full]",
        "lambda _: passes(chunk, seeds[0]), seeds[:n_full]",
        "training",
    ),
    Mutation(
        "the last chunk repeats the seeds of the first",
        "n_full * chunk, seeds[n_full])",
        "n_full * chunk, seeds[0])",
        "training",
    ),
    Mutation(
        "one seed for all noise layers",
        "ops.cast(seeds[i + 1], v.dtype)",
        "ops.cast(seeds[1], v.dtype)",
        "structures training",
    ),
    Mutation(
        "teachers draw from the student's generators",
        "keras.StatelessScope(list(mapping.values()) + states,",
        "keras.StatelessScope(list(mapping.values()),",
        "training",
        "jax",
    ),
    Mutation(
        "chunks of teachers merged along the batch",
        "ops.swapaxes(x, 0, 1), (-1, n_full * chunk",
        "x, (-1, n_full * chunk",
        "training structures",
    ),
    Mutation(
        "teachers' draws move PyTorch's global generator",
        "with torch.no_grad(), torch.random.fork_rng(devices=[]):",
        "with torch.no_grad():",
        "training",
    ),
    Mutation(
        "wrapping draws random numbers",
        "seed = generator.randint(",
        "seed = random.randint(",
        "training",
    ),
    Mutation(
        "augmentation taken for noise",
        "makes_noise(part) for part in parts if id(part) not in augmenting)",
        "makes_noise(part) for part in parts)",
        "structures augmentation",
    ),
    Mutation(
        "views of teachers without noise are off",
        "return Noise(views_of, [], [])\n        unknown",
        "return Noise([], [], [])\n        unknown",
        "augmentation",
    ),
    Mutation(
        "views of teachers: targets that are unsure count",
        "ops.any(target >= threshold, axis=-1)",
        "ops.any(target >= 0, axis=-1)",
        "outputs",
    ),
    Mutation(
        "the term of an empty batch is no scalar",
        "loss = ops.sum(loss_of(target, student, sample_weight=sample_weight))",
        "loss = loss_of(target, student, sample_weight=sample_weight)",
        "outputs",
    ),
    Mutation(
        "frozen layers before a representation are not told",
        'if settings.distill == "representation" and is_frozen:',
        "if False and is_frozen:",
        "wrap",
    ),
    Mutation(
        "logits are taken for probabilities",
        '(fields["mean"] < -1e-3).any()',
        '(fields["mean"] < -1e30).any()',
        "uncertainty",
    ),
    Mutation(
        "a comparison puts the second stage against the first",
        'dict.fromkeys(["plain"] * (a not in longer) + [controls[a]])',
        'dict.fromkeys(["plain", controls[a]])',
        "comparison",
    ),
    Mutation(
        "the first trial of a search may average",
        "dict.fromkeys(sorted(switches, reverse=True), False)",
        '{"ssd_distill": False}',
        "tuner",
    ),
    Mutation(
        "undistilled trials never average",
        '"ema_momentum": self._momentum if averages else 0',
        '"ema_momentum": 0',
        "tuner",
    ),
    Mutation(
        "views of teachers: targets not sharpened",
        "guidance.sharpened(target, temperature), own",
        "target, own",
        "outputs",
    ),
    Mutation(
        "training that the graph fixes is ignored",
        "self.fixed_training = bool(training) if graph_fixes_training() else None",
        "self.fixed_training = None",
        "graph",
    ),
    Mutation(
        "rows that depend on each other taken for independent",
        'return "rows" if _equal(_rows(a, part), b) else "mixed"',
        'return "rows"',
        "independence",
    ),
    Mutation(
        "a capacity of a batch is not found",
        "if id(step) in self.unknown and self._counts_rows(step)), None)",
        "if False), None)",
        "independence",
    ),
    Mutation(
        "layers of Keras that work along the batch believed",
        "isinstance(n, int) and (n == 0 or n <= -rank)",
        "isinstance(n, int) and False",
        "independence",
    ),
    Mutation(
        "a graph with a layer inserted keeps its outputs",
        "graph.outputs = _replaced(self.outputs, graph.moved)",
        "graph.outputs = list(self.outputs)",
        "graph",
    ),
    Mutation(
        "the user's layers are changed while passes run",
        "        made = object.__new__(kind)",
        "        made = layer",
        "layer_copies",
    ),
    Mutation(
        "calls in a row draw the same noise",
        "count = count + 1 if moment == last else 0",
        "count = 0",
        "uncertainty wrap",
    ),
    # The training step, and the weights that teach.
    Mutation(
        "kd_weight ignored",
        "ops.cast(self.distillation.kd_weight.value, loss.dtype) * ops.cast(term, loss.dtype)",
        "ops.cast(term, loss.dtype)",
        "training",
    ),
    Mutation(
        "outputs of another call distilled",
        "if tree.flatten(taken.outputs)[0] is not tree.flatten(y_pred)[0]:",
        "if False:",
        "training",
    ),
    Mutation(
        "a forward pass distilled twice",
        "taken, self.student_pass = self.student_pass, None",
        "taken = self.student_pass",
        "training",
    ),
    Mutation(
        "the mean of kd_loss over batches",
        "num_samples = ops.shape(tree.flatten(student_pass.outputs)[0])[0]",
        "num_samples = 1",
        "training",
    ),
    Mutation(
        "kd_sample_weight ignored",
        "sample_weight if self.settings.kd_sample_weight else None",
        "sample_weight",
        "unlabelled_training",
    ),
    Mutation(
        "masked means of drawn rows not corrected",
        "average)._replace(scales=scales)",
        "average)",
        "rows",
    ),
    Mutation(
        "masked values of a regression compared",
        "student = without_masked(student, mask)\n"
        "                teachers = without_masked(teachers, ops.expand_dims(mask, 1))\n",
        "pass\n",
        "outputs",
    ),
    Mutation(
        "outputs without their masks",
        "return [mask_of(x) for x in self.outputs]",
        "return [None for x in self.outputs]",
        "outputs",
    ),
    Mutation(
        "weights of the snapshot not copied",
        "assign(self.copies, arrays(weights))",
        "assign(self.copies[1:], arrays(weights)[1:])",
        "teacher_snapshot",
    ),
    Mutation(
        "a copy of the student's optimizer",
        'arguments["optimizer"] = self.student.optimizer\n',
        'arguments["optimizer"] = keras.optimizers.deserialize(keras.optimizers.serialize(self.student.optimizer))\n',
        "one_compile",
    ),
    Mutation(
        "compile of the wrapper leaves the student as it was",
        "            self.student.compile(**arguments)\n        self._share_compile()",
        "            super().compile(**arguments)",
        "one_compile",
    ),
    Mutation(
        "a later compile of the student ignored",
        "if record is None or record is self._compile_record.content:",
        "if record is None or self._compile_record.content is not None:",
        "one_compile student_changes",
    ),
    Mutation(
        "metrics of samples that weigh nothing",
        "        if not self.settings.kd_sample_weight:\n            weigh_metrics(arguments)\n",
        "",
        "unlabelled_training",
    ),
    Mutation(
        "the average not restarted",
        "        if not self._is_unchanged():\n            self.restart()\n            return\n",
        "        if not self._is_unchanged():\n            return\n",
        "averaging",
    ),
    Mutation(
        "the digest ignored",
        "        if not self._is_unchanged():\n            self.restart()\n            return\n",
        "",
        "averaging",
    ),
    Mutation(
        "the digest of the raw weights",
        "is None else _digest(held)",
        "is None else _digest(arrays(self.other))",
        "averaging",
    ),
    Mutation(
        "momentum from the first step on",
        "ops.minimum(self.momentum, t / (t + 9.0))",
        'ops.cast(self.momentum, "float32")',
        "averaging",
    ),
    Mutation(
        "an update averages what is deployed",
        ' * ops.cast(1 - self.is_deployed.value, "float32")',
        "",
        "averaging",
    ),
    Mutation(
        "raw weights lost",
        "self._deployable(raw))\n        assign(self.other, raw)\n",
        "self._deployable(raw))\n",
        "averaging",
    ),
    Mutation(
        "the average lost",
        "        assign(self.other, [d if k is None else k for d, k in zip(deployed, kept, strict=True)])\n",
        "",
        "averaging",
    ),
    Mutation(
        "weights exchanged twice",
        "            return\n        pairs = [] if trained",
        "            pass\n        pairs = [] if trained",
        "averaging",
    ),
    Mutation(
        "weights exchanged twice by an evaluation within another",
        "if not self.holds_average or self._raw.content is not None:",
        "if not self.holds_average:",
        "averaging",
    ),
    Mutation(
        "raw weights lost after an evaluation",
        "            self._raw.content = None\n            assign(self._weights, raw)",
        "            self._raw.content = None",
        "averaging",
    ),
    Mutation(
        "zeros not kept",
        "            if variable.trainable:\n                value = np.where",
        "            if False:\n                value = np.where",
        "averaging",
    ),
    Mutation(
        "the constraint not applied",
        "if variable.constraint is not None:\n                value",
        "if False:\n                value",
        "averaging",
    ),
    Mutation(
        "the average in 16 bits",
        "add_copy(self, variable, wide=True)",
        "add_copy(self, variable)",
        "averaging",
    ),
    Mutation(
        "a frozen layer gets raw weights",
        "            if id(variable) not in frozen:\n                variable.assign(raw)",
        "            variable.assign(raw)",
        "student_changes",
    ),
    Mutation(
        "counters averaged",
        "if id(v) in averaged and keras.backend",
        "if keras.backend",
        "averaging",
    ),
    Mutation(
        "raw weights teach in place of what is deployed",
        "        if is_training:\n            return pairs",
        "        if True:\n            return pairs",
        "averaging",
    ),
    Mutation(
        "the average fed before the step",
        "            result = train_step(self, *args, **kwargs)\n"
        "        finally:\n"
        "            state.is_running, state.student_pass = False, None\n"
        "        if self.average is not None:\n"
        "            return _backend.after_train_step(self, result, self.average.update)\n",
        "            if self.average is not None:\n"
        "                self.average.update()\n"
        "            result = train_step(self, *args, **kwargs)\n"
        "        finally:\n"
        "            state.is_running, state.student_pass = False, None\n",
        "averaging",
    ),
    Mutation(
        "the average not evaluated",
        "            with self._deployed():\n                yield",
        "            yield",
        "averaging",
    ),
    Mutation(
        "fit goes on from the average",
        "        if self.average is not None:\n            self.average.resume()",
        "",
        "averaging",
    ),
    Mutation(
        "the average not deployed after an exception",
        "_backend.ERRORS_OF_LOST_WEIGHTS):\n                    self.average.deploy()",
        "_backend.ERRORS_OF_LOST_WEIGHTS):\n                    pass",
        "averaging",
    ),
    Mutation(
        "raw weights quantised",
        "        if self.average is not None:\n            self.average.deploy()\n        return self.student.quantize",
        "        return self.student.quantize",
        "student_changes",
    ),
    Mutation(
        "raw weights exported",
        "        with self._deployed():\n            return self.student.export",
        "        if True:\n            return self.student.export",
        "student",
    ),
    Mutation(
        "a file loaded while fit runs leaves the average",
        "is_training=ssd._fit_state.is_running",
        "is_training=False",
        "files",
    ),
    Mutation(
        "raw weights of a file replace weights that were set",
        "            assign(self.other, raw)\n            self._note(deployed=average)",
        "            assign(self._weights, raw)\n            self._note()",
        "files",
    ),
    Mutation(
        "a file without its digest",
        "            self._note(deployed=average)",
        '            self.is_deployed.assign(np.ones((), "int32"))',
        "files",
    ),
    Mutation(
        "a file whose model holds raw weights",
        'else (".keras", *_LEGACY)\n    with ssd._deployed(), ',
        'else (".keras", *_LEGACY)\n    with ',
        "files",
    ),
    Mutation(
        "a file of weights whose model holds raw weights",
        'suffixes = (".weights.h5",) if is_single else ()\n    with ssd._deployed(), ',
        'suffixes = (".weights.h5",) if is_single else ()\n    with ',
        "files",
    ),
    Mutation(
        "a file that holds the average as raw weights",
        "raw = self._raw.content or arrays(self.other if steps and not is_average else self._weights)",
        "raw = arrays(self._weights)",
        "files",
    ),
    Mutation(
        "an average of other weights after loading a plain file",
        "    elif ssd.average is not None:\n        ssd.average.restart()\n",
        "",
        "files",
    ),
    Mutation("seeds not in files", '"seeds": seed_states([ssd.student]), ', "", "files"),
    Mutation("weights of a subclass not in files", ', "own": own}', "}", "files"),
    Mutation("half of the masks from one bit less", ".random_(-(2**63), None)", ".random_()", "noise"),
    Mutation("kept values not scaled", ".mul_(2**16 / (2**16 - dropped))", "", "noise"),
    Mutation(
        "the layer's rate in place of the given one",
        "(layer.rate if rate is None else rate)",
        "layer.rate",
        "noise_layers",
    ),
    Mutation("a look uses up a batch", "self._recent if only_looked else []", "[]", "unlabelled"),
    Mutation("attributes of the model set on the wrapper", "setattr(self.student, name, value)", "pass", "student"),
    Mutation("one part of each batch", "(slice(1, 4, 2), slice(3, None, 2), ", "(", "independence"),
    Mutation("shifts to one side", "(2 * longest + 1)) - longest", "(2 * longest + 1))", "augmentation"),
    Mutation("unsure labels count", "target_threshold=0.9)", "target_threshold=0.0)", "unlabelled_training"),
    Mutation("a capacity of few rows only", "_MANY_ROWS = 2048", "_MANY_ROWS = 256", "independence"),
    Mutation(
        "a traced similarity of NaN",
        "return not any(np.isfinite",
        "return False and any(np.isfinite",
        "guidance",
        "jax",
    ),
    Mutation(
        "one function for all kinds of steps",
        "            self.train_function = state.train_functions.pop(state.kind, None)\n",
        "",
        "teacher_snapshot",
        "jax",
    ),
    Mutation(
        "the term in the logs of evaluate",
        "                logs.pop(name, None)\n        return logs",
        "                pass\n        return logs",
        "training",
    ),
    Mutation(
        "replicas share their noise",
        "    return ops.cast(moved % (2**31 - 1), seeds.dtype)",
        "    return seeds",
        "distribution",
    ),
    # Around it.
    Mutation("patience off by one", "self.wait >= self.patience", "self.wait > self.patience", "teacher_snapshot"),
    Mutation("a schedule one epoch ahead", "self.schedule(epoch)", "self.schedule(epoch + 1)", "callbacks"),
    Mutation("every epoch seeded alike", "SeedSequence([self.seed, epoch])", "SeedSequence([self.seed])", "callbacks"),
    Mutation(
        "a file written in place",
        "written = os.path.join(beside, name)\n        yield written\n",
        "yield path\n        return\n",
        "files",
    ),
    # The search.
    Mutation(
        "no plain trial",
        'plain = [one.get("tuner/bracket") for one in earlier if',
        "plain = [None, 0, 1] + [0 for one in earlier if",
        "tuner",
    ),
    # Sets with unlabelled samples.
    Mutation("an order drawn for every batch", "if epoch != drawn[0]:", "if True:", "unlabelled"),
    Mutation(
        "passes of a given set do not begin an epoch",
        'getattr(self._data, "on_epoch_begin", lambda: None)()',
        "pass",
        "unlabelled",
    ),
    Mutation(
        "a pass of a given set ends with each epoch",
        "self._taken is not None and self.num_batches in (None, self._taken):",
        "self._taken is not None:",
        "unlabelled",
    ),
    Mutation(
        "unlabelled samples weigh", "lambda part: np.zeros((unknown,", "lambda part: np.ones((unknown,", "unlabelled"
    ),
    Mutation(
        "mutual information without the entropy within",
        "ops.maximum(entropy - within, 0.0)",
        "ops.maximum(entropy, 0.0)",
        "uncertainty",
    ),
]


class Result(typing.NamedTuple):
    """What became of a mutation: the file it is in, `"caught"` or `"survived"`, and the test that failed."""

    mutation: Mutation
    file: str
    outcome: str
    test: str


def find(text, root):
    """The one file of the package in a working tree that holds a text, once.

    Raises:
        LookupError: if there is none, or the text stands there more than once.
    """
    places = {path: path.read_text().count(text) for path in sorted((root / "keras_ssd").rglob("*.py"))}
    places = {path: count for path, count in places.items() if count}
    if sum(places.values()) != 1:
        where = {str(path.relative_to(root)): count for path, count in places.items()}
        raise LookupError(f"A mutation's text should stand in the package once. Found: {where or 'nowhere'}: {text!r}")
    return next(iter(places))


def start_tests(root, tests, backend, output):
    """Start test files on a copy of the tree, until the first failure; the output goes into a file.

    On PyTorch in a fork of this process, which has imported Keras already: most tests take less time than that.
    TensorFlow has threads, which do not survive a fork, so it runs in a process of its own.

    Returns:
        A process with `join` and `exitcode`: that of pytest.
    """
    files = [f"tests/test_{name}.py" for name in tests.split()]
    target = _run_pytest if backend == "torch" else _run_pytest_anew
    arguments = (root, ["-q", "-x", "-p", "no:cacheprovider", *files], backend, output)
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def _environment(root, backend):
    return dict(KERAS_BACKEND=backend, PYTHONPATH=str(root), PYTHONDONTWRITEBYTECODE="1")


def _run_pytest(root, options, backend, output):
    os.environ.update(_environment(root, backend))
    os.chdir(root)
    sys.path[0] = str(root)
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        code = pytest.main(options)
        sys.stdout.flush()
        os._exit(code)


def _run_pytest_anew(root, options, backend, output):
    environment = {**os.environ, **_environment(root, backend)}
    with open(output, "w") as file:
        command = [sys.executable, "-m", "pytest", *options]
        os._exit(subprocess.run(command, cwd=root, env=environment, stdout=file, stderr=file).returncode)


def copy_tree(tree, folder):
    """Copy what the tests need of a working tree into a folder."""
    for name in ("keras_ssd", "tests", "tools", "docs"):
        shutil.copytree(tree / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "README.md"):
        shutil.copy(tree / name, folder)


def start(mutation, tree, folder):
    """Apply a mutation to a copy of a working tree in a folder, and start its tests."""
    copy_tree(tree, folder)
    path = folder / find(mutation.old, tree).relative_to(tree)
    path.write_text(path.read_text().replace(mutation.old, mutation.new))
    compile(path.read_text(), str(path), "exec")
    return start_tests(folder, mutation.tests, mutation.backend, folder / "output.txt")


def finish(mutation, tree, folder, process):
    """Wait for the tests of a mutation."""
    process.join()
    output, code = (folder / "output.txt").read_text(), process.exitcode
    failed = re.search(r"^FAILED tests/test_(\w+)\.py::([\w:]+)", output, re.MULTILINE)
    if code not in (0, 1) or bool(failed) != bool(code):
        raise RuntimeError(f"{mutation.name}: pytest ended with {code}, not by a test that failed.\n{output[-3000:]}")
    file = str(find(mutation.old, tree).relative_to(tree))
    return Result(mutation, file, "caught" if code else "survived", f"{failed[1]}: {failed[2]}" if failed else "")


def check_unbroken(mutations, tree):
    """Raise if the tests fail without a mutation: then they would catch everything."""
    for backend in sorted({mutation.backend for mutation in mutations}):
        tests = {name for one in mutations if one.backend == backend for name in one.tests.split()}
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            copy_tree(tree, folder)
            process = start_tests(folder, " ".join(sorted(tests)), backend, folder / "output.txt")
            process.join()
            if process.exitcode:
                output = (folder / "output.txt").read_text()
                raise RuntimeError(f"The tests fail without a mutation on {backend}:\n{output[-3000:]}")


def table(results):
    """The outcome in Markdown."""
    lines = ["| what is wrong | in | backend | outcome | the test that fails |", "|---|---|---|---|---|"]
    for mutation, file, outcome, test in results:
        file = file.removeprefix("keras_ssd/")
        lines.append(f"| {mutation.name} | {file} | {mutation.backend} | {outcome} | {test and f'`{test}`'} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="word in the name of the mutations to try")
    parser.add_argument("--check", action="store_true", help="only look for the texts")
    parser.add_argument("--tree", type=pathlib.Path, default=pathlib.Path(__file__).parents[1], help="working tree")
    parser.add_argument("--jobs", type=int, default=2, help="mutations to try at a time")
    parser.add_argument("--skip-unbroken", action="store_true", help="trust that the tests pass without a mutation")
    arguments = parser.parse_args()
    mutations = [mutation for mutation in MUTATIONS if arguments.only in mutation.name]
    missing = []
    for mutation in mutations:
        try:
            find(mutation.old, arguments.tree)
        except LookupError as error:
            missing.append(f"{mutation.name}: {error}")
    if missing:
        sys.exit("\n".join(missing))
    if arguments.check:
        print(f"{len(mutations)} mutations, every text found once")
        return 0
    if not arguments.skip_unbroken:
        check_unbroken(mutations, arguments.tree)
    results, running = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, mutation in enumerate(mutations):
            place = pathlib.Path(folder, str(number))
            running.append((mutation, arguments.tree, place, start(mutation, arguments.tree, place)))
            if len(running) == arguments.jobs or mutation is mutations[-1]:
                for started in running:
                    results.append(finish(*started))
                    shutil.rmtree(started[2])
                    result = results[-1]
                    print(f"{result.outcome}: {result.mutation.name} ({result.test})", file=sys.stderr, flush=True)
                running = []
    print(table(results))
    n_caught = sum(result.outcome == "caught" for result in results)
    print(f"\n{n_caught} of {len(results)} caught")
    return 0 if n_caught == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
