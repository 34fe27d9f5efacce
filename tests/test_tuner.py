"""Searches with Keras Tuner: small, real ones."""

import gc
import json
import pathlib

import keras
import keras_tuner
import numpy as np
import pytest

from keras_ssd import SSDModel, callbacks, tuner, wrap
from models import classifier, compiled
from same_weights import assert_same

x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
y = (x[:, 0] > 0).astype("int32")
DATA = dict(x=x, y=y, validation_data=(x, y), epochs=2, batch_size=32, verbose=0)

# Keras warns of what Keras Tuner does: it loads the weights, optimizer included, into a model whose optimizer was
# replaced. The other is Python's, of Keras Tuner's own threads.
pytestmark = [
    pytest.mark.filterwarnings("ignore:currentThread:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:getName:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer"),
]


@pytest.fixture(autouse=True, scope="module")
def quick_collection():
    """Keras Tuner collects garbage twice per trial; what was imported need not be looked at every time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def build(hp):
    return compiled(classifier(rate=0.5), "adam")


def build_with_units(hp):
    hp.Int("units", 2, 4)
    return build(hp)


def without_noise():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "softmax")])


class Users(keras_tuner.HyperModel):
    """A hypermodel with a `fit` of the user's own; by default its trials take no time."""

    def __init__(self, fit=lambda hp, model, *args, **kwargs: {"val_loss": 1.0}):
        super().__init__()
        self.fits = fit

    def build(self, hp):
        return build(hp)

    def fit(self, hp, model, *args, **kwargs):
        return self.fits(hp, model, *args, **kwargs)


TUNERS = {
    "random": (keras_tuner.RandomSearch, dict(max_trials=3)),
    "bayesian": (keras_tuner.BayesianOptimization, dict(max_trials=3, num_initial_points=1, seed=2)),
    "hyperband": (keras_tuner.Hyperband, dict(max_epochs=3, factor=3)),
    "grid": (keras_tuner.GridSearch, dict(max_trials=3)),
}


def make_tuner(kind, hypermodel, folder, objective="val_loss", **options):
    maker, defaults = TUNERS[kind]
    options = {"seed": 1, "project_name": "project", **defaults, **options}
    return maker(hypermodel, objective, directory=folder, **options)


def random_search(hypermodel, folder, max_trials=3, **options):
    return make_tuner("random", hypermodel, folder, max_trials=max_trials, **options)


def values(trials):
    return [trial.hyperparameters.values for trial in trials]


def loss_of(student):
    predicted = student.predict(x, verbose=0)
    return float(keras.ops.mean(keras.losses.sparse_categorical_crossentropy(y, predicted)))


def explored(values=None, hypermodel=build, **options):
    """The hyper-parameters of a space by name, those with a value, and the settings of the model built from them."""
    hp = keras_tuner.HyperParameters()
    hp.values = {"ssd_distill": True} if values is None else values
    settings = tuner.SSDHyperModel(hypermodel, **options).build(hp).settings
    return {one.name: one for one in hp.space}, hp.values, settings


