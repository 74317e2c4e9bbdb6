"""PyTorch beside keras_mp: the models of `workloads`, trained with `torch.amp`.

Layers, batches, losses and initial distributions are those of the Keras models. What
differs is each side's idiom:

- autocast casts at operations, not at layers, so an embedding's vectors stay in float32
  until a matrix product;
- the loss takes logits, where the Keras models end in a softmax;
- attention is `scaled_dot_product_attention`;
- images lie in memory as Keras's do, channels last, under PyTorch's order of axes.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable

from benchmarks import workloads


def is_available() -> bool:
    """Return whether PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


def has_gpu() -> bool:
    """Return whether PyTorch is installed and sees a CUDA device."""
    if not is_available():
        return False
    import torch

    return torch.cuda.is_available()


def allow_tf32(allowed: bool) -> None:
    """Let this process's float32 products and convolutions use TF32, or not."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def torch_step(
    name: str,
    optimizer: str,
    policy: str,
    device: str = "cpu",
    rows: int | None = None,
    bare: bool = False,
    **size,
) -> Callable[[], None]:
    """Return a function that makes one training step and waits for its end.

    Args:
        name: One of `workloads.WORKLOADS`.
        optimizer: ``"SGD"`` or ``"Adam"``. The embedding's gradient is sparse with SGD.
            With Adam it is dense, because `torch.optim.Adam` takes no other, and
            `torch.optim.SparseAdam` is another algorithm: it leaves the moments of rows
            that a batch does not touch as they are.
        policy: ``"float32"``, ``"mixed_float16"`` or ``"mixed_bfloat16"``; under the
            mixed ones the forward pass runs in `torch.autocast`.
        device: ``"cpu"`` or ``"cuda"``.
        rows: Rows of a batch; by default, the workload's.
        bare: Whether to leave out `torch.amp.GradScaler`.
        size: Another size of the model, as for `workloads.sized`.
    """
    import torch

    torch.manual_seed(workloads.SEED)
    workload = workloads.sized(name, rows, **size)
    model = _MODELS[name](**size)
    model.apply(_initialize_as_keras)
    if name == "embedding":
        model[0].sparse = optimizer == "SGD"
    x, y = map(torch.from_numpy, workload.batch(workload.rows))
    if name == "convolutional":
        model, x = model.to(memory_format=torch.channels_last), x.permute(0, 3, 1, 2)
    model.to(device)
    return TorchStep(
        model,
        _mean_squared_error if workload.loss == "mse" else _cross_entropy,
        getattr(torch.optim, optimizer)(model.parameters(), lr=1e-3),
        torch.amp.GradScaler(device, enabled=not bare),
        policy,
        (x.to(device), y.to(device)),
    )


class TorchStep:
    """A training step; calling it makes it.

    Attributes:
        model: The `torch.nn.Module`.
        optimizer: The `torch.optim.Optimizer`.
        scaler: The `torch.amp.GradScaler`; one that is not enabled does nothing.
        batch: The tensors x and y, on the device.
        loss: The last step's loss, a float.
    """

    def __init__(self, model, loss_function, optimizer, scaler, policy, batch):
        self.model, self.scaler, self.batch = model, scaler, batch
        self.optimizer, self.loss = optimizer, None
        self._loss_function = loss_function
        self._policy = policy

    def __call__(self):
        x, y = self.batch
        self.optimizer.zero_grad()
        with self._autocast():
            loss = self._loss_function(self.model(x), y)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.loss = loss.item()
        self._wait()

    def _autocast(self):
        import torch

        if self._policy == "float32":
            return contextlib.nullcontext()
        dtype = getattr(torch, self._policy.removeprefix("mixed_"))
        return torch.autocast(self.batch[0].device.type, dtype)

    def _wait(self):
        import torch

        if self.batch[0].is_cuda:
            # The loss is known before the weights are.
            torch.cuda.synchronize()


def _initialize_as_keras(module):
    from torch import nn

    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.uniform_(module.weight, -0.05, 0.05)


def _mean_squared_error(outputs, y):
    from torch.nn import functional

    return functional.mse_loss(outputs, y)


def _cross_entropy(logits, y):
    from torch.nn import functional

    return functional.cross_entropy(logits.flatten(0, -2), y.flatten().long())


def _dense(width, count):
    from torch import nn

    body = [[nn.Linear(width, width), nn.ReLU()] for _ in range(count - 1)]
    return nn.Sequential(*sum(body, []), nn.Linear(width, width))


def _small_dense():
    return _dense(32, 150)


def _wide_dense(width=2048):
    return _dense(width, 4)


def _embedding(table=500_000):
    from torch import nn

    class MeanOverPlaces(nn.Module):
        def forward(self, x):
            return x.mean(1)

    return nn.Sequential(nn.Embedding(table, 64), MeanOverPlaces(), nn.Linear(64, 1))


def _float32_linear(inputs, outputs):
    import torch

    class Float32Linear(torch.nn.Linear):
        def forward(self, x):
            with torch.autocast(x.device.type, enabled=False):
                return super().forward(x.float())

    return Float32Linear(inputs, outputs)


def _convolutional(width=32):
    from torch import nn

    body = []
    channels = 3
    for factor in (1, 2, 4):
        body += [
            nn.Conv2d(channels, factor * width, 3, padding="same", bias=False),
            nn.BatchNorm2d(factor * width, eps=1e-3, momentum=0.01),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        channels = factor * width
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, *pool, _float32_linear(channels, 10))


def _transformer(width=256, blocks=2, characters=128):
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.before_attention = nn.LayerNorm(width, eps=1e-3)
            self.attention = nn.MultiheadAttention(width, width // 64, batch_first=True)
            self.before_dense = nn.LayerNorm(width, eps=1e-3)
            self.dense = nn.Sequential(
                nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
            )

        def forward(self, x):
            normed = self.before_attention(x)
            length = x.shape[1]
            later = torch.ones(length, length, dtype=torch.bool, device=x.device)
            attended, _ = self.attention(
                normed,
                normed,
                normed,
                attn_mask=later.triu(1),
                is_causal=True,
                need_weights=False,
            )
            x = x + attended
            return x + self.dense(self.before_dense(x))

    return nn.Sequential(
        nn.Embedding(characters, width),
        *(Block() for _ in range(blocks)),
        nn.LayerNorm(width, eps=1e-3),
        _float32_linear(width, characters),
    )


_MODELS = {
    "small": _small_dense,
    "wide": _wide_dense,
    "embedding": _embedding,
    "convolutional": _convolutional,
    "transformer": _transformer,
}
