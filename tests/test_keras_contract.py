"""Keras's own tests of its `LossScaleOptimizer`, run on ours in its place."""

import importlib.util
import os
import subprocess
import sys

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


@pytest.mark.long
@pytest.mark.skipif(
    os.environ.get("KERAS_BACKEND") == "jax" or not importlib.util.find_spec("jax"),
    reason="the stateless half of the tests needs JAX, where they are run once",
)
def test_stateless_half_on_jax():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "default", __file__],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:]