class TestSpace:
    def test_all_parameters_are_searched_by_default_and_the_kind_follows_what_the_space_gives(self):
        for hypermodel in (lambda hp: compiled(without_noise()), build):
            space = explored(hypermodel=hypermodel)[0]
            assert set(space) == {"ssd_distill", "ssd_average", *(f"ssd_{name}" for name in tuner.PARAMETERS)}
        assert [space[name].sampling for name in ("ssd_kd_weight", "ssd_guidance_temperature")] == ["log", "log"]
        assert (space["ssd_kd_weight"].default, space["ssd_distill"].default) == (0.1, False)
        assert "ssd_dropout_rate" not in explored(space={"dropout_rate": None})[0]
        for given, kind in (((2, 4), "Int"), ([2, 4], "Choice"), (4, "Fixed")):
            assert type(explored(space={"num_teachers": given})[0]["ssd_num_teachers"]).__name__ == kind

    def test_the_value_reaches_the_model(self):
        values = {"ssd_distill": True, "ssd_num_teachers": 5, "ssd_temperature": 7.0, "ssd_similarity": "cosine"}
        settings = explored(values, teacher="ema", distill="both")[2]
        assert (settings.num_teachers, settings.temperature, settings.similarity) == (5, 7.0, "cosine")
        assert (settings.kind, settings.distill) == ("ema", "both")

    def test_uniform_similarity_has_no_guidance_parameters(self):
        values = explored({"ssd_distill": True, "ssd_similarity": "uniform"})[1]
        assert "ssd_num_teachers" in values
        for names in (values, explored(space={"similarity": "uniform"})[0]):
            assert not {"ssd_percentile", "ssd_guidance_temperature"} & set(names)
        assert "ssd_percentile" in explored(space={"similarity": lambda student, teachers: teachers[..., 0]})[0]

    @pytest.mark.parametrize(
        ("options", "momentum"),
        [({}, 0.99), ({"teacher": "ema", "ema_momentum": 0.5}, 0.5), ({"teacher": "snapshot"}, 0)]
        + [({"ema_momentum": 0}, 0)],
    )
    def test_an_undistilled_trial_is_plain_or_averages_as_distilled_ones_do(self, options, momentum):
        for averages in (False, True):
            space, values, settings = explored({"ssd_average": averages}, **options)
            assert values["ssd_distill"] is False and not settings.distills
            assert ("ssd_average" in space) == bool(momentum)
            assert settings.ema_momentum == momentum * averages

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (dict(space={"n_teacher": 3}), "`space` should have keys among .*Received: .'n_teacher'"),
            (dict(space={"num_teachers": (8, 2)}), "ssd_num_teachers.*min_value 8 is greater than the max_value 2"),
            (dict(space={"num_teachers": (2, 8, 2)}), r"\(min, max\)"),
            (dict(space={"kd_weight": 0}), "leave 0 out"),
            (dict(space={"num_teachers": 1}), "`num_teachers` should be an integer of at least 2"),
            (dict(space={"percentile": (0, 101)}), r"`percentile` should be a float in \[0, 100\]"),
            (dict(space={"similarity": ["dot", len]}), "`similarity` should list some of"),
            (dict(hypermodel=None), "`hypermodel` should be a function"),
            (dict(hypermodel=tuner.SSDHyperModel(build)), "`hypermodel` should be a function"),
            (dict(num_teachers=8), "belongs in `space`"),
        ],
    )
    def test_bad_arguments_are_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            tuner.SSDHyperModel(**{"hypermodel": build, **options})


