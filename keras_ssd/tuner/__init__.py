"""Keras Tuner searches over the options of the distillation. The only package that imports keras-tuner.

`SSDHyperModel` makes what the user's build function returns a search over distillations of it, for every tuner of Keras
Tuner; `search` runs it. Chief and workers are Keras Tuner's own: the same script, with KERASTUNER_TUNER_ID,
KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT set.
"""

from keras_ssd.tuner.hypermodel import SSDHyperModel
from keras_ssd.tuner.searching import search
from keras_ssd.tuner.space import PARAMETERS

__all__ = ["PARAMETERS", "SSDHyperModel", "search"]
