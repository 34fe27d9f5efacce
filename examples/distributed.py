"""Trains a distilled Conv1D net on several devices and on one, and compares the two runs.

    KERAS_BACKEND=tensorflow python examples/distributed.py          # tf.distribute.MirroredStrategy
    KERAS_BACKEND=jax python examples/distributed.py --devices 4     # keras.distribution.DataParallel
    KERAS_BACKEND=jax python examples/distributed.py --hosts 2       # the same in two processes, as on two machines
    KERAS_BACKEND=torch python examples/distributed.py               # torch's DistributedDataParallel, a process each

Where a machine has fewer GPUs than `--devices`, that many devices of its processor take their place: this shows that it
works, not that it is faster. Both runs see the same batches and start from the same weights. On JAX they end with the
same weights, too, as noise is drawn for the whole batch; with the other backends each device draws its own noise.

Each run is a process of its own (for PyTorch, and with `--hosts`, several), because devices are chosen when a process
starts. The trained students are then scored on the test split, on one device.
"""

import argparse
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's greeting would bury the table

import keras
import numpy as np
import pandas as pd

import keras_ssd
from _support import ucr_data

BATCH_SIZE = 16
LEARNING_RATE = 5e-3


def conv_net(dataset):
    """Without BatchNormalization, which has statistics of its own on every device unless it is `synchronized`."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(dataset.x_train.shape[1:])
    x = inputs
    for filters, kernel_size in [(32, 8), (64, 5)]:
        x = keras.layers.Conv1D(filters, kernel_size, strides=2, use_bias=False)(x)
        x = keras.layers.GroupNormalization(8)(x)
        x = keras.layers.Activation("relu")(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dropout(0.3)(x)
    return keras.Model(inputs, keras.layers.Dense(dataset.n_classes, activation="softmax")(x))


def new_model(dataset, arguments):
    model = conv_net(dataset)
    model.compile(keras.optimizers.Adam(LEARNING_RATE), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return keras_ssd.wrap(model, teacher=arguments.teacher, num_teachers=8)


def batches(dataset):
    """The training split in a fixed order, without the rows that would make a last, short batch."""
    order = np.random.default_rng(0).permutation(len(dataset.x_train))
    order = order[: len(order) // BATCH_SIZE * BATCH_SIZE]
    return dataset.x_train[order], dataset.y_train[order]


def rows_of(process, n_processes, arrays):
    """The rows of every batch that one of several processes holds."""
    rows = np.arange(len(arrays[0])).reshape(-1, n_processes, BATCH_SIZE // n_processes)[:, process].ravel()
    return [array[rows] for array in arrays]


class Progress(keras.callbacks.Callback):
    """Prints some epochs and takes the time of all but the first, in which the step is compiled."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            self.start = time.perf_counter()
        if epoch % 10 == 0:
            print(f"  epoch {epoch:3}: " + ", ".join(f"{name} {value:.4f}" for name, value in logs.items()))

    def on_train_end(self, logs=None):
        self.seconds = time.perf_counter() - self.start


def fit(ssd, arrays, arguments, batch_size=BATCH_SIZE):
    progress = Progress() if arguments.process == 0 else keras.callbacks.Callback()
    x, y = arrays
    ssd.fit(x, y, batch_size=batch_size, epochs=arguments.epochs, shuffle=False, verbose=0, callbacks=[progress])
    return ssd, getattr(progress, "seconds", 0.0)


def one_device(dataset, arguments):
    return fit(new_model(dataset, arguments), batches(dataset), arguments)


def mirrored(dataset, arguments):
    """TensorFlow: the model is made in the strategy's scope; all else stays as it is."""
    import tensorflow as tf

    if len(tf.config.list_physical_devices("GPU")) >= arguments.devices:
        devices = [f"GPU:{n}" for n in range(arguments.devices)]
    else:
        processor = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            processor, [tf.config.LogicalDeviceConfiguration()] * arguments.devices
        )
        devices = [f"CPU:{n}" for n in range(arguments.devices)]
    with tf.distribute.MirroredStrategy(devices).scope():
        ssd = new_model(dataset, arguments)
    return fit(ssd, batches(dataset), arguments)


def data_parallel(dataset, arguments):
    """JAX: the distribution is set before the model is made; all else stays as it is."""
    devices = keras.distribution.list_devices()[: arguments.devices]
    if len(devices) < arguments.devices:
        raise SystemExit(f"JAX has {len(devices)} devices, {arguments.devices} were asked for. Received: {devices}")
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
    return fit(new_model(dataset, arguments), batches(dataset), arguments)


