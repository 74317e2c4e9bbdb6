"""JAX beside keras_mp: the models of `workloads`, trained with jmp and Optax.

A step is one jitted function with donated buffers, written as jmp's README does it:
unscale, `all_finite`, `select_tree`, `adjust`. Norms and the classes' logits stay in
float32. JAX has no sparse gradients: that of the embedding is as large as its table.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Callable

from benchmarks import workloads

_INITIAL_SCALE = 2.0**15  # Keras's, and that of jmp's README
_EPSILON, _MOMENTUM = 1e-3, 0.99  # Keras's of its norms


def is_available() -> bool:
    """Return whether JAX, jmp and Optax are all installed."""
    return all(map(importlib.util.find_spec, ("jax", "jmp", "optax")))


def jax_step(
    name: str, optimizer: str, policy: str, rows: int | None = None, **size
) -> Callable[[], None]:
    """Return a function that makes one training step on the CPU and waits for its end.

    Args:
        name: One of `workloads.WORKLOADS`.
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
        *initialize(jax.random.key(workloads.SEED), **size),
        apply,
        _mean_squared_error if workload.loss == "mse" else _cross_entropy,
        optimizer,
        policy,
        workload.batch(workload.rows),
    )


class JaxStep:
    """A training step; calling it makes it.

    Attributes:
        parameters: A tree of float32 arrays.
        statistics: What batch normalization has seen, a tree of float32 arrays.
        loss_scale: The `jmp.DynamicLossScale`.
        batch: The arrays x and y.
        loss: The last step's loss, a float.
    """

    def __init__(
        self, parameters, statistics, apply, loss_function, optimizer, policy, batch
    ):
        import jax
        import jmp
        import optax

        self.parameters, self.statistics = parameters, statistics
        self.batch, self.loss = batch, None
        update = getattr(optax, optimizer.lower())(1e-3)
        self._state = update.init(parameters)
        # Arrays with a dtype from the start, or the second step compiles again.
        scale, counter = jax.numpy.float32(_INITIAL_SCALE), jax.numpy.int32(0)
        self.loss_scale = jmp.DynamicLossScale(scale, counter)
        compute = policy.removeprefix("mixed_")
        precision = jmp.get_policy(f"params=float32,compute={compute},output=float32")
        self._step = _jitted(apply, loss_function, update, precision)

    def __call__(self):
        import jax

        kept = self.parameters, self.statistics, self._state
        kept, self.loss_scale, loss = jax.block_until_ready(
            self._step(kept, self.loss_scale, *self.batch)
        )
        self.parameters, self.statistics, self._state = kept
        self.loss = float(loss)


def _jitted(apply, loss_function, update, precision):
    import jax
    import jmp
    import optax

    def scaled_loss(parameters, statistics, loss_scale, x, y):
        outputs, statistics = apply(
            parameters, statistics, x, precision.cast_to_compute
        )
        loss = loss_function(precision.cast_to_output(outputs), y)
        return loss_scale.scale(loss), (statistics, loss)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(kept, loss_scale, x, y):
        parameters, statistics, state = kept
        differentiate = jax.grad(scaled_loss, has_aux=True)
        gradients, (statistics, loss) = differentiate(
            parameters, statistics, loss_scale, x, y
        )
        gradients = loss_scale.unscale(gradients)
        finite = jmp.all_finite(gradients)
        updates, state = update.update(gradients, state, parameters)
        new = optax.apply_updates(parameters, updates), statistics, state
        kept = jmp.select_tree(finite, new, kept)
        return kept, loss_scale.adjust(finite), loss

    return step


def _mean_squared_error(outputs, y):
    return ((outputs - y) ** 2).mean()


def _cross_entropy(logits, y):
    import optax

    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def _glorot(key, inputs, outputs):
    import jax

    kernel = jax.nn.initializers.glorot_uniform()(key, (inputs, outputs))
    return kernel, jax.numpy.zeros(outputs)


def _linear(layer, x):
    kernel, bias = layer
    return x @ kernel + bias


def _norm(size):
    """Gamma and beta, or a variance and a mean."""
    import jax

    return jax.numpy.ones(size), jax.numpy.zeros(size)


def _normalized(x, norm, variance, mean):
    """``x`` in its own dtype, normalized in float32."""
    import jax

    gamma, beta = norm
    normal = (x - mean) * jax.lax.rsqrt(variance + _EPSILON) * gamma + beta
    return normal.astype(x.dtype)


def _moments(x, axes, keepdims=False):
    """Variance and mean, in float32."""
    x = x.astype("float32")
    return x.var(axes, keepdims=keepdims), x.mean(axes, keepdims=keepdims)


def _dense(key, width, count):
    import jax

    return [_glorot(key, width, width) for key in jax.random.split(key, count)], ()


