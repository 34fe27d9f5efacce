"""Methods to inspect the student and the teachers of a batch, without changing the model."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ssd import _backend
from keras_ssd._typing import Tensor
from keras_ssd.distillation import weigh_teachers
from keras_ssd.guidance import guided_target
from keras_ssd.settings import Settings
from keras_ssd.uncertainty import predict_stochastic


class Inspection:
    """The methods of `SSDModel` that return passes, weights and representations."""

    name: Any
    settings: Settings
    variables: Any
    _outputs: Any
    _distills: Any
    _run_teachers: Any
    _wiring: Any

    def predict_stochastic(self, x: Any, **options: Any) -> Any:
        """Predict with noise on, many times, and return mean and uncertainty.

        It runs the student with its own noise layers, as after loading it, and with the averaged weights if `predict`
        uses them.

        Args:
            x: inputs, as for `predict`.
            **options: as for `keras_ssd.predict_stochastic`, which documents them.

        Returns:
            A `StochasticPrediction`, or several in the structure of the outputs.
        """
        return predict_stochastic(self, x, **options)

    def guidance_weights(self, x: Any, percentile: float | None = None) -> np.ndarray:
        """Return the weights of the teachers for one batch.

        It changes nothing, and returns the same values for the same weights and seed.

        Args:
            x: one batch of inputs, as for `model(x)`.
            percentile: overrides the percentile, 0-100; 0 shows the weights before the filter. Defaults to `None`.

        Returns:
            NumPy array `(batch, teachers)`, every row sums to 1.
        """
        return ops.convert_to_numpy(self._look_at(x, percentile)[0])

    def teacher_representations(self, x: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the features by which the student and the teachers of one batch are compared.

        It changes nothing, and returns the same values for the same weights and seed.

        Args:
            x: one batch of inputs, as for `model(x)`.

        Returns:
            `(student, teachers, target)`, NumPy arrays `(batch, features)`, `(batch, teachers, features)` and
            `(batch, features)`: the representations, or the flattened first output if outputs are both compared and
            distilled.
        """
        guidance, student, teachers = self._look_at(x)
        return tuple(map(ops.convert_to_numpy, (student, teachers, guided_target(guidance, teachers))))

    def _look_at(self, x: Any, percentile: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
        if not self._distills:
            raise ValueError(
                f"{self.name!r} was wrapped with kd_weight=0: it has no teachers. Wrap it with a kd_weight above 0."
            )
        scope = keras.StatelessScope([(v, v.value) for v in self.variables], collect_losses=True)
        with scope, _backend.teacher_scope(ops.convert_to_tensor(self.settings.seed or 0)):
            y_pred, representation, cut_values = self._wiring.student_pass(x)
            step = self._run_teachers(y_pred, representation, cut_values)
            outputs = self._outputs.describe(y_pred) if self.settings.similarity == "kl" else []
            return weigh_teachers(step, outputs, self.settings, percentile), *step.compared
