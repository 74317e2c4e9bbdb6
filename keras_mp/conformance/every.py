"""All cases, of every kind."""

from __future__ import annotations

from keras_mp.conformance.attention_cases import attention_cases
from keras_mp.conformance.cases import Case
from keras_mp.conformance.discover import present
from keras_mp.conformance.function_cases import function_cases
from keras_mp.conformance.image_cases import image_cases
from keras_mp.conformance.layer_cases import layer_cases
from keras_mp.conformance.metric_cases import metric_cases
from keras_mp.conformance.step_cases import step_cases


def all_cases() -> list[Case]:
    """Return the cases of what this release of Keras has.

    Example:

    >>> len(all_cases()) > 300
    True
    """
    return present(
        [
            *layer_cases(),
            *step_cases(),
            *attention_cases(),
            *image_cases(),
            *function_cases(),
            *metric_cases(),
        ]
    )
