"""The plan of an update: what it replaces, what divides, what a bad step changes."""

import contextlib
import functools
from typing import Any

import keras
from keras import ops

from keras_mp import distribute, kinds, private
from keras_mp.fused.adam import Adam
from keras_mp.fused.compiled import is_apart
from keras_mp.fused.sgd import Sgd
from keras_mp.fused.sizes import SMALL, is_small, size_of
from keras_mp.fused.updates import ElementwiseUpdate, KernelUpdate, PlainUpdate

#: The optimizers whose updates have a kernel, and with them what inherits theirs.
KERNELS = {keras.optimizers.SGD: Sgd, keras.optimizers.Adam: Adam}

#: Optimizers whose updates look at one number of a variable at a time.
ELEMENTWISE = tuple(
    getattr(keras.optimizers, name)
    for name in ("Adadelta", "Adagrad", "Adamax", "Ftrl", "Lion", "Nadam", "RMSprop")
)

#: Stacks of so many small gradients are quicker than a branch that takes them in.
MANY = 100


class Plan:
    """How the update of an optimizer is done in one pass over memory, where possible.

    Args:
        optimizer: A built Keras optimizer; a `keras.optimizers.MultiOptimizer` too.
        scale: Scalar float32 variable that the gradients are scaled by; None for 1.
        gradients: List of tensors and sparse gradients.
        variables: The variables they belong to.

    Attributes:
        divides: Whether the update divides by ``scale`` as it reads. If not, the
            gradients must be divided before.
        unconditional: Whether the update may be done whatever the verdict, because it
            changes nothing in a step that is not finite.
    """

    # A branch takes in each gradient and each variable, which for many small variables,
    # and in XLA for few rows of a large one, takes longer than the update. Two kinds of
    # updates do without one: that of plain SGD, for which a gradient of zero changes
    # nothing; and in XLA, where new values are computed beside the old ones, that of
    # small variables, which get the old ones again.

    def __init__(self, optimizer, scale, gradients, variables):
        self._optimizer = optimizer
        self._scale = scale
        self._variables = variables
        parts: list[Any] = private.optimizers.updating_parts(optimizer)
        self._replaced = {part: _replacement(part) for part in parts}
        self.divides = all(self._replaced.values()) and not any(
            map(_clips, [optimizer, *parts])
        )
        self._zero_changes_nothing = _zero_changes_nothing(optimizer, variables)
        if self._zero_changes_nothing:
            self.unconditional = private.tracing.in_xla() or (
                self._replaced[optimizer] is not None
                and _count_small(gradients, variables) >= MANY
            )
        else:
            self.unconditional = _is_small_in_xla(gradients, variables)

    @contextlib.contextmanager
    def in_effect(self, finite=None):
        """Return a context in which ``optimizer.apply`` updates by this plan.

        Args:
            finite: None; or, if the plan is `unconditional`, a scalar bool tensor:
                where it is false, ``apply`` changes no variable.
        """
        if finite is not None and not self._zero_changes_nothing:
            with _old_unless(finite, [*self._variables, *self._optimizer.variables]):
                yield
            return
        with contextlib.ExitStack() as stack:
            for part, replacement in self._replaced.items():
                update = self._update(replacement, finite)
                if update is not None:
                    stack.enter_context(
                        private.optimizers.updating_by(part, update.all, update.one)
                    )
            yield
        if finite is not None:
            counter = private.optimizers.step_counter(self._optimizer)
            counter.assign_sub(ops.cast(ops.logical_not(finite), counter.dtype))

    def _update(self, replacement, finite):
        """Return what updates instead of Keras, or None."""
        if replacement is not None:
            return replacement(finite, self._scale if self.divides else None)
        return PlainUpdate(finite) if finite is not None or is_apart() else None


def _replacement(optimizer):
    """Return what makes an update that takes the place of Keras's, or None."""
    if keras.backend.backend() != "tensorflow" or private.tracing.in_xla():
        return None
    counter = private.optimizers.step_counter(optimizer)
    if distribute.share_variables(counter.value):
        return None  # what each replica does would be done several times
    for cls, kernel in KERNELS.items():
        if private.optimizers.updates_as(optimizer, cls):
            return functools.partial(KernelUpdate, kernel, optimizer)
    if distribute.has_strategy():
        return None  # Keras updates in another context, which has no scale
    elementwise = any(private.optimizers.updates_as(optimizer, c) for c in ELEMENTWISE)
    return ElementwiseUpdate if elementwise else None


def _clips(optimizer):
    limits = (optimizer.clipnorm, optimizer.global_clipnorm, optimizer.clipvalue)
    return any(limit is not None for limit in limits)


def _zero_changes_nothing(optimizer, variables):
    """Return whether an update with gradients of zero leaves everything as it is."""
    if not private.optimizers.updates_as(optimizer, keras.optimizers.SGD):
        return False
    does_more = optimizer.momentum or optimizer.weight_decay or optimizer.use_ema
    return not does_more and all(map(_is_plain, variables))


def _is_plain(variable):
    constrained = getattr(variable, "constraint", None) is not None
    return not constrained and not kinds.overwrites(variable)


def _count_small(gradients, variables):
    """Return how many of the dense ``gradients`` are of small variables."""
    pairs = zip(gradients, (variable.value for variable in variables), strict=True)
    return sum(is_small(pair) for pair in pairs if not kinds.is_sparse(pair[0]))


def _is_small_in_xla(gradients, variables):
    """Return whether to choose between old and new values of whole variables."""
    if not private.tracing.in_xla() or distribute.has_strategy():
        return False
    small = all(size_of(variable) <= SMALL for variable in variables)
    return small and not any(map(kinds.is_sparse, gradients))


@contextlib.contextmanager
def _old_unless(finite, variables):
    """Give ``variables`` the values they have now again, unless ``finite``."""
    values = private.variables.values_of(variables)
    yield
    distribute.restore_unless(finite, variables, values)
