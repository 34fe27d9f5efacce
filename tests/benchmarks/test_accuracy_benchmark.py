"""The accuracy benchmark: its data, its scores, its methods, its statistics, and that it resumes."""

import keras
import numpy as np
import pandas as pd
import pytest
from keras import ops
from sklearn.metrics import log_loss

import analysis
import data
import experiments
import methods
import networks
import published
import run
import summary

pytestmark = pytest.mark.once  # trains by every method of others, too


def test_few_labels_leave_the_others_as_unlabelled_rows():
    task = data.load("digits", None, "labels 0.1", seed=0)
    everything = data.load("digits", None, "all labels", seed=0)
    n_labelled = len(task.training[1]) + len(task.validation[1])
    assert everything.unlabelled is None
    assert n_labelled + len(task.unlabelled) == len(everything.training[1]) + len(everything.validation[1]) == 898
    assert 80 <= n_labelled <= 100 and set(task.training[1]) == set(range(10))
    rows = {row.tobytes() for row in task.unlabelled}
    assert not rows & {row.tobytes() for row in (*task.training[0], *task.validation[0])}
    np.testing.assert_array_equal(task.test[1], everything.test[1])


def test_noise_makes_labels_wrong_but_not_those_of_the_test_split():
    clean, noisy = (data.load("digits", None, regime, seed=0) for regime in ("all labels", "noise 0.4"))
    right = {}
    for x, y in (clean.training, clean.validation):
        right |= {row.tobytes(): label for row, label in zip(x, y, strict=True)}
    for x, y in (noisy.training, noisy.validation):
        wrong = np.mean([right[row.tobytes()] != label for row, label in zip(x, y, strict=True)])
        assert 0.3 < wrong < 0.5
    np.testing.assert_array_equal(noisy.test[1], clean.test[1])


def test_a_search_does_not_get_to_see_the_test_rows():
    declared, search = (data.load("digits", None, regime, seed=0) for regime in ("noise 0.4", "search noise 0.4"))
    for one, other in ((declared.training, search.training), (declared.validation, search.test)):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_a_search_for_few_labels_scores_rows_whose_label_is_hidden():
    declared, search = (data.load("digits", None, regime, seed=0) for regime in ("labels 0.1", "search labels 0.1"))
    for one, other in ((declared.training, search.training), (declared.validation, search.validation)):
        np.testing.assert_array_equal(one[0], other[0])
    hidden, unlabelled, scored = (
        {row.tobytes() for row in rows} for rows in (declared.unlabelled, search.unlabelled, search.test[0])
    )
    assert unlabelled | scored == hidden and not unlabelled & scored
    assert abs(len(search.unlabelled) - len(search.test[1])) <= 1
    everything = data.load("digits", None, "all labels", seed=0)
    right = {}
    for x, y in (everything.training, everything.validation):
        right |= {row.tobytes(): label for row, label in zip(x, y, strict=True)}
    assert [right[row.tobytes()] for row in search.test[0]] == search.test[1].tolist()


def test_an_unknown_regime_is_refused():
    with pytest.raises(ValueError, match="`regime` should be.*'half'"):
        data.load("digits", None, "half", seed=0)


PREDICTIONS = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.55, 0.45]])
LABELS = np.array([0, 1, 1, 0])


def test_scores():
    outcome = experiments.Outcome("plain", PREDICTIONS, PREDICTIONS, seconds=2.0, steps=10)
    row = run.scores(outcome, LABELS, LABELS)
    assert row["accuracy"] == row["validation_accuracy"] == 0.75
    assert row["nll"] == pytest.approx(log_loss(LABELS, PREDICTIONS))
    # (.1^2 + .6^2 + .2^2 + .45^2) * 2 / 4
    assert row["brier"] == pytest.approx(0.30625)
    # Bins of a fifteenth: .9, .8 and .55 are right and .6 is not, each alone in its bin.
    assert row["ece"] == pytest.approx((0.1 + 0.2 + 0.45 + 0.6) / 4)
    assert row["nll_calibrated"] <= row["nll"] + 1e-6
    assert row["status"] == "finished"


