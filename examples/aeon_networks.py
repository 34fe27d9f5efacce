"""A network of aeon, distilled: a classifier of scikit-learn's style whose `build_model` returns a wrapped network.

    python examples/aeon_networks.py                                 # FCN on BasicMotions, which aeon brings
    python examples/aeon_networks.py --network ResNetClassifier --epochs 100 --folds 5

None of aeon's networks has dropout: `dropout_rate` makes it at distillation time, in the teachers only. The classifier
is cloned, validated over folds and searched over as any other of aeon or scikit-learn. Prints the accuracy over folds
of the network as it is and distilled; both start each fold from the same weights. KERAS_BACKEND chooses the backend.
"""

import argparse
import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from aeon.classification import deep_learning
from aeon.datasets import load_basic_motions
from sklearn.model_selection import StratifiedKFold, cross_val_score

import keras_ssd


def distilled(kind, **options):
    """A classifier class of aeon's whose network is trained by distillation.

    Args:
        kind: a class of `aeon.classification.deep_learning` with a `build_model`.
        **options: of `keras_ssd.wrap`.
    """

    class Distilled(kind):
        def build_model(self, input_shape, n_classes, **kwargs):
            return keras_ssd.wrap(super().build_model(input_shape, n_classes, **kwargs), dropout_rate=0.3, **options)

    return Distilled


def scores_of(kind, x, y, folds, epochs):
    """Accuracies over folds."""
    with tempfile.TemporaryDirectory() as folder:
        classifier = kind(n_epochs=epochs, batch_size=16, random_state=0, file_path=f"{folder}/")
        return cross_val_score(classifier, x, y, cv=StratifiedKFold(folds, shuffle=True, random_state=0))


def main(arguments=None):
    """Run the example.

    Args:
        arguments: of the command line, a list; those of the process if None.

    Returns:
        Name -> accuracies over folds, of the network as it is and distilled.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", default="FCNClassifier", help="of aeon.classification.deep_learning")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--folds", type=int, default=4)
    options = parser.parse_args(arguments)
    x, y = load_basic_motions()
    kind = getattr(deep_learning, options.network)
    scores = {}
    for name, classifier in (("plain", kind), ("distilled", distilled(kind))):
        print(f"{name}: {options.folds} folds of {options.epochs} epochs", flush=True)
        scores[name] = scores_of(classifier, x, y, options.folds, options.epochs)
    # At the end, below the progress bars of aeon's predictions.
    for name, values in scores.items():
        print(f"{name:10s} accuracy {100 * np.mean(values):5.1f} +- {100 * np.std(values):.1f} %")
    return scores


if __name__ == "__main__":
    main()
