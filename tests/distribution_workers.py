"""Runs on several (simulated) devices, each in its own process, which `test_distribution.py` compares.

    python distribution_workers.py JOB OUT [ARGUMENT ...]

A job is a function in this file; it returns numbers, which are written to the file OUT as JSON.
"""

import json
import os
import pathlib
import sys
import tempfile

import keras
import numpy as np
from keras import layers, ops

import keras_ssd
import keras_ssd.callbacks
from keras_ssd import passes

ROWS, BATCH = 32, 8


@keras.saving.register_keras_serializable(package="tests")
class Marked(layers.Layer):
    """Noise without chance: row r of a batch is multiplied by 1 + (r % 4) / 4 while training, whoever holds the row.

    Teachers lie side by side, four for each sample, so each of the four is another multiple; it is the same on every
    device, as long as each device's rows are a multiple of four.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, x, training=False):
        if not training:
            return x
        rows = ops.arange(ops.shape(x)[0])
        return x * (1 + ops.cast(rows % 4, x.dtype) / 4)[:, None]


def dropout():
    return layers.Dropout(0.4)


def network(noise=Marked, normalisation=layers.Identity):
    """Compiled; its hidden layers are called `hidden_1` and `hidden_2`."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,))
    x = layers.Dense(8, activation="relu", kernel_regularizer="l2", name="hidden_1")(inputs)
    x = noise()(x)
    x = normalisation()(noise()(layers.Dense(8, activation="tanh", name="hidden_2")(x)))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def wrapped(noise=Marked, normalisation=layers.Identity, teacher="self", **options):
    """A wrapper; `teacher="model"` is another network of the same structure."""
    model = network(noise, normalisation)
    if teacher == "model":
        teacher = network(noise, normalisation)
        for variable in model.trainable_variables:
            variable.assign(ops.convert_to_numpy(variable.value) * 0.5)
    return keras_ssd.wrap(model, teacher=teacher, seed=7, kd_weight=0.7, **options)


def data(rows=ROWS, n_processes=1, process=0):
    """Samples, labels and weights: the rows of every batch that one of several processes holds."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, 5)).astype("float32")
    arrays = x, generator.integers(0, 3, rows), generator.uniform(0.5, 2, rows).astype("float32")
    mine = np.arange(rows) % BATCH * n_processes // BATCH == process
    return [array[mine] for array in arrays]


def numbers(variables):
    return [ops.convert_to_numpy(variable.value).tolist() for variable in variables]


def all_weights(ssd):
    """All but the digest of the deployed weights, which differs if these differ by rounding."""
    return numbers(v for v in ssd.weights if v.name != "digest")


def fitted(ssd, arrays=None, batch_size=BATCH, callbacks=(), scored=False):
    """What a run leaves: logs, weights, averages and snapshots; if asked for, all that evaluation says of it."""
    x, y, sample_weight = arrays or data()
    options = dict(batch_size=batch_size, verbose=0)
    validation = (x[:BATCH], y[:BATCH]) if scored else None
    more = dict(epochs=2, shuffle=False, validation_data=validation, callbacks=callbacks)
    history = ssd.fit(x, y, sample_weight=sample_weight, **options, **more)
    results = {"history": history.history, "weights": all_weights(ssd)}
    if scored:
        results["evaluate"] = ssd.evaluate(x[:16], y[:16], return_dict=True, **options)
        results["predict"] = ssd.predict(x[:16], **options).tolist()
    return results


def errors_of_fit(models, arrays=None):
    """What Keras says of a training that it refuses, for each of several models."""
    errors = {}
    for name, model in models.items():
        try:
            fitted(model, arrays)
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"
    return errors


def plain_and_wrapped():
    return {"plain": network(), "wrapped": wrapped(num_teachers=4)}


# Each kind of teacher once: guided on outputs, on both, as in the paper, and one teacher without noise. All samples: of
# half a batch other ones are drawn than of the whole.
ONE_TEACHER = dict(stochastic_layers=(), num_teachers=1, similarity="uniform", distill="outputs")
PAPER = dict(teacher="snapshot", distill="representation", similarity="dot", percentile=50)
DETERMINISTIC = {
    "self": dict(num_teachers=4, distill="both", similarity="cosine", kd_fraction=1.0),
    "ema": dict(teacher="ema", num_teachers=4, distill="outputs", similarity="kl", kd_fraction=1.0),
    "model": dict(teacher="model", **ONE_TEACHER),
    "paper": dict(num_teachers=4, guidance_temperature=5.0, **PAPER),
}


# TensorFlow.
def mirrored():
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    results = {}
    for name, options in DETERMINISTIC.items():
        # The callback's statistics are means over samples, also of those that other replicas hold.
        more = dict(callbacks=[keras_ssd.callbacks.TeacherMonitor()], scored=True) if name == "ema" else {}
        with strategy.scope():
            several = network() if name == "ema" else wrapped(**options)
        if name == "ema":
            several = keras_ssd.wrap(several, seed=7, kd_weight=0.7, **options)
        results[name] = {"one": fitted(wrapped(**options), **more), "several": fitted(several, **more)}
        assert several.distribute_strategy.num_replicas_in_sync == 2
    results["statistics"] = statistics(strategy)
    results["as the task"] = {str(rows): as_the_task(strategy, rows) for rows in (14, 9)}
    with strategy.scope():
        ssd, results["seen"] = with_a_record()
    ssd.train_on_batch(*EQUAL_SAMPLES)
    return results


def statistics(strategy):
    """BatchNormalization, whose statistics are each replica's own in Keras: theirs, and those of the average."""

    def on_each(variables):
        return [[value.numpy().tolist() for value in strategy.experimental_local_results(v.value)] for v in variables]

    def fitted_with(*callbacks):
        with strategy.scope():
            ssd = wrapped(Marked, layers.BatchNormalization, "ema", num_teachers=4, distill="outputs")
        fitted(ssd, callbacks=callbacks)
        weights = {"average": on_each(ssd.student.weights), "raw": on_each(ssd.average.other)}
        return {**weights, "steps": on_each([ssd.average.steps])}

    with tempfile.TemporaryDirectory() as folder:
        names = {f"{folder}/a.keras": False, f"{folder}/a.weights.h5": True}
        writing = fitted_with(*(keras.callbacks.ModelCheckpoint(n, save_weights_only=w) for n, w in names.items()))
    return {"of a run": fitted_with(), "of a run that wrote files": writing}


