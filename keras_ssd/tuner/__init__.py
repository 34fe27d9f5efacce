"""Searches over the options of the distillation with Keras Tuner. No other package imports keras-tuner.

`SSDHyperModel` turns the user's build function into a search space over distillations of its model, for every tuner of
Keras Tuner; `search` runs the search. A distributed search is Keras Tuner's own: chief and workers run the same script
with KERASTUNER_TUNER_ID, KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT set.
"""

from keras_ssd.tuner.hypermodel import SSDHyperModel
from keras_ssd.tuner.searching import Trials, search
from keras_ssd.tuner.space import PARAMETERS

__all__ = ["PARAMETERS", "SSDHyperModel", "Trials", "search"]
