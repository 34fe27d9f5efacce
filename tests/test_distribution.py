"""Training on several devices equals training on one device, as far as it does in plain Keras.

The devices are simulated, and chosen when a process starts: `distribution_workers.py` runs in separate processes.
"""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from keras import layers, ops

import distribution_workers
import keras_ssd
import structures
from compiled_programs import summed_shapes
from keras_ssd import _backend

TENSORFLOW, JAX, TORCH = (keras.backend.backend() == name for name in ("tensorflow", "jax", "torch"))
WORKERS = pathlib.Path(distribution_workers.__file__)
PATIENCE = 1500  # seconds; a loaded machine may take minutes to import a backend


def start(job, out, *arguments, devices=1):
    environment = dict(os.environ)
    # The package under test, installed or not.
    package = str(pathlib.Path(keras_ssd.__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([package, *filter(None, [environment.get("PYTHONPATH")])])
    if JAX:
        # What is set already stays: it says how many threads there may be. XLA reads no further than what is no flag.
        flags = environment.get("XLA_FLAGS", "")
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices} {flags}"
    command = [sys.executable, str(WORKERS), job, str(out), *map(str, arguments)]
    errors = pathlib.Path(out).with_suffix(".txt").open("w+")
    return subprocess.Popen(command, env=environment, stdout=errors, stderr=errors, text=True), errors, out


def finish(*started):
    """The results of processes; if one fails, the others would wait for it for ever and are ended, too."""
    deadline = time.monotonic() + PATIENCE
    try:
        while any(process.poll() is None for process, _, _ in started) and time.monotonic() < deadline:
            if any(process.poll() for process, _, _ in started):
                break
            time.sleep(0.2)
    finally:
        codes = [process.poll() for process, _, _ in started]
        for process, _, _ in started:
            process.kill()
            process.wait()
    texts = []
    for _, errors, _ in started:
        errors.seek(0)
        texts.append(errors.read()[-3000:])
        errors.close()
    assert codes == [0] * len(started), "\n".join(texts)
    return [json.loads(pathlib.Path(out).read_text()) for _, _, out in started]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def assert_equal(actual, expected, tolerance=1e-5, path="results"):
    """Nested lists and dicts of numbers agree."""
    if isinstance(expected, dict):
        assert set(actual) == set(expected), path
        for name in expected:
            assert_equal(actual[name], expected[name], tolerance, f"{path}[{name!r}]")
    elif isinstance(expected, list) and any(isinstance(one, (list, dict)) for one in expected):
        assert len(actual) == len(expected), path
        for index, pair in enumerate(zip(actual, expected, strict=True)):
            assert_equal(*pair, tolerance, f"{path}[{index}]")
    else:
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance, err_msg=path)


# TensorFlow: tf.distribute.MirroredStrategy.


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory):
    return finish(start("mirrored", tmp_path_factory.mktemp("mirrored") / "out.json"))[0]


only_tensorflow = pytest.mark.skipif(not TENSORFLOW, reason="tf.distribute is TensorFlow's")


@only_tensorflow
@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", *distribution_workers.DETERMINISTIC])
def test_mirrored_replicas_equal_one_device(mirrored, name):
    one, several = mirrored[name]["one"], mirrored[name]["several"]
    assert_equal(several, one)
    if name != "plain":
        assert min(one["history"]["kd_loss"]) > 1e-3


@only_tensorflow
@pytest.mark.slow
@pytest.mark.parametrize("rows", ["14", "9"])
def test_mirrored_replicas_treat_the_term_as_keras_treats_the_task(mirrored, rows):
    """Sample weights, a short last batch, and one that leaves a replica without a row."""
    plain, distilled = mirrored["as the task"][rows]["plain"], mirrored["as the task"][rows]["distilled"]
    assert np.isfinite(plain["history"]["loss"]).all()
    assert_equal(distilled["weights"], plain["weights"])
    # The logged term is the task's logged loss, except for what Keras makes of the total's mean over replicas.
    assert_equal(distilled["history"]["loss"], [2 * loss for loss in plain["history"]["loss"]])


