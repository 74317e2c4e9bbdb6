"""Whether a model returns 16 bits, to metrics and to who reads predictions."""

from collections.abc import Iterator

import keras

from keras_mp import dtypes, flow, policies, private
from keras_mp.lint.finding import Finding


def find(model: keras.Model, path: str, in_step: bool) -> Iterator[Finding]:
    """Yield findings on what ``model`` returns in 16 bits."""
    if not policies.is_low_anywhere(model):
        return
    if not private.layers.has_call(model):
        for inner in private.layers.sublayers(model):
            if isinstance(inner, keras.Model):
                yield from find(inner, f"{path}/{inner.name}", in_step)
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


class _Trace(keras.Operation):
    """What a model returns for symbols of its inputs, by the dtypes of today.

    A model itself answers with those from when it was put together.
    """

    def __init__(self, model):
        super().__init__()
        self.call = model