def _small_dense(key):
    return _dense(key, 32, 150)


def _wide_dense(key, width=2048):
    return _dense(key, width, 4)


def _apply_dense(layers, statistics, x, cast):
    import jax

    (*body, last), x = cast((layers, x))
    for layer in body:
        x = jax.nn.relu(_linear(layer, x))
    return _linear(last, x), statistics


def _embedding(key, table=500_000):
    import jax

    vectors, head = jax.random.split(key)
    return (_vectors(vectors, table, 64), _glorot(head, 64, 1)), ()


def _vectors(key, table, width):
    import jax

    return jax.random.uniform(key, (table, width), minval=-0.05, maxval=0.05)


def _apply_embedding(parameters, statistics, ids, cast):
    table, head = cast(parameters)
    return _linear(head, table[ids].mean(1)), statistics


def _convolutional(key, width=32):
    import jax

    *keys, last = jax.random.split(key, 4)
    channels = [3, width, 2 * width, 4 * width]
    glorot = jax.nn.initializers.glorot_uniform()
    body = [
        (glorot(key, (3, 3, inputs, outputs)), _norm(outputs))
        for key, (inputs, outputs) in zip(
            keys, itertools.pairwise(channels), strict=True
        )
    ]
    return (body, _glorot(last, channels[-1], 10)), list(map(_norm, channels[1:]))


def _apply_convolutional(parameters, statistics, x, cast):
    import jax
    import optax

    body, head = parameters
    x, seen, two = cast(x), [], (1, 2, 2, 1)
    for (kernel, norm), old in zip(body, statistics, strict=True):
        x = jax.lax.conv_general_dilated(
            x, cast(kernel), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        moments = _moments(x, (0, 1, 2))
        seen.append(optax.incremental_update(moments, old, 1 - _MOMENTUM))
        x = jax.nn.relu(_normalized(x, norm, *moments))
        x = jax.lax.reduce_window(x, -float("inf"), jax.lax.max, two, two, "VALID")
    return _linear(head, x.mean((1, 2)).astype("float32")), seen


def _transformer(key, width=256, blocks=2, characters=128):
    import jax

    first, last, *keys = jax.random.split(key, blocks + 2)
    return (
        _vectors(first, characters, width),
        [_block(key, width) for key in keys],
        _norm(width),
        _glorot(last, width, characters),
    ), ()


def _block(key, width):
    import jax

    keys = jax.random.split(key, 6)
    heads = width // 64, 64
    projections = []
    for key in keys[:3]:
        kernel, bias = _glorot(key, width, width)
        projections.append((kernel.reshape(width, *heads), bias.reshape(heads)))
    kernel, bias = _glorot(keys[3], width, width)
    return (
        _norm(width),
        projections,
        (kernel.reshape(*heads, width), bias),
        _norm(width),
        _glorot(keys[4], width, 4 * width),
        _glorot(keys[5], 4 * width, width),
    )


def _apply_transformer(parameters, statistics, ids, cast):
    vectors, blocks, norm, head = parameters
    x = cast(vectors)[ids]
    for block in blocks:
        x = _apply_block(block, x, cast)
    return _linear(head, _layer_normalized(x, norm).astype("float32")), statistics


def _apply_block(block, x, cast):
    import jax

    before_attention, projections, output, before_dense, *dense = block
    projections, (kernel, bias), (wide, narrow) = cast((projections, output, dense))
    normed = _layer_normalized(x, before_attention)
    queries, keys, values = (
        jax.numpy.einsum("btw,whd->bthd", normed, kernel) + bias
        for kernel, bias in projections
    )
    attended = _attended(queries, keys, values)
    x += jax.numpy.einsum("bthd,hdw->btw", attended, kernel) + bias
    normed = _layer_normalized(x, before_dense)
    return x + _linear(narrow, jax.nn.relu(_linear(wide, normed)))


def _attended(queries, keys, values):
    """As `jax.nn.dot_product_attention`, which has no float16 on CPUs."""
    import jax

    scores = jax.numpy.einsum("bqhd,bkhd->bhqk", queries, keys).astype("float32")
    past = jax.numpy.tri(scores.shape[-1], dtype=bool)
    scores = jax.numpy.where(past, scores * queries.shape[-1] ** -0.5, -jax.numpy.inf)
    weights = jax.nn.softmax(scores).astype(values.dtype)
    return jax.numpy.einsum("bhqk,bkhd->bqhd", weights, values)


def _layer_normalized(x, norm):
    return _normalized(x, norm, *_moments(x, -1, keepdims=True))


_MODELS = {
    "small": (_small_dense, _apply_dense),
    "wide": (_wide_dense, _apply_dense),
    "embedding": (_embedding, _apply_embedding),
    "convolutional": (_convolutional, _apply_convolutional),
    "transformer": (_transformer, _apply_transformer),
}
