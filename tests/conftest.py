"""Every test starts with Keras's own defaults and the same seeds."""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Behind what is installed, which is what is tested.
sys.path.append(str(pathlib.Path(__file__).parents[1]))

import keras  # noqa: E402
import pytest  # noqa: E402

from keras_mp import hardware  # noqa: E402


def pytest_runtest_setup(item):
    if item.get_closest_marker("cpu") and hardware.gpu_capabilities():
        pytest.skip("here is a GPU")


@pytest.fixture(autouse=True)
def fresh_keras():
    keras.backend.clear_session(free_memory=False)
    keras.config.set_dtype_policy("float32")
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