def as_the_task(strategy, rows):
    """If the targets are the teacher's own outputs and the loss is its distance, the term equals the task's loss.

    Then the gradient is twice the plain one, whatever Keras does with weights, replicas and short batches.
    """
    target = np.random.default_rng(3).normal(size=(5, 2)).astype("float32")
    x, _, sample_weight = data(rows)
    results = {}
    for name, rate in (("plain", 0.2), ("distilled", 0.1)):
        with strategy.scope():
            keras.utils.set_random_seed(2)
            model = keras.Sequential([keras.Input((5,)), layers.Dense(4, activation="tanh"), layers.Dense(2)])
            student = model
            if name == "distilled":
                teacher = keras.Sequential([keras.Input((5,)), layers.Dense(2, use_bias=False)])
                teacher.set_weights([target])
                model = keras_ssd.wrap(model, teacher=teacher, kd_weight=1.0, **ONE_TEACHER)
            model.compile(keras.optimizers.SGD(rate), "mse")
        losses = fitted(model, (x, x @ target, sample_weight))["history"]["loss"]
        results[name] = {"losses": losses, "weights": numbers(student.weights)}
    return results


EQUAL_SAMPLES = np.ones((4, 5), "float32"), np.zeros(4)


def with_a_record():
    """A wrapper, and a list of what its teachers see."""
    seen = []

    def record(student, teachers):
        seen.append(ops.convert_to_numpy(teachers).tolist())
        return ops.zeros_like(teachers[..., 0])

    ssd = wrapped(dropout, num_teachers=4, distill="representation", similarity=record, kd_fraction=1.0)
    ssd.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    return ssd, seen


# JAX.
# Half of a batch: that of one device, every second row, is that of several. Cheaper ones are drawn on each device.
NOISY = {
    "self": dict(num_teachers=6, distill="outputs", kd_fraction=1.0),
    "ema": dict(teacher="ema", num_teachers=6, distill="outputs", kd_fraction=0.5),
    "model": dict(teacher="model", num_teachers=6, distill="both", similarity="kl", kd_fraction=1.0),
    "paper": dict(num_teachers=6, **PAPER),
    "uneven chunks": dict(num_teachers=5, distill="outputs", teacher_chunk=2, kd_fraction=1.0),
    "chunks for the cache": dict(num_teachers=6, distill="outputs", kd_fraction=1.0),
    "bounded price": dict(num_teachers=6, distill="outputs"),
}
ON_FOUR_DEVICES = ("self", "ema", "model", "paper", "uneven chunks")
ON_MESHES = [("ema", "1x4"), ("paper", "2x2")]
COMPILED = ("self", "paper", "uneven chunks", "chunks for the cache", "bounded price")
CACHE = passes._CACHED_BYTES


def noisy(name):
    # A batch of 8 rows of 8 floats: two teachers fit into this cache.
    passes._CACHED_BYTES = 2 * BATCH * 8 * 4 if name == "chunks for the cache" else CACHE
    return wrapped(dropout, **NOISY[name])


