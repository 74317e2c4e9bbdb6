"""The update of Adam by TensorFlow's kernels, or for a stack of small variables."""

import collections
import functools

from keras import ops

from keras_mp import private, stacks
from keras_mp.fused.sizes import is_small


class Adam:
    """The update of `keras.optimizers.Adam` (Kingma and Ba, 2015), AMSGrad included.

    Args: as of `sgd.Sgd`; ``finite`` is None.
    """

    def __init__(self, optimizer, finite, learning_rate, inverse):
        step = ops.cast(optimizer.iterations.value + 1, "float32")
        beta_1, beta_2 = optimizer.beta_1, optimizer.beta_2
        self._optimizer = optimizer
        self._inverse = inverse
        self._numbers = {
            "beta1_power": ops.power(beta_1, step),
            "beta2_power": ops.power(beta_2, step),
            "lr": learning_rate,
            "beta1": ops.cast(beta_1, "float32"),
            "beta2": ops.cast(beta_2, "float32"),
            "epsilon": ops.cast(optimizer.epsilon, "float32"),
        }

    def __call__(self, gradients, variables):
        together = collections.defaultdict(list)
        for pair in zip(gradients, variables, strict=True):
            _, variable = pair
            together[tuple(variable.shape) if is_small(pair) else None].append(pair)
        alone = together.pop(None, [])
        for group in together.values():
            if len(group) >= stacks.STACKED:
                self._stacked(*zip(*group, strict=True))
            else:
                alone += group
        for gradient, variable in alone:
            # Cast here, a temporary takes the product in place.
            gradient = ops.cast(private.tracing.before_cast(gradient), "float32")
            self._in_place(gradient * self._inverse, variable)

    def _slots(self, variable):
        names = ["_momentums", "_velocities"]
        if self._optimizer.amsgrad:
            names.append("_velocity_hats")
        return private.optimizers.slots(self._optimizer, variable, names)

    def _in_place(self, gradient, variable):
        import tensorflow as tf

        apply = tf.raw_ops.ResourceApplyAdam
        if self._optimizer.amsgrad:
            apply = tf.raw_ops.ResourceApplyAdamWithAmsgrad
        slots = [slot.handle for slot in self._slots(variable)]
        named = dict(zip(("m", "v", "vhat"), slots, strict=False))
        apply(var=variable.handle, grad=gradient, **named, **self._numbers)

    def _stacked(self, gradients, variables):
        """Update variables of one shape by one compiled formula."""
        slots = list(zip(*map(self._slots, variables), strict=True))
        changes = _adam_changes()(
            ops.stack(list(map(private.tracing.before_cast, gradients))),
            [private.variables.stacked(each) for each in slots],
            self._inverse,
            **self._numbers,
        )
        for each, change in zip([*slots, variables], changes, strict=True):
            private.variables.add_to(each, change)


@functools.cache
def _adam_changes():
    """Return a function, compiled once for each shape, of what Adam adds."""
    import tensorflow as tf

    @tf.function(jit_compile=True, autograph=False)
    def changes(
        gradient, slots, inverse, beta1_power, beta2_power, lr, beta1, beta2, epsilon
    ):
        m, v, *v_hat = slots
        gradient = tf.cast(gradient, tf.float32) * inverse
        added = [(gradient - m) * (1 - beta1), (gradient * gradient - v) * (1 - beta2)]
        m, v = m + added[0], v + added[1]
        if v_hat:
            v = tf.maximum(v_hat[0], v)
            added.append(v - v_hat[0])
        alpha = lr * tf.sqrt(1 - beta2_power) / (1 - beta1_power)
        return [*added, -alpha * m / (tf.sqrt(v) + epsilon)]

    return changes
