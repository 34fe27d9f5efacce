"""What every test starts from: the same seed, no display, the examples importable, small networks compiled quickly."""

import os
import pathlib
import sys
import tempfile

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
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))


@pytest.fixture(autouse=True)
def seed():
    import keras  # the process that only shares out the tests does without it

    keras.utils.set_random_seed(0)
