"""What takes the place of the two methods by which a Keras optimizer updates.

``all`` gets all gradients and variables, ``one`` a single variable and its gradient.
"""

from keras import ops

from keras_mp import dtypes, kinds, numerics, stacks
from keras_mp.fused.compiled import is_apart, update_dense, update_rows
from keras_mp.fused.sizes import SMALL, size_of


class PlainUpdate:
    """Keras's own update, of each variable in the way that suits its size.

    Args:
        finite: None, or a scalar bool tensor: False takes all gradients for zero.
        scale: Scalar float32 variable by which it divides; None for 1.
    """

    def __init__(self, finite, scale=None):
        self._finite = finite
        self._scale = scale

    def all(self, keras_update, gradients, variables, learning_rate):
        """Update ``variables`` by ``keras_update``. Called in each replica."""
        gradients = list(map(self._masked, gradients))
        keras_update(gradients, variables, learning_rate)

    def one(self, update_step, gradient, variable, learning_rate):
        """Update one variable by Keras's ``update_step``."""
        size, sparse = size_of(variable), kinds.is_sparse(gradient)
        if is_apart() and sparse and size >= stacks.LARGE:
            update_rows(update_step, gradient, variable, learning_rate)
        elif is_apart() and not sparse and size > SMALL:
            update_dense(None, None, update_step, gradient, variable, learning_rate)
        else:
            update_step(gradient, variable, learning_rate)

    def _masked(self, gradient):
        """Return ``gradient``, or zeros if the step is not finite."""
        if self._finite is None:
            return gradient

        def masked(values):
            return ops.where(self._finite, values, ops.zeros((), values.dtype))

        return kinds.map_values(masked, gradient)


class ElementwiseUpdate(PlainUpdate):
    """The update of an optimizer whose rule is elementwise; it unscales as it reads."""

    def one(self, update_step, gradient, variable, learning_rate):
        on_cpu = "CPU" in variable.device
        large = size_of(variable) >= stacks.LARGE and not kinds.is_sparse(gradient)
        if large and on_cpu and is_apart():
            update_dense(
                True, self._scale, update_step, gradient, variable, learning_rate
            )
        else:
            gradient = numerics.unscale(gradient, self._scale)
            super().one(update_step, gradient, variable, learning_rate)


class KernelUpdate(PlainUpdate):
    """The update of dense float32 variables by a kernel, of others as Keras does it.

    Args:
        kernel: `sgd.Sgd` or a class that is called like it.
        optimizer: A built Keras optimizer.
        finite: As of `PlainUpdate`.
        scale: As of `PlainUpdate`.
    """

    def __init__(self, kernel, optimizer, finite, scale):
        super().__init__(finite, scale)
        self._kernel = kernel
        self._optimizer = optimizer

    def all(self, keras_update, gradients, variables, learning_rate):
        by_kernel, others = ([], []), ([], [])
        for gradient, variable in zip(gradients, variables, strict=True):
            is_float32 = dtypes.dtype_of(variable) == "float32"
            if is_float32 and not kinds.is_sparse(gradient):
                group = by_kernel
            else:
                group = others
                gradient = self._masked(numerics.unscale(gradient, self._scale))
            group[0].append(gradient)
            group[1].append(variable)
        if others[0]:
            keras_update(*others, learning_rate)
        if by_kernel[0]:
            rate = ops.cast(learning_rate, "float32")
            self._kernel(self._optimizer, self._finite, rate, self._inverse())(
                *by_kernel
            )

    def _inverse(self):
        if self._scale is None:
            return ops.convert_to_tensor(1.0)
        return numerics.inverse(self._scale)
