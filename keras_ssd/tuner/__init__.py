"""Searches over the options of the distillation with Keras Tuner, which no other package imports.

`SSDHyperModel` adds distillation to the search space of the user's build function, for every tuner of Keras Tuner;
`search` runs it. On a cluster chief and workers run the same script, with the variables KERASTUNER_* of Keras Tuner.
"""

from keras_ssd.tuner.hypermodel import SSDHyperModel
from keras_ssd.tuner.searching import Trials, search
from keras_ssd.tuner.space import PARAMETERS

__all__ = ["PARAMETERS", "SSDHyperModel", "Trials", "search"]