class TestSearch:
    @pytest.mark.parametrize(
        ("kind", "teacher"),
        [("random", "self")]
        + [
            pytest.param(*pair, marks=[pytest.mark.slow, pytest.mark.once])
            for pair in (("bayesian", "ema"), ("hyperband", "self"), ("grid", "snapshot"))
        ],
    )
    def test_a_plain_trial_comes_first_and_the_best_student_scores_as_measured(self, kind, teacher, tmp_path):
        """Callbacks that need teachers are left out of the trials that have none."""
        space = {"num_teachers": 2, "dropout_rate": None, "kd_weight": [0.1, 1.0]}
        search = make_tuner(kind, tuner.SSDHyperModel(build, teacher, space=space), tmp_path)
        trials = tuner.search(search, **DATA, callbacks=[callbacks.TeacherMonitor()])
        first = search.oracle.trials[search.oracle.start_order[0]]
        assert first.hyperparameters.values["ssd_distill"] is False
        assert any(one["ssd_distill"] for one in values(trials))
        for trial in trials:
            assert trial.metrics.exists("teacher_spread") == trial.hyperparameters["ssd_distill"]
        if kind == "hyperband":
            brackets = {one["tuner/bracket"] for one in values(trials)}
            plain = [one for one in values(trials) if not (one["ssd_distill"] or one["ssd_average"])]
            assert {one["tuner/bracket"] for one in plain} == brackets == {0, 1}
        for trial, model in zip(trials[:2], search.get_best_models(2), strict=True):
            assert isinstance(model, SSDModel)
            assert model.settings.kind == (teacher if trial.hyperparameters["ssd_distill"] else "self")
            assert loss_of(model.student) == pytest.approx(trial.score, abs=1e-6)

    def test_the_first_trial_is_plain_whatever_the_seed(self, tmp_path):
        """The user's own `fit` runs it, and may add hyper-parameters."""

        def fit(hp, model, *args, **kwargs):
            return {"val_loss": float(hp.Choice("batch_size", [8, 16]))}

        for seed in range(4):
            search = random_search(tuner.SSDHyperModel(Users(fit)), tmp_path / str(seed), seed=seed, max_trials=1)
            (first,) = values(tuner.search(search, **DATA))
            assert first["ssd_distill"] is False and first["ssd_average"] is False
            assert first["batch_size"] in (8, 16)

    def test_hyperband_goes_on_from_the_raw_weights_of_an_average(self, tmp_path):
        """A trial is loaded as it was scored, with its average; the next epochs train its raw weights."""
        path, written, begun = tmp_path / "trial.weights.h5", [], []
        ssd = wrap(build(None), "ema", num_teachers=2)
        # Keras Tuner saves the weights of a trial when an epoch ends.
        save = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
        note = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: written.append(ssd.student.get_weights()))
        ssd.fit(x, y, batch_size=16, verbose=0, callbacks=[save, note])
        hypermodel = tuner.SSDHyperModel(build, "ema", space={"num_teachers": 2})
        hp = keras_tuner.HyperParameters()
        hp.values = {"ssd_distill": True, "tuner/trial_id": "0"}
        model = hypermodel.build(hp)
        model.load_weights(path)
        assert_same(model.student.get_weights(), ssd.student.get_weights())  # the average, after `fit`
        note = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: begun.append(model.student.get_weights()))
        hypermodel.fit(hp, model, x, y, verbose=0, callbacks=[note])
        assert_same(begun[0], written[0])
        assert not np.allclose(begun[0][0], ssd.student.get_weights()[0])

    def test_an_interrupted_search_goes_on(self, tmp_path):
        fixed = {"kd_weight": 0.1, "similarity": "uniform", "temperature": None, "dropout_rate": None}
        scores = iter([3.0, 2.0, None, 1.0, 4.0])

        class Interrupted(BaseException):
            pass

        def fit(hp, model, *args, **kwargs):
            if (score := next(scores)) is None:
                raise Interrupted
            return {"val_loss": score}

        def make():
            hypermodel = tuner.SSDHyperModel(Users(fit), space={"num_teachers": [2, 3, 4], **fixed})
            return random_search(hypermodel, tmp_path, max_trials=4)

        with pytest.raises(Interrupted):
            tuner.search(make(), **DATA)
        trials = tuner.search(make(), **DATA)
        assert [(trial.trial_id, trial.score) for trial in trials] == [("2", 1.0), ("1", 2.0), ("0", 3.0), ("3", 4.0)]
        assert len({json.dumps(one, sort_keys=True) for one in values(trials)}) == 4

    def test_an_interrupted_grid_is_an_error(self, tmp_path):
        def make():
            return make_tuner("grid", tuner.SSDHyperModel(Users()), tmp_path)

        tuner.search(make(), **DATA)
        assert len(tuner.search(make(), **DATA)) == 3
        goes_on = make()
        goes_on.oracle.max_trials = 4
        with pytest.raises(ValueError, match="GridSearch does not store its position.*3 trials.*overwrite=True"):
            tuner.search(goes_on, **DATA)

    def test_the_trials_print_as_a_table(self, tmp_path):
        space = {**dict.fromkeys(tuner.PARAMETERS), "num_teachers": 2}
        trials = tuner.search(random_search(tuner.SSDHyperModel(Users(), space=space), tmp_path, 3), **DATA)
        assert isinstance(trials, list) and len(trials) == 3
        rows = [line.split() for line in repr(trials).split("\n")]
        assert rows[:2] == [["trial", "score", "distill", "average", "num_teachers"], ["0", "1", "False", "False"]]
        assert sorted(row[2:] for row in rows[2:]) == [["False", "True"], ["True", "2"]]
        assert repr(trials[:1]) == "trial  score  distill  average\n0      1      False    False"
        assert trials[1].trial_id == "1"

    @pytest.mark.slow
    @pytest.mark.once
    @pytest.mark.parametrize(
        ("teacher", "overrides"),
        [("snapshot", dict(optimizer=keras.optimizers.SGD(0.1))), ("self", dict(loss="mse", metrics=["accuracy"]))],
    )
    def test_overrides_of_the_tuner_keep_the_distillation(self, teacher, overrides, tmp_path):
        target = keras.utils.to_categorical(y, 2) if "loss" in overrides else y
        hypermodel = tuner.SSDHyperModel(lambda hp: compiled(classifier(), "adam", metrics=()), teacher)
        search = random_search(hypermodel, tmp_path, max_trials=2, **overrides)
        trials = tuner.search(search, x, target, validation_data=(x, target), verbose=0)
        distilled = [trial for trial in trials if trial.hyperparameters["ssd_distill"]]
        assert len(trials) == 2
        assert distilled[0].metrics.exists("kd_loss")
        assert all(trial.metrics.exists("val_loss") for trial in trials)


def test_the_plain_stage_of_a_snapshot_is_trained_once_for_all_trials_of_all_processes(tmp_path):
    fits, starts = [], []

    def fit(hp, model, *args, **kwargs):
        fits.append((type(model) is SSDModel, kwargs["epochs"]))
        if isinstance(model, SSDModel):
            starts.append(model.student.get_weights())
        return model.fit(*args, **kwargs)

    for n_trials in (2, 3):  # the third in another process
        hypermodel = tuner.SSDHyperModel(Users(fit), "snapshot", space={"num_teachers": 2}, snapshot_epochs=2)
        search = random_search(hypermodel, tmp_path, max_trials=n_trials)
        tuner.search(search, **{**DATA, "epochs": 1})
    assert fits == [(False, 2), (True, 1), (True, 1), (True, 1)]
    assert_same(starts[0], starts[1])
    assert_same(starts[0], starts[2])
    names = [path.name for path in pathlib.Path(search.project_dir).glob("ssd_plain*")]
    assert len(names) == 1 and names[0].endswith(".npz")


