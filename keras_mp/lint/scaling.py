"""Whether the loss of a model in float16 is scaled, and only once."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_mp import guarded, private
from keras_mp.lint.finding import Finding
from keras_mp.optimizer import LossScaleOptimizer


def find(
    model: keras.Model, located: Sequence[tuple[keras.layers.Layer, str]]
) -> Iterator[Finding]:
    """Yield findings on how the loss of ``model`` is scaled."""
    optimizers = _optimizers(model)
    for optimizer in optimizers:
        inner: Any = getattr(optimizer, "inner_optimizer", None)
        if isinstance(inner, keras.optimizers.LossScaleOptimizer):
            yield Finding(
                "error",
                "double-scaling",
                model.name,
                f"optimizer '{optimizer.name}' scales the loss, and '{inner.name}' "
                "inside it divides gradients by a scale of its own: every update "
                "shrinks by that",
                "pass the innermost optimizer to one LossScaleOptimizer",
            )
    if not guarded.needs_loss_scaling(model):
        return
    half = [
        path
        for layer, path in located
        if layer.compute_dtype == "float16"
        and not isinstance(layer, keras.layers.InputLayer)
        and not private.layers.sublayers(layer)
    ]
    half = half or [model.name]
    others = f", as do {len(half) - 1} more," if len(half) > 1 else ""
    if not optimizers:
        yield Finding(
            "note",
            "unknown",
            half[0],
            f"computes in float16{others} and model '{model.name}' is not compiled, so "
            "whether its loss is scaled is not known",
            "compile it with keras_mp.compile",
        )
    for optimizer in optimizers:
        if not _scales(optimizer):
            yield Finding(
                "error",
                "loss-scaling",
                half[0],
                f"computes in float16{others} and optimizer '{optimizer.name}' scales "
                "no loss: gradients below 6e-8 vanish",
                "compile with keras_mp.compile, or wrap the optimizer in "
                "keras_mp.LossScaleOptimizer",
            )


def _optimizers(model):
    """Return what trains ``model``: its own optimizers, or else the compiled one.

    A GAN that calls ``super().compile()`` has the default one besides, unused.
    """
    own = [
        value
        for name, value in vars(model).items()
        if isinstance(value, keras.optimizers.Optimizer) and name != "optimizer"
    ]
    compiled = getattr(model, "optimizer", None)
    return own or ([] if compiled is None else [compiled])


def _scales(optimizer):
    if isinstance(optimizer, LossScaleOptimizer):
        return not optimizer.scaling.only_checks
    wrapped = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    return wrapped or optimizer.loss_scale_factor is not None
