"""JAX's side of the benchmark: the same models, and a scaler that does its work."""

import keras
import numpy as np
import pytest

from benchmarks import jax_peer, workloads

jax = pytest.importorskip("jax")
pytest.importorskip("jmp")
pytest.importorskip("optax")

ROWS = 4
# XLA takes a minute to compile jmp's check of the 300 gradients of "small".
NAMES = [
    pytest.param(name, marks=pytest.mark.slow if name == "small" else ())
    for name in workloads.WORKLOADS
]


def arrays(step):
    return [np.array(value) for value in jax.tree.leaves(step.parameters)]


@pytest.mark.long
@pytest.mark.every(2)
@pytest.mark.parametrize("name", NAMES)
def test_the_model_has_the_parameters_of_the_keras_model(name):
    step = jax_peer.jax_step(name, "SGD", "float32", rows=ROWS)
    model = workloads.WORKLOADS[name].build()
    shapes = [tuple(weight.shape) for weight in model.trainable_weights]
    assert [value.shape for value in arrays(step)] == shapes


@pytest.mark.long
@pytest.mark.every(2)
@pytest.mark.parametrize("name", NAMES)
def test_with_the_same_weights_it_learns_as_the_keras_model(name):
    workload = workloads.sized(name, ROWS)
    model = workload.build()
    step = jax_peer.jax_step(name, "SGD", "float32", rows=ROWS)
    weights = [np.array(weight) for weight in model.trainable_weights]
    tree = jax.tree.structure(step.parameters)
    step.parameters = jax.tree.unflatten(tree, map(jax.numpy.asarray, weights))
    model.compile(keras.optimizers.SGD(1e-3), workload.loss)
    batch = workload.batch(ROWS)
    for _ in range(2):  # the second loss is that after an update
        step()
        # Each sums float32 in an order of its own.
        assert step.loss == pytest.approx(model.train_on_batch(*batch), rel=1e-5)
        model.reset_metrics()
    moving = [value for variance, mean in step.statistics for value in (mean, variance)]
    assert len(moving) == len(model.non_trainable_weights)
    for value, weight in zip(moving, model.non_trainable_weights, strict=True):
        np.testing.assert_allclose(value, weight, rtol=1e-4, atol=1e-6)  # as above


@pytest.mark.long
@pytest.mark.every(9)
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("wide", {"width": 64}),
        ("convolutional", {"width": 8}),
        ("transformer", {"width": 64, "blocks": 1}),
    ],
)
def test_the_loss_falls(name, size, optimizer, policy):
    step = jax_peer.jax_step(name, optimizer, policy, ROWS, **size)
    losses = []
    for _ in range(5):
        step()
        losses.append(step.loss)
    assert losses[-1] < losses[0]
    assert all(value.dtype == "float32" for value in arrays(step))


def test_a_step_that_overflows_changes_no_weight_and_halves_the_scale():
    step = jax_peer.jax_step("wide", "Adam", "mixed_float16", rows=ROWS, width=64)
    step()
    before, scale = arrays(step), float(step.loss_scale.loss_scale)
    step.batch[0][0, 0] = np.inf
    step()
    assert all(map(np.array_equal, before, arrays(step)))
    assert float(step.loss_scale.loss_scale) == scale / 2


@pytest.mark.long
def test_a_step_that_overflows_leaves_statistics_as_they_were():
    step = jax_peer.jax_step("convolutional", "SGD", "mixed_float16", ROWS, width=8)
    step()
    before = [np.array(value) for value in jax.tree.leaves(step.statistics)]
    step.batch[0][0, 0] = np.inf
    step()
    assert all(map(np.array_equal, before, jax.tree.leaves(step.statistics)))


def test_it_is_compiled_once(monkeypatch):
    initialize, apply = jax_peer._MODELS["wide"]
    traces = []

    def traced(*arguments):
        traces.append(arguments)
        return apply(*arguments)

    monkeypatch.setitem(jax_peer._MODELS, "wide", (initialize, traced))
    step = jax_peer.jax_step("wide", "Adam", "mixed_float16", rows=ROWS, width=64)
    for _ in range(3):
        step()
    assert len(traces) == 1


def test_it_stays_on_the_cpu():
    step = jax_peer.jax_step("wide", "SGD", "float32", rows=ROWS, width=64)
    step()
    kernel, _ = step.parameters[0]
    assert {device.platform for device in kernel.devices()} == {"cpu"}


def test_what_is_there():
    assert jax_peer.is_available()
    assert jax_peer._MODELS.keys() == workloads.WORKLOADS.keys()