class TestErrors:
    @pytest.mark.parametrize(
        ("built", "message"),
        [
            (lambda hp: classifier(), "not compiled"),
            (lambda hp: wrap(build(hp)), "wrapped already"),
            (lambda hp: None, "should return a plain, compiled keras.Model.* Received: None"),
            (lambda hp: compiled(without_noise()), "has no noise layer .* Pass dropout_rate=0.3"),
        ],
        ids=["not compiled", "wrapped", "none", "no noise"],
    )
    def test_bad_models_are_refused_when_the_tuner_is_made(self, built, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            random_search(tuner.SSDHyperModel(built, space={"dropout_rate": None}), tmp_path)

    def test_an_objective_that_a_trial_does_not_report_is_rejected_after_an_epoch(self, tmp_path):
        def fit(hp, model, *args, callbacks, **kwargs):
            note = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: epochs.append(epoch))
            return model.fit(*args, callbacks=[*callbacks, note], **kwargs)

        epochs, several = [], [keras_tuner.Objective("val_f1", "max"), "val_loss"]
        for users, objective, reported in (
            (Users(fit), several, "'val_accuracy', 'val_loss'"),
            (Users(), None, r"\['val_loss'\]"),
        ):
            search = random_search(tuner.SSDHyperModel(users), tmp_path, objective=objective, overwrite=True)
            with pytest.raises(ValueError, match=f"every trial reports.*{reported}"):
                tuner.search(search, **DATA)
        assert epochs == [0]

    def test_a_default_that_cannot_be_trained_fails_only_its_own_trials(self, tmp_path):
        def fit(hp, model, *args, **kwargs):
            if hp.Choice("units", [4096, 8]) == 4096:
                raise ValueError("too large for the memory")
            return {"val_loss": 1.0}

        search = random_search(tuner.SSDHyperModel(Users(fit)), tmp_path, max_trials=4)
        trials = tuner.search(search, **DATA)
        completed = {one.trial_id: one.hyperparameters["units"] == 8 for one in search.oracle.trials.values()}
        assert set(completed.values()) == {True, False}
        assert {one.trial_id: one.status == "COMPLETED" for one in search.oracle.trials.values()} == completed
        assert len(trials) == sum(completed.values())

    @pytest.mark.parametrize(
        ("kind", "hypermodel", "message"),
        [("random", build, "SSDHyperModel"), ("hyperband", tuner.SSDHyperModel(build, "snapshot"), "snapshot_epochs")],
        ids=["of another hypermodel", "hyperband of a snapshot without snapshot_epochs"],
    )
    def test_other_tuners_are_refused(self, kind, hypermodel, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            tuner.search(make_tuner(kind, hypermodel, tmp_path), **DATA)

    @pytest.mark.filterwarnings("ignore:All-NaN axis:RuntimeWarning")  # NumPy's, in Keras Tuner
    @pytest.mark.parametrize(
        ("max_trials", "fails", "message"),
        [(2, True, "failure number 1'"), (5, True, "failure number 1'"), (2, False, "val_loss was nan")],
        ids=["end quietly", "stopped by keras-tuner", "no finite score"],
    )
    def test_the_error_of_the_first_trial_is_shown_if_all_failed(self, max_trials, fails, message, tmp_path):
        failures = (KeyError(f"failure number {number}") for number in range(1, 6))
        scores = iter([float("nan"), float("inf")])

        def fit(hp, model, *args, **kwargs):
            if fails:
                raise next(failures)
            return {"val_loss": next(scores)}

        search = random_search(tuner.SSDHyperModel(Users(fit)), tmp_path, max_trials=max_trials)
        with pytest.raises(RuntimeError, match=f"(?s)^None of the . trials.*{message}"):
            tuner.search(search, **DATA)

    def test_a_changed_space_does_not_reuse_a_project(self, tmp_path):
        tuner.search(random_search(tuner.SSDHyperModel(Users()), tmp_path, max_trials=1), **DATA)
        for changes, named in (
            (dict(space={"percentile": 0}), "ssd_percentile"),
            (dict(teacher="ema"), "teacher=self"),
            (dict(distill="both"), "distill=both"),
            (dict(hypermodel=build_with_units), "units"),
        ):
            changed = random_search(tuner.SSDHyperModel(**{"hypermodel": Users(), **changes}), tmp_path)
            with pytest.raises(ValueError, match=rf"another space.*{named}.*overwrite=True"):
                tuner.search(changed, **DATA)
