"""The policy of the layers that are created from now on."""

import contextlib
from collections.abc import Iterator

import keras

from keras_mp.policies.policy import Policy


def get(policy: keras.DTypePolicy | str) -> keras.DTypePolicy:
    """Return ``policy`` as a Keras dtype policy.

    Args:
        policy: A dtype policy, its name, or ``"auto"``.

    Raises:
        ValueError: There is no policy of that name, or ``policy`` is none of these.
    """
    return policy if isinstance(policy, keras.DTypePolicy) else Policy(policy)


def set_policy(policy: keras.DTypePolicy | str) -> keras.DTypePolicy:
    """Set the policy of all layers created from now on.

    Layers that exist already keep their policy. Does not synchronise with the device.

    Args:
        policy: A `Policy`, any other Keras dtype policy, or a name; ``"auto"`` picks
            by hardware.

    Returns:
        The policy that was set; its ``reason`` says why ``"auto"`` picked it.

    Raises:
        ValueError: There is no policy of that name.

    Example:

    >>> set_policy("mixed_bfloat16").compute_dtype
    'bfloat16'
    """
    policy = get(policy)
    keras.config.set_dtype_policy(policy)
    return policy


@contextlib.contextmanager
def policy_scope(policy: keras.DTypePolicy | str) -> Iterator[keras.DTypePolicy]:
    """Set the policy inside a ``with`` block and restore what was there afterwards.

    The earlier policy is restored after an exception, too. Does not synchronise with
    the device.

    Args:
        policy: As for `set_policy`.

    Yields:
        The policy that was set.

    Raises:
        ValueError: There is no policy of that name.

    Example:

    >>> with policy_scope("mixed_float16"):
    ...     layer = keras.layers.Dense(8)
    >>> layer.compute_dtype
    'float16'
    """
    before = keras.config.dtype_policy()
    policy = set_policy(policy)
    try:
        yield policy
    finally:
        keras.config.set_dtype_policy(before)