def hosts(dataset, arguments):
    """JAX on several machines, here processes: each feeds its own part of every batch."""
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    keras.distribution.initialize(arguments.address, arguments.hosts, arguments.process)
    # The data of each process are its own already.
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    mine = rows_of(arguments.process, arguments.hosts, batches(dataset))
    return fit(new_model(dataset, arguments), mine, arguments, BATCH_SIZE // arguments.hosts)


def processes(dataset, arguments):
    """PyTorch: Keras' recipe for DistributedDataParallel, a loop of one's own around a module that has the loss."""
    import torch

    on_gpu = torch.cuda.device_count() >= arguments.devices
    if on_gpu:
        torch.cuda.set_device(arguments.process)
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"tcp://{arguments.address}",
        world_size=arguments.devices,
        rank=arguments.process,
    )

    class TrainingLoss(torch.nn.Module):
        def __init__(self, ssd):
            super().__init__()
            self.ssd = ssd

        def forward(self, x, y):
            return self.ssd.training_loss(x, y)

    ssd = new_model(dataset, arguments)
    torch.manual_seed(arguments.process)  # the student's dropout; the teachers' differs by itself
    module = torch.nn.parallel.DistributedDataParallel(TrainingLoss(ssd))
    optimizer = torch.optim.Adam([v.value for v in ssd.trainable_variables], lr=LEARNING_RATE)
    x, y = rows_of(arguments.process, arguments.devices, batches(dataset))
    size, steps = BATCH_SIZE // arguments.devices, len(x) * arguments.devices // BATCH_SIZE
    progress = Progress()
    for epoch in range(arguments.epochs):
        losses = []
        for step in range(steps):
            rows = slice(step * size, (step + 1) * size)
            optimizer.zero_grad()
            loss = module(keras.ops.convert_to_tensor(x[rows]), keras.ops.convert_to_tensor(y[rows]))
            loss.backward()
            optimizer.step()
            if ssd.average is not None:
                ssd.update_average()
            losses.append(loss.item())
        if arguments.process == 0:
            progress.on_epoch_end(epoch, {"loss": np.mean(losses)})
    if arguments.process == 0:
        progress.on_train_end()
    if ssd.average is not None:
        ssd.write_average()
    # The group ends with the process: destroyed while `module` still holds it, it was seen to wait for ever.
    return ssd, getattr(progress, "seconds", 0.0)


def work(dataset, arguments):
    """What a process of a run does."""
    several = {"tensorflow": mirrored, "jax": hosts if arguments.hosts > 1 else data_parallel, "torch": processes}
    train = one_device if arguments.devices * arguments.hosts == 1 else several[keras.config.backend()]
    ssd, seconds = train(dataset, arguments)
    if arguments.process == 0:
        weights = {f"w{i}": value for i, value in enumerate(ssd.student.get_weights())}
        np.savez(arguments.out, seconds=seconds, **weights)


def run(arguments, devices, hosts):
    """Starts the processes of a run and waits for them. Returns the student's weights and seconds per step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = dict(os.environ)
    flags = environment.get("XLA_FLAGS", "")
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices} {flags}"
    n_processes = devices if keras.config.backend() == "torch" else hosts
    if keras.config.backend() == "torch" and devices > 1:
        import torch

        if torch.cuda.device_count() < devices:
            environment["KERAS_TORCH_DEVICE"] = "cpu"
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "run.npz"
        own = ["--devices", devices, "--hosts", hosts, "--address", address, "--out", out]
        command = [sys.executable, __file__, *arguments.given, *map(str, own)]
        started = [
            subprocess.Popen([*command, "--process", str(number)], env=environment) for number in range(n_processes)
        ]
        # If one fails, the others would wait for it for ever.
        while any(process.poll() is None for process in started) and not any(process.poll() for process in started):
            time.sleep(0.1)
        failed = [process for process in started if process.poll() != 0]
        for process in failed:
            process.kill()
            process.wait()
        if failed:
            raise SystemExit(f"a process of the run on {devices} devices and {hosts} hosts failed, see above")
        results = dict(np.load(out))
    return [results[f"w{i}"] for i in range(len(results) - 1)], float(results["seconds"])


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="GunPoint", metavar="NAME")
    parser.add_argument("--data-dir", type=pathlib.Path, help=f"folder {ucr_data.ARCHIVE}, or the one that holds it")
    parser.add_argument("--teacher", choices=["self", "ema", "snapshot"], default="self")
    parser.add_argument("--epochs", type=int, default=30, help="at least 2: the first one is not timed")
    parser.add_argument("--devices", type=int, default=2, help="of this machine, for each host")
    parser.add_argument("--hosts", type=int, default=1, help="JAX: processes that train together")
    for name in ("--process", "--address", "--out"):  # what this script tells the processes that it starts
        parser.add_argument(name, type=int if name == "--process" else str, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    arguments.given = list(sys.argv[1:] if argv is None else argv)
    if arguments.hosts > 1 and keras.config.backend() != "jax":
        parser.error("--hosts is for JAX. Elsewhere Keras 3 knows one host only; PyTorch's loop can span several")
    if arguments.epochs < 2:
        parser.error("--epochs should be at least 2")
    if arguments.hosts > 1 and arguments.process is None:
        arguments.devices = 1  # one for each process
    if arguments.devices * arguments.hosts > 1 and BATCH_SIZE % (arguments.devices * arguments.hosts):
        parser.error(f"--devices times --hosts should divide the batch of {BATCH_SIZE}")
    return arguments


def main(argv=None):
    arguments = parse(argv)
    dataset = ucr_data.load(arguments.dataset, arguments.data_dir)
    if arguments.process is not None:
        work(dataset, arguments)
        return
    what = f"{arguments.hosts} hosts" if arguments.hosts > 1 else f"{arguments.devices} devices"
    n_steps = (arguments.epochs - 1) * (len(dataset.x_train) // BATCH_SIZE)
    rows, reference = [], None
    for name, devices, n_hosts in (("1 device", 1, 1), (what, arguments.devices, arguments.hosts)):
        print(f"{arguments.dataset}, {arguments.teacher}, {name}", flush=True)
        weights, seconds = run(arguments, devices, n_hosts)
        model = conv_net(dataset)
        model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        model.set_weights(weights)
        scores = model.evaluate(dataset.x_test, dataset.y_test, verbose=0, return_dict=True)
        reference = reference or weights
        rows.append(
            {
                "run": name,
                "ms_per_step": 1000 * seconds / n_steps,
                "test_accuracy": scores["accuracy"],
                "test_loss": scores["loss"],
                "weights_differ_by": max(np.abs(a - b).max() for a, b in zip(weights, reference, strict=True)),
            }
        )
    print(pd.DataFrame(rows).set_index("run").to_string(float_format="{:.4g}".format))


if __name__ == "__main__":
    main()
