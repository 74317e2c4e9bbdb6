"""`LossScaleOptimizer`: a scaling rule, the gradient checks and Keras's optimizers."""

from keras_mp.optimizer.arguments import checked_inner, checked_on_skip
from keras_mp.optimizer.optimizer import LossScaleOptimizer
from keras_mp.optimizer.spike_rule import SpikeRule, checked_spike_rule

__all__ = [
    "LossScaleOptimizer",
    "SpikeRule",
    "checked_inner",
    "checked_on_skip",
    "checked_spike_rule",
]
