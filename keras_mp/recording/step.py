"""The forward and backward pass of one training batch, with what every layer saw."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_mp import guards, kinds, private
from keras_mp.recording.taps import Call, Taps, located


class Batch(NamedTuple):
    """A training batch, as tensors in any structure."""

    x: Any
    y: Any = None
    sample_weight: Any = None


class Gradients(NamedTuple):
    """Gradients of a scaled loss; None where the loss does not depend on a tensor.

    Attributes:
        inputs: For each call a list with one for each of its inputs.
        outputs: For each call a list with one for each of its outputs.
        weights: One for each trainable variable of the model.
    """

    inputs: list[list[Any]]
    outputs: list[list[Any]]
    weights: list[Any]


class Pass:
    """One forward pass of a batch, which can be differentiated several times.

    Nothing is updated: call it inside `unchanged` or, while a graph is traced, inside
    `stateless`.

    Args:
        model: A Keras model with a ``call`` and a loss.
        batch: The `Batch`.
        loss: ``loss(y, y_pred)``, a function or `keras.losses.Loss` that is taken
            instead of what the model was compiled with; or None.

    Attributes:
        calls: The list of `Call` in the order in which they began.
        loss: The loss, a scalar tensor, not scaled.
        losses: A dict of the name of a loss to its values, before any mean; and of a
            layer's path to what it added by ``add_loss``.
    """

    def __init__(
        self, model: keras.Model, batch: Batch, loss: Callable | None = None
    ) -> None:
        self._weights = [
            _on_replicas(model, variable)[0] for variable in model.trainable_variables
        ]
        self._tape = tf.GradientTape(persistent=True)
        self.losses: dict[str, Any] = {}
        taps = Taps(model)
        with self._tape, guards.called_in_step(model), taps.open():
            self._tape.watch(self._weights)  # tensors, in `stateless`
            takes_training = private.trainer.takes_training(model)
            training = {"training": True} if takes_training else {}
            y_pred = model(batch.x, **training)
            with _noting_losses(model, batch.y, y_pred, self.losses):
                value = _loss(model, batch, y_pred, loss)
            self.loss = tf.cast(value, tf.float32)
        self.calls: list[Call] = taps.calls
        for layer, path in located(model):
            if isinstance(layer, keras.layers.Layer):
                for added in private.layers.own_losses(layer):
                    self.losses[path] = added

    def gradients(self, scale: Any = 1.0) -> Gradients:
        """Return the gradients of the loss times ``scale``, on the device.

        Args:
            scale: The loss scale, a number or a scalar float32 tensor.
        """
        tensors = [(call.inputs, call.outputs) for call in self.calls]
        sources = (tensors, self._weights)
        flat = self._tape.gradient(
            self.loss,
            keras.tree.flatten(sources),
            output_gradients=tf.cast(scale, tf.float32),
        )
        flat = [_numbers(gradient) for gradient in flat]
        of_calls, weights = keras.tree.pack_sequence_as(sources, flat)
        return Gradients(
            [inputs for inputs, _ in of_calls],
            [outputs for _, outputs in of_calls],
            weights,
        )


def _loss(model: keras.Model, batch: Batch, y_pred: Any, loss: Callable | None) -> Any:
    if loss is None:
        x, y, sample_weight = batch
        return private.trainer.loss_of(model, x, y, y_pred, sample_weight)
    return tf.add_n([tf.reduce_mean(loss(batch.y, y_pred)), *model.losses])


def _numbers(gradient: Any) -> Any:
    parts = kinds.dense_parts([gradient])
    return parts[0] if parts else None


@contextlib.contextmanager
def _noting_losses(
    model: keras.Model, y: Any, y_pred: Any, values: dict[str, Any]
) -> Iterator[None]:
    """Note in ``values`` what each compiled loss returns before its mean is taken."""

    def noting(name: str, call: Callable) -> Callable:
        def noted(*args: Any, **kwargs: Any) -> Any:
            values[name] = call(*args, **kwargs)
            return values[name]

        return noted

    changes = [
        (loss, {"call": noting(name, loss.call)})
        for name, loss in private.trainer.compiled_losses(model, y, y_pred)
    ]
    changes += private.trainer.losses_uncounted(model)
    with private.attributes.attributes_for_now(changes):
        yield


@contextlib.contextmanager
def unchanged(model: keras.Model) -> Iterator[None]:
    """Put back all that a forward pass changes in ``model``: variables and losses.

    Weights too, which some layers assign; and every replica's copies, which may
    differ. Values are kept by reference, not copied.
    """
    variables = [*model.trainable_variables, *private.layers.state_of(model)]
    variables += model.metrics_variables
    variables += private.draws.global_seed()
    layers = private.layers.walk(model)
    changes = [
        change for each in layers for change in private.attributes.losses_apart(each)
    ]
    with private.attributes.attributes_for_now(changes), _kept(model, variables):
        yield


@contextlib.contextmanager
def metrics_kept(model: keras.Model) -> Iterator[None]:
    """Put back the metrics of ``model``, and nothing else that a step changes."""
    with _kept(model, model.metrics_variables):
        yield


@contextlib.contextmanager
def _kept(model: keras.Model, variables: list[keras.Variable]) -> Iterator[None]:
    """Put back the values of ``variables``, of each replica of this machine.

    Each by itself: to read them as one would have other machines wait.
    """
    copies = [copy for each in variables for copy in _on_replicas(model, each)]
    values = list(map(tf.convert_to_tensor, copies))
    try:
        yield
    finally:
        for copy, value in zip(copies, values, strict=True):
            if not _equal(value, tf.convert_to_tensor(copy)):
                copy.assign(value)


def _on_replicas(model: keras.Model, variable: keras.Variable) -> tuple[Any, ...]:
    """Return the copies that the replicas of this machine have of a variable."""
    strategy = private.trainer.strategy_of(model)
    if strategy is None:
        return (variable.value,)
    return strategy.experimental_local_results(variable.value)


def _equal(one: Any, other: Any) -> bool:
    # As bytes, because NaN differs from itself.
    return one.numpy().tobytes() == other.numpy().tobytes()


@contextlib.contextmanager
def stateless(model: keras.Model) -> Iterator[None]:
    """Have ``model`` assign nothing in the block, as a graph is traced.

    What would be assigned is known in the block alone. Under a strategy of several
    replicas the model has the variables of this machine's first replica.
    """
    layers = private.layers.walk(model)
    changes = [
        change for each in layers for change in private.attributes.losses_apart(each)
    ]
    with (
        private.attributes.attributes_for_now(changes),
        keras.StatelessScope(_of_first_replica(model)),
    ):
        yield


def _of_first_replica(model: keras.Model) -> list[tuple[keras.Variable, Any]]:
    strategy = private.trainer.strategy_of(model)
    if strategy is None or strategy.num_replicas_in_sync == 1:
        return []
    return [
        (variable, tf.convert_to_tensor(_on_replicas(model, variable)[0]))
        for variable in model.trainable_variables + private.layers.state_of(model)
    ]
