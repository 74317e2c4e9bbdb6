"""The one place that touches what Keras keeps private or lacks, and why it has to.

Every function here is tested on the oldest and the newest supported Keras.
"""

import contextlib

import keras


def sublayers(layer):
    """Return the direct sublayers of ``layer``.

    Public ``Model.layers`` knows models only; attention, RNN and wrapper layers keep
    their sublayers in ``_layers``.
    """
    return list(layer._layers)


def walk(layer):
    """Return ``layer`` and all layers inside it, each once."""
    return list(layer._flatten_layers())


def set_layer_policy(layer, policy):
    """Give ``layer`` alone another dtype policy.

    The public setter writes into a ``DTypePolicyMap`` that several layers may share.
    """
    layer._dtype_policy = policy


def layer_policy_hook(resolve):
    """Have ``resolve(layer, policy, path)`` choose each layer's policy as it is made.

    Keras looks a policy up without saying for which layer, and knows a path only for
    layers that are built with weights, so that rules on a ``Softmax`` or an
    ``Activation`` could never match. ``_setattr_hook`` is the seam Keras has for such
    needs: it sees the policy and, at build time, the path being stored on the layer.

    Args:
        resolve: Called with the layer, the policy it is about to get, and its path
            (its name until it is built). Returns the policy to store.
    """
    base = keras.layers.Layer
    follow = base._setattr_hook

    def hook(self, name, value):
        name, value = follow(self, name, value)
        if name == "_dtype_policy":
            value = resolve(self, value, self.name)
        elif name == "_path" and value:
            set_layer_policy(self, resolve(self, self._dtype_policy, value))
        return name, value

    base._setattr_hook = hook


def build_for(model, data):
    """Create the variables of ``model``, its metrics and its optimizer for ``data``.

    Keras does it before ``fit`` under a strategy only; eager steps create variables
    as they go. A model without a usable ``call`` cannot be built from its data; its
    own ``train_step`` knows how.
    """
    with contextlib.suppress(RuntimeError):
        model._symbolic_build(data_batch=data)


def raise_if(condition, message):
    """Make the step that computes ``condition`` fail if it is true.

    Under ``jit_compile=True`` XLA drops such checks and training goes on.

    Raises:
        tf.errors.InvalidArgumentError: With ``message``, when the step runs.
    """
    import tensorflow as tf

    tf.debugging.Assert(tf.logical_not(condition), [message])
