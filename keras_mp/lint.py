"""What is wrong with how a model uses low precision: each line, a layer and a fix.

Nothing is changed, and nothing is run: the dtypes that the model returns come from a
trace of its call.
"""

import dis
import inspect
import math
import re
from typing import NamedTuple

import keras

from keras_mp import dtypes, flow, guards, policies, private, training


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

    def __str__(self):
        return f"{self.severity}: {self.layer}: {self.reason}; {self.fix} [{self.rule}]"


def lint(model: keras.Model, batch_size: int | None = None) -> list[Finding]:
    """Return what is wrong with how ``model`` uses low precision, as a list.

    The checks, by name:

    - ``loss-scaling``: layers compute in float16 and the optimizer scales no loss.
    - ``double-scaling``: a loss-scale optimizer around another.
    - ``sensitive``: a layer on the lists of `keras_mp.lists` that computes in 16 bits,
      in no island and without the guard that keras_mp would put on it. What a rule of
      the policy allows is left out.
    - ``island``: a layer of the user's own whose code failed in 16 bits, since dtypes
      did not match, and computes in float32 for that. Always a note.
    - ``head``: the model returns 16 bits, to metrics and to who reads predictions.
    - ``functional-loss``: a loss computed in 16 bits. Losses given to ``compile`` cast
      what they get to their own dtype, float32 unless asked otherwise, functions too. A
      function of `keras.losses` that the model calls by itself, in ``train_step`` or
      ``compute_loss``, computes in the dtype that the model returns, unless it is cast
      in between, which is not seen.
    - ``rule``: a rule of a `Policy` that matches no layer.
    - ``alignment``: dimensions of matrix products that are no multiples of what tensor
      cores take: 8 in float16 and bfloat16, 16 in float8. How many more multiplications
      the padded ones take is counted on the products with weights. Always a note.
    - ``unknown``: what could not be checked. Always a note.

    Args:
        model: A built Keras model, compiled or not.
        batch_size: Rows in a batch, to check as well.

    Raises:
        TypeError: ``model`` is no Keras model, or ``batch_size`` no integer.
        ValueError: The model has layers that are not built, or ``batch_size`` is not
            above 0.

    Changes nothing in the model, and does not synchronise with the device.

    Example:

    >>> head = keras.layers.Dense(8, "softmax", dtype="mixed_float16", name="head")
    >>> model = keras.Sequential([keras.Input((8,)), head], name="net")
    >>> for finding in keras_mp.lint(model):
    ...     print(finding.severity, finding.rule, finding.layer)
    note unknown net/head
    warning sensitive net/head
    warning head net/head
    >>> keras_mp.compile(model, "adam", "mse")
    >>> keras_mp.lint(model)
    []
    """
    _check(model, batch_size)
    # A layer that is used in several places is named by the first.
    places = {}
    for layer, path in policies.layers_with_paths(model):
        places.setdefault(id(layer), (layer, path))
    places = list(places.values())
    heads = list(_heads(model, model.name, guards.are_steps_guarded(model)))
    return [
        *_scaling(model, places),
        *_sensitive(places),
        *_islands(places),
        *heads,
        *_functional_losses(model, any(found.rule == "head" for found in heads)),
        *_rules(model),
        *_alignment(model, places, batch_size),
    ]


def _check(model, batch_size):
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"keras_mp.lint(model) needs a Keras model. Got {model!r} of type "
            f"{type(model).__name__}. Put a layer into a keras.Sequential."
        )
    if batch_size is not None and (
        not isinstance(batch_size, int) or isinstance(batch_size, bool)
    ):
        raise TypeError(
            "keras_mp.lint(model, batch_size) needs an integer, or None. Got "
            f"{batch_size!r} of type {type(batch_size).__name__}. Pass the rows of one "
            "batch."
        )
    if batch_size is not None and batch_size < 1:
        raise ValueError(
            f"keras_mp.lint(model, batch_size={batch_size}): a batch has at least one "
            "row. Pass the rows of one batch, or leave it out."
        )
    # A model without a call, such as a GAN, is never built; its layers are.
    unbuilt = [
        layer.name for layer in private.layers.walk(model)[1:] if not layer.built
    ]
    if not model.built and (unbuilt or not private.layers.sublayers(model)):
        raise ValueError(
            "keras_mp.lint(model) needs a model that is built, because its shapes "
            f"decide. Got model '{model.name}', which is not built. Give it a "
            "keras.Input, call it on a batch, or call model.build(shape)."
        )


