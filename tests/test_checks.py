"""Which models `wrap` refuses because training them is more than Keras' own training."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_ssd
from models import classifier, compiled
from structures import Subclassed

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
Y = np.arange(8) % 2


def built(kind):
    model = kind()
    model(X)
    return compiled(model, metrics=())


def hub_task(**methods):
    """A model class like the tasks of KerasHub: its own `fit` runs `preprocessor`."""

    def fit(self, x, y, **kwargs):
        return keras.Model.fit(self, x if self.preprocessor is None else self.preprocessor(x), y, **kwargs)

    of_hub = {"fit": fit, "preprocessor": None, "__module__": "keras_hub.src.utils.pipeline_model"}
    pipeline = type("PipelineModel", (Subclassed,), of_hub)
    return type("Task", (pipeline,), {"__module__": "keras_hub.src.models.task", **methods})


def test_attribute_named_preprocessor_is_allowed_and_hides_no_train_step():
    model = compiled(classifier(), metrics=())
    model.preprocessor = layers.Rescaling(2.0)
    assert keras_ssd.wrap(model).fit(X, Y, verbose=0).history["kd_loss"][0] > 0
    assert keras_ssd.wrap(built(Subclassed)).fit(X, Y, verbose=0).history["kd_loss"][0] > 0
    kind = type("Own", (Subclassed,), {"preprocessor": abs, "train_step": lambda self, *args: None})
    with pytest.raises(ValueError, match=r"overrides \['train_step'\].*subclass of keras_ssd.SSDModel"):
        keras_ssd.wrap(built(kind))


def test_a_task_of_keras_hub_is_refused_while_it_has_a_preprocessor():
    model = built(hub_task())
    model.preprocessor = lambda x: x / 255
    with pytest.raises(ValueError, match=r"preprocessor=None.*dataset\.map\(preprocessor\)"):
        keras_ssd.wrap(model)
    model.preprocessor = None
    assert keras_ssd.wrap(model).fit(X, Y, verbose=0).history["kd_loss"][0] > 0


@pytest.mark.parametrize(
    "package, name",
    [("keras_hub.src.models.detector", "compute_loss"), ("mine", "train_step"), ("mine", "fit")],
)
def test_task_with_a_custom_loss_step_or_fit_is_rejected(package, name):
    kind = type("Mine", (hub_task(),), {name: lambda self, *args, **kwargs: None, "__module__": package})
    with pytest.raises(ValueError, match=rf"overrides \['{name}'\]"):
        keras_ssd.wrap(built(kind))


@pytest.mark.skipif(not hasattr(keras, "distillation"), reason="This version of Keras has no Distiller.")
def test_keras_distiller_is_rejected_with_the_call_that_replaces_it():
    distiller = keras.distillation.Distiller(
        teacher=classifier(), student=classifier(), distillation_losses=keras.distillation.LogitsDistillation()
    )
    distiller.compile("adam", "sparse_categorical_crossentropy")
    distiller.fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match=r"compute_loss.*wrap\(model\.student, teacher=model\.teacher\)"):
        keras_ssd.wrap(distiller)
    ssd = keras_ssd.wrap(distiller.student, teacher=distiller.teacher)
    ssd.compile("adam", "sparse_categorical_crossentropy")
    assert np.isfinite(ssd.fit(X, Y, verbose=0).history["kd_loss"]).all()