@only_tensorflow
@pytest.mark.slow
def test_mirrored_replicas_hold_one_average(mirrored):
    """What is trained is equal anyway; of BatchNormalization's statistics the average is the replicas' mean."""
    results = mirrored["statistics"]
    assert len(results["moving"]) == 2
    for first, second in results["average"] + results["raw"]:
        np.testing.assert_array_equal(first, second)
    assert results["steps"] == [[8, 8]]


@only_tensorflow
@pytest.mark.slow
def test_files_that_mirrored_replicas_write_change_nothing(mirrored):
    """While a file is written the student holds the average; then each replica has its own statistics again."""
    results = mirrored["statistics"]
    assert results["raw of a run that wrote files"] == results["raw"]
    assert results["average of a run that wrote files"] == results["average"]


@only_tensorflow
@pytest.mark.slow
def test_mirrored_replicas_draw_noise_of_their_own(mirrored):
    results = mirrored["noise"]
    first, second = np.array(results["seen"])
    # Equal samples: without noise of its own, the second replica's teachers would be the first one's.
    assert first.shape == second.shape == (4, 4, 8)  # Keras hands train_on_batch's batch to each
    dropped = first == 0, second == 0
    assert 0.2 < np.mean(dropped[0] != dropped[1]) < 0.8
    # The same mean over many steps.
    one, several = (np.array(results[name]) for name in ("one", "several"))
    error = np.hypot(one.std(), several.std()) / np.sqrt(len(one))
    assert abs(one.mean() - several.mean()) < 5 * error


@only_tensorflow
@pytest.mark.slow
def test_a_model_of_a_strategy_can_be_wrapped_outside_of_its_scope(mirrored):
    results = mirrored["wrapped outside"]
    assert results["replicas"] == 2
    assert_equal({name: results[name] for name in mirrored["ema"]["one"]}, mirrored["ema"]["one"])


@only_tensorflow
@pytest.mark.slow
def test_several_workers_are_refused_by_keras(tmp_path):
    """If this fails for `plain`, Keras has learnt it: then test the wrapped model for equality, and tell the README."""
    ports = [free_port(), free_port()]
    started = [start("several_workers", tmp_path / f"{rank}.json", rank, *ports) for rank in range(2)]
    for errors in finish(*started):
        for kind in ("plain", "wrapped"):
            assert re.search("ValueError: Attempt to convert a value .PerReplica", errors[kind]), kind


# JAX: keras.distribution.


@pytest.fixture(scope="module")
def four_devices(tmp_path_factory):
    return finish(start("four_devices", tmp_path_factory.mktemp("parallel") / "out.json", devices=4))[0]


only_jax = pytest.mark.skipif(not JAX, reason="keras.distribution is for JAX")


@only_jax
@pytest.mark.slow
@pytest.mark.parametrize(
    "name, n_devices",
    [(name, "2") for name in distribution_workers.ON_TWO_DEVICES]
    + [(name, "4") for name in distribution_workers.ON_FOUR_DEVICES],
)
def test_data_parallel_equals_one_device(four_devices, name, n_devices):
    """Noise and all: it is drawn for the whole batch."""
    one = four_devices["one"][name]
    assert min(one["history"]["kd_loss"]) > 1e-3
    assert_equal(four_devices["data parallel"][name][n_devices], one)


@only_jax
@pytest.mark.slow
@pytest.mark.parametrize("name", distribution_workers.COMPILED)
def test_data_parallel_exchanges_no_activations(four_devices, name):
    """Only gradients and sums are exchanged: the teachers of a sample stay on the device that holds the sample."""
    programs = {one: four_devices["data parallel"][one]["program"] for one in (name, "self")}
    program = programs[name]
    assert "num_partitions=4" in program
    assert " all-reduce(" in program
    for operation in ("all-gather", "all-to-all", "collective-permute"):
        assert operation not in program
    # Five inputs, layers of 8, 8 and 3. Rows that are drawn from all devices would be summed: (rows, 8).
    summed = {tuple(sorted(map(int, filter(None, shape.split(","))))) for shape in summed_shapes(program)}
    assert summed and summed <= {(), (3,), (8,), (3, 8), (5, 8), (8, 8)}
    n_loops = {one: text.count(" while(") for one, text in programs.items()}
    n_draws = int(name == "bounded price")  # JAX draws in a loop: here once more, the rows
    assert (n_loops[name] - n_draws > n_loops["self"]) == ("chunks" in name)


