"""The example of few labels: what every method is trained on, and the whole script."""

import keras
import numpy as np
import pandas as pd
import pytest

import unlabelled
from _support import comparison, har_data


@pytest.mark.parametrize("n_rows", [3, 100])
def test_every_row_is_used_equally_often(n_rows):
    x, y = np.arange(0.0, 2 * n_rows, 2), np.arange(n_rows)
    data = har_data.EvenEpochs(x, y, n_steps=2, batch_size=4, seed=0)
    seen = []
    for _ in range(13):
        assert len(data) == 2
        for step in range(2):
            windows, labels = data[step]
            assert len(labels) == 4
            np.testing.assert_array_equal(windows, 2 * labels)
            seen.extend(labels)
        data.on_epoch_end()
    counts = np.bincount(seen, minlength=n_rows)
    assert counts.sum() == 104 and counts.max() - counts.min() <= 1
    assert seen != sorted(seen)


def test_the_table_pairs_the_seeds():
    scores = {"plain": [0.5, 0.6], "averaged": [0.5, 0.7], "distilled": [0.7, 0.6], "all labels": [0.9, 0.9]}
    rows = [
        {"label_fraction": 0.1, "seed": seed, "method": method, "accuracy": values[seed], "nll": 0.1}
        for method, values in scores.items()
        for seed in (0, 1)
    ]
    table = unlabelled.table(pd.DataFrame(rows))
    assert "10% labels: distilled minus plain: accuracy +0.1000; more accurate with 1, less with 0 of 2 seeds" in table
    assert "minus averaged: accuracy +0.0500; more accurate with 1, less with 1 of 2 seeds" in table


def test_the_network_standardises_its_windows_and_augments_them_in_training_only():
    x = har_data.load().x_train
    front = keras.Sequential(unlabelled.network(x, 4).layers[:6])
    once, twice = (keras.ops.convert_to_numpy(front(x, training=True)) for _ in range(2))
    assert np.abs(once - twice).max() > 0.01
    standardised = front.predict(x, verbose=0)
    np.testing.assert_allclose(standardised.mean(axis=(0, 1)), 0, atol=1e-3)
    np.testing.assert_allclose(standardised.std(axis=(0, 1)), 1, atol=1e-3)


@pytest.mark.slow
@pytest.mark.once
def test_the_script_gives_every_method_as_many_steps(tmp_path, capsys, monkeypatch):
    fit, trained = comparison.fit, {}

    def kept(method, *others):
        trained[method] = run = fit(method, *others)
        return run

    monkeypatch.setattr(comparison, "fit", kept)
    call = ["--seeds", "0,", "--epochs", "2", "--steps", "2", "--out", str(tmp_path)]
    assert unlabelled.main(call) == 0
    steps = {method: int(run.model.optimizer.iterations) for method, run in trained.items()}
    assert steps == dict.fromkeys(unlabelled.METHODS, 4)
    rows = pd.read_csv(tmp_path / "results.csv")
    assert rows.method.tolist() == list(unlabelled.METHODS)
    assert rows.accuracy.between(0, 1).all() and (rows.status == "finished").all()
    assert (tmp_path / "basic_motions.png").stat().st_size > 5000
    assert "distilled minus averaged" in capsys.readouterr().out
    monkeypatch.setattr(comparison, "fit", lambda *_: pytest.fail("a recorded run was repeated"))
    unlabelled.main(call)
