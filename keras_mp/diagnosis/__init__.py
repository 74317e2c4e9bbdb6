"""Which layer broke it: culprits, ranges and the fewest rules, from one batch."""

from keras_mp.diagnosis.api import case_of, diagnose
from keras_mp.diagnosis.culprit import Culprit
from keras_mp.diagnosis.report import Diagnosis, LayerNumbers
from keras_mp.diagnosis.rerun import Rerun, rerun

__all__ = [
    "Culprit",
    "Diagnosis",
    "LayerNumbers",
    "Rerun",
    "case_of",
    "diagnose",
    "rerun",
]
