"""The compared optimizers train the same model on the same batches."""

import functools

import keras
import numpy as np
import pytest

import keras_mp
from benchmarks import steps, workloads


@pytest.fixture(scope="module")
def trained():
    """Return a function that makes three steps, once for the same arguments.

    It returns the model that made them.
    """
    models = []
    original = steps.fit_step

    def fit_step(model, *arguments):
        models.append(model)
        return original(model, *arguments)

    @functools.cache
    def train(candidate, optimizer, jit_compile, policy="mixed_bfloat16"):
        workload = workloads.sized("wide", rows=4, width=8)
        step = steps.keras_step(workload, candidate, optimizer, policy, jit_compile)
        for _ in range(3):
            step()
        return models[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "fit_step", fit_step)
        yield train


@pytest.mark.long
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("optimizer", steps.OPTIMIZERS)
def test_all_candidates_train_alike(trained, optimizer, jit_compile):
    bare = trained("bare", optimizer, jit_compile)
    start = trained("bare", "SGD", False).optimizer.learning_rate.numpy()
    assert start == np.float32(1e-3)
    for candidate in ("keras", "keras_mp"):
        model = trained(candidate, optimizer, jit_compile)
        assert int(model.optimizer.iterations.numpy()) == 3
        for ours, theirs in zip(model.weights, bare.weights, strict=True):
            # A hundredth of three updates of Adam, of 1e-3 each; scaled gradients are
            # rounded to bfloat16 where unscaled ones are.
            np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=3e-5)


def test_candidates_are_what_they_are_called(trained):
    kinds = {
        name: type(trained(name, "SGD", False).optimizer) for name in steps.COMPILE
    }
    assert kinds == {
        "bare": keras.optimizers.SGD,
        "keras": keras.optimizers.LossScaleOptimizer,
        "keras_mp": keras_mp.LossScaleOptimizer,
    }


@pytest.mark.long
def test_xla_is_used_only_where_it_is_asked_for(trained):
    assert trained("keras_mp", "SGD", True).jit_compile is True
    assert trained("keras_mp", "SGD", False).jit_compile is False
