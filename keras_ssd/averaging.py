"""The moving average of a student's weights from one `fit` to the next: when it is fed, lent and taken back."""

import numpy as np
from keras import ops


class Averaging:
    """Feeds the moving average, and lends it to the student between two `fit`s.

    A plain object: the average itself is state that Keras saves with the model, and nothing of this is.

    Args:
        student: the `keras.Model` that is trained.
        average: a `teachers.HeldWeights` of its weights.
        momentum: of the average, 0-1.
    """

    def __init__(self, student, average, momentum):
        self._student, self._average, self._momentum = student, average, momentum
        self._has_begun = False
        self._lent = None  # while the student carries the average: its own weights, and what it was given

    def begin(self):
        """Before the average was ever fed, it is whatever the student is, also if that was loaded after wrapping."""
        if not self._has_begun:
            self._has_begun = int(ops.convert_to_numpy(self._average.steps.value)) > 0
            if not self._has_begun:
                self._average.copy(self._student.weights)

    def update(self):
        """Take one step towards the student's weights."""
        self._average.average(self._student.weights, self._momentum)

    def lend(self):
        """Give the student the average, until `take_back`."""
        own = _arrays(self._student.weights)
        self._average.write(self._student.weights)
        self._lent = own, _arrays(self._student.weights)

    def take_back(self):
        """Go on from where the last `fit` ended, not from the average, unless the weights were changed since."""
        lent, self._lent = self._lent, None
        if lent is None:
            return
        own, given = lent
        # The average is looked at, too: both may have been loaded from a file.
        for weights in (self._student.weights, self._average.held):
            if not all(np.array_equal(ops.convert_to_numpy(v), w) for v, w in zip(weights, given, strict=True)):
                return
        for variable, value in zip(self._student.weights, own, strict=True):
            variable.assign(value)


def _arrays(weights):
    return [np.array(ops.convert_to_numpy(v.value)) for v in weights]
