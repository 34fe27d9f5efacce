"""The benchmark of few labels: nobody is in two parts of a task, differences are paired by seed."""

import numpy as np
import pandas as pd
import pytest

import few_labels


def rows(scores, task=few_labels.TASKS[0]):
    """Rows of a task from `{method: accuracies by seed}`."""
    return pd.DataFrame(
        {"task": task, "seed": seed, "method": method, **dict.fromkeys(["accuracy", "balanced_accuracy"], value)}
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


def test_differences_are_paired_by_seed_and_corrected_by_holm_and_a_set_is_the_unit_of_the_five():
    of_one = {
        "averaged": {0: 0.5, 1: 0.7, 2: 0.6},
        "recipe": {0: 0.51, 1: 0.72, 2: 0.63},
        "Pi-model": {2: 0.63, 0: 0.5, 1: 0.71},
    }
    of_five = {"averaged": {0: 0.5, 1: 0.6}, "recipe": {0: 0.52, 1: 0.64}}, {"averaged": {0: 0.5}, "recipe": {0: 0.5}}
    tables = [rows(of_one), *map(rows, of_five, few_labels.TASKS[5:7])]
    found = few_labels.verdicts(pd.concat(tables))
    assert found["recipe against"].tolist() == ["averaged", "Pi-model", "averaged"]
    assert found.task.tolist()[1:] == ["UCI HAR 2 %", "UCR, five sets"] and found.units.tolist() == [3, 3, 2]
    np.testing.assert_allclose(found.points, [2, 2 / 3, 1.5], atol=1e-9)
    assert found.above.tolist() == [3, 2, 1]
    # 4.303 s / sqrt(3) of three seeds, s = 1 and 1 / sqrt(3); 12.706 s / sqrt(2) of two sets, s = 3 / sqrt(2).
    np.testing.assert_allclose(found["+-"], [2.484, 1.434, 19.059], atol=1e-3)
    np.testing.assert_allclose(found["p (Holm)"], [2 * found.p[0], found.p[1], found.p[2]])


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
