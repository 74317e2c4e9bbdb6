"""Every test starts with Keras's own defaults and the same seeds."""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Behind what is installed, which is what is tested.
sys.path.append(str(pathlib.Path(__file__).parents[1]))

import keras  # noqa: E402
import pytest  # noqa: E402
from support import each_choice, quick  # noqa: E402

from keras_mp import hardware  # noqa: E402

# What pytest's option -m says unless it is given: with names of files, and without.
OF_FILES = "not slow and not clients"
OF_THE_SUITE = f"{OF_FILES} and not long and not combinations"

# Files that take a minute or more start first: none is left to one process at the end.
FIRST = [
    "test_support",
    "test_bounds",
    "test_runner",
    "test_programs",
    "test_distribute",
    "test_overflow_monitor_on_replicas",
    "test_notebooks",
    "test_diagnose",
    "test_numerics_monitor",
    "test_shadow_check",
    "test_feed",
    "test_api",
    "test_plan",
    "test_documentation",
    "test_multi_worker",
    "test_report",
]


def pytest_xdist_auto_num_workers(config):
    """The whole suite runs in three processes, files that are named run in one.

    Three, for two cores: tests of strategies wait for each other's processes.
    """
    return 3 if names_no_file(config) else 0


def names_no_file(config):
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS


def pytest_configure(config):
    # An option reaches the processes of pytest-xdist, to which files are named.
    vars(config.option).setdefault("all_files", names_no_file(config))
    if not config.option.markexpr:
        all_files = config.option.all_files
        config.option.markexpr = OF_THE_SUITE if all_files else OF_FILES


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config, items):
    if config.option.all_files:
        each_choice.mark_the_others(items)
    yield  # pytest leaves out what the option -m says
    order = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(FIRST)))


def pytest_collection_finish():
    quick.save_time()


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


@pytest.fixture
def check_faults(record_property):
    """Return what fails if a fault of an `Outcome` of ``support.damage`` was lost.

    It also notes the numbers, for ``python -m tests.reliability``.
    """

    def check(kind, outcome):
        record_property("faults", [kind, outcome.injected, outcome.survived])
        assert outcome.injected > 0
        assert not outcome.lost

    return check
