"""What runs where in a model: each layer, its compute dtype, and why."""

import inspect
from collections import Counter
from typing import NamedTuple

import keras

from keras_mp import dtypes, guards, heads, policies, private, tables
from keras_mp.layers import Island

_ALLOWED = "a rule allows it"


class Placement(NamedTuple):
    """Where one layer computes.

    Attributes:
        path: Names of its containers and its own, joined by ``/``.
        layer_class: The name of its class.
        compute_dtype: The dtype it computes in, such as ``"float16"``.
        reason: Why, in a few words.
        guards: The names of what computes in float32 inside it, as a tuple.

    Example:

    >>> layer = keras.layers.Dense(8, "softmax", name="head")
    >>> (place,) = keras_mp.convert(layer, "mixed_float16")
    >>> place.path, place.compute_dtype, place.guards
    ('head', 'float16', ('activation',))
    """

    path: str
    layer_class: str
    compute_dtype: str
    reason: str
    guards: tuple[str, ...] = ()


class PlacementReport(tuple[Placement, ...]):
    """The `Placement` of each layer of a model, in order; printed, a table.

    A layer that is used in several places is named by the first.

    Example:

    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8, "softmax", name="head")],
    ...     name="net",
    ... )
    >>> print(keras_mp.convert(model, "mixed_bfloat16"))
    layer     class       computes in  why         in float32 inside
    net       Sequential  bfloat16     the policy
    net/head  Dense       bfloat16     the policy  activation
    2 layers: 2 in bfloat16
    """

    def __str__(self) -> str:
        head = ("layer", "class", "computes in", "why", "in float32 inside")
        rows = [head, *((*row[:-1], ", ".join(row.guards)) for row in self)]
        counts = Counter(row.compute_dtype for row in self).most_common()
        shown = ", ".join(f"{count} in {dtype}" for dtype, count in counts)
        table = tables.aligned(rows, numbers=False)
        return f"{table}\n{len(self)} layers: {shown}"


def placement_report(model: keras.layers.Layer) -> PlacementReport:
    """Return the `PlacementReport` of a model that is under a policy of keras_mp's."""
    mixed = policies.is_low_anywhere(model)
    seen, rows = set(), []
    for layer, path, around in _with_surroundings(model, model.name, ()):
        if id(layer) not in seen and not isinstance(layer, keras.layers.InputLayer):
            seen.add(id(layer))
            rows.append(_placement(layer, path, around, mixed))
    return PlacementReport(rows)


def _with_surroundings(layer, path, around):
    """Yield each layer, its path, and (layer, path) for each layer around it."""
    yield layer, path, around
    for inner in private.layers.sublayers(layer):
        yield from _with_surroundings(
            inner, f"{path}/{inner.name}", (*around, (layer, path))
        )


def _placement(layer, path, around, mixed):
    reason = _reason(layer, path, around, mixed)
    is_island = guards.island_reason(layer) is not None
    return Placement(
        path,
        type(layer).__name__,
        "float32" if is_island else layer.compute_dtype,
        reason,
        tuple(_guards_of(layer, reason)),
    )


def _guards_of(layer, reason):
    if not dtypes.computes_low(layer):
        return ()
    # A layer may get its guards only as it is built; and one that had them before a
    # rule allowed it has them still.
    names = guards.present(layer) if reason == _ALLOWED else guards.names(layer)
    # Any layer of the user's own may add losses, and has that guard for the case.
    return [name for name in names if name != "add_loss" or _adds_losses(type(layer))]


def _adds_losses(layer_class):
    """Return whether the code of a class, or of those before Keras's, adds losses."""
    classes = layer_class.__mro__
    own = [each for each in classes if each.__module__.split(".")[0] != "keras"]
    return any(_calls_add_loss(value) for each in own for value in vars(each).values())


def _calls_add_loss(member):
    """Return whether a member of a class is code with an ``add_loss`` in it."""
    member = getattr(member, "fget", None) or getattr(member, "__func__", member)
    codes = [getattr(inspect.unwrap(member), "__code__", None)]
    for code in filter(inspect.iscode, codes):
        codes += code.co_consts  # functions inside
        if "add_loss" in code.co_names:
            return True
    return False


def _reason(layer, path, around, mixed):
    """Return why ``layer`` computes in the dtype that it does."""
    outside = [outer for outer, _ in around]
    if layer.quantization_mode is not None:
        return "quantized"
    if not keras.backend.is_float_dtype(layer.compute_dtype):
        return "computes no floats"
    if isinstance(layer, Island) or any(isinstance(o, Island) for o in outside):
        return "a float32 island"
    if not mixed:
        return "the policy"
    if guards.island_reason(layer):
        return f"a float32 island: {guards.island_reason(layer)}"
    head = heads.reason(layer)
    if head:
        return head
    found = policies.list_of(layer, path)
    if dtypes.computes_low(layer):
        reasons = {"allow": _ALLOWED, "follow": "as its inputs: moves numbers only"}
        return reasons.get(found or "", "the policy")
    if policies.is_kept_by_rule(layer, path, around):
        return "a rule of the policy"
    if any(map(guards.covers_sublayers, outside)):
        return "a guard of the layer around"
    return "not safe in 16 bits" if found == "float32" else "the policy"