def test_votes_have_no_likelihood():
    votes = np.array([[1.0, 0.0], [0.6, 0.4], [0.4, 0.6], [0.0, 1.0]])
    row = run.scores(experiments.Outcome("vote", votes, votes, 1.0, 1, has_likelihood=False), LABELS, LABELS)
    assert row["accuracy"] == row["validation_accuracy"] == 0.5
    assert "nll" not in row and "temperature" not in row


def test_best_temperature_softens_what_is_too_sure():
    """Right in 3 of 4 with one confidence: the best is 3/4, so the logit log(p / (1 - p)) is divided to log(3)."""
    p = np.tile([0.99, 0.01], (4, 1))
    temperature = run.best_temperature(p, np.array([0, 0, 0, 1]))
    assert temperature == pytest.approx(np.log(99) / np.log(3), rel=1e-3)
    np.testing.assert_allclose(run.tempered(p, temperature)[0], [0.75, 0.25], rtol=1e-3)


def test_a_diverged_run_counts_as_wrong():
    broken = np.full_like(PREDICTIONS, np.nan)
    row = run.scores(experiments.Outcome("plain", broken, broken, 1.0, 1), LABELS, LABELS)
    assert (row["status"], row["accuracy"]) == ("diverged", 0.0)


def test_holm():
    np.testing.assert_allclose(analysis.holm([0.01, 0.04, 0.03, 0.5]), [0.04, 0.09, 0.09, 0.5])


def test_equal_within_half_a_point():
    # t = (mean + margin) / (deviation / sqrt(n)) = (0 + .005) / (.001 / sqrt(3)) = 8.66 on both sides, 2 degrees.
    assert analysis.equal_within(np.array([-0.001, 0.0, 0.001]), 0.005) == pytest.approx(0.0065, abs=1e-4)
    assert analysis.equal_within(np.array([0.009, 0.01, 0.011]), 0.005) > 0.99


def test_methods_with_fewer_seeds_are_held_against_the_same_seeds_of_others():
    rows = pd.DataFrame(
        [(dataset, seed, method) for dataset in "ab" for seed in (0, 1) for method in ("plain", "self")]
        # The second seed of this one was run on one of the two sets only.
        + [("a", 0, "R-Drop"), ("b", 0, "R-Drop"), ("a", 1, "R-Drop")],
        columns=["dataset", "seed", "method"],
    )
    (all_seeds, most), (one_seed, rest) = analysis.by_seeds(rows)
    assert all_seeds == (0, 1) and set(most.method) == {"plain", "self"} and len(most) == 8
    assert one_seed == (0,) and set(rest.method) == {"plain", "self", "R-Drop"} and len(rest) == 6


def test_comparison_of_paired_means():
    rows = pd.DataFrame(
        [
            (dataset, seed, method, accuracy)
            for dataset, plain, ours in (("a", 0.5, 0.6), ("b", 0.7, 0.7), ("c", 0.8, 0.9))
            for seed in (0, 1)
            for method, accuracy in (("plain", plain + seed / 100), ("ours", ours + seed / 100))
        ],
        columns=["dataset", "seed", "method", "accuracy"],
    )
    table = analysis.means_by_unit(rows, "accuracy")
    np.testing.assert_allclose(table.loc["a", ["plain", "ours"]], [0.505, 0.605])
    found = analysis.compare(rows, "ours", "plain")
    assert found["difference"] == pytest.approx(0.2 / 3)
    # The standard error is that of (.1, 0, .1): sqrt(1/300) / sqrt(3) = 1/30; t(0.975, 2) = 4.3027.
    assert found["+-"] == pytest.approx(4.3027 / 30, rel=1e-4)
    assert (found["better"], found["equal"], found["worse"], found["seeds"]) == (2, 1, 0, 2)


def test_comparison_is_over_seeds_that_both_have_on_every_set():
    rows = pd.DataFrame(
        [("a", 0, "plain", 0.5), ("a", 1, "plain", 0.9), ("a", 0, "ours", 0.6), ("a", 1, "ours", 0.1)]
        + [("b", 0, "plain", 0.4), ("b", 1, "plain", 0.8), ("b", 0, "ours", 0.6)],
        columns=["dataset", "seed", "method", "accuracy"],
    )
    found = analysis.compare(rows, "ours", "plain")
    assert found["difference"] == pytest.approx(0.15)
    assert (found["better"], found["worse"], found["seeds"]) == (2, 0, 1)


