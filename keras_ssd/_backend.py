"""Backend-specific code."""

import contextlib
import functools
import math
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ssd import keras_names
from keras_ssd._typing import Tensor

BACKEND = keras.backend.backend()
if BACKEND == "tensorflow":
    import tensorflow as tf
elif BACKEND == "jax":
    import jax
elif BACKEND == "torch":
    import torch

# Keras on JAX moves the weights out of the model while `fit` runs. After an exception some of them may be lost, and
# reading those raises one of these errors.
ERRORS_OF_LOST_WEIGHTS: tuple[type[Exception], ...] = (RuntimeError, TypeError) if BACKEND == "jax" else ()
# For each purpose of a derived seed the last state of the generators, and how many seeds were derived from it before.
_calls: dict[str, tuple[Any, int]] = {}
_lock = threading.Lock()


@contextlib.contextmanager
def teacher_scope(seed: Tensor) -> Iterator[None]:
    """Run teachers without recording gradients and without changing the generators that the student draws from.

    On PyTorch an unseeded `Dropout` draws from torch's global generator (of the CPU or of the accelerator: CUDA, MPS,
    XPU), which is therefore seeded with `seed`, an integer, and restored afterwards. TensorFlow and JAX have no such
    state, and drop unused gradients when they compile.
    """
    if BACKEND != "torch":
        yield
        return
    device = torch.get_device_module() if torch.accelerator.is_available() else None
    # `fork_rng` saves the state of a device by an index, which MPS does not take.
    state = None if device is None else device.get_rng_state()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        # `torch.manual_seed` would do the same, but formats the call stack for every device type there might be.
        torch.default_generator.manual_seed(int(seed))
        try:
            if device is not None:
                device.manual_seed(int(seed))
            yield
        finally:
            if device is not None:
                device.set_rng_state(state)


def wide(x: Tensor) -> Tensor:
    """Return an array or tensor as a tensor of float32; float64 stays float64."""
    x = ops.convert_to_tensor(x)
    return x if keras.backend.standardize_dtype(x.dtype) == "float64" else ops.cast(x, "float32")


def is_concrete(x: Tensor) -> bool:
    """Return whether a tensor has a value: it is not part of a function that is traced or compiled."""
    if BACKEND == "tensorflow":
        return tf.executing_eagerly()
    return not isinstance(x, jax.core.Tracer) if BACKEND == "jax" else not torch.compiler.is_compiling()


def outside_of_graph() -> Any:
    """Return the context in which operations on arrays are run at once, also while a function is traced."""
    if BACKEND == "tensorflow":
        return tf.init_scope()
    return jax.ensure_compile_time_eval() if BACKEND == "jax" else contextlib.nullcontext()


def gains_from_small_batches() -> bool:
    """Return whether several small batches are faster than one large batch that overflows the processor's cache.

    Accelerators need large batches. TensorFlow also uses one batch: looping is only 3 % faster and slow to trace.
    """
    return _is_torch_on_cpu() or (BACKEND == "jax" and jax.default_backend() == "cpu")


def draws_masks_slowly() -> bool:
    """Return whether dropout masks take a large part of a step: on PyTorch's CPU, one Bernoulli draw for each value."""
    return _is_torch_on_cpu()


def _is_torch_on_cpu() -> bool:
    return BACKEND == "torch" and not torch.accelerator.is_available()


