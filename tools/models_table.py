"""Run the tests of models and habits of users and tell, for each and on each backend, whether it works when wrapped.

    KERAS_BACKEND=jax python tools/models_table.py

replaces the rows of that backend in docs/results/models.csv and writes the table docs/models.md. Further arguments are
pytest's: `-k aeon` replaces a few.
"""

import csv
import importlib.metadata
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "models.csv"
TABLE = ROOT / "docs" / "models.md"
BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
COLUMNS = ["row", "backend", "outcome", "versions"]
HEAD = """# Models, tasks and habits of users

Written by `python tools/models_table.py`, run on each backend, from the outcome of the tests that each line names in
`tools/models_table.py`. For a model or a task "works" means: it is wrapped (with `dropout_rate=0.3` if it has no
noise), trained, saved and loaded. For a habit it means: it does the same as with the plain model, or what the line
says.
Versions: {versions}.

"""
# What users do: the tests that say what is right.
HABITS = {
    "a head that is no Dense layer": "test_habits.py::test_a_model_without_a_dense_head_is_trained",
    "an autoencoder": "test_habits.py::test_an_autoencoder_is_trained",
    "averaging alone, without noise": "test_habits.py::test_averaging_alone_needs_no_noise_and_no_head",
    "samples folded into the batch, tensors without a batch": (
        "test_habits.py::test_teachers_keep_the_rows_of_a_sample_together"
    ),
    "scores of each sample against each (in-batch negatives)": (
        "test_habits.py::test_in_batch_negatives_are_distilled_on_whole_batches"
    ),
    "a model of one fixed batch size": "test_habits.py::test_teacher_passes_keep_a_fixed_batch_size",
    "a `call` without `training`": "test_habits.py::test_call_without_training_argument_trains_as_in_keras",
    "optional inputs left out": "test_habits.py::test_optional_inputs_may_be_left_out",
    "outputs in a nested dictionary": "test_habits.py::test_outputs_in_a_nested_dictionary",
    "sample weights of some outputs": "test_wrap.py::test_sample_weights_may_be_given_for_some_outputs",
    "loss weights that are variables": "test_habits.py::test_loss_weights_may_be_variables",
    "sparse targets, where Keras takes them": ("test_habits.py::test_sparse_targets_work_where_keras_accepts_them"),
    "a cross-entropy of the user's own": ("test_habits.py::test_custom_cross_entropy_gives_the_term_of_keras_own"),
    "a teacher that puts out logits": "test_teacher_network.py::test_teacher_may_return_logits",
    "a teacher of other inputs: refused": ("test_teacher_network.py::test_teacher_with_other_inputs_is_rejected"),
    "a model that is not built: refused": "test_habits.py::test_an_unbuilt_model_is_refused_with_the_remedy",
    "a siamese model": "test_habits.py::test_a_siamese_model_learns_as_the_plain_one",
    "a class with a `train_step` of its own: refused": (
        "test_student.py::test_overridden_methods_are_named_and_refused"
    ),
    "`get_layer`, `inputs`, `output_shape`, `count_params`": (
        "test_student.py::test_wrapper_shares_the_students_attributes"
    ),
    "freezing `ssd.layers`": "test_student.py::test_layers_are_frozen_as_in_the_plain_model",
    "an attribute of the model's class, read from the wrapper": (
        "test_student.py::test_attributes_of_the_students_class_are_found"
    ),
    "features of a layer, `keras.Model(ssd.input, ...)`": "test_student.py::test_features_of_a_layer_can_be_extracted",
    "Grad-CAM": "test_student.py::test_grad_cam",
    "`ModelCheckpoint` of weights, loaded by the plain model": (
        "test_keras_callbacks.py::test_model_checkpoint_of_weights_only"
    ),
    "`ModelCheckpoint` of the best epoch, loaded by `keras.models.load_model`": (
        "test_files.py::test_a_checkpoint_of_the_best_epoch_is_the_plain_model"
    ),
    "... loaded by the wrapper: the student predicts what was validated": (
        "test_files.py::test_plain_and_wrapped_models_load_the_weights"
    ),
    "`ssd.save`, loaded by the plain model's `keras.models.load_model`": (
        "test_files.py::test_plain_keras_loads_the_plain_compiled_model"
    ),
    "... where keras_ssd is not installed": "test_files.py::test_a_file_is_read_where_keras_ssd_is_not_installed",
    "`keras_ssd.load_model`: training continues bit for bit": (
        "test_files.py::test_training_goes_on_from_a_file_bit_for_bit"
    ),
    "`export`": "test_student.py::test_exported_model_returns_what_predict_returns",
    "TensorFlow's converter to LiteRT": "test_student.py::test_tensorflow_saves_the_wrapper_and_lite_rt_converts_it",
    "freeze, fit, unfreeze, `model.compile`, fit": (
        "test_student_changes.py::test_compiling_the_student_compiles_the_wrapper"
    ),
    "a layer frozen between two fits": (
        "test_student_changes.py::test_a_layer_frozen_between_two_fits_keeps_its_weights"
    ),
    "`model.fit`, `wrap(model).fit`, `model.fit`: one optimizer": (
        "test_one_compile.py::test_wrapped_training_continues_as_a_second_fit"
    ),
    "a callback that reads the model's optimizer and metrics": (
        "test_one_compile.py::test_optimizer_loss_and_metrics_are_the_same_objects"
    ),
    "a learning rate assigned to the model's optimizer by a closure": (
        "test_student_changes.py::test_learning_rate_set_by_a_closure_applies_in_the_same_epoch"
    ),
    "a learning rate that is a function": "test_one_compile.py::test_a_learning_rate_that_is_a_function_is_followed",
    "metrics without `get_config`": "test_one_compile.py::test_classes_of_the_user_need_no_get_config",
    "scaling of the loss as compiled": "test_one_compile.py::test_loss_scaling_is_the_compiled_one",
    "pruned weights": "test_averaging.py::test_a_pruned_model_stays_pruned",
    "`model.stop_training` in a closure": "test_student_changes.py::test_closure_can_stop_the_training",
    "`quantize`": "test_student_changes.py::test_a_quantised_student_predicts_and_has_to_be_wrapped_again",
    "LoRA before wrapping; after it, wrap again": (
        "test_student_changes.py::test_lora_works_before_wrapping_and_raises_after"
    ),
    "SciKeras": "test_student_changes.py::test_scikeras_trains_a_wrapped_model",
    "new weights between two fits (folds)": "test_averaging.py::test_average_restarts_from_weights_set_between_fits",
    "Ctrl-C": "test_averaging.py::test_student_predicts_as_the_wrapper_after_an_interrupted_fit",
    "stateful layers": ("test_averaging.py::test_a_stateful_layer_keeps_its_state_between_the_batches_of_predict"),
}