def test_comparison_across_schedules(tmp_path, capsys):
    sets = [("a", 0.5, 0.6), ("b", 0.7, 0.8), ("c", 0.8, 0.8)]
    rows = pd.DataFrame(
        [
            ("conv", schedule, "all labels", 20, "jax", name, 0, method, accuracy, "finished", 50, 1.0)
            for name, *of_both in sets
            for schedule, method, accuracy in zip(("cosine", "constant"), ("plain", "self"), of_both, strict=True)
        ],
        columns=[*run.KEY, "method", "accuracy", "status", "steps", "seconds"],
    ).assign(**dict.fromkeys(analysis.SCORES, 0.0))
    path = tmp_path / "table.csv"
    run.write(rows, path)
    with pytest.raises(SystemExit, match="no seed was run on every data set"):  # one schedule each: nothing in common
        analysis.main([str(path), "--compare", "self", "plain"])
    capsys.readouterr()
    analysis.main([str(path), "--across", "schedule", "--compare", "self, constant", "plain, cosine"])
    printed = capsys.readouterr().out
    assert "### conv, any learning rate, all labels, 20 epochs, jax" in printed
    assert "| self, constant | plain, cosine | +0.0667 |" in printed


def test_table_of_methods():
    rows = pd.DataFrame(
        [("a", 0, "plain", 0.1 + 0.2, 10, 2.0), ("a", 0, "ours", 0.3, 10, 3.0), ("a", 0, "theirs", 0.2, 35, 8.0)]
        + [("b", 0, "plain", 0.5, 20, 4.0), ("b", 0, "ours", 0.7, 20, 4.0), ("b", 0, "theirs", 0.6, 50, 8.0)]
        # Another seed may come from another machine: its seconds do not count.
        + [("a", 1, "plain", 0.3, 10, 99.0), ("a", 1, "ours", 0.3, 10, 1.0), ("a", 1, "theirs", 0.2, 35, 1.0)]
        + [("b", 1, "plain", 0.5, 20, 99.0), ("b", 1, "ours", 0.7, 20, 1.0), ("b", 1, "theirs", 0.6, 50, 1.0)],
        columns=["dataset", "seed", "method", "accuracy", "steps", "seconds"],
    ).assign(nll=0.5, nll_calibrated=0.4, ece=0.1, brier=0.2, status="finished")
    table = analysis.methods(rows)
    assert list(table.index) == ["ours", "plain", "theirs"]
    # On "a" the first two are equal but for float noise: ranks 1.5, 1.5 and 3; on "b" 1, 3 and 2.
    assert table["rank"].tolist() == [1.25, 2.25, 2.5]
    assert table["steps"].tolist() == [1.0, 1.0, 3.0], "means of 3.5 and 2.5"
    assert table["cost"].tolist() == [1.25, 1.0, 3.0], "medians of 1.5 and 1, of 4 and 2"


def test_a_method_that_diverged_once_has_no_likelihood():
    rows = pd.DataFrame(
        [("a", 0, "plain", 0.8, 0.5, "finished"), ("a", 0, "ours", 0.9, 0.4, "finished")]
        + [("b", 0, "plain", 0.6, 0.7, "finished"), ("b", 0, "ours", 0.0, np.nan, "diverged")],
        columns=["dataset", "seed", "method", "accuracy", "nll", "status"],
    ).assign(steps=1, seconds=1.0)
    rows = rows.assign(nll_calibrated=rows.nll, ece=rows.nll, brier=rows.nll)
    table = analysis.methods(rows)
    assert table.loc["ours", ["accuracy", "diverged"]].tolist() == [0.45, 1]
    assert np.isnan(table.loc["ours", "nll"]) and table.loc["plain", "nll"] == pytest.approx(0.6)


def test_a_comparison_that_was_asked_for_is_not_left_out_silently():
    rows = pd.DataFrame(
        [(dataset, 0, method, 0.5) for dataset in "ab" for method in ("plain", "ours")] + [("a", 0, "theirs", 0.5)],
        columns=["dataset", "seed", "method", "accuracy"],
    )
    with pytest.raises(SystemExit, match="no seed was run on every data set with both 'theirs' and 'plain'"):
        analysis.comparisons(rows, [("ours", "plain"), ("theirs", "plain")])


