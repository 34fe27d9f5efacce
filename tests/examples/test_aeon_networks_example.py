"""The example of aeon's networks: a distilled classifier is one of aeon and scikit-learn."""

import numpy as np
import pytest
import sklearn.base

aeon_networks = pytest.importorskip("aeon_networks")

pytestmark = pytest.mark.filterwarnings("ignore")  # of aeon


def test_a_distilled_classifier_is_cloned_fitted_and_predicts(tmp_path, monkeypatch):
    from aeon.classification.deep_learning import FCNClassifier
    from aeon.datasets import load_unit_test

    kind = aeon_networks.distilled(FCNClassifier, num_teachers=2)
    classifier = sklearn.base.clone(kind(n_epochs=2, n_filters=4, random_state=0, file_path=f"{tmp_path}/"))
    assert classifier.get_params()["n_filters"] == 4
    x, y = load_unit_test()
    classifier.fit(x, y)
    assert "kd_loss" in classifier.history.history
    assert set(classifier.predict(x)) <= set(y)
    np.testing.assert_allclose(classifier.predict_proba(x).sum(axis=1), 1, atol=1e-5)


@pytest.mark.slow
def test_the_script(capsys):
    scores = aeon_networks.main(["--epochs", "1", "--folds", "2", "--network", "MLPClassifier"])
    assert [len(values) for values in scores.values()] == [2, 2]
    assert "distilled" in capsys.readouterr().out
