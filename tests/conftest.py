"""The common setup of all tests: the same seed, no display, quick compilation of small networks.

On TensorFlow a test runs its functions eagerly unless it is marked `compiled` or pytest is called with `--compiled`, as
CI does once: tracing took two thirds of the time, although most models train a single step.
"""

import os
import tempfile

import hypothesis
import pytest

os.environ.setdefault("MPLBACKEND", "Agg")  # before matplotlib is imported
# Threads of several processes would wait for each other, in networks that are too small to share out.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# JAX spends most of a test on compiling: without most optimizations, and each program once for all processes.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _programs = tempfile.TemporaryDirectory(prefix="jax-programs-")  # removed as the process ends that made it
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name

# The same examples in every run; CI asks for more of them by `--hypothesis-profile=ci`.
hypothesis.settings.register_profile("default", max_examples=40, derandomize=True, deadline=None)
hypothesis.settings.register_profile("ci", hypothesis.settings.get_profile("default"), max_examples=400)
hypothesis.settings.load_profile("default")


def pytest_addoption(parser):
    parser.addoption("--compiled", action="store_true", help="trace the functions of every test on TensorFlow")


@pytest.fixture(autouse=True)
def kept_kernels(monkeypatch):
    """Keep TensorFlow's kernels when a test seeds: to make them again takes a third of the time.

    They are dropped because a random operation may hold a state. Keras passes a seed to every random operation.
    """
    import keras

    if keras.backend.backend() == "tensorflow":
        from tensorflow.python import pywrap_tfe

        monkeypatch.setattr(pywrap_tfe, "TFE_ContextClearCaches", lambda _: None)


@pytest.fixture(autouse=True)
def eager_functions(request):
    """Run `tf.function` as plain Python, unless the test is about what is compiled; other backends are as they are."""
    import keras

    is_compiled = request.config.getoption("compiled") or request.node.get_closest_marker("compiled")
    if is_compiled or keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(autouse=True)
def seed(kept_kernels):
    import keras  # the process that only shares out the tests does without it

    keras.utils.set_random_seed(0)
