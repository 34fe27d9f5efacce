"""`compare`: the arms of a seed differ in nothing but how they train, and intervals are Student's."""

import json

import keras
import numpy as np
import pytest
from sklearn.model_selection import LeaveOneGroupOut

import keras_ssd
from keras_ssd import comparison
from models import classifier, compiled
from same_weights import assert_same

X = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
Y = np.arange(20) % 2
TRAINING, TEST = (X[:12], Y[:12]), (X[12:], Y[12:])
OFF = dict(kd_weight=0, ema_momentum=0)


def build():
    return compiled(classifier(), keras.optimizers.Adam(0.05))


def compare(training=TRAINING, test=TEST, settings=None, seeds=1, **options):
    """A short comparison, and the final weights of each run by arm and seed."""
    kept = []
    options = {"batch_size": 6, "epochs": 1, "verbose": 0, "out": None, **options}
    build_model = options.pop("build", build)
    options["score"] = lambda model, data: kept.append(model.get_weights()) or {}
    result = keras_ssd.compare(build_model, training, None, test, settings, seeds=seeds, **options)
    return result, {(row["arm"], row["seed"]): weights for row, weights in zip(result.rows, kept, strict=False)}


def by_hand(seed, weights=None, momentum=0, sample_weight=None):
    keras.utils.set_random_seed(seed)
    model = build()
    if weights is not None:
        model.set_weights(weights)
    trained = keras_ssd.wrap(model, kd_weight=0, ema_momentum=momentum) if momentum else model
    keras.utils.set_random_seed(seed)
    trained.fit(*TRAINING, batch_size=6, verbose=0, sample_weight=sample_weight)
    return model


def test_each_arm_is_what_its_seed_its_sample_weights_and_fit_give_bit_for_bit():
    weigh = np.arange(12.0)
    result, weights = compare((*TRAINING, weigh), settings={"off": OFF, "wrap": {}}, seeds=[5])
    plain = by_hand(5, sample_weight=weigh)
    assert_same(weights["plain", 5], plain.get_weights())
    assert_same(weights["off", 5], plain.get_weights())
    assert_same(weights["averaged", 5], by_hand(5, momentum=0.99, sample_weight=weigh).get_weights())
    assert not np.array_equal(weights["plain", 5][0], weights["wrap", 5][0])
    scores = plain.evaluate(*TEST, batch_size=6, return_dict=True, verbose=0)
    assert {name: result.rows[0][name] for name in ("accuracy", "loss")} == scores
    assert {(row["steps"], row["epochs"]) for row in result.rows} == {(2, 1)}
    assert result.pairs == [("averaged", "plain"), ("off", "plain"), ("wrap", "plain"), ("wrap", "averaged")]


class Shuffled(keras.utils.PyDataset):
    """Six rows a batch, in an order drawn when it is made; notes what is read."""

    def __init__(self):
        super().__init__()
        self.order, self.read = np.random.permutation(12).reshape(2, 6), []

    def __len__(self):
        return 2

    def __getitem__(self, number):
        self.read.append(self.order[number].tolist())
        return X[self.order[number]], Y[self.order[number]]


def test_all_arms_of_a_seed_start_from_the_weights_of_its_first_model_and_see_the_same_batches():
    """Functions make the model, the data and the callbacks of each arm."""
    made, arms, start = [], [], []

    def half_seeded():
        model = build()
        kernel, bias = model.get_weights()
        model.set_weights([np.concatenate([np.random.default_rng().normal(size=(2, 2)), kernel[2:]]), bias])
        return model

    class Start(keras.callbacks.Callback):
        def __init__(self, arm):
            super().__init__()
            self.arm = arm

        def on_train_begin(self, logs=None):
            arms.append(self.arm)
            start.append(getattr(self.model, "student", self.model).get_weights())

    options = dict(build=half_seeded, callbacks=lambda arm: [Start(arm)], batch_size=None, shuffle=False)
    compare(lambda: made.append(Shuffled()) or made[-1], settings={}, seeds=2, **options)
    assert_same(start[0], start[1])
    assert_same(start[2], start[3])
    keras.utils.set_random_seed(1)
    assert_same(start[2][0][2:], build().get_weights()[0][2:])
    assert arms == ["plain", "averaged"] * 2
    # Keras may look at a batch to learn its shape.
    read = [data.read[-2:] for data in made]
    assert len(read) == 4 and read[0] == read[1] == made[0].order.tolist() and read[2] == read[3] != read[0]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the other backends do without TensorFlow")
