"""One training step against the plain model: values that must be equal, state that must not change, and the term."""

import functools
import random
import types

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_ssd
from keras_ssd import _backend
from models import CLASSES as Y
from models import WINDOWS as X
from models import compiled, network
from passes import passes, run_passes
from same_weights import arrays, assert_close, assert_same
from structures import Doubling


def pair(**options):
    """The plain model and a wrapped one of the same weights and seeds."""
    made = []
    for _ in range(2):
        keras.utils.set_random_seed(11)
        made.append(compiled(network()))
    return made[0], keras_ssd.wrap(made[1], **options)


def small(noise=None, units=4, activation="softmax"):
    """Dense, noise, Dense."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((4,))
    x = (noise or Doubling(name="noise"))(layers.Dense(units, name="hidden")(inputs))
    return keras.Model(inputs, layers.Dense(3, activation=activation)(x))


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="Only PyTorch has global generators.")
def test_the_passes_restore_the_generator_of_an_accelerator(monkeypatch):
    """Of CUDA, MPS or XPU: all have these three functions, and only two of them take the index of a device."""
    import torch

    states = ["before"]
    names = {"get_rng_state": lambda: states[-1], "set_rng_state": states.append, "manual_seed": states.append}
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch, "get_device_module", lambda *_: types.SimpleNamespace(**names))
    with pytest.raises(KeyError), _backend.teacher_scope(7):
        assert states[-1] == 7
        raise KeyError
    assert states == ["before", 7, "before"]


def test_weight_0_is_the_plain_model_bit_for_bit():
    """History and weights, of a model with seeded and unseeded dropout."""
    results = []
    for options in (None, {"teacher": "snapshot", "kd_weight": 0}):
        keras.utils.set_random_seed(5)
        model = compiled(network(seeds=(1, None)), optimizer=keras.optimizers.Adam(0.01))
        trained = model if options is None else keras_ssd.wrap(model, **options)
        history = trained.fit(X, Y, epochs=2, batch_size=10, verbose=0, validation_data=(X, Y)).history
        results.append((history, model.get_weights()))
    assert results[0][0] == results[1][0]
    assert_same(*(weights for _, weights in results))


@functools.cache
def three_steps(teacher=None):
    """Losses without the distillation term, statistics and seeds; one dropout is seeded, one is not."""
    keras.utils.set_random_seed(5)
    model = compiled(network(seeds=(1, None)), optimizer=keras.optimizers.SGD(0.0))
    trained = model if teacher is None else keras_ssd.wrap(model, teacher=teacher, kd_weight=0.5)
    # train_on_batch logs means that include the steps before
    logs = [trained.train_on_batch(X, Y, return_dict=True) for _ in range(3)]
    losses = [float(log["loss"]) - 0.5 * float(log.get("kd_loss", 0)) for log in logs]
    return losses, arrays(model.non_trainable_variables)


@pytest.mark.compiled
@pytest.mark.parametrize("teacher", ["self", "snapshot", "ema"])
def test_teachers_change_neither_statistics_nor_the_noise_of_the_student(teacher):
    """On PyTorch unseeded dropout draws from the global generator: the draws must be those of the plain model."""
    np.testing.assert_allclose(three_steps(teacher)[0], three_steps()[0], rtol=1e-5)
    assert_same(three_steps(teacher)[1], three_steps()[1])


@pytest.mark.compiled
def test_no_gradient_reaches_the_teachers():
    """With the task weighted 0 and equal teachers, the gradient is that of the distance to a constant target."""
    model = small(units=5, activation=None)
    hidden = model.get_layer("hidden")
    options = dict(distill="representation", similarity="uniform", num_teachers=2, percentile=0)
    options |= dict(kd_sample_weight=False, kd_weight=1.0, representation="noise")
    ssd = keras_ssd.wrap(model, teacher="snapshot", **options)
    ssd.compile(keras.optimizers.SGD(1.0), "mse")
    x = np.random.default_rng(0).normal(size=(7, 4)).astype("float32")
    teacher_kernel = ops.convert_to_numpy(hidden.kernel)
    student_kernel = teacher_kernel + 0.5
    hidden.kernel.assign(student_kernel)
    ssd.train_on_batch(x, np.zeros((7, 3)), sample_weight=np.zeros(7))
    # f_S = 2 x W_S, f_T = 2 x W_T; d/dW mean (f_S - f_T)^2 = 2 * 2 x^T (f_S - f_T) / (7 * 5)
    gradient = 4 * x.T @ (2 * x @ (student_kernel - teacher_kernel)) / 35
    np.testing.assert_allclose(ops.convert_to_numpy(hidden.kernel), student_kernel - gradient, atol=1e-5)


@pytest.mark.compiled
def test_no_gradient_flows_back_through_the_values_that_teachers_share():
    """Own weights branch off the student's pass: one step is that of a plain model with constant targets.

    Normalization after the noise makes teachers that differ from the student: it normalizes by the batch, they do not.
    """

    def build():
        keras.utils.set_random_seed(3)
        inputs = keras.Input((4,))
        x = Doubling()(layers.Dense(5, activation="tanh")(inputs))
        x = layers.BatchNormalization(momentum=1.0)(x)
        model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
        model.layers[3].moving_mean.assign(np.full(5, 0.3))
        model.layers[3].moving_variance.assign(np.full(5, 1.5))
        return model

    def task_and_term(y_true, y_pred):
        task = keras.losses.categorical_crossentropy(y_true[:, :3], y_pred)
        return task + 0.7 * keras.losses.kl_divergence(y_true[:, 3:], y_pred)

    x = X[:, :4, 0]
    plain, model = build(), build()
    hidden, normalization, head = (plain.layers[index] for index in (1, 3, 4))
    teachers = ops.convert_to_numpy(head(normalization(2 * hidden(x), training=False)))
    compiled(plain, loss=task_and_term, metrics=())
    plain.train_on_batch(x, np.hstack([np.eye(3)[Y], teachers]).astype("float32"))
    options = dict(num_teachers=2, kd_weight=0.7, kd_fraction=1, temperature=1.0, similarity="uniform")
    ssd = compiled(keras_ssd.wrap(model, **options))
    logs = ssd.train_on_batch(x, Y, return_dict=True)
    assert float(logs["kd_loss"]) > 1e-3
    assert_close(plain.trainable_variables, model.trainable_variables, tolerance=1e-6)


def test_evaluation_is_the_plain_models_and_changes_nothing():
    plain, ssd = pair()
    variables = [v for v in ssd.variables if all(v is not own for metric in ssd.metrics for own in metric.variables)]
    before = arrays(variables)
    first, second = (ssd.evaluate(X, Y, verbose=0, return_dict=True) for _ in range(2))
    assert first == second
    assert first == pytest.approx(plain.evaluate(X, Y, verbose=0, return_dict=True), rel=1e-6)
    np.testing.assert_array_equal(ssd.predict(X, verbose=0), plain.predict(X, verbose=0))
    assert "kd_loss" not in first and "kd_loss" not in ssd.test_on_batch(X, Y, return_dict=True)
    assert_same(before, variables)


def test_the_logged_term_is_the_mean_over_samples():
    """As Keras' logged loss: a short last batch counts by its samples."""
    model = compiled(small(), keras.optimizers.SGD(0.0))
    ssd = keras_ssd.wrap(model, teacher="snapshot", distill="outputs", similarity="uniform")
    model.set_weights([w + 0.3 for w in model.get_weights()])
    options = dict(batch_size=16, shuffle=False, verbose=0)
    parts = (slice(16), slice(16, 19), slice(19))
    logged = [ssd.fit(X[rows, :4, 0], Y[rows], **options).history["kd_loss"][0] for rows in parts]
    assert logged[0] != pytest.approx(logged[1], rel=0.1)
    assert logged[2] == pytest.approx((16 * logged[0] + 3 * logged[1]) / 19, rel=1e-5)


