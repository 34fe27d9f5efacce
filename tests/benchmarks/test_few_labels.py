"""The benchmark of few labels: nobody is in two parts of a task, differences are paired by seed."""

import pathlib
import sys

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))

import few_labels  # noqa: E402


def rows(scores, task=few_labels.TASKS[0]):
    """Rows of a task from `{method: accuracies by seed}`."""
    return pd.DataFrame(
        {
            "task": task,
            "seed": seed,
            "method": method,
            "accuracy": value,
            "balanced_accuracy": value,
            "nll": 1,
            "seconds": 1,
        }
        for method, values in scores.items()
        for seed, value in values.items()
    )


def test_people_are_in_one_part_each(monkeypatch):
    """A window holds nothing but the number of its person."""
    subjects = np.repeat(np.arange(12), 4)
    x = np.tile(subjects[:, None, None], (1, 6, 3)).astype("float32")
    monkeypatch.setattr(few_labels, "_recordings", lambda *_: (x, np.arange(48) % 3, subjects))
    for seed in (0, 1):
        task = few_labels.task_of("people smartwatch", "nowhere", seed)
        parts = [set(part[:, 0, 0]) for part in (task.labelled[0], task.unlabelled, task.scored[0])]
        assert list(map(len, parts)) == [5, 3, 4]
        assert set.union(*parts) == set(range(12))
    with pytest.raises(ValueError, match="another seed scores others"):
        few_labels.task_of("people smartwatch", "nowhere", 0, search=True)


@pytest.mark.parametrize("search", [False, True])
def test_rows_are_labelled_unlabelled_or_scored(monkeypatch, search):
    x, y = np.arange(60, dtype="float32").reshape(60, 1, 1), np.arange(60) % 2
    monkeypatch.setattr(few_labels.accuracy_data, "read", lambda *_: ((x, y), (-x - 1, y), 2))
    task = few_labels.task_of("UCR Made-up", "nowhere", 3, search)
    parts = [part[:, 0, 0] for part in (task.labelled[0], task.unlabelled, task.scored[0])]
    assert len(np.unique(np.concatenate(parts))) == sum(map(len, parts)) == (60 if search else 120)
    assert len(parts[0]) == 6 and (parts[2] < 0).all() == (not search)
    np.testing.assert_array_equal(task.hidden, y[task.unlabelled[:, 0, 0].astype(int)])


def test_differences_are_paired_by_seed_and_corrected_by_holm():
    control = {0: 0.5, 1: 0.7, 2: 0.6}
    found = few_labels.verdicts(
        rows({"averaged": control, "recipe": {0: 0.51, 1: 0.72, 2: 0.63}, "Pi-model": {2: 0.63, 0: 0.5, 1: 0.71}})
    )
    assert found["recipe against"].tolist() == ["averaged", "Pi-model"]
    np.testing.assert_allclose(found.points, [2, 2 / 3])
    assert found.above.tolist() == [3, 2]
    np.testing.assert_allclose(found["+-"], [2.484, 1.434], atol=1e-3)  # 4.303 s / sqrt(3), s = 1 and 1 / sqrt(3)
    np.testing.assert_allclose(found["p (Holm)"], [2 * found.p[0], found.p[1]])


def test_a_set_is_the_unit_of_the_five_sets():
    sets = few_labels.TASKS[5:7]
    scores = [{0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.5}], [{0: 0.52, 1: 0.64}, {0: 0.51, 1: 0.49}]
    tables = [rows({"averaged": a, "recipe": b}, task) for task, a, b in zip(sets, *scores, strict=True)]
    found = few_labels.verdicts(pd.concat(tables)).iloc[0]
    assert (found.task, found.units, found.above) == ("UCR, five sets", 2, 1)
    assert found.points == pytest.approx(1.5)


def test_runs_stored_twice_are_an_error(tmp_path):
    stored = rows({"averaged": {0: 0.5}})
    for name in ("jax", "torch"):
        stored.to_csv(tmp_path / f"{name}.csv", index=False)
    with pytest.raises(ValueError, match="stored once"):
        few_labels.stored(tmp_path)


def test_a_search_does_not_write_to_the_stored_rows(capsys):
    with pytest.raises(SystemExit):
        few_labels.main(["--search"])
    assert "--search needs another --out" in capsys.readouterr().err