@only_jax
@pytest.mark.slow
def test_keras_rejects_batches_that_cannot_be_split_over_devices(four_devices):
    errors = four_devices["short batch"]
    assert "evenly divide" in errors["plain"]
    assert errors["wrapped"] == errors["plain"]


@only_jax
@pytest.mark.slow
@pytest.mark.parametrize("name, mesh", distribution_workers.ON_MESHES)
def test_model_parallel_equals_one_device(four_devices, name, mesh):
    results = four_devices["model parallel"][f"{name} {mesh}"]
    # The average or the snapshot lies on the devices as the weights do.
    assert results.pop("layouts") == ["P(None, 'model')"] * 2
    assert_equal(results, four_devices["one"][name], tolerance=1e-4)


def alone_and_together(job, folder):
    """The results of one process, and of two that train together."""
    port = free_port()
    together = finish(*(start(job, folder / f"{rank}.json", port, 2, rank) for rank in range(2)))
    return *finish(start(job, folder / "one.json", port, 1, 0)), together


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory):
    return alone_and_together("hosts", tmp_path_factory.mktemp("hosts"))


@only_jax
@pytest.mark.slow
@pytest.mark.parametrize("name", distribution_workers.ON_HOSTS)
def test_two_hosts_equal_one(two_hosts, name):
    one, (first, second) = two_hosts
    assert (one[name].pop("devices"), first[name].pop("devices"), second[name].pop("devices")) == (1, 2, 2)
    assert first[name] == second[name]
    assert_equal(first[name], one[name])


# PyTorch: DistributedDataParallel.


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return alone_and_together("ddp", tmp_path_factory.mktemp("processes"))


only_torch = pytest.mark.skipif(not TORCH, reason="DistributedDataParallel is PyTorch's")


@only_torch
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in distribution_workers.IN_PROCESSES if name != "noisy"])
def test_two_processes_equal_one(two_processes, name):
    one, (first, second) = two_processes
    for result in ("gradients", "weights"):
        assert first[name][result] == second[name][result]
        assert_equal(first[name][result], one[name][result])
    assert first[name]["losses"] != second[name]["losses"]
    mean = np.mean([process[name]["losses"] for process in (first, second)], axis=0)
    assert_equal(mean, one[name]["losses"])


@only_torch
@pytest.mark.slow
def test_two_processes_draw_noise_of_their_own(two_processes):
    _, both = two_processes
    assert both[0]["noisy"]["weights"] == both[1]["noisy"]["weights"]
    first, second = (np.array(process["noisy"]["seen"][0]) for process in both)
    # Equal samples, equal weights: without noise of its own, the second process' teachers would be the first one's.
    assert first.shape == second.shape == (4, 6, 3)
    assert np.mean(first != second) > 0.9


@pytest.mark.skipif(JAX, reason="JAX draws the noise of a whole batch at once")
@pytest.mark.parametrize(
    "replica, expected",
    [
        (None, [0, 5, 2_147_483_646]),
        (0, [0, 5, 2_147_483_646]),
        (1, [1_327_217_885, 1_327_217_890, 1_327_217_884]),
        (3, [1_834_170_008, 1_834_170_013, 1_834_170_007]),  # 3 * 1_327_217_885 - (2**31 - 1), ...
    ],
)
def test_seeds_of_a_replica(replica, expected, monkeypatch):
    monkeypatch.setattr(_backend, "_replica", lambda: replica)
    seeds = ops.convert_to_tensor(np.array([0, 5, 2**31 - 2], "int32"))
    moved = _backend.seeds_of_this_replica(seeds)
    assert keras.backend.standardize_dtype(moved.dtype) == "int32"
    assert ops.convert_to_numpy(moved).tolist() == expected


# Loops of one's own.


def pair(teacher="self", noise=layers.Dropout, **options):
    """Two equal wrappers, with an activity loss, a regulariser and BatchNormalization."""

    def one():
        keras.utils.set_random_seed(3)
        inputs = keras.Input((4,))
        x = layers.Dense(6, activity_regularizer="l2", kernel_regularizer="l2")(inputs)
        x = noise(0.5, seed=1)(layers.BatchNormalization()(x))
        model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
        ssd = keras_ssd.wrap(model, teacher=teacher, num_teachers=4, seed=5, **{"kd_weight": 0.6, **options})
        ssd.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
        return ssd

    return one(), one()