@pytest.mark.compiled
def test_sample_weights_weigh_both_terms():
    """Weight 0 is as if the sample were not there, but for the divisor, which is the batch in Keras."""
    results = []
    for x, y, weight in ((X, Y, np.r_[np.full(12, 0.5), np.zeros(12)]), (X[:12], Y[:12], np.full(12, 0.25))):
        model = compiled(small(), keras.optimizers.SGD(1.0))
        options = dict(distill="both", percentile=0, num_teachers=3, similarity="cosine")
        ssd = keras_ssd.wrap(model, teacher="snapshot", **options)
        model.set_weights([w + 0.3 for w in model.get_weights()])
        logs = ssd.train_on_batch(x[:, :4, 0], y, sample_weight=weight.astype("float32"), return_dict=True)
        results.append((float(logs["kd_loss"]), *model.get_weights()))
    assert results[0][0] > 1e-4
    assert_close(*results)
    ssd.train_on_batch(x[:, :4, 0], y, sample_weight=np.zeros(12, "float32"))
    assert_same(model.get_weights(), results[-1][1:])  # no update at all


def test_teachers_that_are_not_finite_leave_the_task_alone():
    """A frozen network gone wrong gives no term; the student trains as the plain model would."""
    results = []
    for broken in (True, False):
        model = compiled(small())
        ssd = keras_ssd.wrap(model, teacher="snapshot", kd_weight=1.0 if broken else 0.0, distill="both", percentile=0)
        if broken:
            for held in ssd.distillation.teacher_weights.copies:
                held.assign(np.full(held.shape, np.nan))
        logs = ssd.train_on_batch(X[:, :4, 0], Y, return_dict=True)
        results.append((float(logs["loss"]), *model.get_weights()))
    assert_close(*results, tolerance=1e-6)


