"""The public names of keras_mp."""

from keras_mp import callbacks, hardware, layers, lists, ops, plot, scaling  # noqa: F401
from keras_mp.calibration import calibrate_scale
from keras_mp.conversion import convert
from keras_mp.diagnosis import Culprit, Diagnosis, LayerNumbers, diagnose
from keras_mp.export import export
from keras_mp.flight import replay
from keras_mp.guarded import wrap_optimizer
from keras_mp.lint import Finding, lint
from keras_mp.loading import load_model
from keras_mp.memory import MemoryReport, memory_report
from keras_mp.model_saving import save_model
from keras_mp.ops import float32
from keras_mp.optimizer import LossScaleOptimizer, SpikeRule
from keras_mp.placement import Placement, PlacementReport
from keras_mp.policies import Policy, policy_scope, set_policy
from keras_mp.resuming import load_training_state, save_training_state
from keras_mp.training import compile
from keras_mp.version import __version__

__all__ = [
    "Culprit",
    "Diagnosis",
    "Finding",
    "LayerNumbers",
    "LossScaleOptimizer",
    "MemoryReport",
    "Placement",
    "PlacementReport",
    "Policy",
    "SpikeRule",
    "__version__",
    "calibrate_scale",
    "callbacks",
    "compile",
    "convert",
    "diagnose",
    "export",
    "float32",
    "hardware",
    "layers",
    "lint",
    "load_model",
    "load_training_state",
    "memory_report",
    "ops",
    "plot",
    "policy_scope",
    "replay",
    "save_model",
    "save_training_state",
    "scaling",
    "set_policy",
    "wrap_optimizer",
]
