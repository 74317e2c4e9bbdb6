"""An optimizer around another one, whose settings and state it shows as its own."""

from collections.abc import Iterable
from typing import Any

import keras

from keras_mp import distribute
from keras_mp.optimizer import checkpoint

# What the proxy must not answer for itself: these settings and this state are the
# inner optimizer's. The base class gives every optimizer its own; the proxy drops
# them, so that reading and writing them reaches the inner optimizer.
_OF_INNER = frozenset(
    {
        "weight_decay",
        "clipnorm",
        "global_clipnorm",
        "clipvalue",
        "use_ema",
        "ema_momentum",
        "ema_overwrite_frequency",
        "gradient_accumulation_steps",
        "built",
        "_iterations",
        "_trainable_variables",
        "_trainable_variables_indices",
    }
)


class Proxy(keras.optimizers.LossScaleOptimizer):
    """Base of `LossScaleOptimizer`: every setting it lacks is the inner optimizer's.

    Args:
        inner_optimizer: A `keras.optimizers.Optimizer`.
        name: Name of the optimizer.
        **kwargs: Accepted and refused as by Keras's class.
    """

    # Until __init__ has called Keras's, which assigns attributes.
    _is_proxy = False

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(inner_optimizer, name=name, **kwargs)
        for attribute in _OF_INNER:
            delattr(self, attribute)
        self._is_proxy = True

    def __getattr__(self, name: str) -> Any:
        inner = self.__dict__.get("inner_optimizer")
        if inner is None or (name.startswith("_") and name not in _OF_INNER):
            raise AttributeError(
                f"'{type(self).__name__}' object has no attribute '{name}'"
            )
        return getattr(inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        inner = self.__dict__.get("inner_optimizer")
        if inner is not None and self._is_of_inner(inner, name):
            setattr(inner, name, value)
        else:
            super().__setattr__(name, value)

    def _is_of_inner(self, inner: keras.optimizers.Optimizer, name: str) -> bool:
        if name in _OF_INNER:
            return self._is_proxy
        own = name in self.__dict__ or hasattr(type(self), name)
        return not own and not name.startswith("_") and hasattr(inner, name)

    def build(self, var_list: Iterable[Any]) -> None:
        """Create the inner optimizer's variables, unless it has them."""
        if not self.inner_optimizer.built:
            distribute.run_once(lambda: self.inner_optimizer.build(var_list))

    def exclude_from_weight_decay(
        self,
        var_list: Iterable[Any] | None = None,
        var_names: Iterable[str] | None = None,
    ) -> None:
        """Exclude variables from the inner optimizer's weight decay."""
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    def _checkpoint_adapter(self, path: str) -> None:
        """Note whether the `tf.train.Checkpoint` that is read knows this class.

        TensorFlow calls this first, and then asks for each part by its name.
        """
        self._reads_bare = not checkpoint.holds_wrapped(path)

    def _lookup_dependency(self, name: str, cached_dependencies: Any = None) -> Any:
        """Find what a `tf.train.Checkpoint` holds, which may be the bare optimizer."""
        if getattr(self, "_reads_bare", False):
            return self.inner_optimizer._lookup_dependency(name)
        return super()._lookup_dependency(name, cached_dependencies)
