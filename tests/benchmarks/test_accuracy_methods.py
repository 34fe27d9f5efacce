"""The networks and methods of the accuracy benchmark: each trains as it says, and counts what it costs."""

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
    return experiments.Experiment(
        data.load("digits", None, "labels 0.2", 0), network, "constant", seed=0, n_epochs=n_epochs
    )


def test_every_row_of_a_large_set_is_trained_on():
    x, y = np.zeros((1000, 2, 1), "float32"), np.arange(1000)
    task = data.Task("many", (x, y), (x, y), (x, y), None, 1000)
    rows = experiments.Experiment(task, "conv", "constant", seed=0, n_epochs=4).labelled(seed=0)["x"]
    assert len(rows) == experiments.STEPS_PER_EPOCH
    seen = []
    for _ in range(5):
        seen.extend(np.concatenate([rows[step][1] for step in range(len(rows))]))
        rows.on_epoch_end()
    assert np.bincount(seen, minlength=1000).tolist() == [4] * 1000


@pytest.mark.parametrize(
    "name, n_weights",
    [
        # Kernels, their bias, four of BatchNormalization for each filter, the head.
        ("fcn", (8 * 1 + 5) * 128 + (5 * 128 + 5) * 256 + (3 * 256 + 5) * 128 + (128 + 1) * 10),
        ("fcn_half", (8 * 1 + 5) * 64 + (5 * 64 + 5) * 128 + (3 * 128 + 5) * 64 + (64 + 1) * 10),
        # A block of 64 filters with a shortcut of one step, one of 128, one whose shortcut has no kernel.
        (
            "resnet_published",
            (8 * 1 + 5 * 64 + 3 * 64 + 1 * 1 + 4 * 5) * 64
            + (8 * 64 + 5 * 128 + 3 * 128 + 1 * 64 + 4 * 5) * 128
            + ((8 + 5 + 3) * 128 + 3 * 5 + 4) * 128
            + (128 + 1) * 10,
        ),
        # Kernels of 40, 20, 10 steps behind a bottleneck of 32, which the single channel does not need, and one behind
        # the pooling; 128 filters go on.
        (
            "inception_time",
            (40 + 20 + 10 + 1) * 1 * 32
            + 5 * (128 * 32 + (40 + 20 + 10) * 32 * 32 + 128 * 32)
            + (6 + 2) * 4 * 128
            + (1 * 128 + 128)
            + (128 * 128 + 128)
            + (128 + 1) * 10,
        ),
    ],
)
def test_published_networks_have_their_size(name, n_weights):
    model = networks.NETWORKS[name]((24, 1), 10)
    assert model.count_params() == n_weights
    *before, head = model.layers
    assert before[-1].name == "representation" and head.units == 10
    assert published.blocks(model) == tuple(f"block_{number + 1}" for number in range(len(published.blocks(model))))


@pytest.mark.parametrize("name, n_blocks", [("fcn", 3), ("resnet_published", 3), ("inception_time", 6)])
def test_blocks_of_a_published_network(name, n_blocks):
    assert len(published.blocks(networks.NETWORKS[name]((24, 1), 2))) == n_blocks


def test_only_a_published_network_has_named_blocks():
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
        states.append([ops.convert_to_numpy(v).tolist() for v in model.non_trainable_variables if "seed" in v.path])

    monkeypatch.setattr(one, "fit", instead_of_training(look))
    list(methods.soups(one, n=3))
    assert len(states) == 4 and states[0], "the first stage, and three that go on from it"
    assert len({str(state) for state in states[1:]}) == 3


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
    taught = list(methods.distilled(one, "taught", warm=True, members=3, distill="outputs"))
    # Six epochs of the members, the first half of the budget, and the second.
    assert [(outcome.seconds, outcome.steps) for outcome in taught] == [(10.0, 10 * experiments.STEPS_PER_EPOCH)] * 2


def test_the_control_of_a_taught_student_trains_for_as_many_steps(monkeypatch):
    one = experiment()
    monkeypatch.setattr(one, "fit", instead_of_training())
    steps = {}
    for name in ("plain, as many steps", "taught by five"):
        function, _ = methods.training(name)
        steps[name] = {outcome.steps for outcome in function(one)}
    # Five times half of four epochs and all four, of 50 steps.
    assert steps == dict.fromkeys(steps, {14 * experiments.STEPS_PER_EPOCH})


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
    assert np.abs(expected.test - last.test).max() > 1e-3


