"""`Culprit`: one thing that went wrong in a batch, and what to do about it."""

from typing import NamedTuple


class Culprit(NamedTuple):
    """One cause that `keras_mp.diagnose` found; printed, one sentence and a fix.

    Attributes:
        layer: The path of the layer: names of the model, of the layers around it and
            its own, joined by ``/``. Of data, the name of the input; of a loss, its
            name.
        tensor: ``"input"``, ``"output"`` or ``"gradient"``, or a variable's name.
        phase: ``"input"`` (the data), ``"weights"``, ``"forward"``, ``"loss"`` or
            ``"backward"``.
        kind: ``"nan"``, ``"overflow"``, ``"underflow"`` or ``"rounding"``.
        evidence: The numbers that show it, in words.
        fix: What to do, one sentence.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)], name="net")
    >>> keras_mp.compile(model, "sgd", "mse", policy="mixed_float16")
    >>> x[3] = float("nan")
    >>> (culprit,) = keras_mp.diagnose(model, x, y).culprits
    >>> culprit.phase, culprit.kind, culprit.evidence
    ('input', 'nan', 'row 3 holds NaN')
    """

    layer: str
    tensor: str
    phase: str
    kind: str
    evidence: str
    fix: str

    def __str__(self) -> str:
        what = f"{self.layer}, {self.tensor} ({self.phase}): {self.kind}"
        return f"{what}; {self.evidence}. {self.fix}."
