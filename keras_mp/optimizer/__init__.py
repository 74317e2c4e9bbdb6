"""`LossScaleOptimizer`: a scaling rule, the gradient checks and Keras's optimizers."""

from keras_mp.optimizer.arguments import checked_inner
from keras_mp.optimizer.optimizer import LossScaleOptimizer

__all__ = ["LossScaleOptimizer", "checked_inner"]
