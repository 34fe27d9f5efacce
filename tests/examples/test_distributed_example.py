"""The example of several devices, as a user starts it."""

import os
import pathlib
import subprocess
import sys

import keras
import pytest

import distributed
import keras_ssd

SCRIPT = pathlib.Path(distributed.__file__)
BACKEND = keras.backend.backend()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["2 devices", "2 hosts"])
def test_compares_with_one_device(what):
    if what == "2 hosts" and BACKEND != "jax":
        pytest.skip("several hosts are for JAX")
    options = ["--epochs", "2", "--teacher", "ema"] + (["--hosts", "2"] if what == "2 hosts" else [])
    package = str(pathlib.Path(keras_ssd.__file__).parents[1])  # the one under test, installed or not
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(SCRIPT), *options]
    run = subprocess.run(command, env=dict(os.environ, PYTHONPATH=path), capture_output=True, text=True, timeout=1500)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("epoch   0: ") == 2
    table = [line.rsplit(maxsplit=4) for line in run.stdout.splitlines()[-2:]]
    assert [line[0].strip() for line in table] == ["1 device", what]
    difference, other_difference = (float(line[4]) for line in table)
    assert difference == 0
    if BACKEND == "jax":
        assert other_difference < 1e-3  # Adam makes much of gradients that are all but 0
    else:
        # Noise differs, and `test_distribution.py` shows that nothing else does. Here: from the same weights, six steps
        # of Adam with 0.005, each of which moves a weight by little more than that.
        assert 0 < other_difference < 0.1
