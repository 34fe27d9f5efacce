"""Runs on several (simulated) devices, each in its own process, which `test_distribution.py` compares.

    python distribution_workers.py JOB OUT [ARGUMENT ...]

A job is a function in this file; it returns numbers, which are written to the file OUT as JSON.
"""

import contextlib
import functools
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


def network(noise=Marked, normalisation=None):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,))
    x = layers.Dense(8, activation="relu", kernel_regularizer="l2", name="hidden_1")(inputs)
    x = noise()(x)
    x = noise()(layers.Dense(8, activation="tanh", name="hidden_2")(x))
    if normalisation is not None:
        x = normalisation()(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


def dropout():
    return layers.Dropout(0.4)


def data(rows=ROWS):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, 5)).astype("float32")
    return x, generator.integers(0, 3, rows), generator.uniform(0.5, 2, rows).astype("float32")


def wrapped(noise=Marked, teacher="self", normalisation=None, **options):
    """A compiled wrapper; `teacher="model"` is another network of the same structure."""
    if teacher == "model":
        teacher = network(noise, normalisation)
    model = network(noise, normalisation)
    for variable in model.trainable_variables if isinstance(teacher, keras.Model) else []:
        variable.assign(ops.convert_to_numpy(variable.value) * 0.5)
    ssd = keras_ssd.wrap(model, teacher=teacher, seed=7, **{"kd_weight": 0.7, **options})
    ssd.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return ssd


def numbers(variables):
    return [ops.convert_to_numpy(variable.value).tolist() for variable in variables]


def all_weights(ssd):
    """All but the digest of the deployed weights, which differs if these differ by rounding."""
    return numbers(v for v in ssd.weights if v.name != "digest")


def fitted(ssd, rows=ROWS, callbacks=(), scored=False):
    """What a run leaves: logs, weights, averages and snapshots; if asked for, all that evaluation says of it."""
    x, y, sample_weight = data(rows)
    options = dict(batch_size=BATCH, verbose=0)
    validation = (x[:BATCH], y[:BATCH]) if scored else None
    more = dict(epochs=2, shuffle=False, validation_data=validation, callbacks=callbacks)
    history = ssd.fit(x, y, sample_weight=sample_weight, **options, **more)
    results = {"history": history.history, "weights": all_weights(ssd)}
    if scored:
        results["evaluate"] = ssd.evaluate(x[:16], y[:16], return_dict=True, **options)
        results["predict"] = ssd.predict(x[:16], **options).tolist()
    return results


