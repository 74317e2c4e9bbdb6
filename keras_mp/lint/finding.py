"""One thing that `keras_mp.lint` has found."""

from typing import NamedTuple


class Finding(NamedTuple):
    """One thing that `keras_mp.lint` found; printed, one line.

    Attributes:
        severity: ``"error"`` if training goes wrong by it, ``"warning"`` if numbers
            may overflow or lose their digits, ``"note"`` if it only costs time, or
            cannot be known.
        rule: The name of the check, such as ``"loss-scaling"``.
        layer: The path of the layer: names of its containers and its own, joined by
            ``/``.
        reason: What is wrong.
        fix: What to do.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)], name="net")
    >>> loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    >>> keras_mp.compile(model, "adam", loss, policy="mixed_bfloat16")
    >>> (finding,) = keras_mp.lint(model, batch_size=100)
    >>> finding.severity, finding.rule, finding.layer
    ('note', 'alignment', 'net')
    >>> finding.fix
    'padded to batch size 104 it takes 4.0 % more multiplications'
    """

    severity: str
    rule: str
    layer: str
    reason: str
    fix: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.layer}: {self.reason}; {self.fix} [{self.rule}]"
