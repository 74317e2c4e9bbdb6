"""Updates that walk through memory once, of SGD, Adam and others.

Keras writes an update as a row of operations. Outside XLA each of them reads and writes
as much memory as the variable holds, and a model of many small variables spends its
time starting them. Here, by the same formulas, so that results differ by rounding only:

- TensorFlow's training kernels do a whole update in place, one operation a variable.
- Small variables of one shape are stacked where starting such a kernel would take
  longer than its work. What is to be added to them is compiled with XLA for Adam; for
  plain SGD it is a product with the stacks that were judged.
- Large gradients in 16 bits are cast by XLA where plain SGD reads them.
- Other optimizers that look at one number at a time keep Keras's operations: XLA
  compiles those of each large variable into one pass.
- Sparse gradients have Keras's own update, compiled with XLA by itself. TensorFlow's
  scatter kernels put a variable into a mode in which every later read copies all of it,
  which is most of a step with a large embedding; XLA writes rows in place.

Inside XLA nothing is replaced: it makes one pass of Keras's operations by itself.
"""

import collections
import contextlib
import functools
import itertools
import math

import keras
from keras import ops

from keras_mp import distribute, kinds, numerics, private, stacks

#: Optimizers whose updates are known here, and with them what inherits theirs (AdamW).
SGD, ADAM = keras.optimizers.SGD, keras.optimizers.Adam

#: Optimizers whose updates look at one number of a variable at a time.
ELEMENTWISE = tuple(
    getattr(keras.optimizers, name)
    for name in ("Adadelta", "Adagrad", "Adamax", "Ftrl", "Lion", "Nadam", "RMSprop")
)

#: Stacks of so many small gradients are quicker than a branch that takes them in.
MANY = 100


def masks(optimizer, gradients, variables):
    """Return whether `updates` can leave everything as it is if a step is bad.

    A branch takes in each gradient and each variable, which for many small variables,
    and in XLA for few rows of a large one, takes longer than the update. It can be done
    without with plain SGD, for which a gradient of zero changes nothing, and in XLA,
    where new values are computed beside the old ones, for small variables.
    """
    if _zero_changes_nothing(optimizer, variables):
        return private.tracing.in_xla() or _stacks_many(optimizer, gradients, variables)
    return _chooses(gradients, variables)


def _zero_changes_nothing(optimizer, variables):
    """Return whether an update with gradients of zero leaves everything as it is."""
    if not private.optimizers.updates_as(optimizer, SGD):
        return False
    does_more = optimizer.momentum or optimizer.weight_decay or optimizer.use_ema
    return not does_more and all(map(_is_plain, variables))


def _stacks_many(optimizer, gradients, variables):
    if _formula_of(optimizer) is None:
        return False
    pairs = zip(gradients, (variable.value for variable in variables), strict=True)
    dense = (pair for pair in pairs if not kinds.is_sparse(pair[0]))
    return sum(map(_is_small, dense)) >= MANY


def _is_plain(variable):
    constrained = getattr(variable, "constraint", None) is not None
    return not constrained and not kinds.overwrites(variable)


def _chooses(gradients, variables):
    """Return whether to choose between old and new values of whole variables."""
    if not private.tracing.in_xla() or distribute.has_strategy():
        return False
    small = all(math.prod(variable.shape) <= _SMALL for variable in variables)
    return small and not any(map(kinds.is_sparse, gradients))


@contextlib.contextmanager
def updates(optimizer, scale, variables, finite=None):
    """Have ``optimizer.apply`` update in one pass where that is possible.

    Args:
        optimizer: A built Keras optimizer; a `keras.optimizers.MultiOptimizer` too.
        scale: Scalar float32 variable that the gradients are scaled by; None for 1.
        variables: The variables it updates.
        finite: None; or, for an optimizer that `masks`, a scalar bool tensor: where it
            is false, ``apply`` changes no variable.

    Returns:
        A context whose target says whether the updates divide by ``scale`` as they
        read. If not, the gradients must be divided before.
    """
    if finite is not None and not _zero_changes_nothing(optimizer, variables):
        with _old_unless(finite, [*variables, *optimizer.variables]):
            yield False
        return
    parts = private.optimizers.updating_parts(optimizer)
    formulas = {part: _formula_of(part) for part in parts}
    divides = all(formulas.values()) and not any(map(_clips, [optimizer, *parts]))
    with contextlib.ExitStack() as stack:
        for part, formula in formulas.items():
            hooks = _hooks(part, formula, finite, scale if divides else None)
            if hooks is not None:
                stack.enter_context(private.optimizers.updating_by(part, *hooks))
        yield divides
    if finite is not None:
        counter = private.optimizers.step_counter(optimizer)
        counter.assign_sub(ops.cast(ops.logical_not(finite), counter.dtype))


