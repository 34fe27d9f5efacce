"""The networks and methods of the accuracy benchmark: each trains as it says, and counts what it costs."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

import data
import experiments
import methods
import networks
import published

pytestmark = pytest.mark.once  # trains by every method of others, too


def experiment(n_epochs=4, network="conv"):
    task = data.load("digits", None, "labels 0.2", 0)
    return experiments.Experiment(task, network, "constant", seed=0, n_epochs=n_epochs)


def test_every_row_of_a_large_set_is_trained_on():
    x, y = np.zeros((1000, 2, 1), "float32"), np.arange(1000)
    task = data.Task("many", (x, y), (x, y), (x, y), None, 1000)
    rows = experiments.Experiment(task, "conv", "constant", seed=0, n_epochs=4).labelled(seed=0)["x"]
    assert type(rows) is experiments.har_data.EvenEpochs, "every row is used equally often"
    assert len(rows) == experiments.STEPS_PER_EPOCH and len(rows[0][1]) == experiments.BATCH_SIZE


@pytest.mark.parametrize(
    "name, n_blocks, n_weights",
    [
        # Kernels, their bias, four of BatchNormalization for each filter, the head.
        ("fcn", 3, (8 * 1 + 5) * 128 + (5 * 128 + 5) * 256 + (3 * 256 + 5) * 128 + (128 + 1) * 10),
        # A block of 64 filters with a shortcut of one step, one of 128, one whose shortcut has no kernel.
        (
            "resnet_published",
            3,
            (8 * 1 + 5 * 64 + 3 * 64 + 1 * 1 + 4 * 5) * 64
            + (8 * 64 + 5 * 128 + 3 * 128 + 1 * 64 + 4 * 5) * 128
            + (((8 + 5 + 3) * 128 + 3 * 5 + 4) * 128 + (128 + 1) * 10),
        ),
        # Kernels of 40, 20, 10 steps behind a bottleneck of 32, which the single channel does not need, and one behind
        # the pooling; 128 filters go on.
        (
            "inception_time",
            6,
            (40 + 20 + 10 + 1) * 1 * 32
            + 5 * (128 * 32 + (40 + 20 + 10) * 32 * 32 + 128 * 32)
            + ((6 + 2) * 4 * 128 + (1 * 128 + 128) + (128 * 128 + 128) + (128 + 1) * 10),
        ),
    ],
)
def test_published_networks_have_their_size_and_blocks(name, n_blocks, n_weights):
    model = networks.NETWORKS[name]((24, 1), 10)
    assert model.count_params() == n_weights
    *before, head = model.layers
    assert before[-1].name == "representation" and head.units == 10
    assert published.blocks(model) == tuple(f"block_{number + 1}" for number in range(n_blocks))
    with pytest.raises(ValueError, match="should be a network of published.py"):
        published.blocks(networks.NETWORKS["conv"]((24, 1), 2))


def test_the_logits_of_a_network_are_those_before_its_softmax():
    model = experiment().model()
    x = np.random.default_rng(0).normal(size=(3, 8, 8)).astype("float32")
    expected = model.predict(x, verbose=0)
    logits = methods._logits(model).predict(x, verbose=0)
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), expected, rtol=1e-4)
    assert logits.min() < 0


def instead_of_training(look=lambda model, **options: None):
    """A `fit` that leaves a model as it is, a second for each epoch."""

    def fit(model, n_epochs, **options):
        look(model, **options)
        watch = experiments.Watch()
        watch.weights, watch.seconds = [getattr(model, "student", model).get_weights()], [1.0] * n_epochs
        return watch

    return fit


def test_soups_average_runs_with_different_dropout(monkeypatch):
    one, states = experiment(), []

    def look(model, **options):
        states.append(str([ops.convert_to_numpy(v) for v in model.non_trainable_variables if "seed" in v.path]))

    monkeypatch.setattr(one, "fit", instead_of_training(look))
    list(methods.soups(one, n=3))
    assert "[]" not in states, "there is dropout"
    assert len(states) == 4 and len(set(states[1:])) == 3, "the first stage, and three that go on from it"


def test_an_ensemble_trains_no_member_twice(monkeypatch):
    one, trained = experiment(), []
    monkeypatch.setattr(one, "fit", instead_of_training(lambda model, seed: trained.append(seed)))
    mean_of_2, votes_of_2 = methods.ensemble(one, 2)
    mean_of_3, _ = methods.ensemble(one, 3)
    assert trained == [0, 1000, 2000]
    members = [one.of_another_seed(number).test for number in range(3)]
    np.testing.assert_allclose(mean_of_2.test, (members[0] + members[1]) / 2, rtol=1e-5)
    np.testing.assert_allclose(mean_of_3.test, sum(members) / 3, rtol=1e-5)
    assert (mean_of_3.seconds, mean_of_3.steps) == (12.0, 12 * experiments.STEPS_PER_EPOCH)
    votes = np.eye(10)[members[0].argmax(axis=1)] + np.eye(10)[members[1].argmax(axis=1)]
    np.testing.assert_array_equal(votes_of_2.test, votes / 2)


def test_earlier_training_counts_as_cost(monkeypatch):
    one = experiment()
    monkeypatch.setattr(one, "fit", instead_of_training())
    (mean,) = methods.members(one, 3)
    assert (mean.seconds, mean.steps) == (6.0, 6 * experiments.STEPS_PER_EPOCH), "three times half of four epochs"
    # Three times half of four epochs and then half; five times half and then all, and the control of as many steps.
    trainings = [(methods.distilled(one, "taught", warm=True, members=3, distill="outputs"), 10)]
    trainings += [(methods.training(name)[0](one), 14) for name in ("taught by five", "plain, as many steps")]
    for outcomes, n in trainings:
        costs = {(outcome.seconds, outcome.steps) for outcome in outcomes}
        assert costs == {(n, n * experiments.STEPS_PER_EPOCH)}


@pytest.mark.slow
def test_plain_is_what_keras_fit_makes(monkeypatch):
    monkeypatch.setattr(experiments, "STEPS_PER_EPOCH", 2)
    one = experiment()
    outcomes = {outcome.method: outcome for outcome in methods.plain(one)}
    model = one.model()
    watch = one.fit(model, 4)
    np.testing.assert_array_equal(outcomes["plain"].test, model.predict(one.task.test[0], batch_size=256, verbose=0))
    assert len(watch.seconds) == 4 and outcomes["plain"].steps == 8
    assert list(outcomes) == list(methods.TRAININGS["plain"][1])


@pytest.mark.slow
def test_keras_own_average_is_of_the_weights_of_model_fit(monkeypatch):
    monkeypatch.setattr(experiments, "STEPS_PER_EPOCH", 1)  # then the weights of every step are known
    one = experiment(network="unnormalised")
    outcomes = {outcome.method: outcome for outcome in methods.keras_average(one)}
    model = one.model()
    watch = one.fit(model, 4)
    last = one.outcome("", model, watch, 4, weights=watch.weights[-1])
    np.testing.assert_allclose(outcomes["Keras' average, last weights"].test, last.test, atol=1e-6)
    average = watch.weights[0]
    for weights in watch.weights[1:]:
        average = [0.99 * kept + 0.01 * new for kept, new in zip(average, weights, strict=True)]
    expected = one.outcome("", model, watch, 4, weights=average)
    np.testing.assert_allclose(outcomes["Keras' average"].test, expected.test, atol=1e-5)
    assert tuple(outcomes) == methods.TRAININGS["Keras' average"][1]
    assert np.abs(expected.test - last.test).max() > 1e-3


@pytest.mark.slow
def test_fit_leaves_schedule_free_a_tenth_of_the_way_from_its_average_to_its_last_step(monkeypatch):
    monkeypatch.setattr(experiments, "STEPS_PER_EPOCH", 1)
    one, steps, scored = experiment(network="unnormalised"), [], []
    outcome = one.outcome

    def keep_point_of_steps(epoch, logs):
        variables = [v for v in callback.model.optimizer.variables if v.path.endswith("_momentum")]
        steps.append([np.array(ops.convert_to_numpy(v)) for v in variables])

    def watched_outcome(method, model, **options):
        scored.append(model.get_weights())
        return outcome(method, model, **options)

    callback = keras.callbacks.LambdaCallback(on_epoch_end=keep_point_of_steps)
    monkeypatch.setattr(one, "fit", functools.partial(one.fit, callbacks=[callback]))
    monkeypatch.setattr(one, "outcome", watched_outcome)
    function, names = methods.training("ScheduleFreeAdamW 0.01")
    assert tuple(outcome.method for outcome in function(one)) == names
    for left, average, *of_steps in zip(*scored[:2], *steps, strict=True):
        np.testing.assert_allclose(left, 0.9 * average + 0.1 * of_steps[-1], atol=1e-6)
        assert np.abs(left - average).max() > 1e-4
        if keras.backend.backend() == "jax":  # Keras 3.15.1 averages something else on the other two
            np.testing.assert_allclose(average, np.mean(of_steps, axis=0), atol=1e-6)


def test_a_variant_has_its_own_rate_and_is_named_by_its_options(monkeypatch):
    one, rates = experiment(), []
    look = instead_of_training(lambda model, **options: rates.append(float(model.optimizer.learning_rate)))
    monkeypatch.setattr(one, "fit", look)
    for text in ('fast {"learning_rate": 0.25}', "self"):
        function, names = methods.training(text)
        assert names == (text, f"{text}, averaged") == tuple(outcome.method for outcome in function(one))
    assert rates == pytest.approx([0.25, experiments.LEARNING_RATE])
    with pytest.raises(ValueError, match="no training 'hot'"):
        methods.training("hot")


@pytest.fixture(scope="module")
def shared():
    """One experiment for each network: what several trainings need, such as the first half, is trained once."""
    return functools.cache(lambda network: experiment(network=network))


WITHOUT_DROPOUT = [
    "plain, no dropout",
    "continued",
    "self, dropout before the head",
    "paper, dropout behind the blocks",
]
WITH_DROPOUT = """\
deterministic logits / deterministic features / R-Drop / soups / soups of distilled / several snapshots
/ twice {"warm": true, "teacher": "snapshot", "generations": 2} / rising {"ramp": 1} / mean of 5 / conv / ensemble of 5
/ taught by five, labelled only / taught by another {"large": "conv", "warm": true, "distill": "outputs"}
/ unlabelled, deterministic"""
TRAININGS = [(name, "fcn_half") for name in WITHOUT_DROPOUT]
TRAININGS += [(name.strip(), "conv") for name in WITH_DROPOUT.split("/")]


@pytest.mark.slow
@pytest.mark.parametrize("name, network", TRAININGS)
def test_every_training_gives_its_methods(name, network, monkeypatch, shared):
    monkeypatch.setattr(experiments, "STEPS_PER_EPOCH", 2)
    one = shared(network)
    function, names = methods.training(name)
    outcomes = list(function(one))
    assert [outcome.method for outcome in outcomes] == list(names)
    for outcome in outcomes:
        assert outcome.test.shape == (len(one.task.test[1]), 10)
        np.testing.assert_allclose(outcome.test.sum(axis=1), 1, atol=1e-3)
        assert outcome.steps >= 2 and outcome.seconds > 0
