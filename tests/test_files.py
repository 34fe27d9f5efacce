"""What earlier releases have saved is loaded by this one, and trains on. `tests/files/write.py` has written it."""

import importlib.util
import json
import pathlib

import keras
import numpy as np
import pytest
from keras import ops

import keras_ssd

FILES = pathlib.Path(__file__).parent / "files"
STORED = sorted(FILES.glob("*.keras"))
X = np.sin(np.arange(8 * 4, dtype="float32")).reshape(8, 4)
Y = np.arange(8) % 3


def about(path):
    version, kind = path.stem.split("-")
    stored = json.loads((FILES / f"{version}.json").read_text())
    return kind, {name: stored[name][kind] for name in ("predictions", "options")}


# Keras 3.6 wrote the inputs of a model as a list of one, which newer ones remark upon on JAX.
@pytest.mark.filterwarnings("ignore:(?s).*The structure of `inputs`")
@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_file_of_a_release(path):
    kind, stored = about(path)
    model = keras.models.load_model(path)
    assert model.settings.kind == kind
    config = json.loads(json.dumps(model.get_config()))
    assert {name: config[name] for name in stored["options"]} == stored["options"]
    np.testing.assert_allclose(model.predict(X, verbose=0), stored["predictions"], atol=1e-6)
    # Two epochs of two batches; the optimizer and the average have counted them.
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 4
    if kind == "ema":
        assert int(ops.convert_to_numpy(model.held_weights.steps.value)) == 4
    head = model.student.get_layer("head").kernel
    before = np.array(ops.convert_to_numpy(head.value))
    history = model.fit(X, Y, batch_size=8, verbose=0).history
    assert set(history) == {"accuracy", "kd_loss", "loss"}
    assert np.isfinite(history["loss"]).all() and history["kd_loss"][0] > 0
    assert (ops.convert_to_numpy(head.value) != before).any()
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 5


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_the_student_of_a_file_of_a_release_teaches(path):
    model = keras.models.load_model(path).student
    ssd = keras_ssd.wrap(model, teacher=path)
    ssd.compile("sgd", "sparse_categorical_crossentropy")
    assert ssd.train_on_batch(X, Y, return_dict=True)["kd_loss"] > 0


def test_each_release_stores_its_files():
    stored = {path.stem for path in STORED}
    missing = {f"{keras_ssd.__version__}-{kind}" for kind in ("self", "ema", "snapshot", "model")} - stored
    assert not missing, "run tests/files/write.py with the oldest supported Keras before a release"


def test_stored_files_are_never_written_again():
    spec = importlib.util.spec_from_file_location("write", FILES / "write.py")
    write = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(write)
    before = {path: path.read_bytes() for path in FILES.iterdir() if path.is_file()}
    with pytest.raises(SystemExit, match="never written again"):
        write.main()
    assert before == {path: path.read_bytes() for path in FILES.iterdir() if path.is_file()}
