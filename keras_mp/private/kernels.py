"""TensorFlow's kernels that `keras.ops` has no name for."""

import functools

import keras


def batch_normalized(inputs, gamma, beta, epsilon):
    """Return ``inputs``, normalized over all axes but the last, by one kernel.

    `keras.ops` has no such kernel. It is cuDNN's on a GPU and oneDNN's on a CPU, and
    computes in float32 whatever dtype ``inputs`` have (Ioffe and Szegedy, 2015).

    Args:
        inputs: float16, bfloat16 or float32 tensor of shape (..., channels).
        gamma: float32 tensor or variable of shape (channels,).
        beta: As ``gamma``.
        epsilon: float.

    Returns:
        A tensor like ``inputs``, and their mean and variance over all axes but the
        last, float32 tensors of shape (channels,) that pass no gradient on.
    """
    import tensorflow as tf

    channels = inputs.shape[-1]
    rows = inputs
    if len(inputs.shape) != 4:
        # As one tall image: for a batch of small images cuDNN takes up to 50 times as
        # long, and its variance is less exact.
        rows = tf.reshape(inputs, (1, -1, 1, channels))
    outputs, mean, unbiased, *_ = tf.raw_ops.FusedBatchNormV3(
        x=rows,
        scale=tf.convert_to_tensor(gamma),
        offset=tf.convert_to_tensor(beta),
        mean=tf.zeros([0]),
        variance=tf.zeros([0]),
        epsilon=epsilon,
        is_training=True,
    )
    count = tf.cast(tf.size(inputs) // channels, "float32")
    # Of a single number, cuDNN's variance is 0 times infinity.
    variance = tf.math.multiply_no_nan(unbiased, (count - 1) / count)
    if rows is not inputs:
        outputs = tf.ensure_shape(tf.reshape(outputs, tf.shape(inputs)), inputs.shape)
    return outputs, mean, variance


def is_only_on_cpus():
    """Return whether Keras's backend is TensorFlow and has no GPU."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return not tf.config.list_logical_devices("GPU")


def cond(condition, if_true, if_false):
    """Do what `keras.ops.cond` does, in one node however many tensors enter it.

    TensorFlow lowers a branch to a Switch operation for each tensor that enters it. For
    hundreds of gradients and variables that takes longer than what the branch does. In
    functions for the single-threaded executor, which has no Switch, TensorFlow keeps
    the If operation: so that executor is asked for here, by its public setting. Calls
    inside the branches are traced as always.

    An If operation runs on one device. So this is not for branches that reach several
    devices; and with a GPU, where some variables are on the CPU, `keras.ops.cond` does
    the work.
    """
    if not is_only_on_cpus():
        return keras.ops.cond(condition, if_true, if_false)
    import tensorflow as tf

    executor = tf.experimental.function_executor_type

    def usual(branch):
        with executor(""):
            return branch()

    with executor("SINGLE_THREADED_EXECUTOR"):
        return keras.ops.cond(
            condition,
            functools.partial(usual, if_true),
            functools.partial(usual, if_false),
        )


def raise_if(condition, message):
    """Make the step that computes ``condition`` fail if it is true.

    Under ``jit_compile=True`` XLA drops such checks and training goes on.

    Raises:
        tf.errors.InvalidArgumentError: With ``message``, when the step runs.
    """
    import tensorflow as tf

    tf.debugging.Assert(tf.logical_not(condition), [message])


def needs_graph(layer):
    """Return whether TensorFlow has the gradient of ``layer`` in graphs only.

    On a CPU it says so of grouped convolutions, and computes them in a function.
    """
    return getattr(layer, "groups", 1) != 1 and hasattr(layer, "kernel_size")


def as_function(call):
    """Return ``call``, run as a ``tf.function`` where there is no graph.

    Also while functions are run without one.
    """
    import tensorflow as tf

    @functools.wraps(call)
    def in_function(*args, **kwargs):
        if not tf.executing_eagerly():
            return call(*args, **kwargs)
        eagerly = tf.config.functions_run_eagerly()
        tf.config.run_functions_eagerly(False)
        try:
            return tf.function(call, autograph=False)(*args, **kwargs)
        finally:
            tf.config.run_functions_eagerly(eagerly)

    return in_function
