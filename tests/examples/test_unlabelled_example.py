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


@pytest.mark.slow
@pytest.mark.once
def test_every_method_has_as_many_steps(monkeypatch):
    fit, counts = comparison.fit, {}

    def counted(method, *others):
        batches = []
        count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: batches.append(batch))
        run = fit(method, *others, callbacks=[count])
        counts[method] = len(batches)
        return run

    monkeypatch.setattr(comparison, "fit", counted)
    unlabelled.run(har_data.load(), 0.2, 3, seed=0, epochs=2, n_steps=3)
    assert counts == dict.fromkeys(unlabelled.METHODS, 6)


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


def test_the_network_augments_in_training_only():
    x = har_data.load().x_train[:4]
    front = keras.Sequential(unlabelled.network(x, 3).layers[:6])
    once, twice = (keras.ops.convert_to_numpy(front(x, training=True)) for _ in range(2))
    assert np.abs(once - twice).max() > 0.01
    np.testing.assert_array_equal(front.predict(x, verbose=0), front.predict(x, verbose=0))


@pytest.mark.slow
@pytest.mark.once
def test_the_whole_script(tmp_path, capsys):
    assert unlabelled.main(["--seeds", "0,", "--epochs", "2", "--steps", "2", "--out", str(tmp_path)]) == 0
    rows = pd.read_csv(tmp_path / "results.csv")
    assert rows.method.tolist() == list(unlabelled.METHODS)
    assert rows.accuracy.between(0, 1).all() and (rows.status == "finished").all()
    assert (tmp_path / "basic_motions.png").stat().st_size > 5000
    assert "distilled minus averaged" in capsys.readouterr().out
    # Called again it repeats nothing.
    unlabelled.main(["--seeds", "0,", "--epochs", "2", "--steps", "2", "--out", str(tmp_path)])
    assert len(pd.read_csv(tmp_path / "results.csv")) == len(rows)
