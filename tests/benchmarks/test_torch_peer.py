"""PyTorch's side of the benchmark: the same models, and a scaler that does its work."""

import keras
import numpy as np
import pytest

from benchmarks import torch_peer, workloads

torch = pytest.importorskip("torch")

ROWS = 4
MIXED = ("mixed_float16", "mixed_bfloat16")


def count(tensors):
    return sum(tensor.numel() for tensor in tensors)


def parameters(step):
    return [value.detach().clone() for value in step.model.parameters()]


@pytest.mark.parametrize("name", workloads.WORKLOADS)
def test_the_model_has_the_parameters_of_the_keras_model(name):
    step = torch_peer.torch_step(name, "SGD", "float32", rows=ROWS)
    model = workloads.WORKLOADS[name].build()
    trained = sum(np.prod(weight.shape) for weight in model.trainable_weights)
    kept = sum(np.prod(weight.shape) for weight in model.non_trainable_weights)
    assert count(step.model.parameters()) == trained
    statistics = [value for value in step.model.buffers() if value.ndim]
    assert count(statistics) == kept


@pytest.mark.parametrize(
    "name, size",
    [
        ("wide", {"width": 128}),
        ("convolutional", {"width": 8}),
        ("transformer", {"width": 128, "blocks": 3}),
    ],
)
def test_other_sizes_are_those_of_the_keras_model(name, size):
    step = torch_peer.torch_step(name, "SGD", "float32", rows=ROWS, **size)
    model = workloads.sized(name, ROWS, **size).build()
    trained = sum(np.prod(weight.shape) for weight in model.trainable_weights)
    assert count(step.model.parameters()) == trained
    step()


def as_torch(model):
    """The Keras model's trained arrays, in PyTorch's layouts and order."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.MultiHeadAttention):
            values = [np.array(weight) for weight in layer.trainable_weights]
            kernels = [value.reshape(len(value), -1).T for value in values[:6:2]]
            yield np.concatenate(kernels)
            yield np.concatenate([value.reshape(-1) for value in values[1:6:2]])
            yield values[6].reshape(-1, values[6].shape[-1]).T
            yield values[7]
            continue
        for weight in layer.trainable_weights:
            value = np.array(weight)
            if isinstance(layer, keras.layers.Conv2D):
                value = value.transpose(3, 2, 0, 1)
            elif isinstance(layer, keras.layers.Dense):
                value = value.T
            yield value


@pytest.mark.parametrize("name", workloads.WORKLOADS)
def test_with_the_same_weights_it_learns_as_the_keras_model(name):
    workload = workloads.sized(name, ROWS)
    model = workload.build()
    step = torch_peer.torch_step(name, "SGD", "float32", rows=ROWS)
    with torch.no_grad():
        pairs = zip(step.model.parameters(), as_torch(model), strict=True)
        for parameter, value in pairs:
            parameter.copy_(torch.from_numpy(value.copy()))
    model.compile(keras.optimizers.SGD(0.1), workload.loss)
    step.optimizer.param_groups[0]["lr"] = 0.1
    batch = workload.batch(ROWS)
    for _ in range(2):  # the second loss is that after an update
        step()
        # Each sums float32 in an order of its own.
        assert step.loss == pytest.approx(model.train_on_batch(*batch), rel=1e-4)
        model.reset_metrics()


def test_weights_begin_as_keras_makes_them():
    step = torch_peer.torch_step("transformer", "SGD", "float32", rows=ROWS)
    embedding, block = step.model[0], step.model[1]
    assert embedding.weight.abs().max() <= 0.05
    limit = (6 / (256 + 1024)) ** 0.5
    for layer in (block.dense[0], block.dense[2]):
        assert 0.9 * limit < layer.weight.abs().max() <= limit
        assert not layer.bias.any()


@pytest.mark.parametrize("policy", ("float32", *MIXED))
@pytest.mark.parametrize("name", ["wide", "convolutional", "transformer"])
def test_the_loss_falls(name, policy):
    width = 8 if name == "convolutional" else 64
    step = torch_peer.torch_step(name, "Adam", policy, rows=ROWS, width=width)
    losses = []
    for _ in range(5):
        step()
        losses.append(step.loss)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_the_embedding_has_sparse_gradients_where_the_optimizer_takes_them(optimizer):
    step = torch_peer.torch_step("embedding", optimizer, "float32", rows=ROWS)
    step()
    first = step.loss
    step()
    assert step.model[0].weight.grad.is_sparse == (optimizer == "SGD")
    assert step.loss < first


@pytest.mark.parametrize("policy", MIXED)
def test_hidden_layers_compute_in_the_policy_and_the_head_in_float32(policy):
    step = torch_peer.torch_step("transformer", "SGD", policy, rows=ROWS, width=64)
    seen = {}
    for place in (1, 4):
        layer = step.model[place].dense[0] if place == 1 else step.model[place]
        layer.register_forward_hook(
            lambda _, inputs, output, place=place: seen.update({place: output.dtype})
        )
    step()
    assert seen == {1: getattr(torch, policy.removeprefix("mixed_")), 4: torch.float32}


def test_a_step_that_overflows_changes_no_weight_and_halves_the_scale():
    step = torch_peer.torch_step("wide", "Adam", "mixed_float16", rows=ROWS, width=64)
    step()
    before, scale = parameters(step), step.scaler.get_scale()
    step.batch[0][0, 0] = float("inf")
    step()
    assert all(map(torch.equal, before, parameters(step)))
    assert step.scaler.get_scale() == scale / 2


def test_bare_steps_have_no_scaler():
    step = torch_peer.torch_step(
        "wide", "SGD", "mixed_float16", rows=ROWS, bare=True, width=64
    )
    step.batch[0][0, 0] = float("inf")
    step()
    assert not step.scaler.is_enabled()
    assert not all(value.isfinite().all() for value in parameters(step))


def test_tf32_is_switched_for_products_and_convolutions():
    for allowed in (False, True):
        torch_peer.allow_tf32(allowed)
        assert torch.backends.cuda.matmul.allow_tf32 == allowed
        assert torch.backends.cudnn.allow_tf32 == allowed


def test_what_is_there():
    assert torch_peer.is_available()
    assert torch_peer.has_gpu() == torch.cuda.is_available()
    assert keras.backend.backend() == "tensorflow"
