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
from keras import ops

import distribution_workers as workers
import keras_ssd
from compiled_programs import summed_shapes
from keras_ssd import _backend
from models import CLASSES as Y
from models import WINDOWS as X
from models import compiled, network
from same_weights import assert_close

TENSORFLOW, JAX, TORCH = (keras.backend.backend() == name for name in ("tensorflow", "jax", "torch"))
WORKERS = pathlib.Path(workers.__file__)
PATIENCE = 1500  # seconds; a loaded machine may take minutes to import a backend


def start(job, out, *arguments, devices=1):
    # The package under test, installed or not.
    package = str(pathlib.Path(keras_ssd.__file__).parents[1])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    # What is set already stays: it says how many threads there may be. XLA reads no further than what is no flag.
    flags = f"--xla_force_host_platform_device_count={devices} {os.environ.get('XLA_FLAGS', '')}"
    environment = {**os.environ, "PYTHONPATH": path, **({"XLA_FLAGS": flags} if JAX else {})}
    command = [sys.executable, str(WORKERS), job, str(out), *map(str, arguments)]
    with pathlib.Path(out).with_suffix(".txt").open("w") as errors:
        return subprocess.Popen(command, env=environment, stdout=errors, stderr=errors), pathlib.Path(out)


def finish(*started):
    """The results of processes; if one fails, the others would wait for it for ever and are ended, too."""
    processes, outs = zip(*started, strict=True)
    deadline = time.monotonic() + PATIENCE
    try:
        while time.monotonic() < deadline and None in (codes := [process.poll() for process in processes]):
            if any(codes):
                break
            time.sleep(0.2)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0] * len(codes), "\n".join(out.with_suffix(".txt").read_text()[-3000:] for out in outs)
    return [json.loads(out.read_text()) for out in outs]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def assert_equal(actual, expected, tolerance=1e-5):
    """Nested lists and dicts of numbers agree."""
    keras.tree.assert_same_structure(actual, expected)
    assert_close(actual, expected, tolerance)


def only(backend, reason):
    """Marks of a test of one backend that starts processes."""
    return lambda test: pytest.mark.slow(pytest.mark.skipif(not backend, reason=reason)(test))


only_tensorflow = only(TENSORFLOW, "tf.distribute is TensorFlow's")
only_jax = only(JAX, "keras.distribution is for JAX")
only_torch = only(TORCH, "DistributedDataParallel is PyTorch's")


# TensorFlow: tf.distribute.MirroredStrategy.
@pytest.fixture(scope="module")
def mirrored(tmp_path_factory):
    return finish(start("mirrored", tmp_path_factory.mktemp("mirrored") / "out.json"))[0]


@only_tensorflow
@pytest.mark.parametrize("name", workers.DETERMINISTIC)
def test_mirrored_replicas_equal_one_device(mirrored, name):
    """The model of "ema" is wrapped outside the scope of its strategy."""
    one, several = mirrored[name]["one"], mirrored[name]["several"]
    assert_equal(several, one)
    assert min(one["history"]["kd_loss"]) > 1e-3


@only_tensorflow
@pytest.mark.parametrize("rows", ["14", "9"])
def test_mirrored_replicas_treat_the_term_as_keras_treats_the_task(mirrored, rows):
    """Sample weights, a short last batch, and one that leaves a replica without a row."""
    plain, distilled = (mirrored["as the task"][rows][name] for name in ("plain", "distilled"))
    assert np.isfinite(plain["losses"]).all()
    assert_equal(distilled["weights"], plain["weights"])
    # The logged term is the task's logged loss, except for what Keras makes of the total's mean over replicas.
    assert_equal(distilled["losses"], [2 * loss for loss in plain["losses"]])


@only_tensorflow
def test_mirrored_replicas_hold_one_average_which_files_do_not_change(mirrored):
    """What is trained is equal anyway; of BatchNormalization's statistics the average is the replicas' mean.

    While a file is written the student holds the average; then each replica has its own statistics again.
    """
    results = mirrored["statistics"]["of a run"]
    assert len(results["average"]) == 10 and results["steps"] == [[8, 8]]
    for first, second in results["average"] + results["raw"]:
        assert first == second
    assert mirrored["statistics"]["of a run that wrote files"] == results


def assert_noise_differs(*seen):
    """Of equal samples: without noise of its own, the second replica's teachers would be the first one's."""
    first, second = (np.array(one) == 0 for one in seen)
    assert first.shape == second.shape == (4, 4, 8) and 0.2 < np.mean(first != second) < 0.8
    assert 0.25 < np.mean(first) < 0.55 and 0.25 < np.mean(second) < 0.55  # the rate is 0.4


@only_tensorflow
def test_mirrored_replicas_draw_noise_of_their_own(mirrored):
    assert_noise_differs(*mirrored["seen"])  # Keras hands train_on_batch's batch to each


@only_tensorflow
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


@only_jax
@pytest.mark.parametrize("name", workers.ON_FOUR_DEVICES)
def test_data_parallel_equals_one_device(four_devices, name):
    """Noise and all: it is drawn for the whole batch."""
    one = four_devices["one"][name]
    assert min(one["history"]["kd_loss"]) > 1e-3
    assert_equal(four_devices["data parallel"][name], one)