# Loss scaling.


def _scaling(model, places):
    optimizers = _optimizers(model)
    for optimizer in optimizers:
        inner = getattr(optimizer, "inner_optimizer", None)
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
    if not training.needs_loss_scaling(model):
        return
    half = [
        path
        for layer, path in places
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
    wrapped = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    return wrapped or optimizer.loss_scale_factor is not None


# Layers that 16 bits are too few for.

_WHY = {
    "activation": "its activation overflows or loses digits in {}",
    "activity regularizer": "its activity regularizer adds up in {}",
    "all of it": "it computes in {}, which is too short for its sums or powers",
    "inputs": "it rounds what comes in to {} before layers inside read ids or data",
    "scores and softmax": "its scores and its softmax are computed in {}",
    "weights": "it rounds its weights to {} in every step",
}


def _sensitive(places):
    inside = _inside_whole(places)
    for layer, path in places:
        low = dtypes.computes_low(layer)
        if low and policies.is_convertible(layer) and id(layer) not in inside:
            fix = "make it safe with keras_mp.compile or keras_mp.convert"
            if not private.layers.sublayers(layer) or guards.is_whole(layer):
                fix += f", or keep it in float32: Policy(..., float32=['{layer.name}'])"
            for why in _reasons(layer, path):
                yield Finding(
                    "warning",
                    "sensitive",
                    path,
                    why.format(layer.compute_dtype),
                    fix,
                )


def _islands(places):
    for layer, path in places:
        if guards.island_reason(layer):
            yield Finding(
                "note",
                "island",
                path,
                f"computes in float32, since {guards.island_reason(layer)}",
                "cast what it mixes to `self.compute_dtype`",
            )


def _inside_whole(places):
    """Return the ids of the layers in those whose guards are for all inside them."""
    whole = [layer for layer, _ in places if guards.is_whole(layer)]
    return {id(inner) for layer in whole for inner in private.layers.walk(layer)[1:]}


def _reasons(layer, path):
    """Yield why ``layer`` is not safe, by what keras_mp would do to it."""
    place = policies.place_in_lists(layer, path)
    if place == "float32":
        yield f"{type(layer).__name__} is not safe in {{}}"
    elif place is None:
        for name in guards.missing(layer):
            # Whether layers of the user's own add losses at all is not known.
            if name in _WHY and (name != "inputs" or _takes_floats(layer)):
                yield _WHY[name]


def _takes_floats(layer):
    inputs = getattr(layer, "inputs", None) or ()
    return any(keras.backend.is_float_dtype(tensor.dtype) for tensor in inputs)


# What the model returns, and who computes losses from it.


class _Trace(keras.Operation):
    """What a model returns for symbols of its inputs, by the dtypes of today.

    A model itself answers with those from when it was put together.
    """

    def __init__(self, model):
        super().__init__()
        self.call = model


def _heads(model, path, in_step):
    """Yield findings on what ``model`` returns in 16 bits."""
    if not policies.is_low_anywhere(model):
        return
    if type(model).call is keras.Model.call:  # such as a GAN
        for inner in private.layers.sublayers(model):
            if isinstance(inner, keras.Model):
                yield from _heads(inner, f"{path}/{inner.name}", in_step)
        return
    try:
        outputs = keras.tree.flatten(_traced(model, in_step))
    except Exception as error:
        yield Finding(
            "note",
            "unknown",
            path,
            "in which dtype it returns is not known, for it cannot be traced "
            f"({type(error).__name__})",
            "check that it returns float32",
        )
        return
    for output, layer in zip(outputs, _output_paths(model, path, outputs), strict=True):
        dtype = keras.backend.standardize_dtype(output.dtype)
        if dtype in dtypes.LOW_PRECISION:
            yield Finding(
                "warning",
                "head",
                layer,
                f"the model returns it in {dtype}, in which metrics are computed and "
                "predictions rounded",
                "keras_mp.compile returns float32, as does "
                "keras_mp.layers.Float32(layer, output_dtype='float32')",
            )


def _traced(model, in_step):
    apart = (
        change
        for layer in private.layers.walk(model)
        for change in private.attributes.losses_apart(layer)
    )
    reader = flow.STEP if in_step else None
    with private.attributes.attributes_for_now(apart), flow.read_by(reader):
        trace = _Trace(model).compute_output_spec
        if getattr(model, "inputs", None):
            sequential = isinstance(model, keras.Sequential)
            return trace(model.inputs[0] if sequential else model.input)
        # Of a model of one's own Keras remembers the shapes of the first argument.
        inputs = keras.tree.map_shape_structure(
            lambda shape: keras.KerasTensor(shape, "float32"),
            model.get_build_config()["input_shape"],
        )
        return trace(inputs)


def _output_paths(model, path, outputs):
    """Return the path of the layer that each of ``outputs`` comes from, if known."""
    names = getattr(model, "output_names", ())
    if isinstance(model, keras.Sequential):
        names = [model.layers[-1].name]
    if len(names) == len(outputs):
        return [f"{path}/{name}" for name in names]
    return [path] * len(outputs)


_LOSS_FUNCTIONS = {
    function
    for name, function in vars(keras.losses).items()
    if inspect.isfunction(function) and name not in ("deserialize", "get", "serialize")
}


def _functional_losses(model, is_head_low):
    for loss in filter(None, keras.tree.flatten(getattr(model, "loss", None))):
        dtype = getattr(loss, "dtype", keras.config.floatx())
        if dtype in dtypes.LOW_PRECISION:
            name = getattr(loss, "name", None) or getattr(loss, "__name__", loss)
            yield Finding(
                "warning",
                "functional-loss",
                model.name,
                f"loss '{name}' is computed in {dtype}",
                "give it dtype='float32', and leave keras.config.floatx() at float32",
            )
    if is_head_low:
        for method in ("compute_loss", "test_step", "train_step"):
            for function in _loss_functions_in(type(model), method):
                yield Finding(
                    "warning",
                    "functional-loss",
                    model.name,
                    f"its {method} calls {function.__name__}, which computes in the "
                    "16 bits that the model returns",
                    _narrow_advice(model),
                )


def _narrow_advice(model):
    """Return what helps where a step computes a loss in 16 bits."""
    if guards.are_steps_narrow(model):
        return (
            "its step fails on float32: cast what it mixes to the dtype of the "
            "model's output, or cast the output to float32 for the loss"
        )
    return (
        "keras_mp.compile returns float32, also of models that a step calls by "
        "itself, and the classes of keras.losses cast to it"
    )


def _loss_functions_in(cls, name):
    """Yield the functions of `keras.losses` that a method calls, each once.

    Methods of the user's own that it calls are looked through as well.
    """
    found, seen, waiting = [], set(), [name]
    while waiting:
        method = inspect.unwrap(getattr(cls, waiting.pop(), None) or len)
        if not inspect.isfunction(method) or method in seen:
            continue
        seen.add(method)
        for value, attribute in _names_in(method):
            if inspect.isfunction(value) and value in _LOSS_FUNCTIONS:
                found += [value] if value not in found else []
            own = getattr(cls, attribute or "", None)
            if inspect.isfunction(own) and not private.layers.is_code_of_keras(own):
                waiting.append(attribute)
    yield from found


def _names_in(method):
    """Yield for each name that ``method`` loads its value, if global, and itself."""
    value = None
    for step in dis.get_instructions(method):
        if step.opname == "LOAD_GLOBAL":
            value = method.__globals__.get(step.argval)
            yield value, None
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            value = (
                getattr(value, step.argval, None) if inspect.ismodule(value) else None
            )
            yield value, step.argval
        else:
            value = None


# Rules.


def _rules(model):
    for rule, suggestion in training.unmatched_rules(model):
        yield Finding(
            "warning",
            "rule",
            model.name,
            f"policy rule '{rule}' matches no layer",
            suggestion.removesuffix("."),
        )


# Tensor cores.


class _Product(NamedTuple):
    """As many equal products as ``count`` with a matrix of these named ``sizes``."""

    count: int
    sizes: tuple[tuple[str, int], ...]

    def multiplications(self, multiple=1):
        """Return how many a row takes, with sizes padded to ``multiple``."""
        return self.count * math.prod(_padded(n, multiple) for _, n in self.sizes)


def _padded(size, multiple):
    return -(-size // multiple) * multiple


def _alignment(model, places, batch_size):
    inside = _inside_whole(places)
    multiples = []
    for layer, path in places:
        multiple = None if id(layer) in inside else _multiple(layer)
        products = list(_products(layer)) if multiple and layer.built else ()
        if products:
            multiples.append(multiple)
            sizes = {name: size for product in products for name, size in product.sizes}
            padded = sum(product.multiplications(multiple) for product in products)
            cost = padded / sum(product.multiplications() for product in products)
            yield from _misaligned(path, sizes, multiple, cost)
    if batch_size is not None and multiples:
        multiple = max(multiples)
        cost = _padded(batch_size, multiple) / batch_size
        yield from _misaligned(model.name, {"batch size": batch_size}, multiple, cost)


def _misaligned(path, sizes, multiple, cost):
    wrong = {name: size for name, size in sizes.items() if size % multiple}
    if wrong:
        now = ", ".join(f"{name} {size}" for name, size in wrong.items())
        then = ", ".join(f"{name} {_padded(n, multiple)}" for name, n in wrong.items())
        yield Finding(
            "note",
            "alignment",
            path,
            f"{now}: not a multiple of {multiple}, by which tensor cores go",
            f"padded to {then} it takes {100 * (cost - 1):.1f} % more multiplications",
        )


def _multiple(layer):
    """Return of what sizes are to be multiples; None if it is on no tensor core."""
    modes = {inner.quantization_mode for inner in private.layers.walk(layer)}
    if modes - {None, "float8"}:
        return None
    if "float8" in modes:
        return 16
    return 8 if dtypes.computes_low(layer) else None


_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)


def _products(layer):
    """Yield the products of ``layer`` with its weights, if it is a layer of Keras's.

    Of depthwise convolutions none: they are no matrix products.
    """
    if guards.is_whole(layer):
        yield from filter(None, map(_projection, private.layers.sublayers(layer)))
    elif isinstance(layer, keras.layers.EinsumDense):
        yield _einsum(layer.equation, layer.kernel.shape)
    elif isinstance(layer, keras.layers.Dense):
        features, units = layer.kernel.shape
        yield _Product(1, (("input features", features), ("units", units)))
    elif isinstance(layer, _CONVOLUTIONS):
        *area, channels, filters = layer.kernel.shape
        if layer.groups == 1 or channels > 1:
            yield _convolution(area, channels, filters // layer.groups, layer.groups)
    elif isinstance(layer, _TRANSPOSED):
        *area, filters, channels = layer.kernel.shape
        yield _convolution(area, channels, filters)
    elif isinstance(layer, _SEPARABLE):
        *area, channels, filters = layer.pointwise_kernel.shape
        yield _convolution(area, channels, filters)
    elif private.layers.is_of_keras(layer) and hasattr(layer, "recurrent_kernel"):
        *area, units, gates = layer.recurrent_kernel.shape
        count = math.prod(area) * (gates // units)
        for name, size in ("input features", layer.kernel.shape[-2]), ("units", units):
            yield _Product(count, ((name, size), ("units", units)))


def _convolution(area, channels, filters, groups=1):
    each = " of a group" if groups > 1 else ""
    sizes = ((f"input channels{each}", channels), (f"filters{each}", filters))
    return _Product(math.prod(area) * groups, sizes)


def _einsum(equation, shape):
    """Return the product of an einsum with a kernel of this ``shape``."""
    left, kernel, right = re.split(",|->", equation)
    axes = dict(zip(kernel, shape, strict=True))
    summed = math.prod(size for axis, size in axes.items() if axis not in right)
    made = math.prod(size for axis, size in axes.items() if axis not in left)
    count = math.prod(axes.values()) // (summed * made)
    return _Product(count, (("input features", summed), ("output features", made)))


def _projection(layer):
    """Return the product of a part of attention, one for each head."""
    if layer.name in ("query", "key", "value"):
        features, heads, size = layer.kernel.shape
        name = "value dim" if layer.name == "value" else "key dim"
        return _Product(heads, ((f"{layer.name} features", features), (name, size)))
    if layer.name == "attention_output":
        heads, size, *features = layer.kernel.shape
        sizes = (("value dim", size), ("output features", math.prod(features)))
        return _Product(heads, sizes)
    return None
