"""JAX beside keras_mp: two models of `workloads`, trained with jmp and Optax.

A step is one jitted function with donated buffers, written as jmp's README does it:
unscale, `all_finite`, `select_tree`, `adjust`. JAX has no sparse gradients: that of the
embedding is as large as its table.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

from keras_mp.bench import workloads

#: The workloads that are written in JAX. Not that of 150 layers: XLA takes minutes to
#: compile jmp's `all_finite` of 300 gradients.
WORKLOADS = ("wide", "embedding")

_INITIAL_SCALE = 2.0**15  # Keras's, and that of jmp's README


def is_available() -> bool:
    """Return whether JAX, jmp and Optax are all installed."""
    return all(map(importlib.util.find_spec, ("jax", "jmp", "optax")))


def jax_step(
    name: str, optimizer: str, policy: str, rows: int | None = None, **size
) -> Callable[[], None]:
    """Return a function that makes one training step on the CPU and waits for its end.

    Args:
        name: One of `WORKLOADS`.
        optimizer: ``"SGD"`` or ``"Adam"``, Optax's.
        policy: ``"float32"``, ``"mixed_float16"`` or ``"mixed_bfloat16"``.
        rows: Rows of a batch; by default, the workload's.
        size: Another size of the model, as for `workloads.sized`.
    """
    import jax

    # Before JAX looks for devices: it would take most of a GPU's memory.
    jax.config.update("jax_platforms", "cpu")
    workload = workloads.sized(name, rows, **size)
    initialize, apply = _MODELS[name]
    return JaxStep(
        initialize(jax.random.key(workloads.SEED), **size),
        apply,
        optimizer,
        policy,
        workload.batch(workload.rows),
    )


class JaxStep:
    """A training step; calling it makes it.

    Attributes:
        parameters: A tree of float32 arrays.
        loss_scale: The `jmp.DynamicLossScale`.
        batch: The arrays x and y.
        loss: The last step's loss, a float.
    """

    def __init__(self, parameters, apply, optimizer, policy, batch):
        import jax
        import jmp
        import optax

        self.parameters, self.batch, self.loss = parameters, batch, None
        update = getattr(optax, optimizer.lower())(1e-3)
        self._state = update.init(parameters)
        # Arrays with a dtype from the start, or the second step compiles again.
        scale, counter = jax.numpy.float32(_INITIAL_SCALE), jax.numpy.int32(0)
        self.loss_scale = jmp.DynamicLossScale(scale, counter)
        compute = policy.removeprefix("mixed_")
        precision = jmp.get_policy(f"params=float32,compute={compute},output=float32")
        self._step = _jitted(apply, update, precision)

    def __call__(self):
        import jax

        *state, loss = self._step(
            self.parameters, self._state, self.loss_scale, *self.batch
        )
        self.parameters, self._state, self.loss_scale = jax.block_until_ready(state)
        self.loss = float(loss)


def _jitted(apply, update, precision):
    import jax
    import jmp
    import optax

    def scaled_loss(parameters, loss_scale, x, y):
        parameters, x = precision.cast_to_compute((parameters, x))
        outputs = precision.cast_to_output(apply(parameters, x))
        loss = ((outputs - y) ** 2).mean()
        return loss_scale.scale(loss), loss

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(parameters, state, loss_scale, x, y):
        differentiate = jax.grad(scaled_loss, has_aux=True)
        gradients, loss = differentiate(parameters, loss_scale, x, y)
        gradients = loss_scale.unscale(gradients)
        finite = jmp.all_finite(gradients)
        updates, new_state = update.update(gradients, state, parameters)
        new_parameters = optax.apply_updates(parameters, updates)
        parameters, state = jmp.select_tree(
            finite, (new_parameters, new_state), (parameters, state)
        )
        return parameters, state, loss_scale.adjust(finite), loss

    return step


def _glorot(key, inputs, outputs):
    import jax

    kernel = jax.nn.initializers.glorot_uniform()(key, (inputs, outputs))
    return kernel, jax.numpy.zeros(outputs)


def _wide_dense(key, width=2048):
    import jax

    return [_glorot(key, width, width) for key in jax.random.split(key, 4)]


def _apply_dense(layers, x):
    import jax

    *body, (kernel, bias) = layers
    for hidden_kernel, hidden_bias in body:
        x = jax.nn.relu(x @ hidden_kernel + hidden_bias)
    return x @ kernel + bias


def _embedding(key, table=500_000):
    import jax

    vectors, head = jax.random.split(key)
    return (
        jax.random.uniform(vectors, (table, 64), minval=-0.05, maxval=0.05),
        _glorot(head, 64, 1),
    )


def _apply_embedding(parameters, ids):
    table, (kernel, bias) = parameters
    return table[ids].mean(1) @ kernel + bias


_MODELS = {
    "wide": (_wide_dense, _apply_dense),
    "embedding": (_embedding, _apply_embedding),
}