def test_a_function_gives_a_shuffled_tf_dataset_its_order_again():
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices(TRAINING)
    _, weights = compare(lambda: data.shuffle(12).batch(4), data.batch(4), {"off": OFF}, batch_size=None, shuffle=False)
    assert_same(weights["plain", 0], weights["off", 0])


def test_the_paper_brings_its_stages():
    paper = {**keras_ssd.PAPER, "num_teachers": 2}
    settings = {"paper": paper, "averaged paper": {**paper, "ema_momentum": 0.5}}
    result, weights = compare(settings=settings)
    assert result.arms == ["plain", "averaged", "continued", "paper", "continued, averaged 0.5", "averaged paper"]
    assert_same(weights["continued", 0], by_hand(0, weights["plain", 0]).get_weights())
    averaged = by_hand(0, weights["plain", 0], momentum=0.5).get_weights()
    assert_same(weights["continued, averaged 0.5", 0], averaged)
    assert result.pairs == [  # plain has taken half as many steps
        ("averaged", "plain"),
        ("paper", "continued"),
        ("averaged paper", "continued, averaged 0.5"),
    ]
    assert {row["steps"] for row in result.rows} == {2}, "on top of the plain arm's"


def test_callbacks_are_copied_for_each_arm_and_only_its_own_steps_count():
    def trained():
        model = build()
        model.fit(*TRAINING, verbose=0)
        return model

    stop = keras.callbacks.EarlyStopping(monitor="loss", min_delta=9, patience=1)
    monitor = keras_ssd.callbacks.TeacherMonitor()
    weights = dict(zip(np.unique(Y), [1.0, 2.0], strict=True))
    options = dict(build=trained, epochs=3, batch_size=12, class_weight=weights)
    result, _ = compare(callbacks=[stop, monitor], **options)
    assert {(row["epochs"], row["steps"]) for row in result.rows} == {(2, 2)}, "no loss falls by 9"
    assert stop.model is None and stop.stopped_epoch == 0 and monitor.model is None


def row(arm, seed, accuracy, control="", fold=None, status="finished"):
    costs = {"epochs": 2, "steps": 6, "seconds_per_step": 0.25, "seconds": 2.0, "status": status}
    known = {"arm": arm, "control": control, "seed": seed, "fold": fold, "scored_on": "test_data"}
    return {**known, "accuracy": accuracy, **costs}


GAINS = [*(row("plain", s, 0.5) for s in range(3)), *(row("averaged", s, 0.6 + 0.1 * s) for s in range(3))]
GAINS += [row("wrap", s, 0.75, "averaged") for s in range(3)]


def test_intervals_are_students():
    result = keras_ssd.Comparison(GAINS)
    # Gains .1, .2, .3: deviation .1, and 4.302653 is Student's quantile of two degrees of freedom.
    np.testing.assert_allclose(result.difference("averaged", "plain"), [0.2, 4.302653 * 0.1 / 3**0.5], rtol=1e-6)
    assert result.difference("plain", "wrap") == (-0.25, 0), "of any two arms"
    lines = [line.split() for line in str(result).splitlines()]
    assert lines[2] == ["accuracy", "averaged", "0.7000", "0.1000", "+0.2000", "±", "0.2484"]
    assert lines[3][2:] == ["0.7500", "0.0000", "+0.2500", "±", "0.0000", "+0.0500", "±", "0.2484"]
    assert ["wrap", "0.25", "2", "2"] in lines
    assert result.summary() == (
        "accuracy on test_data: wrap minus plain is +0.2500 with every seed, which gives no interval; no difference "
        "was shown between averaged and plain, wrap and averaged; the intervals are over 3 seeds, so they say nothing "
        "about other data, and few seeds show only large differences."
    )


