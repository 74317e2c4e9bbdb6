"""How far 16 bits may lie from float32, and what counts as a failure."""

from __future__ import annotations

import re

from conformance.measure import Result

#: Units in the last place, by kind. What is computed in float32 and rounded once is
#: off by half a unit, and a gradient that is rounded on its way in and out by one or
#: two. Layers compute in 16 bits and add up a few such roundings.
BOUNDS = {"layers": 4.0, "activations": 2.0, "losses": 2.0, "metrics": 2.0}

#: Layers whose products in 16 bits follow one another: a pattern of the title, the
#: bound, and why. The first that matches counts.
WIDER = (
    (r"ConvLSTM.*", 24.0, "steps of convolutions, each rounded, one after the other"),
    (r".*Conv[123]D.*", 12.0, "a CPU adds up a convolution's float16 products in it"),
    (
        r"(Bidirectional|RNN|LSTM|GRU|SimpleRNN|StackedRNNCells)\b.*|\w+Cell",
        8.0,
        "gates of products in 16 bits, each rounded, over many steps",
    ),
    (
        r"(Multi|Group).*Attention.*",
        64.0,
        "projections in 16 bits: rounding a score of 30 moves its weight by 3 percent",
    ),
    (
        r"(Additive)?Attention.*",
        24.0,
        "products in 16 bits around the softmax, and gradients that nearly cancel",
    ),
)


def bound(kind: str, title: str) -> float:
    """Return the largest error that passes, in units in the last place.

    Example:

    >>> bound("layers", "Dense"), bound("layers", "LSTM: 64 steps")
    (4.0, 8.0)
    """
    for pattern, ulps, _ in WIDER if kind == "layers" else ():
        if re.fullmatch(pattern, title):
            return ulps
    return BOUNDS[kind]


def failure(result: Result) -> str | None:
    """Return in a few words why ``result`` fails; None if it passes.

    What no 16-bit number can hold (`measure.Error.beyond`) is no failure.

    Example:

    >>> from conformance.measure import Error
    >>> place = "layers", "Dense", "ordinary", "mixed_float16", "keras"
    >>> failure(Result(*place, Error(nonfinite=2), Error(ulps=1.0)))
    '2 not finite'
    """
    if result.error is not None:
        return result.error.partition(":")[0]
    if nonfinite := result.forward.nonfinite + result.backward.nonfinite:
        return f"{nonfinite:,} not finite"
    ulps = max(result.forward.ulps, result.backward.ulps)
    if ulps > bound(result.kind, result.title):
        return f"{ulps_text(ulps)} ulps"
    return None


def ulps_text(ulps: float) -> str:
    """Return an error for people.

    Example:

    >>> ulps_text(0.5), ulps_text(637.6), ulps_text(3e40)
    ('0.5', '638', 'over a million')
    """
    if ulps >= 1e6:
        return "over a million"
    return f"{ulps:.1f}" if ulps < 10 else f"{ulps:,.0f}"