SUMMARISED = {
    # Of two sets and two seeds; the averaged one has the first seed only.
    "plain": {"a": (0.5, 0.6), "b": (0.7, 0.8)},
    "self, averaged": {"a": (0.6, 0.7), "b": (0.7, 0.8)},
    "plain, averaged": {"a": (0.6,), "b": (0.9,)},
}


def test_summary_of_a_regime(tmp_path, monkeypatch):
    rows = pd.DataFrame(
        [
            (network, dataset, seed, method, accuracy)
            for network in ("conv", "resnet")
            for method, of_sets in SUMMARISED.items()
            for dataset, of_seeds in of_sets.items()
            for seed, accuracy in enumerate(of_seeds)
        ]
        + [("conv", "digits", seed, "plain", 0.1) for seed in (0, 1)],
        columns=["network", "dataset", "seed", "method", "accuracy"],
    )
    rows.loc[rows.network == "resnet", "accuracy"] = 0.0
    rows.to_csv(tmp_path / "rows.csv", index=False)
    regimes = [
        summary.Regime("one", "rows.csv", {"network": "conv"}),
        summary.Regime("not run", "nowhere.csv"),
    ]
    monkeypatch.setattr(summary, "REGIMES", regimes)
    table, found = summary.summary(tmp_path)
    assert list(table.index) == list(found) == ["one"]
    line = table.loc["one"]
    assert line["units x seeds"] == "2 x 2", "digits stand apart"
    assert line["`model.fit`"] == ".650" and line["`wrap`"] == ".700" and line["averaged"] == ".750 (seeds: 1)"
    assert line["best epoch"] == line["paper"] == line["continued"] == line["paper - continued"] == ""
    # .1 and 0: the standard error is .05, t(0.975, 1) = 12.706.
    assert line["`wrap` - `model.fit`"] == "+5.0 ± 63.5"
    # The first seed of both: 0 and -.2.
    assert line["`wrap` - averaged"] == "-10.0 ± 127.1"
    summary.forest(found, tmp_path / "forest.png")
    assert (tmp_path / "forest.png").read_bytes().startswith(b"\x89PNG")


def test_summary_of_new_people_has_the_subject_as_its_unit(tmp_path, monkeypatch):
    rows = [
        ("stress", subject, 0, method, 0.0, balanced)
        for method, of_subjects in (("plain", (0.5, 0.7)), ("wrap(model)", (0.6, 0.7)))
        for subject, balanced in enumerate(of_subjects)
    ]
    columns = ["dataset", "subject", "seed", "method", "accuracy", "balanced_accuracy"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "stress.csv", index=False)
    regime = summary.Regime("stress", "stress.csv", score="balanced_accuracy")
    monkeypatch.setattr(summary, "REGIMES", [regime])
    line = summary.summary(tmp_path)[0].loc["stress"]
    assert (line["units x seeds"], line["`model.fit`"], line["`wrap`"]) == ("2 x 1", ".600", ".650")
    assert line["`wrap` - `model.fit`"] == "+5.0 ± 63.5"


def test_the_stored_rows_can_be_summarised(capsys):
    summary.main([])
    printed = capsys.readouterr().out
    assert "| all labels | 25 x 3 | .829 | .846 | .860 | .862 | " in printed
    assert "| +3.3 ± 1.8 | +1.6 ± 0.9 | +0.2 ± 0.3 | +0.1 ± 1.7 |" in printed


def test_what_only_some_sets_have_is_not_averaged():
    rows = pd.DataFrame(
        [("a", 0, "plain", 0.5), ("b", 0, "plain", 0.7), ("a", 0, "ours", 0.9)],
        columns=["dataset", "seed", "method", "accuracy"],
    )
    assert list(analysis.means_by_unit(rows, "accuracy").columns) == ["plain"]


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


