"""Training on several devices equals training on one, as far as Keras' own does.

The devices are simulated, and chosen when a process starts: `distribution_workers.py` runs in processes of its own.
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

TENSORFLOW, JAX, TORCH = (keras.backend.backend() == name for name in ("tensorflow", "jax", "torch"))
WORKERS = pathlib.Path(distribution_workers.__file__)
PATIENCE = 1500  # seconds; a loaded machine may take minutes to import a backend


def start(job, out, *arguments, devices=1):
    environment = dict(os.environ)
    # The package under test, installed or not.
    package = str(pathlib.Path(keras_ssd.__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([package, *filter(None, [environment.get("PYTHONPATH")])])
    if JAX:
        # Added to what is set already: it says how many threads there may be.
        flags = environment.get("XLA_FLAGS", "")
        environment["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}"
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
    elif isinstance(expected, list) and expected and isinstance(expected[0], (list, dict)):
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
    for first, second in results["held"]:
        np.testing.assert_array_equal(first, second)
    assert results["steps"] == [[4, 4]]


@only_tensorflow
@pytest.mark.slow
def test_mirrored_replicas_draw_noise_of_their_own(mirrored):
    results = mirrored["noise"]
    first, second = np.array(results["seen"])
    # Equal samples: without noise of its own, the second replica's teachers would be the first one's.
    assert first.shape == second.shape == (2, 4, 8)
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
    assert_equal(results["one"], results["several"])


@only_tensorflow
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "wrapped"])
def test_several_workers_are_refused_by_keras(kind, tmp_path):
    """If this fails for `plain`, Keras has learnt it: then test the wrapped model for equality, and tell the README."""
    ports = [free_port(), free_port()]
    started = [start("several_workers", tmp_path / f"{rank}.json", kind, rank, *ports) for rank in range(2)]
    for result in finish(*started):
        assert re.search("ValueError: Attempt to convert a value .PerReplica", result["error"])


# JAX: keras.distribution.


@pytest.fixture(scope="module")
def data_parallel(tmp_path_factory):
    return finish(start("data_parallel", tmp_path_factory.mktemp("parallel") / "out.json", devices=4))[0]


@pytest.fixture(scope="module")
def model_parallel(tmp_path_factory):
    return finish(start("model_parallel", tmp_path_factory.mktemp("parallel") / "out.json", devices=4))[0]


only_jax = pytest.mark.skipif(not JAX, reason="keras.distribution is for JAX")


@only_jax
@pytest.mark.slow
@pytest.mark.parametrize("n_devices", ["2", "4"])
@pytest.mark.parametrize("name", distribution_workers.NOISY)
def test_data_parallel_equals_one_device(data_parallel, name, n_devices):
    """Noise and all: it is drawn for the whole batch."""
    one = data_parallel[name]["one"]
    assert min(one["history"]["kd_loss"]) > 1e-3
    assert_equal(data_parallel[name]["several"][n_devices], one)


@only_jax
@pytest.mark.slow
@pytest.mark.parametrize("name", distribution_workers.NOISY)
def test_data_parallel_exchanges_no_activations(data_parallel, name):
    """Only gradients and sums are exchanged: the teachers of a sample stay on the device that holds the sample."""
    program = data_parallel[name]["program"]
    assert "num_partitions=4" in program
    assert " all-reduce(" in program
    for operation in ("all-gather", "all-to-all", "collective-permute"):
        assert operation not in program
    n_loops = {one: data_parallel[one]["program"].count(" while(") for one in (name, "self")}
    assert (n_loops[name] > n_loops["self"]) == ("chunks" in name)


@only_jax
@pytest.mark.slow
def test_a_batch_that_the_devices_cannot_share_is_refused_by_keras(tmp_path):
    errors = finish(start("short_batch", tmp_path / "out.json", devices=4))[0]
    assert "evenly divide" in errors["plain"]
    assert errors["wrapped"] == errors["plain"]


@only_jax
@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["1x4", "2x2"])
@pytest.mark.parametrize("name", ["self", "ema", "paper"])
def test_model_parallel_equals_one_device(model_parallel, name, mesh):
    results = model_parallel[name]
    assert_equal(results["several"][mesh], results["one"], tolerance=1e-4)
    # Copies of weights lie on the devices as the weights do.
    assert results["layouts"] == ["P(None, 'model')"] * (1 if name == "self" else 2)


@only_jax
@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "self", "ema", "paper"])
def test_two_hosts_equal_one(name, tmp_path):
    port = free_port()
    hosts = finish(*(start("hosts", tmp_path / f"{host}.json", name, port, 2, host) for host in range(2)))
    (one,) = finish(start("hosts", tmp_path / "one.json", name, port, 1, 0))
    assert [host.pop("devices") for host in hosts] == [2, 2]
    assert one.pop("devices") == 1
    assert hosts[0] == hosts[1]
    assert_equal(hosts[0], one)


# PyTorch: DistributedDataParallel.


@pytest.mark.skipif(not TORCH, reason="DistributedDataParallel is PyTorch's")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["self guided", "ema guided", "snapshot paper", "model one"])
def test_two_processes_equal_one(name, tmp_path):
    port = free_port()
    both = finish(*(start("ddp", tmp_path / f"{rank}.json", name, port, 2, rank) for rank in range(2)))
    (one,) = finish(start("ddp", tmp_path / "one.json", name, port, 1, 0))
    for result in ("gradients", "weights", "held"):
        assert both[0][result] == both[1][result]
        assert_equal(both[0][result], one[result])
    assert both[0]["losses"] != both[1]["losses"]
    assert_equal(np.mean([process["losses"] for process in both], axis=0), one["losses"])


@pytest.mark.skipif(not TORCH, reason="DistributedDataParallel is PyTorch's")
@pytest.mark.slow
def test_two_processes_draw_noise_of_their_own(tmp_path):
    port = free_port()
    both = finish(*(start("ddp", tmp_path / f"{rank}.json", "self noisy", port, 2, rank) for rank in range(2)))
    assert both[0]["weights"] == both[1]["weights"]
    first, second = (np.array(process["seen"][0]) for process in both)
    assert first.shape == second.shape == (4, 6, 3)
    assert np.mean(first != second) > 0.9


# Loops of one's own.


def pair(teacher="self", noise=layers.Dropout, **options):
    """Two equal wrappers, with an activity loss, a regulariser and BatchNormalization."""

    def one():
        keras.utils.set_random_seed(3)
        inputs = keras.Input((4,))
        x = layers.Dense(6, activity_regularizer="l2", kernel_regularizer="l2")(inputs)
        x = noise(0.5, seed=1)(layers.BatchNormalization()(x))
        model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
        ssd = keras_ssd.wrap(model, teacher=teacher, n_teachers=4, seed=5, **{"kd_weight": 0.6, **options})
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
        dict(teacher="ema", distill="both", task_weight=0.3),
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
        states = [[*ssd.student.non_trainable_variables, ssd.teacher_seed_generator.state] for ssd in (own, other)]
        assert len(states[0]) == 4  # of the Dropout and of BatchNormalization
        for mine, theirs in zip(*states, strict=True):
            np.testing.assert_allclose(*map(ops.convert_to_numpy, (mine.value, theirs.value)), rtol=1e-6)
        own.set_weights(other.get_weights())


def test_training_loss_leaves_out_what_has_no_target():
    own, other = pair()
    x, y, _ = batch()
    y[::2] = -1
    loss = own.training_loss(x, y)
    np.testing.assert_allclose(ops.convert_to_numpy(loss), loss_of_a_step(other, x, y), rtol=1e-6)


def gradient_step(ssd, x, y):
    """One step of gradient descent with a rate of 0.1, in the words of the backend."""
    variables = ssd.trainable_variables
    if TENSORFLOW:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = ssd.training_loss(x, y)
        gradients = tape.gradient(loss, [v.value for v in variables])
    elif TORCH:
        ssd.zero_grad()
        ssd.training_loss(x, y).backward()
        gradients = [v.value.grad for v in variables]
    else:
        import jax

        others = ssd.non_trainable_variables + ssd.metrics_variables

        @jax.jit
        def stateless(values, states):
            def loss(values):
                mapping = [*zip(variables, values, strict=True), *zip(others, states, strict=True)]
                with keras.StatelessScope(mapping) as scope:
                    result = ssd.training_loss(x, y)
                return result, [scope.get_current_value(v) for v in others]

            return jax.grad(loss, has_aux=True)(values)

        gradients, states = stateless([v.value for v in variables], [v.value for v in others])
        for variable, state in zip(others, states, strict=True):
            variable.assign(state)
    for variable, gradient in zip(variables, gradients, strict=True):
        variable.assign(ops.convert_to_numpy(variable.value) - 0.1 * ops.convert_to_numpy(gradient))


def test_a_loop_of_ones_own_trains_as_train_on_batch_does():
    own, other = pair("ema")
    x, y, _ = batch()
    for _ in range(3):
        gradient_step(own, x, y)
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


def test_only_an_average_is_updated():
    own = keras_ssd.wrap(structures.sequential(lambda: layers.Dropout(0.5)), average=False)
    with pytest.raises(ValueError, match=r"update_average\(\) is for models wrapped with average=True"):
        own.update_average()