def titles():
    """The lines of the table, in order."""
    sys.path.insert(0, str(ROOT / "tests"))
    from test_models import MODELS
    from test_tasks import TASKS

    return [*MODELS, *TASKS, *HABITS]


class Collector:
    """A pytest plugin that keeps the outcomes of each line."""

    def __init__(self):
        self.outcomes = {}

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.passed:
            return
        title = dict(report.user_properties).get("row")
        if title is None:
            test = report.nodeid.removeprefix("tests/").partition("[")[0]
            title = next((title for title, name in HABITS.items() if name == test), None)
        if title is not None:
            self.outcomes.setdefault(title, []).append(_outcome(report))

    def result(self, title):
        """One outcome of all runs of a test."""
        found = list(dict.fromkeys(self.outcomes[title]))
        failed = [outcome for outcome in found if outcome == "fails"]
        works = [outcome for outcome in found if outcome == "works"]
        return (failed or works or found)[0]


def _outcome(report):
    if report.skipped:
        return "not tested: " + str(report.longrepr[2]).removeprefix("Skipped: ")
    return "works" if report.passed else "fails"


def read():
    """The stored rows."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def render(rows):
    """The table in Markdown."""
    backends = [name for name in BACKENDS if any(row["backend"] == name for row in rows)]
    versions = ", ".join(f"{BACKENDS[b]} {next(r['versions'] for r in rows if r['backend'] == b)}" for b in backends)
    cells = {(row["row"], row["backend"]): row["outcome"] for row in rows}
    lines = [("model, task or habit", *(BACKENDS[name] for name in backends)), ("---",) * (len(backends) + 1)]
    for title in dict.fromkeys(row["row"] for row in rows):
        lines.append((title, *(cells.get((title, backend), "not run") for backend in backends)))
    return HEAD.format(versions=versions) + "".join("| " + " | ".join(line) + " |\n" for line in lines)


def main():
    import keras
    import pytest

    collector, backend = Collector(), keras.backend.backend()
    tests = sorted(set(HABITS.values())) + [
        "test_models.py::test_a_published_network_is_wrapped_trained_saved_and_loaded",
        "test_tasks.py::test_a_task_is_distilled_saved_and_loaded",
    ]
    options = ["-q", "-m", "", "-p", "no:cacheprovider", *sys.argv[1:]]
    status = pytest.main([*(str(ROOT / "tests" / test) for test in tests), *options], plugins=[collector])
    versions = f"{importlib.metadata.version(backend)} with Keras {importlib.metadata.version('keras')}"
    order = titles()
    rows = {(row["row"], row["backend"]): row for row in read() if row["row"] in order}
    for title in collector.outcomes:
        outcome = collector.result(title)
        rows[title, backend] = {"row": title, "backend": backend, "outcome": outcome, "versions": versions}
    places = [(title, backend) for title in order for backend in BACKENDS]
    rows = [rows[place] for place in places if place in rows]
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    TABLE.write_text(render(rows))
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