def dropout_from_bits(layer: Any, rate: float | None, inputs: Tensor, training: bool | None = None) -> Tensor:
    """Do what a `keras.layers.Dropout` does, on PyTorch, with 16 random bits for each value.

    The probability of a drop is the rate, rounded to a multiple of `2**-16`; what is kept is divided by its own
    probability, so the mean is exact. The bits come from PyTorch's global generator (`teacher_scope`).

    Args:
        layer: the layer, which gives the shape of the noise.
        rate: the rate; `None` for that of the layer.
        inputs: as for the layer.
        training: as for the layer.
    """
    dropped = round((layer.rate if rate is None else rate) * 2**16)
    if not training or not dropped:
        return inputs
    if dropped == 2**16:
        return torch.zeros_like(inputs)
    given = [None] * inputs.ndim if layer.noise_shape is None else layer.noise_shape
    shape = [size if one is None else one for size, one in zip(inputs.shape, given, strict=False)]  # as Keras
    # All 64 bits of a number, read as four integers from -2^15 to 2^15 - 1.
    bits = torch.empty(-(-math.prod(shape) // 4), dtype=torch.int64).random_(-(2**63), None)
    drop = bits.view(torch.int16)[: math.prod(shape)].view(shape) < dropped - 2**15
    return inputs.masked_fill(drop, 0.0).mul_(2**16 / (2**16 - dropped))


def map_in_turn(function: Callable, elements: Tensor) -> Any:
    """Run `ops.map` one element after the other, so that memory is needed for only one element.

    By default TensorFlow runs ten at a time.
    """
    if BACKEND != "tensorflow":
        return ops.map(function, elements)
    signature = keras.tree.map_structure(tf.TensorSpec.from_tensor, function(elements[0]))
    return tf.map_fn(function, elements, fn_output_signature=signature, parallel_iterations=1)


def move_average(averages: Sequence[Any], variables: Sequence[Any], momentum: Tensor) -> None:
    """Move averages towards variables, which may have fewer bits: `average = m * average + (1 - m) * variable`.

    The result is exact where both are equal, as in a frozen layer, and where the momentum m is 0.
    """
    share: Any = 1.0 - momentum if BACKEND == "torch" else None
    for average, variable in zip(averages, variables, strict=True):
        value = ops.cast(ops.stop_gradient(variable.value), average.dtype)
        if BACKEND == "torch":
            with torch.no_grad():  # one fused operation instead of five for every variable and step
                average.value.lerp_(value, share.to(value.dtype))
        else:
            average.assign(value - ops.cast(momentum, average.dtype) * (value - average.value))


def variable_scope(model: keras.Model) -> Any:
    """Return the context for creating variables next to those of a model: the scope of its `tf.distribute` strategy."""
    strategy = getattr(model, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def not_compiled(function: Callable) -> Callable:
    """Return a function that PyTorch's compiler calls as it is, with all that it calls.

    TensorFlow and JAX trace all of a step. PyTorch's compiler cannot follow generators of random numbers, and where it
    stops it compiles every function that is called from there on its own, again for each layer of the network.
    """
    return functools.wraps(function)(torch.compiler.disable(function)) if BACKEND == "torch" else function


def build_optimizer(model: keras.Model) -> None:
    """Create the variables of a model's optimizer, if it has an optimizer without variables."""
    if model.compiled and model.optimizer is not None and not model.optimizer.built:
        with variable_scope(model):
            model.optimizer.build(model.trainable_variables)


def replicas_in_sync() -> int:
    """Return the number of replicas of the `tf.distribute` strategy, by which Keras divides its own losses; else 1."""
    return tf.distribute.get_strategy().num_replicas_in_sync if BACKEND == "tensorflow" else 1


def values_of_replicas(variables: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Return `(copy, value)` of variables of which each replica of `tf.distribute` may hold another value."""
    if BACKEND != "tensorflow":
        return []
    copies = [getattr(v.value, "values", None) for v in variables if not v.trainable]
    return [(copy, copy.numpy()) for of_one in copies if isinstance(of_one, tuple) for copy in of_one]


def devices_of_a_batch() -> int:
    """Return the number of devices over which `keras.distribution` splits the batch of a step; else 1.

    Each replica of `tf.distribute` and each process of `torch.distributed` sees its own batch.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return 1
    mesh = distribution.device_mesh
    return dict(zip(mesh.axis_names, mesh.shape, strict=True))[distribution.get_data_layout((1,)).axes[0]]


def seeds_of_this_replica(seeds: Tensor) -> Tensor:
    """Return integers below `2**31 - 1` that differ between the replicas of a batch; the first one gets `seeds`.

    Under `tf.distribute` all replicas draw the same numbers from a `SeedGenerator`, and the processes of
    `torch.distributed` start with the same seeds: the first samples of all replicas would get the same noise. On JAX
    the noise is drawn for the whole batch, however many devices hold it.
    """
    replica = _replica()
    if replica is None:
        return seeds
    # The golden section of the range: for any number of replicas, their seeds lie far from each other.
    moved = ops.cast(seeds, "int64") + ops.cast(replica, "int64") * 1_327_217_885
    return ops.cast(moved % (2**31 - 1), seeds.dtype)


def _replica() -> Any:
    """Return the number of the running replica (`tf.distribute`, `torch.distributed`); `None` if none was started."""
    if BACKEND == "tensorflow":
        context = tf.distribute.get_replica_context()
        is_alone = context is None or context.num_replicas_in_sync == 1
        return None if is_alone else context.replica_id_in_sync_group
    is_distributed = BACKEND == "torch" and torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if is_distributed else None


def derived_seed(purpose: str = "wrapper") -> int:
    """Return a seed that follows `keras.utils.set_random_seed` without drawing from Python's generator.

    Drawing would change the seeds of layers that the user creates after wrapping. Calls in a row for the same purpose,
    between which Python's generator did not move, return different seeds; the first one after `set_random_seed` is
    always the same. Where it cannot be known whether that was called again, all of them are the same.
    """
    state, generator = random.getstate(), random.Random()
    generator.setstate(state)
    seed = generator.randint(1, 10**9) ^ 0x55D
    number = keras_names.seeding_number()
    if number is None:
        return seed
    moment = number, state
    with _lock:
        last, count = _calls.get(purpose, (None, 0))
        count = count + 1 if moment == last else 0
        _calls[purpose] = moment, count
    return int(np.random.SeedSequence([seed, count]).generate_state(1)[0] >> 2) if count else seed


def for_each_thread(cls: type) -> Any:
    """Return an object of a class whose attributes each thread has for itself on TensorFlow, else a usual object."""
    return (type(cls.__name__, (threading.local, cls), {}) if BACKEND == "tensorflow" else cls)()


def after_train_step(model: keras.Model, result: Any, update: Callable[[], None]) -> Any:
    """Run `update`, which assigns to non-trainable variables of a model, on the state after its training step.

    The result of Keras' `train_step`, which on JAX holds this state, is returned with the updates.
    """
    if BACKEND != "jax":
        update()
        return result
    pairs, rebuild = keras_names.trained_state(model, result)
    with keras.StatelessScope(pairs) as scope:
        update()
    return rebuild([scope.get_current_value(v) for v in model.non_trainable_variables])
