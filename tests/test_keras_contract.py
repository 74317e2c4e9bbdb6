"""Keras's own tests of its `LossScaleOptimizer`, run on ours in its place."""

import importlib.util

import pytest

from keras_mp.optimizer import LossScaleOptimizer

NAME = "keras.src.optimizers.loss_scale_optimizer_test"

if importlib.util.find_spec(NAME) is None:
    pytest.skip("this Keras wheel ships without its tests", allow_module_level=True)

spec = importlib.util.find_spec(NAME)
keras_tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(keras_tests)
keras_tests.LossScaleOptimizer = LossScaleOptimizer


@pytest.mark.filterwarnings("ignore:LossScaleOptimizer")
class TestOurs(keras_tests.LossScaleOptimizerTest):
    def test_that_ours_is_the_class_under_test(self):
        self.assertIs(keras_tests.LossScaleOptimizer, LossScaleOptimizer)