def test_the_mean_over_seeds_of_a_unit_counts_and_no_seed_may_be_missing():
    rows = [row("plain", s, 0.5, fold=f) for f in range(2) for s in range(2)]
    rows += [row("averaged", s, 0.5 + a, fold=f) for f, s, a in [(0, 0, 0.1), (0, 1, 0.3), (1, 0, 0.3), (1, 1, 0.5)]]
    result = keras_ssd.Comparison(rows)
    # Folds gain .2 and .4: deviation .1414, quantile of one degree of freedom 12.706205.
    np.testing.assert_allclose(result.difference("averaged", "plain"), [0.3, 12.706205 * 0.1], rtol=1e-6)
    assert "over 2 folds, which share training rows" in result.summary()
    joined = keras_ssd.Comparison([{"rate": 0.1, "dataset": "ab"[one["fold"]], **one} for one in rows], unit="dataset")
    assert joined.units == ["a", "b"] and joined.metrics == ["accuracy"]
    with pytest.raises(ValueError, match=r"Rows are missing of \['averaged'\]"):
        keras_ssd.Comparison([row("plain", 0, 0.5), row("plain", 1, 0.6), row("averaged", 0, 0.9)])


def test_scores_have_one_name_where_keras_counts_up_names():
    def build():
        return compiled(classifier(), None, "categorical_crossentropy", metrics=[keras.metrics.AUC()])

    training, test = ((x, np.eye(2)[y]) for x, y in (TRAINING, TEST))
    score = lambda model, data: {"f1": np.float32(0.5)}  # noqa: E731
    result = keras_ssd.compare(build, training, None, test, {}, seeds=1, score=score, batch_size=4, verbose=0)
    f1, auc, loss = result.metrics
    assert f1 == "f1" and auc.startswith("auc") and loss == "loss"
    assert all(set(row) == set(result.rows[0]) for row in result.rows) and "auc" in repr(result)


def test_validation_steps_end_the_scoring_of_validation_data_without_end():
    class Endless(keras.utils.PyDataset):
        def __getitem__(self, index):
            return X[:4], Y[:4]

        @property
        def num_batches(self):
            return None

    options = {"settings": {}, "seeds": 1, "batch_size": 4, "verbose": 0, "validation_steps": 2}
    result = keras_ssd.compare(build, TRAINING, Endless(), **options)
    assert result.metrics == ["accuracy", "loss"]
    assert "accuracy on validation_data: " in result.summary() and "scores are too good if" in result.summary()


def test_a_single_seed_shows_no_difference_and_a_diverged_run_is_named():
    result = keras_ssd.Comparison([row("plain", 4, 0.5), row("averaged", 4, 0.9, status="diverged")])
    assert "+0.4000\n" in str(result)
    assert "no difference was shown; a single seed has no interval" in result.summary()
    assert "diverged: averaged (seed 4)" in result.summary()
    unknown = keras_ssd.Comparison([row("plain", 4, 0.5), row("averaged", 4, np.nan)])
    assert "averaged and plain cannot be compared: a score is not a number" in unknown.summary()
    result, _ = compare(build=lambda: compiled(classifier(), keras.optimizers.SGD(np.inf)), settings={})
    assert [one["status"] for one in result.rows] == ["diverged", "diverged"]


def test_the_plot_holds_each_unit_and_the_interval():
    ax = keras_ssd.Comparison(GAINS).plot()
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["averaged minus plain", "wrap minus plain", "wrap minus averaged"]
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [0.1, 0.2, 0.3])
    ends = [segment[:, 0] for segment in ax.collections[0].get_segments()]
    np.testing.assert_allclose(ends, [[0.2 - 0.248414, 0.2 + 0.248414]], atol=1e-6)