@contextlib.contextmanager
def _old_unless(finite, variables):
    """Give ``variables`` the values they have now again, unless ``finite``."""
    values = private.variables.values_of(variables)
    yield
    distribute.restore_unless(finite, variables, values)


def _formula_of(optimizer):
    """Return what below knows the update of ``optimizer``, or None."""
    if keras.backend.backend() != "tensorflow" or private.tracing.in_xla():
        return None
    if distribute.share_variables(private.optimizers.step_counter(optimizer).value):
        return None  # what each replica does would be done several times
    known = {SGD: _Sgd, ADAM: _Adam}
    for cls, formula in known.items():
        if private.optimizers.updates_as(optimizer, cls):
            return formula
    if distribute.has_strategy():
        return None  # Keras updates in another context, which has no scale
    elementwise = any(
        private.optimizers.updates_as(optimizer, cls) for cls in ELEMENTWISE
    )
    return _elementwise if elementwise else None


def _hooks(part, formula, finite, scale):
    """Return what is to update all variables of ``part`` and one, or None for Keras."""
    update = functools.partial(_update_masked, finite)
    if formula is _elementwise:
        return update, functools.partial(_elementwise, scale)
    if formula:
        formula = functools.partial(formula, part)
        return functools.partial(_update, formula, finite, scale), _update_one
    return (update, _update_one) if finite is not None or _is_apart() else None


def _clips(optimizer):
    limits = (optimizer.clipnorm, optimizer.global_clipnorm, optimizer.clipvalue)
    return any(limit is not None for limit in limits)


def _update_masked(finite, keras_update, gradients, variables, learning_rate):
    """Update by gradients that are zero if ``finite`` is given and false."""
    gradients = [_masked(finite, gradient) for gradient in gradients]
    keras_update(gradients, variables, learning_rate)


def _masked(finite, gradient):
    """Return ``gradient``, or zeros if ``finite`` is false."""
    if finite is None:
        return gradient
    return kinds.map_values(
        lambda values: ops.where(finite, values, ops.zeros((), values.dtype)), gradient
    )


def _update(formula, finite, scale, keras_update, gradients, variables, learning_rate):
    """Update ``variables`` by ``formula``. Called in each replica."""
    ours, others = ([], []), ([], [])
    for gradient, variable in zip(gradients, variables, strict=True):
        dtype = keras.backend.standardize_dtype(variable.dtype)
        mine = dtype == "float32" and not kinds.is_sparse(gradient)
        if not mine:
            gradient = _masked(finite, numerics.unscale(gradient, scale))
        group = ours if mine else others
        group[0].append(gradient)
        group[1].append(variable)
    if others[0]:
        keras_update(*others, learning_rate)
    if ours[0]:
        inverse = (
            ops.convert_to_tensor(1.0) if scale is None else numerics.inverse(scale)
        )
        formula(finite, ops.cast(learning_rate, "float32"), inverse)(*ours)


def _update_one(update_step, gradient, variable, learning_rate):
    """Call Keras's ``update_step`` as is best for this one variable."""
    size, sparse = math.prod(variable.shape), kinds.is_sparse(gradient)
    if _is_apart() and sparse and size >= stacks.LARGE:
        _update_rows(update_step, gradient, variable, learning_rate)
    elif _is_apart() and not sparse and size > _SMALL:
        _update_dense(None, None, update_step, gradient, variable, learning_rate)
    else:
        update_step(gradient, variable, learning_rate)


def _elementwise(scale, update_step, gradient, variable, learning_rate):
    """Update one variable of an optimizer whose rule is elementwise; unscale first."""
    large = math.prod(variable.shape) >= stacks.LARGE and "CPU" in variable.device
    if large and _is_apart() and not kinds.is_sparse(gradient):
        _update_dense(True, scale, update_step, gradient, variable, learning_rate)
    else:
        gradient = numerics.unscale(gradient, scale)
        _update_one(update_step, gradient, variable, learning_rate)