@pytest.mark.parametrize("chunk, seed", [(None, 1), (4, None)])
def test_every_pass_draws_its_own_noise(chunk, seed):
    """10 teachers of 24 samples: no two alike, in this step or the next."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((40,))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dropout(0.5, seed=seed, name="noise")(inputs)))
    options = dict(distill="representation", similarity="uniform", representation="noise")
    ssd = keras_ssd.wrap(model, num_teachers=10, teacher_chunk=chunk, **options)
    steps = [run_passes(ssd, np.ones((24, 40), "float32")).teacher_representation for _ in range(2)]
    draws = np.reshape(steps, (480, 40))
    assert len(np.unique(draws, axis=0)) == 480
    assert np.mean(draws == 0) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("kind, seeds", [(layers.Dropout, (None, None)), (layers.AlphaDropout, (1, 2))])
def test_every_noise_layer_draws_its_own_noise(kind, seeds):
    """Two layers that get the same values drop others of them."""
    inputs = keras.Input((40,))
    dropped = layers.Concatenate(name="both")([kind(0.5, seed=seed)(inputs) for seed in seeds])
    model = keras.Model(inputs, layers.Dense(2)(dropped))
    options = dict(num_teachers=3, distill="representation", similarity="uniform", representation="both")
    teachers = passes(keras_ssd.wrap(model, **options), np.ones((8, 40), "float32")).teacher_representation
    assert 0.4 < np.mean(teachers[..., :40] != teachers[..., 40:]) < 0.6


def test_seed_fixes_the_teachers():
    first, again, other = (passes(pair(seed=seed)[1], X).teacher_outputs[0] for seed in (4, 4, 5))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_wrapping_draws_no_random_numbers():
    def following(wrap):
        keras.utils.set_random_seed(8)
        model = network(seeds=(None, None))
        if wrap:
            keras_ssd.wrap(model, teacher="ema")
        return network(seeds=(None, None)).get_weights() + [np.random.random(2), random.random()]

    assert_same(following(False), following(True))


def test_guidance_weights_can_be_read_without_side_effects():
    _, ssd = pair(teacher="snapshot")
    before = arrays(ssd.variables)
    weights, unfiltered = ssd.guidance_weights(X[:5]), ssd.guidance_weights(X[:5], percentile=0)
    assert weights.shape == unfiltered.shape == (5, 30)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    # 3 of 30 are kept, more only where small representations coincide
    assert (np.count_nonzero(weights, axis=1) >= 3).all() and np.median(np.count_nonzero(weights, axis=1)) == 3
    assert (unfiltered > 0).all()
    np.testing.assert_array_equal(weights, ssd.guidance_weights(X[:5]))
    with pytest.warns(UserWarning, match="0.9 is below 1: pass 90 "):
        ssd.guidance_weights(X[:5], percentile=0.9)
    assert_same(before, ssd.variables)


# A `train_step` of the user's own.


class OwnStep(keras_ssd.SSDModel):
    """Keras' recipe for each backend, without `super().train_step`."""

    def train_step(self, *args):
        return getattr(self, f"_on_{keras.backend.backend()}")(*args)

    def _on_tensorflow(self, data):
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(x=x, y=y, y_pred=y_pred)
        weights = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return {"loss": loss}

    def _on_torch(self, data):
        x, y = data
        self.zero_grad()
        loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
        loss.backward()
        weights = self.trainable_weights
        self.optimizer.apply([v.value.grad for v in weights], weights)
        return {"loss": loss}

    def _on_jax(self, state, data):
        import jax

        trained, others, optimizer, metrics = state
        gradient = jax.value_and_grad(self.compute_loss_and_updates, has_aux=True)
        (loss, (*_, others, metrics)), gradients = gradient(
            trained, others, metrics, *data, None, training=True, optimizer_variables=optimizer
        )
        trained, optimizer = self.optimizer.stateless_apply(optimizer, gradients, trained)
        return {"loss": loss}, (trained, others, optimizer, metrics)


@pytest.mark.compiled
def test_a_train_step_of_a_subclass_distils_and_feeds_the_average():
    models = []
    for make in (OwnStep, keras_ssd.SSDModel):
        keras.utils.set_random_seed(11)
        ssd = make(compiled(network(), metrics=()), kd_weight=1.0, seed=1)
        ssd.fit(X, Y, batch_size=10, shuffle=False, verbose=0)
        models.append(ssd)
    assert_close(models[0].weights, models[1].weights)


ONCE = "call the model exactly once, with training=True"
AGAIN = r"called more than once.*self\.student\(x, training=True\)"


@pytest.mark.parametrize(
    "outputs_of, message",
    [
        (lambda ssd: [ssd(X, training=True), ssd(X[::-1], training=True)], AGAIN),
        (lambda ssd: [ops.ones((24, 3)) / 3], ONCE),
        (lambda ssd: 2 * [ssd(X, training=True)], ONCE),
    ],
    ids=["of another call", "of no call", "twice"],
)
def test_compute_loss_takes_the_outputs_of_its_own_call_once(outputs_of, message):
    """A term of one call's outputs and another call's teachers would be wrong without a word."""

    class Own(keras_ssd.SSDModel):
        def train_step(self, *args):
            return [self.compute_loss(x=X, y=Y, y_pred=y_pred) for y_pred in outputs_of(self)]

    with pytest.raises(RuntimeError, match=message):
        Own(compiled(network())).train_on_batch(X, Y)
