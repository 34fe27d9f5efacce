"""Writes the files that later releases must be able to load: one for each kind of teacher, and what they predict.

    KERAS_BACKEND=tensorflow python tests/files/write.py

Once per release, with the oldest supported Keras (`keras==3.6.0`), as no Keras promises to read what a newer one wrote.
Files of a version that are there already are never written again: they stand for what users have.
"""

import json
import pathlib

import keras
import numpy as np
from keras import layers

import keras_ssd

FILES = pathlib.Path(__file__).parent
KINDS = ("self", "ema", "snapshot", "model")


def data():
    """Eight samples, the same on every machine."""
    x = np.sin(np.arange(8 * 4, dtype="float32")).reshape(8, 4)
    return x, np.arange(8) % 3


def network(seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,), name="x")
    x = layers.BatchNormalization(name="normalization")(layers.Dense(5, activation="relu", name="hidden")(inputs))
    x = layers.Dropout(0.25, seed=3, name="noise")(x)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax", name="head")(x), name="network")
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def wrapped(kind):
    # Options that differ from the defaults where there is one: they are to be read, not to be filled in.
    options = {
        "self": dict(
            n_teachers=3, temperature=2.0, guidance_temperature=0.5, percentile=25.0, stochastic_layers="noise"
        ),
        "ema": dict(n_teachers=2, momentum=0.5, similarity="uniform", dropout_rate=0.5),
        "snapshot": dict(n_teachers=4, teacher_chunk=2, representation="noise", stochastic_layers=["noise"]),
        "model": dict(n_teachers=2, distill="both", similarity="cosine", task_weight=0.5),
    }[kind]
    return keras_ssd.wrap(network(1), teacher=network(2) if kind == "model" else kind, seed=4, **options)


def main():
    version = keras_ssd.__version__
    paths = [FILES / f"{version}-{kind}.keras" for kind in KINDS]
    there = [path.name for path in [*paths, FILES / f"{version}.json"] if path.exists()]
    if there:
        raise SystemExit(f"Files of a release are never written again; there are: {there}")
    x, y = data()
    about = {"keras": keras.__version__, "backend": keras.backend.backend(), "predictions": {}, "options": {}}
    for kind, path in zip(KINDS, paths, strict=True):
        model = wrapped(kind)
        model.fit(x, y, batch_size=4, epochs=2, verbose=0)
        model.save(path)
        about["predictions"][kind] = model.predict(x, verbose=0).tolist()
        config = model.get_config()
        about["options"][kind] = {name: value for name, value in config.items() if name not in ("model", "teacher")}
    (FILES / f"{version}.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