def _is_apart():
    """Return whether a function here is traced once, and compiled by itself."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return not (tf.executing_eagerly() or private.tracing.in_xla())


def _update_dense(jit_compile, scale, update_step, gradient, variable, learning_rate):
    """Call Keras's ``update_step`` in a function of its own, which gets simplified.

    TensorFlow simplifies nothing in a branch that is one node (`kernels.cond`), where a
    square that is written as a power takes ten times as long as a square. Compiled, all
    of it is one pass.
    """
    import tensorflow as tf

    @tf.function(jit_compile=jit_compile, autograph=False)
    def update(gradient, inverse, learning_rate):
        gradient = ops.cast(gradient, dtype)
        if scale is not None:
            gradient = numerics.rescale(gradient, inverse)
        update_step(gradient, variable, learning_rate)

    dtype, narrow = gradient.dtype, private.tracing.before_cast(gradient)
    inverse = None if scale is None else numerics.inverse(scale)
    update(narrow, inverse, tf.convert_to_tensor(learning_rate))


def _update_rows(update_step, gradient, variable, learning_rate):
    """Call Keras's ``update_step``, compiled by itself, for rows of a variable."""
    import tensorflow as tf

    @tf.function(jit_compile=True, autograph=False)
    def update(values, indices, learning_rate):
        rows = tf.IndexedSlices(values, indices, variable.shape)
        update_step(rows, variable, learning_rate)

    rate = tf.convert_to_tensor(learning_rate)
    update(*_padded(gradient.values, gradient.indices), rate)


def _padded(values, indices):
    """Return rows of a sparse gradient, up to a power of two with rows of zeros.

    XLA compiles for each number of rows, which may be another one in every batch.
    """
    import tensorflow as tf

    if values.shape[0] is not None:
        return values, indices
    rows = tf.shape(indices)[0]
    doublings = tf.math.log(tf.cast(tf.maximum(rows, 1), "float64")) / math.log(2.0)
    size = tf.cast(2.0 ** tf.math.ceil(doublings), rows.dtype)
    missing = tf.maximum(size - rows, 0)
    around = [[0, missing], *([[0, 0]] * (values.shape.rank - 1))]
    return tf.pad(values, around), tf.pad(indices, [[0, missing]])


#: On a CPU starting Adam's kernel takes about as long as updating so many numbers.
_SMALL = 2**13


def _is_small(pair):
    _, variable = pair
    return "CPU" in variable.device and math.prod(variable.shape) <= _SMALL


class _Sgd:
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
        # The momentum is linear in the gradient: what divides the one divides both.
        self._rate = learning_rate * inverse

    def __call__(self, gradients, variables):
        gradients = [ops.cast(gradient, "float32") for gradient in gradients]
        pairs = list(zip(gradients, variables, strict=True))
        if self._finite is None:
            return self._all_in_place(pairs)
        alone = list(itertools.filterfalse(_is_small, pairs))
        alone += self._stacked(list(filter(_is_small, pairs)))
        if alone:
            private.kernels.cond(
                self._finite, lambda: self._all_in_place(alone), lambda: None
            )

    def _stacked(self, pairs):
        """Take away changes that are 0 if the step is bad. Return who has no stack."""
        import tensorflow as tf

        alone = []
        rate = tf.where(self._finite, -self._rate, 0.0)
        for places, stack in stacks.small_ones_stacked(
            [gradient for gradient, _ in pairs]
        ):
            if len(places) == 1:
                alone.append(pairs[places[0]])
                continue
            # Times 0 it is 0, for inf and NaN too.
            changes = tf.raw_ops.MulNoNan(x=ops.cast(stack, "float32"), y=rate)
            private.variables.add_to([pairs[place][1] for place in places], changes)
        return alone

    def _all_in_place(self, pairs):
        for gradient, variable in pairs:
            self._in_place(gradient, variable)

    def _in_place(self, gradient, variable):
        import tensorflow as tf

        if not self._optimizer.momentum:
            return self._plain_in_place(gradient, variable)
        (momentum,) = private.optimizers.slots(self._optimizer, variable, ["momentums"])
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=momentum.handle,
            lr=self._rate,
            grad=gradient,
            momentum=self._optimizer.momentum,
            use_nesterov=self._optimizer.nesterov,
        )

    def _plain_in_place(self, gradient, variable):
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


class _Adam:
    """The update of `keras.optimizers.Adam` (Kingma and Ba, 2015), AMSGrad included.

    Args: as of `_Sgd`; ``finite`` is None.
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
            together[tuple(variable.shape) if _is_small(pair) else None].append(pair)
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
            v = tf.maximum(*v_hat, v)
            added.append(v - v_hat[0])
        alpha = lr * tf.sqrt(1 - beta2_power) / (1 - beta1_power)
        return [*added, -alpha * m / (tf.sqrt(v) + epsilon)]

    return changes
