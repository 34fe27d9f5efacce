"""Run the tests of models and habits of users and tell, for each and on each backend, whether it works when wrapped.

    KERAS_BACKEND=jax python tools/models_table.py

replaces the rows of that backend in docs/results/models.csv and writes the table docs/models.md. Further arguments are
pytest's: `-k aeon` replaces a few.
"""

import sys

from contract import BACKENDS, DOCS, ROOT, markdown, outcome_of, versions, write

RESULTS = DOCS / "results" / "models.csv"
TABLE = DOCS / "models.md"
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
    "a cross-entropy of the user's own": "test_output_records.py::test_kind_of_an_output",
    "a teacher that puts out logits": "test_teacher_network.py::test_teacher_may_return_logits",
    "a teacher of other inputs: refused": ("test_teacher_network.py::test_teacher_with_other_inputs_is_rejected"),
    "a model that is not built: refused": "test_habits.py::test_an_unbuilt_model_is_refused_with_the_remedy",
    "a siamese model": "test_habits.py::test_a_siamese_model_learns_as_the_plain_one",
    "a class with a `train_step` of its own: refused": (
        "test_student.py::test_overridden_methods_are_named_and_refused_with_remedies_that_work"
    ),
    "`get_layer`, `inputs`, `output_shape`, `count_params`": (
        "test_student.py::test_wrapper_shares_the_students_attributes"
    ),
    "freezing `ssd.layers`": "test_student_changes.py::test_layers_frozen_between_two_fits_keep_their_weights",
    "an attribute of the model's class, read from the wrapper": (
        "test_student.py::test_attributes_of_the_students_class_are_found"
    ),
    "features of a layer, `keras.Model(ssd.input, ...)`": "test_student.py::test_features_of_a_layer_can_be_extracted",
    "Grad-CAM": "test_student.py::test_features_of_a_layer_can_be_extracted",
    "`ModelCheckpoint` of weights, loaded by the plain model": (
        "test_files.py::test_a_checkpoint_of_the_best_epoch_is_the_plain_model"
    ),
    "`ModelCheckpoint` of the best epoch, loaded by `keras.models.load_model`": (
        "test_files.py::test_a_checkpoint_of_the_best_epoch_is_the_plain_model"
    ),
    "... loaded by the wrapper: the student predicts what was validated": (
        "test_files.py::test_plain_and_wrapped_models_load_the_deployed_weights_and_the_optimizer"
    ),
    "`ssd.save`, loaded by the plain model's `keras.models.load_model`": (
        "test_files.py::test_plain_and_wrapped_models_load_the_deployed_weights_and_the_optimizer"
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
        "test_student_changes.py::test_layers_frozen_between_two_fits_keep_their_weights"
    ),
    "`model.fit`, `wrap(model).fit`, `model.fit`: one optimizer": (
        "test_one_compile.py::test_wrapped_training_continues_as_a_second_fit"
    ),
    "a callback that reads the model's optimizer and metrics": (
        "test_one_compile.py::test_optimizer_loss_and_metrics_are_the_same_objects"
    ),
    "a learning rate assigned to the model's optimizer by a closure": (
        "test_one_compile.py::test_a_closure_or_function_sets_the_learning_rate_of_each_epoch"
    ),
    "a learning rate that is a function": (
        "test_one_compile.py::test_a_closure_or_function_sets_the_learning_rate_of_each_epoch"
    ),
    "metrics without `get_config`": "test_one_compile.py::test_optimizer_loss_and_metrics_are_the_same_objects",
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
    from test_models import ROWS

    return [*ROWS, *HABITS]


class Collector:
    """A pytest plugin that keeps the outcomes of each line."""

    def __init__(self):
        self.outcomes = {}

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.passed:
            return
        test = report.nodeid.removeprefix("tests/").partition("[")[0]
        own = dict(report.user_properties).get("row")
        for title in [own] if own else [title for title, name in HABITS.items() if name == test]:
            self.outcomes.setdefault(title, []).append(outcome_of(report, works="works", fails="fails"))

    def result(self, title):
        """One outcome of all runs of a test."""
        found = self.outcomes[title]
        return next((outcome for outcome in ("fails", "works") if outcome in found), found[0])


def render(rows):
    """The table in Markdown."""
    backends = [name for name in BACKENDS if any(row["backend"] == name for row in rows)]
    cells = {(row["row"], row["backend"]): row["outcome"] for row in rows}
    lines = [
        (title, *(cells.get((title, backend), "not run") for backend in backends))
        for title in dict.fromkeys(row["row"] for row in rows)
    ]
    return HEAD.format(versions=versions(rows)) + markdown("model, task or habit", backends, lines)


def main():
    import keras
    import pytest

    collector, backend = Collector(), keras.backend.backend()
    tests = {*HABITS.values(), "test_models.py::test_a_model_or_task_is_wrapped_trained_saved_and_loaded"}
    options = ["-q", "-m", "", "-p", "no:cacheprovider", *sys.argv[1:]]
    status = pytest.main([*(str(ROOT / "tests" / test) for test in sorted(tests)), *options], plugins=[collector])
    new = [{"row": title, "backend": backend, "outcome": collector.result(title)} for title in collector.outcomes]
    rows = write(RESULTS, {"row": titles(), "backend": list(BACKENDS)}, new)
    TABLE.write_text(render(rows))
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
