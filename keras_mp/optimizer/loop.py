"""Whether a training loop scaled its loss, and unscaled its gradients itself."""

import contextlib
import threading
import warnings

_NEVER_SCALED = (
    "This train_step calls LossScaleOptimizer.apply() without scale_loss() before it, "
    "so its gradients are taken as they are, not divided by the scale. Training goes "
    "on, but gradients that are too small for float16 are lost. Compute the gradients "
    "of `optimizer.scale_loss(loss)`, or use mixed_bfloat16, which needs no scale."
)

_NOT_SCALED = (
    "LossScaleOptimizer.apply() was called without scale_loss() before it. Gradients "
    "are divided by the scale; if the loss was not multiplied by it, every update "
    "shrinks to nearly nothing. Compute the gradients of `optimizer.scale_loss(loss)`."
)


class Loop:
    """The loop that calls an optimizer; in each thread, as replicas have one each."""

    def __init__(self):
        self._here = threading.local()
        self._ever_scaled = False
        self._warned = False

    def loss_was_scaled(self):
        """Note that the loss was multiplied by the scale."""
        self._here.scaled, self._here.unscaled = True, False
        self._ever_scaled = True

    def gradients_were_unscaled(self):
        """Note that the loop has divided the gradients by the scale itself."""
        self._here.unscaled = True

    def scale_was_read(self):
        """Note that the loop may have multiplied its loss by the scale by hand."""
        self._here.scale_was_read = True

    @contextlib.contextmanager
    def whole_step(self):
        """Return a context for a step from its forward pass to its update."""
        self._here.in_whole_step, self._here.scale_was_read = True, False
        try:
            yield
        finally:
            self._here.in_whole_step = False

    def are_unscaled(self):
        """Return whether this loop's gradients are unscaled already; warn if unsure.

        Only `loss_was_scaled` starts anew: a loss may be scaled once, as it is traced,
        and its step be called often.
        """
        scaled = getattr(self._here, "scaled", False)
        unscaled = getattr(self._here, "unscaled", False)
        if scaled or unscaled:
            return unscaled
        in_whole_step = getattr(self._here, "in_whole_step", False)
        never_scaled = in_whole_step and not self._ever_scaled
        if never_scaled and self._here.scale_was_read:
            return False
        if not self._warned:
            self._warned = True
            warnings.warn(_NEVER_SCALED if never_scaled else _NOT_SCALED, stacklevel=3)
        return never_scaled