def test_images_are_read_by_class(tmp_path):
    for split, levels in (("train", (0, 255)), ("test", (255, 51))):
        for name, level in zip(("cat", "dog"), levels, strict=True):
            folder = tmp_path / "CIFAR-10-dataset" / split / name
            folder.mkdir(parents=True)
            for number in range(5):
                keras.utils.save_img(folder / f"{number}.png", np.full((4, 4, 3), level), scale=False)
    task = data.load("cifar10", tmp_path, "all labels", seed=0)
    x, y = (np.concatenate(parts) for parts in zip(task.training, task.validation, strict=True))
    assert x.shape == (10, 4, 4, 3) and x.dtype == np.float32 and task.n_classes == 2
    np.testing.assert_array_equal(x[:, 0, 0, 0], np.where(y == 1, 1.0, -1.0))
    np.testing.assert_allclose(task.test[0][:, 0, 0, 0], np.where(task.test[1] == 0, 1.0, -0.6), atol=1e-6)
    with pytest.raises(FileNotFoundError, match="should hold CIFAR-10-dataset/train/<class>"):
        data.read_images(tmp_path / "nowhere" / "CIFAR-10-dataset")


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


def test_soups_are_of_runs_with_dropout_of_their_own(monkeypatch):
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


def test_what_was_trained_before_counts_as_cost(monkeypatch):
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


def test_what_fails_does_not_take_the_others_along(monkeypatch):
    def broken(experiment):
        raise RuntimeError("no memory")

    outcome = experiments.Outcome("plain", PREDICTIONS, PREDICTIONS, 1.0, 1)
    monkeypatch.setitem(methods.TRAININGS, "self", (broken, ("self",)))
    monkeypatch.setitem(methods.TRAININGS, "plain", (lambda experiment: [outcome], ("plain",)))
    task = data.Task("small", (PREDICTIONS, LABELS), (PREDICTIONS, LABELS), (PREDICTIONS, LABELS), None, 2)
    monkeypatch.setattr(data, "load", lambda *_: task)
    options = dict(data_dir=None, regime="all labels", network="conv", schedule="constant", n_epochs=2)
    rows, failures = run.work("small", 0, ["self", "plain"], options)
    assert [row["method"] for row in rows] == ["plain"]
    assert failures == ["self FAILED: RuntimeError('no memory')"]


def test_only_what_the_table_lacks_is_run(tmp_path):
    options = ["--datasets", "digits", "--trainings", "self", "paper", "--seeds", "2", "--epochs", "4"]
    arguments = run.parse(options)
    table = pd.DataFrame(
        {
            **dict.fromkeys(["network", "schedule", "regime"], None),
            "method": ["self", "self, averaged", "paper"],
            "n_epochs": 4,
            "backend": keras.backend.backend(),
            "dataset": "digits",
            "seed": 0,
        }
    ).assign(network="conv", schedule="constant", regime="all labels")
    table["nll"] = [3.9550361902623515e-10, 1 / 3, 0.1 + 0.2]
    path = tmp_path / "table.csv"
    run.write(table, path)
    assert run.read(path).nll.tolist() == table.nll.tolist(), "to the last digit"
    found = list(run.pending(run.read(path), arguments))
    assert found == [("digits", 0, ["paper"]), ("digits", 1, ["self", "paper"])]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_script_and_analysis(tmp_path, capsys):
    path = tmp_path / "accuracy.csv"
    call = ["--datasets", "digits", "GunPoint", "--trainings", "plain", "self", "--epochs", "2", "--out", str(path)]
    assert run.main([*call, "--seeds", "0,"]) == 0
    assert capsys.readouterr().out.count("seed 0") == 2
    assert run.main([*call, "--seeds", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("seed 1") == 2 and "seed 0" not in printed, "the first seed is not run again"
    rows = pd.read_csv(path)
    assert len(rows) == 2 * 2 * 7 and rows.accuracy.between(0, 1).all()
    analysis.main([str(path), "--out", str(tmp_path / "plots")])
    printed = capsys.readouterr().out
    assert "### conv, constant learning rate, all labels, 2 epochs, " in printed
    assert "| self, averaged | plain, averaged | " in printed
    analysis.main([str(path), "--compare", "SWA", "self"])
    printed = capsys.readouterr().out
    assert "| SWA | self | " in printed and "| self, averaged | plain, averaged | " not in printed
    plot = tmp_path / "plots" / f"conv-constant-all-labels-2-{keras.backend.backend()}.png"
    assert plot.read_bytes().startswith(b"\x89PNG")
