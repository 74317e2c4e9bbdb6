"""The update of SGD by TensorFlow's kernels, or for a stack of small variables."""

import functools
import itertools

from keras import ops

from keras_mp import private, stacks
from keras_mp.fused.sizes import is_small


class Sgd:
    """The update of `keras.optimizers.SGD` for float32 variables.

    Args:
        optimizer: A built Keras optimizer.
        finite: None, or a scalar bool tensor: False leaves variables as they are.
        learning_rate: Scalar float32 tensor.
        inverse: Scalar float32 tensor: 1 over what the gradients are scaled by.
    """

    def __init__(self, optimizer, finite, learning_rate, inverse):
        self._optimizer = optimizer
        self._finite = finite
        # The update is linear in the gradient: the rate can be divided instead.
        self._rate = learning_rate * inverse

    def __call__(self, gradients, variables):
        gradients = [ops.cast(gradient, "float32") for gradient in gradients]
        pairs = list(zip(gradients, variables, strict=True))
        if self._finite is None:
            return self._each_by_kernel(pairs)
        alone = list(itertools.filterfalse(is_small, pairs))
        alone += self._stacked(list(filter(is_small, pairs)))
        if alone:
            private.kernels.cond(
                self._finite, lambda: self._each_by_kernel(alone), lambda: None
            )

    def _stacked(self, pairs):
        """Subtract changes that are 0 if the step is not finite.

        Returns:
            The pairs of ``pairs`` that are in no stack, and still to be updated.
        """
        import tensorflow as tf

        alone = []
        rate = tf.where(self._finite, -self._rate, 0.0)
        gradients = [gradient for gradient, _ in pairs]
        for indices, stack in stacks.small_ones_stacked(gradients):
            if len(indices) == 1:
                alone.append(pairs[indices[0]])
                continue
            # MulNoNan: 0 times inf or NaN is 0.
            changes = tf.raw_ops.MulNoNan(x=ops.cast(stack, "float32"), y=rate)
            private.variables.add_to([pairs[index][1] for index in indices], changes)
        return alone

    def _each_by_kernel(self, pairs):
        """Update each variable by a kernel of its own."""
        for gradient, variable in pairs:
            self._by_kernel(gradient, variable)

    def _by_kernel(self, gradient, variable):
        import tensorflow as tf

        if not self._optimizer.momentum:
            return self._plain_by_kernel(gradient, variable)
        (momentum,) = private.optimizers.slots(self._optimizer, variable, ["momentums"])
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=momentum.handle,
            lr=self._rate,
            grad=gradient,
            momentum=self._optimizer.momentum,
            use_nesterov=self._optimizer.nesterov,
        )

    def _plain_by_kernel(self, gradient, variable):
        import tensorflow as tf

        narrow = stacks.without_slow_cast(gradient)
        if narrow is not gradient and "CPU" in variable.device:
            _subtract()(variable.handle, narrow, self._rate)
            return
        tf.raw_ops.ResourceApplyGradientDescent(
            var=variable.handle, alpha=self._rate, delta=gradient
        )


@functools.cache
def _subtract():
    """Return a function, compiled once for each shape, that reads narrow gradients.

    XLA casts as it reads, and so moves a third less memory than a cast and a kernel.
    """
    import tensorflow as tf

    @tf.function(jit_compile=True, autograph=False)
    def subtract(handle, gradient, rate):
        change = tf.cast(gradient, tf.float32) * rate
        tf.raw_ops.AssignSubVariableOp(resource=handle, value=change)

    return subtract
