"""What Keras makes public, and what of it no case covers."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType

import keras

from conformance.cases import Case

#: The modules of Keras that are covered. A function that is in two of them, such as
#: ``binary_crossentropy``, belongs to the first.
KINDS = {
    "layers": keras.layers,
    "activations": keras.activations,
    "losses": keras.losses,
    "metrics": keras.metrics,
}

_LOOKS_UP = "turns configs into objects or back; computes nothing"
_OTHER_FRAMEWORK = "needs a module of another framework or a file"
_STRINGS = "takes strings"

#: What is left out on purpose, by kind and name, with the reason.
EXCLUDED = {
    **{
        (kind, name): _LOOKS_UP
        for kind in KINDS
        for name in ("get", "serialize", "deserialize")
    },
    ("layers", "Input"): "makes a symbolic tensor; computes nothing",
    ("layers", "InputLayer"): "makes a symbolic tensor; computes nothing",
    ("layers", "InputSpec"): "describes an input; computes nothing",
    ("layers", "Wrapper"): "base class; its subclasses have cases",
    ("layers", "JaxLayer"): _OTHER_FRAMEWORK,
    ("layers", "FlaxLayer"): _OTHER_FRAMEWORK,
    ("layers", "TorchModuleWrapper"): _OTHER_FRAMEWORK,
    ("layers", "TFSMLayer"): _OTHER_FRAMEWORK,
    ("layers", "StringLookup"): _STRINGS,
    ("layers", "TextVectorization"): _STRINGS,
    ("losses", "Loss"): "base class; its subclasses have cases",
    ("metrics", "Metric"): "base class; its subclasses have cases",
}


def public(kind: str, module: ModuleType | None = None) -> dict[str, object]:
    """Return the public classes and functions of a kind, an alias once.

    Args:
        kind: A key of `KINDS`.
        module: Where to look instead of in Keras's module of that kind.

    Returns:
        The objects by name, sorted. Of several names for one class the one that the
        class was defined with counts, else the first.

    Example:

    >>> "Dense" in public("layers"), "Convolution2D" in public("layers")
    (True, False)
    """
    names = {}
    for name, value in sorted(vars(module or KINDS[kind]).items()):
        if name.startswith("_") or not callable(value):
            continue
        if id(value) not in names or getattr(value, "__name__", None) == name:
            names[id(value)] = name, value
    return dict(sorted(names.values(), key=lambda pair: pair[0]))


def untested(
    cases: Iterable[Case], modules: dict[str, ModuleType] | None = None
) -> list[str]:
    """Return what Keras makes public and neither a case nor `EXCLUDED` names.

    Example:

    >>> from conformance.every import all_cases
    >>> untested(all_cases())
    []
    """
    covered = set(EXCLUDED) | {(case.kind, case.name) for case in cases}
    seen, missing = set(), []
    for kind, module in (modules or KINDS).items():
        for name, value in public(kind, module).items():
            if id(value) not in seen and (kind, name) not in covered:
                missing.append(f"{module.__name__}.{name}")
            seen.add(id(value))
    return missing


def present(cases: Iterable[Case]) -> list[Case]:
    """Return the cases of what this release of Keras has.

    Example:

    >>> case = Case("layers", "FromTheFuture", build=None, scenarios={})
    >>> present([case])
    []
    """
    return [case for case in cases if hasattr(KINDS[case.kind], case.name)]


def preparing(module: ModuleType = keras.layers) -> dict[str, type]:
    """Return the public layers that prepare data, and so read it raw, by name.

    They are found by where Keras defines them or a class that they extend.

    Example:

    >>> {"RandomFlip", "Rescaling"} <= set(preparing()), "Dense" in preparing()
    (True, False)
    """
    return {
        name: value
        for name, value in public("layers", module).items()
        if isinstance(value, type)
        and any(".layers.preprocessing." in base.__module__ for base in value.__mro__)
    }
