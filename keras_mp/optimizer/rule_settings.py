"""Scaling rule and schedules of an optimizer, by our names and Keras's class's."""

import dataclasses
from typing import Any

import keras

from keras_mp.optimizer.loop import Loop
from keras_mp.optimizer.proxy import Proxy
from keras_mp.optimizer.scaler import Scaler
from keras_mp.optimizer.schedules import Schedules
from keras_mp.scaling import LossScale, StaticLossScale


class RuleSettings(Proxy):
    """Base of `LossScaleOptimizer`: what can be read and set of rule and schedules.

    Args:
        inner_optimizer: A `keras.optimizers.Optimizer`.
        rule: A rule of `keras_mp.scaling`.
        on_skip: ``"hold"`` or ``"advance"``.
        name: Name of the optimizer.
        **kwargs: Accepted and refused as by Keras's class.
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        rule: LossScale,
        on_skip: str,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(inner_optimizer, name=name, **kwargs)
        self._loop = Loop()
        self._scaler = Scaler(rule, self)
        self._schedules = Schedules(inner_optimizer, self._scaler, on_skip)
        # Checkpoints of TensorFlow know variables by the attributes that hold them.
        self.step_counter: keras.Variable = self._scaler.state["clean_steps"]
        self.dynamic_scale = self._scaler.scale

    @property
    def scaling(self) -> LossScale:
        """The scaling rule, a frozen config."""
        return self._scaler.rule

    @property
    def on_skip(self) -> str:
        """What a skipped step does to learning-rate schedules: hold or advance them."""
        return self._schedules.on_skip

    @property
    def learning_rate(self) -> Any:
        """The inner optimizer's learning rate, of the next update."""
        return self._schedules.learning_rate()

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.inner_optimizer.learning_rate = value

    @property
    def initial_scale(self) -> float:
        """The rule's first scale."""
        return self.scaling.initial_scale

    @initial_scale.setter
    def initial_scale(self, value: float) -> None:
        self._change_rule(initial_scale=value)
        if self._is_proxy and not self.built:
            self._scaler.scale.assign(self.initial_scale)

    @property
    def dynamic_scale(self) -> keras.Variable:
        """The variable that holds what the next loss is multiplied by, a float32."""
        self._loop.scale_was_read()
        return self._scaler.scale

    @dynamic_scale.setter
    def dynamic_scale(self, variable: keras.Variable) -> None:
        if variable is not self._scaler.scale:
            raise AttributeError(
                "LossScaleOptimizer.dynamic_scale is a variable, which cannot be "
                "replaced. Set its value with `.dynamic_scale.assign(...)`."
            )

    def set_scale(self, scale: float) -> float:
        """Set what the next loss is multiplied by, moved into the range of the rule.

        On all replicas. The counters and the rest of the rule's state stay as they
        are. Synchronises with the device.

        Args:
            scale: A number above 0, which may be infinite.

        Returns:
            The scale that was set.

        Raises:
            ValueError: The rule keeps one scale.

        Example:

        >>> optimizer = keras_mp.LossScaleOptimizer("sgd")
        >>> optimizer.set_scale(1024.0), optimizer.set_scale(2.0**40)
        (1024.0, 16777216.0)
        """
        self.check_scale_can_be_set("LossScaleOptimizer.set_scale(...)")
        return self._scaler.set_scale(scale)

    def check_scale_can_be_set(self, called: str) -> None:
        """Raise ValueError, with what was called, if the rule keeps one scale."""
        if isinstance(self.scaling, StaticLossScale):
            raise ValueError(
                f"{called} needs a rule whose scale may change. The optimizer "
                f"'{self.name}' has {self.scaling!r}. Make it with "
                "scaling='dynamic', or with StaticLossScale of another number."
            )

    @property
    def dynamic_growth_steps(self) -> int | None:
        """The rule's ``growth_interval``; None for a rule without one."""
        return getattr(self.scaling, "growth_interval", None)

    @dynamic_growth_steps.setter
    def dynamic_growth_steps(self, value: int) -> None:
        self._change_rule(growth_interval=value)

    def _change_rule(self, **changes: Any) -> None:
        if not self._is_proxy:  # Keras's __init__ assigns its defaults
            return
        rule: Any = self.scaling
        (name,) = changes
        if name not in {field.name for field in dataclasses.fields(rule)}:
            raise AttributeError(
                f"The scaling rule {rule!r} has no `{name}` to set. Make a "
                "new LossScaleOptimizer with the rule you want."
            )
        self._scaler.rule = dataclasses.replace(rule, **changes)