@only_jax
@pytest.mark.parametrize("name", workers.COMPILED)
def test_data_parallel_exchanges_no_activations(four_devices, name):
    """Only gradients and sums are exchanged: the teachers of a sample stay on the device that holds the sample."""
    program = four_devices["programs"][name]
    assert "num_partitions=4" in program and " all-reduce(" in program
    assert not re.search("all-gather|all-to-all|collective-permute", program)
    # Five inputs, layers of 8, 8 and 3. Rows that are drawn from all devices would be summed: (rows, 8).
    summed = {tuple(sorted(map(int, filter(None, shape.split(","))))) for shape in summed_shapes(program)}
    assert summed and summed <= {(), (3,), (8,), (3, 8), (5, 8), (8, 8)}
    n_loops = {one: four_devices["programs"][one].count(" while(") for one in (name, "self")}
    n_draws = int(name == "bounded price")  # JAX draws in a loop: here once more, the rows
    assert (n_loops[name] - n_draws > n_loops["self"]) == ("chunks" in name)


@only_jax
def test_keras_rejects_batches_that_cannot_be_split_over_devices(four_devices):
    errors = four_devices["short batch"]
    assert "evenly divide" in errors["plain"] and errors["wrapped"] == errors["plain"]


@only_jax
@pytest.mark.parametrize("name, mesh", workers.ON_MESHES)
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
@pytest.mark.parametrize("name", workers.ON_HOSTS)
def test_two_hosts_equal_one(two_hosts, name):
    one, (first, second) = two_hosts
    assert (one[name].pop("devices"), first[name].pop("devices"), second[name].pop("devices")) == (1, 2, 2)
    assert first[name] == second[name]
    assert_equal(first[name], one[name])


# PyTorch: DistributedDataParallel.
@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return alone_and_together("ddp", tmp_path_factory.mktemp("processes"))


@only_torch
@pytest.mark.parametrize("name", [name for name in workers.IN_PROCESSES if name != "noisy"])
def test_two_processes_equal_one(two_processes, name):
    one, (first, second) = two_processes
    for result in ("gradients", "weights"):
        assert first[name][result] == second[name][result]
        assert_equal(first[name][result], one[name][result])
    assert first[name]["losses"] != second[name]["losses"]
    mean = np.mean([process[name]["losses"] for process in (first, second)], axis=0)
    assert_equal(mean.tolist(), one[name]["losses"])


@only_torch
def test_two_processes_draw_noise_of_their_own(two_processes):
    _, both = two_processes
    assert both[0]["noisy"]["weights"] == both[1]["noisy"]["weights"]
    assert_noise_differs(*(process["seen"][0] for process in both))


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
WEIGHTS = np.linspace(0.5, 2, 24).astype("float32")


def step_with_tensorflow(ssd):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        loss = ssd.training_loss(X, Y, WEIGHTS)
    return loss, tape.gradient(loss, [v.value for v in ssd.trainable_variables])


def step_with_torch(ssd):
    ssd.zero_grad()
    loss = ssd.training_loss(X, Y, WEIGHTS)
    loss.backward()
    return loss.detach(), [v.value.grad for v in ssd.trainable_variables]


def compiled_with_jax(ssd):
    """A function as the two above, compiled once: what it updates are its results."""
    import jax

    variables, others = ssd.trainable_variables, ssd.non_trainable_variables + ssd.metrics_variables

    def loss(values, states):
        mapping = [*zip(variables, values, strict=True), *zip(others, states, strict=True)]
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            result = ssd.training_loss(X, Y, WEIGHTS)
        return result, [scope.get_current_value(v) for v in others]

    differentiated = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def step(_):
        (value, states), gradients = differentiated([v.value for v in variables], [v.value for v in others])
        for variable, state in zip(others, states, strict=True):
            variable.assign(state)
        return value, gradients

    return step


@pytest.mark.parametrize(
    "options",
    [dict(), dict(teacher="ema", distill="both"), dict(kd_weight=0, ema_momentum=0.9)],
    ids=["self", "ema", "without teachers"],
)
def test_a_custom_loop_trains_as_train_on_batch(options):
    """With regularisers and BatchNormalization: equal losses, weights, statistics, seeds and averages."""
    pair = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        model = compiled(network())
        pair.append(keras_ssd.wrap(model, num_teachers=4, seed=5, **{"kd_weight": 0.6, **options}))
    own, other = pair
    step = step_with_tensorflow if TENSORFLOW else step_with_torch if TORCH else compiled_with_jax(own)
    for _ in range(3):
        loss, gradients = step(own)
        for variable, gradient in zip(own.trainable_variables, gradients, strict=True):
            variable.assign(ops.convert_to_numpy(variable.value) - 0.1 * ops.convert_to_numpy(gradient))
        own.update_average()
        other.reset_metrics()
        expected = other.train_on_batch(X, Y, WEIGHTS, return_dict=True)["loss"]
        np.testing.assert_allclose(ops.convert_to_numpy(loss), expected, rtol=1e-6)
    assert_close(own.variables, other.variables, 1e-5)


def test_training_loss_needs_a_compiled_model_and_update_average_an_average():
    ssd = keras_ssd.wrap(network(), ema_momentum=0)
    with pytest.raises(ValueError, match=r"training_loss\(\) needs a compiled model"):
        ssd.training_loss(X, Y)
    with pytest.raises(ValueError, match=r"update_average\(\) is for models that hold a moving average"):
        ssd.update_average()
