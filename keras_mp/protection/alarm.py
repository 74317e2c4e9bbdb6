"""A warning of a run that skips one step after another."""

from collections.abc import Callable, Iterator, Sequence

from keras_mp.optimizer import LossScaleOptimizer

_FORWARD = (
    "So the forward pass overflows, which no loss scale can help. Look for inf or NaN "
    "in the data, and for what exceeds 65,504 in float16: a constant such as -1e9, a "
    "sum or a product of large numbers. keras_mp.lint(model) names layers to look at; "
    "keep such a layer in float32 with keras_mp.Policy('mixed_float16', float32=[its "
    "name]), or use 'mixed_bfloat16', whose numbers go as far as those of float32."
)

_BACKWARD = (
    "The forward pass is finite, but its gradients overflow. If the scale is above 1, "
    "start with a smaller one: scaling=keras_mp.scaling.DynamicLossScale("
    "initial_scale=1.0). Otherwise look for a layer whose gradients exceed 65,504 in "
    "float16: keras_mp.lint(model) names layers to look at; keep such a layer in "
    "float32 with keras_mp.Policy('mixed_float16', float32=[its name]), or use "
    "'mixed_bfloat16', whose numbers go as far as those of float32."
)

_UNSCALED_FORWARD = (
    "So the forward pass has no finite result. Look for inf or NaN in the data, for "
    "weights that have grown without bounds, and for functions at the edge of their "
    "domain: log of 0, a division by 0, exp of a large number. keras_mp.lint(model) "
    "names layers to look at."
)

_UNSCALED_BACKWARD = (
    "The forward pass is finite, but its gradients are not. Look for functions whose "
    "slope is infinite or undefined where they are evaluated: sqrt or a norm at 0, a "
    "power below 1 of 0, ops.where around a branch that is not finite."
)

#: As many skipped steps in a row are more than a search for the scale takes: 15 from
#: 2**15 to 1. Before the first step is applied, a scale that was given may be larger.
_ALL, _IN_A_ROW = 50, 20


def begin(optimizers: Sequence[LossScaleOptimizer]) -> Callable[[], Iterator[str]]:
    """Return a function that yields a warning, once, of each optimizer that only skips.

    Args:
        optimizers: List of `LossScaleOptimizer`.
    """
    warned = set()

    def look():
        for optimizer in optimizers:
            stats = optimizer.stats()
            skipped = stats["consecutive_skipped"]
            if skipped >= (_IN_A_ROW if stats["applied"] else _ALL):
                if optimizer.name not in warned:
                    warned.add(optimizer.name)
                    yield _message(optimizer, skipped, stats)

    return look


def _message(optimizer, skipped, stats):
    which = f"all {skipped}" if not stats["applied"] else f"the last {skipped}"
    # Where the loss itself is not finite, no scale is small enough.
    forward = 2 * stats["nonfinite_losses"] > skipped
    scale = f"The loss scale is {stats['scale']:g}; "
    advice = _FORWARD if forward else _BACKWARD
    if optimizer.scaling.only_checks:
        scale = ""
        advice = _UNSCALED_FORWARD if forward else _UNSCALED_BACKWARD
    spikes = " or spikes" if optimizer.skip_spikes else ""
    return (
        f"Optimizer '{optimizer.name}' has skipped {which} training steps, because "
        f"their gradients were not finite{spikes}: the model does not learn. {scale}"
        f"{stats['nonfinite_losses']} steps had a loss that was inf or NaN. {advice}"
    )