@pytest.mark.slow
def test_fit_leaves_schedule_free_a_tenth_of_the_way_from_its_average_to_its_last_step(monkeypatch):
    monkeypatch.setattr(experiments, "STEPS_PER_EPOCH", 1)
    one, steps, scored = experiment(network="unnormalised"), [], []
    fit, outcome = one.fit, one.outcome

    def watched_fit(model, n_epochs):
        def keep(epoch, logs):
            variables = [v for v in model.optimizer.variables if v.path.endswith("_momentum")]
            steps.append([np.array(ops.convert_to_numpy(v)) for v in variables])

        return fit(model, n_epochs, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=keep)])

    def watched_outcome(method, model, **options):
        scored.append(model.get_weights())
        return outcome(method, model, **options)

    monkeypatch.setattr(one, "fit", watched_fit)
    monkeypatch.setattr(one, "outcome", watched_outcome)
    list(methods.schedule_free(one, "ScheduleFreeAdamW", 0.01))
    for left, average, *of_steps in zip(*scored[:2], *steps, strict=True):
        np.testing.assert_allclose(left, 0.9 * average + 0.1 * of_steps[-1], atol=1e-6)
        assert np.abs(left - average).max() > 1e-4
        if keras.backend.backend() == "jax":  # Keras 3.15.1 averages something else on the other two
            np.testing.assert_allclose(average, np.mean(of_steps, axis=0), atol=1e-6)


def test_a_variant_trains_at_its_own_rate(monkeypatch):
    one, rates = experiment(), []
    look = instead_of_training(lambda model, **options: rates.append(float(model.optimizer.learning_rate)))
    monkeypatch.setattr(one, "fit", look)
    for text in ('fast {"learning_rate": 0.25}', "self"):
        list(methods.training(text)[0](one))
    assert rates == pytest.approx([0.25, experiments.LEARNING_RATE])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "plain, no dropout",
        "continued",
        "self, dropout before the head",
        "self, dropout behind the blocks",
        "paper, dropout before the head",
        "paper, dropout behind the blocks",
    ],
)
def test_a_network_without_dropout_is_trained(name, monkeypatch):
    monkeypatch.setattr(experiments, "STEPS_PER_EPOCH", 2)
    function, names = methods.training(name)
    assert tuple(outcome.method for outcome in function(experiment(network="fcn_half"))) == names


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "Keras' average",
        "ScheduleFreeAdamW 0.001",
        "continued",
        "deterministic logits",
        "deterministic features",
        "R-Drop",
        "soups",
        "soups of distilled",
        "several snapshots",
        'twice {"warm": true, "teacher": "snapshot", "generations": 2}',
        'rising {"ramp": 1}',
        'taught by three {"members": 3, "distill": "outputs"}',
        'taught by another {"large": "small", "warm": true, "distill": "outputs"}',
        "mean of 5",
        "plain, as many steps",
        "conv",
        "ensemble of 5",
        "unlabelled",
        "unlabelled, deterministic",
    ],
)
def test_every_training_gives_its_methods(name, monkeypatch):
    monkeypatch.setattr(experiments, "STEPS_PER_EPOCH", 2)
    one = experiment()
    function, names = methods.training(name)
    outcomes = list(function(one))
    assert [outcome.method for outcome in outcomes] == list(names)
    for outcome in outcomes:
        assert outcome.test.shape == (len(one.task.test[1]), 10)
        np.testing.assert_allclose(outcome.test.sum(axis=1), 1, atol=1e-3)
        assert outcome.steps >= 2 and outcome.seconds > 0
    keras.backend.clear_session()


def test_a_variant_is_named_by_its_options():
    _, names = methods.training('hot {"temperature": 8.0}')
    assert names == ('hot {"temperature": 8.0}', 'hot {"temperature": 8.0}, averaged')
    with pytest.raises(ValueError, match="no training 'hot'"):
        methods.training("hot")