def four_devices():
    def fit_all():
        return {name: fitted(noisy(name), scored=name == "ema") for name in ON_FOUR_DEVICES}

    results, devices = {"one": fit_all()}, keras.distribution.list_devices()
    assert len(devices) == 4
    with keras.distribution.DataParallel(devices=devices).scope():
        results["data parallel"] = fit_all()
        results["programs"] = {name: compiled_step(noisy(name)) for name in COMPILED}
        # A last batch that the devices cannot share evenly: what Keras says of it.
        results["short batch"] = errors_of_fit(plain_and_wrapped(), data(BATCH + 1))
    results["model parallel"] = {f"{name} {mesh}": model_parallel(devices, name, mesh) for name, mesh in ON_MESHES}
    return results


def compiled_step(ssd):
    import jax

    layout = keras.distribution.distribution().get_data_layout
    batch = [keras.distribution.distribute_tensor(jax.numpy.asarray(a), layout(a.shape)) for a in data(BATCH)]
    ssd.optimizer.build(ssd.trainable_variables)
    owners = (ssd.trainable_variables, ssd.non_trainable_variables, ssd.optimizer.variables, ssd.metrics_variables)
    state = tuple([v.value for v in variables] for variables in owners)
    return jax.jit(ssd.train_step).lower(state, tuple(batch)).compile().as_text()


def model_parallel(devices, name, mesh):
    """A fit with the hidden layers shared among four devices, and how a variable and its copy lie on them."""
    shape = tuple(map(int, mesh.split("x")))
    layout_map = keras.distribution.LayoutMap(keras.distribution.DeviceMesh(shape, ("batch", "model"), devices))
    layout_map[".*hidden_.*kernel"] = (None, "model")
    layout_map[".*hidden_.*bias"] = ("model",)
    with keras.distribution.ModelParallel(layout_map=layout_map, batch_dim_name="batch").scope():
        ssd = noisy(name)
        results = fitted(ssd, scored=name == "ema")
    copies = ssd.average.other if name == "ema" else ssd.distillation.teacher_weights.copies
    return {**results, "layouts": [str(v.value.sharding.spec) for v in (ssd.student.weights[0], copies[0])]}


ON_HOSTS = ("ema", "paper")


def hosts(port, n_processes, process):
    """One of several processes, each with its half of every batch."""
    import jax

    n_processes, process = int(n_processes), int(process)
    if n_processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        keras.distribution.initialize(f"127.0.0.1:{port}", n_processes, process)
        keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    arrays, size, results = data(ROWS, n_processes, process), BATCH // n_processes, {}
    for name in ON_HOSTS:
        ssd = noisy(name)
        results[name] = fitted(ssd, arrays, size)
        results[name]["evaluate"] = ssd.evaluate(*arrays[:2], batch_size=size, return_dict=True, verbose=0)
        results[name]["devices"] = jax.device_count()
    return results


# PyTorch.
IN_PROCESSES = (*DETERMINISTIC, "noisy")


def ddp(port, n_processes, process):
    """One of several processes of Keras' recipe for DistributedDataParallel, each with its part of every batch."""
    import torch

    n_processes, process = int(n_processes), int(process)
    if n_processes > 1:
        address = f"tcp://127.0.0.1:{port}"
        torch.distributed.init_process_group("gloo", init_method=address, world_size=n_processes, rank=process)
    results = {name: in_process(name, n_processes, process) for name in IN_PROCESSES}
    ssd, seen = with_a_record()
    ssd.training_loss(*EQUAL_SAMPLES)
    return {**results, "seen": seen}


def in_process(name, n_processes, process):
    import torch

    class Loss(torch.nn.Module):
        def __init__(self, ssd):
            super().__init__()
            self.ssd = ssd

        def forward(self, x, y, sample_weight):
            return self.ssd.training_loss(x, y, sample_weight)

    ssd = noisy("self") if name == "noisy" else wrapped(**DETERMINISTIC[name])
    module = Loss(ssd)
    if n_processes > 1:
        module = torch.nn.parallel.DistributedDataParallel(module)
    optimizer = torch.optim.Adam([v.value for v in ssd.trainable_variables], lr=0.01)
    losses, gradients = [], []
    parts = [torch.as_tensor(a).split(BATCH // n_processes) for a in data(ROWS, n_processes, process)]
    for batch in zip(*parts, strict=True):
        optimizer.zero_grad()
        loss = module(*batch)
        loss.backward()
        gradients.append([v.value.grad.tolist() for v in ssd.trainable_variables])
        optimizer.step()
        if ssd.average is not None:
            ssd.update_average()
        losses.append(loss.item())
    return {"losses": losses, "gradients": gradients, "weights": all_weights(ssd)}


def several_workers(rank, *ports):
    """MultiWorkerMirroredStrategy, which Keras 3 does not support."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": int(rank)}})
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        models = plain_and_wrapped()
    return errors_of_fit(models)


if __name__ == "__main__":
    job, out, *arguments = sys.argv[1:]
    pathlib.Path(out).write_text(json.dumps(globals()[job](*arguments)))