def error_of_fit(model, **options):
    """What Keras says of a training that it refuses."""
    try:
        fitted(model, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


# Each kind of teacher once: guided on outputs, on both, as in the paper, and one teacher without noise. All samples: of
# half a batch other ones are drawn than of the whole.
DETERMINISTIC = {
    "self": dict(num_teachers=4, distill="both", similarity="cosine", kd_fraction=1.0),
    "ema": dict(teacher="ema", num_teachers=4, distill="outputs", similarity="kl", kd_fraction=1.0),
    "model": dict(teacher="model", stochastic_layers=(), num_teachers=1, similarity="uniform", distill="outputs"),
    "paper": dict(
        teacher="snapshot",
        num_teachers=4,
        distill="representation",
        similarity="dot",
        guidance_temperature=5.0,
        percentile=50,
    ),
}


# TensorFlow.


def mirrored():
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    results = {}
    makers = {name: functools.partial(wrapped, **options) for name, options in DETERMINISTIC.items()}
    for name, make in {"plain": plain, **makers}.items():
        # The callback's statistics are means over samples, also of those that other replicas hold.
        more = observed() if name == "ema" else {}
        one = fitted(make(), **more)
        with strategy.scope():
            several = make()
        results[name] = {"one": one, "several": fitted(several, **more)}
    results["statistics"] = statistics(strategy)
    results["as the task"] = {str(rows): as_the_task(strategy, rows) for rows in (14, 9)}
    results["noise"] = noise(strategy)
    results["wrapped outside"] = wrapped_outside(strategy)
    return results


def observed():
    return dict(callbacks=[keras_ssd.callbacks.TeacherMonitor()], scored=True)


def plain():
    model = network()
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def on_each(strategy, variables):
    """The values of variables on each replica."""
    return [[value.numpy().tolist() for value in strategy.experimental_local_results(v.value)] for v in variables]


def statistics(strategy):
    """BatchNormalization, whose statistics are each replica's own in Keras: theirs, and those of the average."""
    x, y, _ = data()

    def fitted_with(*callbacks):
        with strategy.scope():
            ssd = wrapped(teacher="ema", normalisation=layers.BatchNormalization, num_teachers=4, distill="outputs")
        ssd.fit(x, y, batch_size=BATCH, shuffle=False, epochs=2, verbose=0, callbacks=list(callbacks))
        return ssd

    with tempfile.TemporaryDirectory() as folder:
        save_weights = keras.callbacks.ModelCheckpoint(f"{folder}/a.weights.h5", save_weights_only=True)
        saved = fitted_with(keras.callbacks.ModelCheckpoint(f"{folder}/a.keras"), save_weights)
    ssd = fitted_with()
    return {
        "moving": [v.path for v in ssd.student.weights if "moving" in v.path],
        "average": on_each(strategy, ssd.student.weights),
        "raw": on_each(strategy, ssd.average.other),
        "average of a run that wrote files": on_each(strategy, saved.student.weights),
        "raw of a run that wrote files": on_each(strategy, saved.average.other),
        "steps": on_each(strategy, [ssd.average.steps]),
    }


def as_the_task(strategy, rows):
    """If the targets are the teacher's own outputs and the loss is its distance, the term equals the task's loss.

    Then the gradient is twice the plain one, whatever Keras does with weights, replicas and short batches.
    """
    x, _, sample_weight = data(rows)

    def regression():
        keras.utils.set_random_seed(2)
        return keras.Sequential([keras.Input((5,)), layers.Dense(4, activation="tanh"), layers.Dense(2)])

    keras.utils.set_random_seed(3)
    target = np.random.default_rng(3).normal(size=(5, 2)).astype("float32")
    y = x @ target
    results = {}
    for name in ("plain", "distilled"):
        with strategy.scope():
            model = regression()
            if name == "distilled":
                teacher = keras.Sequential([keras.Input((5,)), layers.Dense(2, use_bias=False)])
                teacher.set_weights([target])
                options = dict(stochastic_layers=(), num_teachers=1, similarity="uniform", distill="outputs")
                model = keras_ssd.wrap(model, teacher=teacher, kd_weight=1.0, **options)
            model.compile(keras.optimizers.SGD(0.1 if name == "distilled" else 0.2), "mse")
        history = model.fit(x, y, sample_weight=sample_weight, batch_size=8, epochs=2, shuffle=False, verbose=0)
        results[name] = {"history": history.history, "weights": numbers(getattr(model, "student", model).weights)}
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


def noise(strategy):
    """What the teachers of the replicas see of equal samples, and the mean of the term over many steps."""
    with strategy.scope():
        ssd, seen = with_a_record()
    ssd.train_on_batch(*EQUAL_SAMPLES)
    results = {"seen": seen}
    x, y, _ = data(64)
    for name, scope in (("one", contextlib.nullcontext()), ("several", strategy.scope())):
        with scope:
            ssd = wrapped(dropout, num_teachers=4, distill="outputs", kd_fraction=1.0)
            ssd.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
        history = ssd.fit(x, y, batch_size=64, epochs=40, verbose=0)
        results[name] = history.history["kd_loss"]
    return results


def wrapped_outside(strategy):
    with strategy.scope():
        model = plain()
    ssd = keras_ssd.wrap(model, kd_weight=0.7, **DETERMINISTIC["ema"])
    return {"replicas": ssd.distribute_strategy.num_replicas_in_sync, **fitted(ssd, **observed())}


# JAX.

# Half of a batch: that of one device, every second row, is that of several. Cheaper ones are drawn on each device.
NOISY = {
    "self": dict(num_teachers=6, distill="outputs", kd_fraction=1.0),
    "ema": dict(teacher="ema", num_teachers=6, distill="outputs", kd_fraction=0.5),
    "model": dict(teacher="model", num_teachers=6, distill="both", similarity="kl", kd_fraction=1.0),
    "paper": dict(teacher="snapshot", num_teachers=6, distill="representation", similarity="dot", percentile=50),
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
    fit_all = lambda: {name: fitted(noisy(name), scored=name == "ema") for name in ON_FOUR_DEVICES}  # noqa: E731
    one, devices = fit_all(), keras.distribution.list_devices()
    assert len(devices) == 4
    with keras.distribution.DataParallel(devices=devices).scope():
        several, programs = fit_all(), {name: compiled_step(noisy(name)) for name in COMPILED}
        # A last batch that the devices cannot share evenly: what Keras says of it.
        models = {"plain": plain(), "wrapped": wrapped(num_teachers=4)}
        errors = {name: error_of_fit(model, rows=BATCH + 1) for name, model in models.items()}
    laid = model_parallel(devices)
    return {"one": one, "data parallel": several, "programs": programs, "short batch": errors, "model parallel": laid}


def compiled_step(ssd):
    import jax

    layout = keras.distribution.distribution().get_data_layout
    batch = [keras.distribution.distribute_tensor(jax.numpy.asarray(a), layout(a.shape)) for a in data(BATCH)]
    ssd.optimizer.build(ssd.trainable_variables)
    owners = (ssd.trainable_variables, ssd.non_trainable_variables, ssd.optimizer.variables, ssd.metrics_variables)
    state = tuple([v.value for v in variables] for variables in owners)
    return jax.jit(ssd.train_step).lower(state, tuple(batch)).compile().as_text()


def model_parallel(devices):
    """Fits with the hidden layers shared among four devices, and how a variable and its copies lie on them."""
    results = {}
    for name, mesh in ON_MESHES:
        shape = tuple(map(int, mesh.split("x")))
        layout_map = keras.distribution.LayoutMap(keras.distribution.DeviceMesh(shape, ("batch", "model"), devices))
        layout_map[".*hidden_.*kernel"] = (None, "model")
        layout_map[".*hidden_.*bias"] = ("model",)
        with keras.distribution.ModelParallel(layout_map=layout_map, batch_dim_name="batch").scope():
            ssd = noisy(name)
            results[f"{name} {mesh}"] = fitted(ssd, scored=name == "ema")
        copies = ssd.average.other if name == "ema" else ssd.distillation.teacher_weights.copies
        laid = [str(v.value.sharding.spec) for v in (ssd.student.weights[0], copies[0])]
        results[f"{name} {mesh}"]["layouts"] = laid
    return results


ON_HOSTS = ("ema", "paper")


def hosts(port, n_processes, process):
    """One of several processes, each with its half of every batch."""
    import jax

    n_processes, process = int(n_processes), int(process)
    if n_processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        keras.distribution.initialize(f"127.0.0.1:{port}", n_processes, process)
        keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    return {name: {"devices": jax.device_count(), **on_host(name, n_processes, process)} for name in ON_HOSTS}


def on_host(name, n_processes, process):
    ssd = noisy(name)
    x, y, sample_weight = data()
    size = BATCH // n_processes
    # The rows of every batch that this process holds.
    mine = np.arange(ROWS).reshape(-1, BATCH)[:, process * size : (process + 1) * size].ravel()
    x, y, options = x[mine], y[mine], dict(batch_size=size, verbose=0)
    history = ssd.fit(x, y, sample_weight=sample_weight[mine], epochs=2, shuffle=False, **options)
    evaluated = ssd.evaluate(x, y, return_dict=True, **options)
    return {"history": history.history, "evaluate": evaluated, "weights": all_weights(ssd)}


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
    size = BATCH // n_processes
    losses, gradients = [], []
    for start in range(process * size, ROWS, BATCH):
        batch = [torch.as_tensor(a[start : start + size]) for a in data()]
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
        models = {"plain": plain(), "wrapped": wrapped(num_teachers=4)}
    return {name: error_of_fit(model) for name, model in models.items()}


if __name__ == "__main__":
    job, out, *arguments = sys.argv[1:]
    pathlib.Path(out).write_text(json.dumps(globals()[job](*arguments)))