def batch(rows=8):
    generator = np.random.default_rng(1)
    x = generator.normal(size=(rows, 4)).astype("float32")
    return x, generator.integers(0, 3, rows), generator.uniform(0.5, 2, rows).astype("float32")


def loss_of_a_step(ssd, *arrays):
    ssd.reset_metrics()
    return ssd.train_on_batch(*arrays, return_dict=True)["loss"]


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(teacher="ema", distill="both"),
        dict(teacher="snapshot"),
        dict(kd_weight=0),
    ],
    ids=["self", "ema", "snapshot", "without teachers"],
)
def test_training_loss_is_the_loss_of_a_training_step(options):
    own, other = pair(**options)
    x, y, sample_weight = batch()
    for _ in range(2):
        loss = own.training_loss(x, y, sample_weight)
        expected = loss_of_a_step(other, x, y, sample_weight)
        np.testing.assert_allclose(ops.convert_to_numpy(loss), expected, rtol=1e-6)
        # Nothing was trained, but the forward pass moved what it moves in a training step.
        states = [seeds_and_statistics(ssd) for ssd in (own, other)]
        assert len(states[0]) == (3 if own.distillation is None else 4)  # of Dropout, BatchNormalization, teachers
        for mine, theirs in zip(*states, strict=True):
            np.testing.assert_allclose(*map(ops.convert_to_numpy, (mine.value, theirs.value)), rtol=1e-6)
        own.set_weights(other.get_weights())


def seeds_and_statistics(ssd):
    of_teachers = [] if ssd.distillation is None else [ssd.distillation.seed_generator.state]
    return [*ssd.student.non_trainable_variables, *of_teachers]


def gradients_with_tensorflow(ssd, x, y):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        loss = ssd.training_loss(x, y)
    return tape.gradient(loss, [v.value for v in ssd.trainable_variables])


def gradients_with_torch(ssd, x, y):
    ssd.zero_grad()
    ssd.training_loss(x, y).backward()
    return [v.value.grad for v in ssd.trainable_variables]


def compiled_with_jax(ssd):
    """A function as the two above, compiled once: what it updates are its results."""
    import jax

    variables, others = ssd.trainable_variables, ssd.non_trainable_variables + ssd.metrics_variables

    def loss(values, states, x, y):
        mapping = [*zip(variables, values, strict=True), *zip(others, states, strict=True)]
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            result = ssd.training_loss(x, y)
        return result, [scope.get_current_value(v) for v in others]

    differentiated = jax.jit(jax.grad(loss, has_aux=True))

    def gradients(_, x, y):
        results, states = differentiated([v.value for v in variables], [v.value for v in others], x, y)
        for variable, state in zip(others, states, strict=True):
            variable.assign(state)
        return results

    return gradients


def test_a_custom_loop_trains_as_train_on_batch():
    own, other = pair("ema")
    gradients = gradients_with_tensorflow if TENSORFLOW else gradients_with_torch if TORCH else compiled_with_jax(own)
    x, y, _ = batch()
    for _ in range(3):
        for variable, gradient in zip(own.trainable_variables, gradients(own, x, y), strict=True):
            variable.assign(ops.convert_to_numpy(variable.value) - 0.1 * ops.convert_to_numpy(gradient))
        own.update_average()
        other.train_on_batch(x, y)
    for mine, theirs in zip(own.variables, other.variables, strict=True):
        np.testing.assert_allclose(
            *map(ops.convert_to_numpy, (mine.value, theirs.value)), rtol=1e-5, atol=1e-6, err_msg=mine.path
        )


def test_training_loss_needs_a_compiled_model():
    ssd = keras_ssd.wrap(structures.sequential(lambda: layers.Dropout(0.5)))
    with pytest.raises(ValueError, match=r"training_loss\(\) needs a compiled model"):
        ssd.training_loss(*batch())


def test_update_average_needs_an_average():
    own = keras_ssd.wrap(structures.sequential(lambda: layers.Dropout(0.5)), ema_momentum=0)
    with pytest.raises(ValueError, match=r"update_average\(\) is for models that hold a moving average"):
        own.update_average()
