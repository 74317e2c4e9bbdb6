"""What the steps of an optimizer have counted."""

from typing import Any

import keras

from keras_mp.optimizer.by_variable import Tracking
from keras_mp.optimizer.rule_settings import RuleSettings
from keras_mp.optimizer.spike_rule import SpikeRule
from keras_mp.optimizer.spikes import Spikes
from keras_mp.scaling import LossScale

_STATELESS = (
    "LossScaleOptimizer.stateless_apply() cannot skip spikes. Use `apply`, or leave "
    "skip_spikes out."
)


class Counters(RuleSettings):
    """Base of `LossScaleOptimizer`: its counters, and what they say.

    Args:
        inner_optimizer: A `keras.optimizers.Optimizer`.
        rule: A rule of `keras_mp.scaling`.
        spike_rule: A `SpikeRule`, or None.
        on_skip: ``"hold"`` or ``"advance"``.
        name: Name of the optimizer.
        **kwargs: Accepted and refused as by Keras's class.
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        rule: LossScale,
        spike_rule: SpikeRule | None,
        on_skip: str,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(inner_optimizer, rule, on_skip, name=name, **kwargs)
        self._tracking = Tracking()
        self._spikes: Any = Spikes(spike_rule, self) if spike_rule else None

    @property
    def skip_spikes(self) -> SpikeRule | None:
        """The rule by which steps are skipped as spikes, or None."""
        return self._spikes.rule if self._spikes else None

    def _check_stateless(self) -> None:
        self._tracking.check_stateless()
        if self._spikes:
            raise RuntimeError(_STATELESS)

    def count_loss(self, nonfinite: Any) -> None:
        """Count a step whose loss was not finite.

        It does not synchronise with the device.

        Args:
            nonfinite: Scalar bool tensor: whether this replica's loss was inf or NaN.
        """
        self._scaler.count_loss(nonfinite)

    @property
    def skipped_steps(self) -> Any:
        """Steps skipped so far, a scalar int tensor; does not synchronise."""
        return self._scaler.skipped

    def step_counts(self) -> dict[str, int]:
        """Return the counts of steps and of changes of the scale, by one read.

        Returns:
            A dict with ``applied``, ``skipped``, ``consecutive_skipped``, ``growths``
            and ``backoffs``, as of `stats`.

        Synchronises with the device.

        Example:

        >>> keras_mp.LossScaleOptimizer("sgd").step_counts()["skipped"]
        0
        """
        return self._scaler.counts()

    def stats(self) -> dict[str, float | int]:
        """Return the scale and the counters as plain numbers.

        Returns:
            A dict with ``scale`` (float: what the next loss is multiplied by) and the
            ints ``steps`` (calls of `apply`), ``applied``, ``skipped``,
            ``consecutive_skipped`` (the current run of skipped steps), ``growths`` and
            ``backoffs`` (changes of the scale), and ``nonfinite_losses`` (steps whose
            loss was inf or NaN, skipped or not: those of ``fit`` and
            ``train_on_batch`` after `keras_mp.compile`, not those of your own loops;
            each machine counts its own). With ``skip_spikes`` also ``spikes``: those of
            the skipped steps that were finite.

        Synchronises with the device.
        """
        spikes = self._spikes.stats() if self._spikes else {}
        return self._scaler.stats() | spikes

    def overflows_by_replica(self) -> list[int]:
        """Return how often each replica's own gradients were not finite.

        The counts need not add up to the skipped steps: in one step several replicas
        may overflow, or none, if only the sum of their gradients is too large.

        Returns:
            A list with a count for each replica of all machines, in the order of
            ``replica_id_in_sync_group``.

        Synchronises with the device.
        """
        return self._scaler.overflows_by_replica()

    def track_overflows(self) -> None:
        """Count from now on which variables' gradients are not finite.

        `overflows_by_variable` reads the counts. Call it before the first training
        step, before or after the optimizer is built: a step that was traced before does
        not count until it is traced again, for ``fit`` by
        ``model.make_train_function(force=True)``. A second call changes nothing.

        A step that is finite does no more than it does without: only a step that is
        skipped, or a micro-batch that is dropped, looks at the variables one by one. It
        does not synchronise with the device. Steps by `stateless_apply` cannot count,
        and raise an error.

        Example:

        >>> optimizer = keras_mp.LossScaleOptimizer("sgd")
        >>> optimizer.track_overflows()
        >>> kernel = keras.Variable([1.0], name="kernel")
        >>> scaled_loss = optimizer.scale_loss(1.0)
        >>> optimizer.apply([keras.ops.array([float("inf")])], [kernel])
        >>> optimizer.overflows_by_variable()
        {'kernel': [1]}
        """
        self._tracking.start()

    def overflows_by_variable(self) -> dict[str, list[int]]:
        """Return how often the gradient of each variable was not finite.

        The counts begin at 0 in each process: they are not saved with the optimizer.
        Where only the sum over the replicas is not finite, as it may be with
        ``all_reduce_dtype``, each replica counts. A step may be skipped without a count
        if finite numbers are so large that their sum overflows float32.

        Returns:
            A dict with a list for each variable that has a count, by its path and in
            the order of the optimizer's variables. The list has a count for each
            replica of all machines, in the order of ``replica_id_in_sync_group``.
            Variables of one path are added up.

        Raises:
            RuntimeError: `track_overflows` was not called, or not before the step was
                traced.

        Synchronises with the device.
        """
        return self._tracking.read()