@pytest.mark.slow
@pytest.mark.once
def test_a_killed_comparison_continues(tmp_path, monkeypatch):
    out, settings = tmp_path / "new" / "rows.jsonl", {"paper": dict(keras_ssd.PAPER, num_teachers=2)}
    whole, _ = compare(settings=settings, seeds=2, out=out)
    lines = out.read_text().splitlines(keepends=True)
    assert len(lines) == 8
    out.write_text("".join(lines[:5]) + lines[5][: len(lines[5]) // 2])

    trained, train = [], comparison._train
    monkeypatch.setattr(
        comparison, "_train", lambda model, arm, *rest: trained.append(arm.name) or train(model, arm, *rest)
    )
    again, _ = compare(settings=settings, seeds=2, out=out)
    assert trained == ["averaged", "plain", "continued", "paper"], "the plain arm once more, for its weights"
    costs = ("seconds", "seconds_per_step")
    for one, other in zip(again.rows, whole.rows, strict=True):
        assert {n: v for n, v in one.items() if n not in costs} == {n: v for n, v in other.items() if n not in costs}
    assert [json.loads(line)["arm"] for line in out.read_text().splitlines()] == whole.arms * 2

    trained.clear()
    assert repr(compare(settings=settings, seeds=2, out=out)[0]) == repr(again) and trained == []
    compare(settings={**settings, "off": OFF}, out=out)
    assert trained == ["off"]


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"epochs": 2}, "fit"),
        ({"callbacks": [keras.callbacks.EarlyStopping("loss")]}, "fit"),
        ({"settings": {"wrap": {"num_teachers": 2}}}, "options"),
        ({"test": (X[:3], Y[:3])}, "data"),
        ({"build": lambda: compiled(classifier(rate=0.5), keras.optimizers.Adam(0.05))}, "model"),
        ({"build": lambda: compiled(classifier(), keras.optimizers.Adam(0.1))}, "model"),
    ],
    ids=["epochs", "callbacks", "options", "data", "dropout rate", "learning rate"],
)
def test_rows_of_another_configuration_are_refused(tmp_path_factory, change, part):
    out = tmp_path_factory.getbasetemp() / "recorded.jsonl"
    compare(out=out)
    before = out.read_text()
    with pytest.raises(ValueError, match=f"`out` holds the run .* of other {part}. Pass another file. Received: out="):
        compare(out=out, **change)
    assert out.read_text() == before


def test_a_file_of_something_else_is_kept(tmp_path):
    out = tmp_path / "notes.txt"
    out.write_text("my notes")
    with pytest.raises(ValueError, match="`out` should be a file of `compare`. Received: .*notes.txt, line 1"):
        compare(out=out)
    assert out.read_text() == "my notes"


def test_nobody_is_in_both_parts_of_a_fold(monkeypatch):
    people, seen, tested, train = np.repeat([7, 8], 10), [], [], comparison._train

    def noted(model, arm, seed, training, *rest):
        seen.append(set(training[0][:, 0]))
        return train(model, arm, seed, training, *rest)

    monkeypatch.setattr(comparison, "_train", noted)
    x = np.repeat(people[:, None], 4, axis=1).astype("float32")
    folds = LeaveOneGroupOut().split(x, Y, people)
    score = lambda model, data: tested.append(set(data[0][:, 0])) or {"people": len(tested[-1])}  # noqa: E731
    result = keras_ssd.compare(build, (x, Y), settings={}, seeds=1, folds=folds, score=score, batch_size=16, verbose=0)
    assert seen == [{8}, {8}, {7}, {7}] and tested == [{7}, {7}, {8}, {8}]
    assert result.unit == "fold" and result.units == [0, 1] and result.metrics == ["people", "accuracy", "loss"]
    assert "people on the rows left out: " in result.summary()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"build": classifier}, "`build` should return a new, compiled keras.Model", id="not compiled"),
        pytest.param({"build": lambda: keras_ssd.wrap(build())}, "`build` should return .* not wrapped", id="wrapped"),
        pytest.param({"settings": {"a": {"teachers": 3}}}, r"settings\['a'\] .*argument 'teachers'", id="unknown"),
        pytest.param({"settings": {"a": {"kd_weight": -1}}}, r"settings\['a'\] .*`kd_weight` should", id="bad option"),
        pytest.param({"settings": {"plain": {}}}, "should not name an arm 'plain'", id="a control's name"),
        pytest.param({"test": None}, "There are no data to score", id="nothing to score"),
        pytest.param({"test": iter([])}, "A generator can be read only once", id="generator"),
        pytest.param({"seeds": 0}, "`seeds` should be a number above 0", id="no seeds"),
        pytest.param({"folds": [([0], [1])]}, "With `folds`, .*`test_data` None", id="folds and test data"),
        pytest.param({"test": None, "folds": [0, 1]}, "`folds` should be pairs", id="no pairs"),
        pytest.param({"test": None, "folds": [([0], [99])]}, "`folds` should be pairs.*99", id="a row too far"),
        pytest.param({"test": None, "folds": [([0, 1], [1])]}, "without a common row", id="overlap"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        compare(**arguments)
