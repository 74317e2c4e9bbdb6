"""All cases, of every kind."""

from __future__ import annotations

import dataclasses

import keras

from conformance.attention_cases import attention_cases
from conformance.cases import Case
from conformance.discover import present
from conformance.function_cases import function_cases
from conformance.head_cases import head_cases
from conformance.image_cases import image_cases
from conformance.layer_cases import layer_cases
from conformance.metric_cases import metric_cases
from conformance.step_cases import step_cases
from keras_mp import precision_lists


def all_cases() -> list[Case]:
    """Return the cases of what this release of Keras has.

    Example:

    >>> len(all_cases()) > 300
    True
    """
    layers = [*layer_cases(), *step_cases(), *attention_cases(), *image_cases()]
    return present(
        [
            *layers,
            *map(_fed_low, filter(_follows, layers)),
            *function_cases(),
            *head_cases(),
            *metric_cases(),
        ]
    )


def _follows(case):
    """Return whether a case is of a layer that computes in the dtype that comes in."""
    return getattr(keras.layers, case.name, None) in precision_lists.FOLLOW


def _fed_low(case):
    """Return the same case with inputs in 16 bits, as from a layer before."""
    variant = ", ".join(filter(None, [case.variant, "16 bits in"]))
    return dataclasses.replace(case, variant=variant, low_inputs=True)
