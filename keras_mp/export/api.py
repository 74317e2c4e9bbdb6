"""`export`: from a model under any policy to a float32 file that predicts the same."""

import os
import pathlib
from typing import Any, NamedTuple

import keras

from keras_mp import arguments
from keras_mp.export import agreement, files, formats, precision, signature
from keras_mp.float32_model import in_float32
from keras_mp.saved_files import checked_path


class Exported(NamedTuple):
    """What `export` wrote.

    Attributes:
        path: The file or folder.
        format: ``"saved_model"``, ``"tflite"`` or ``"onnx"``.
        size: Bytes on disk.
        difference: Largest difference between a prediction of the artefact and one of
            the model in float32, as a share of the largest prediction; None if the
            artefact was not run. 0 if they are equal to the last bit.
    """

    path: pathlib.Path
    format: str
    size: int
    difference: float | None


def export(
    model: keras.Model,
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    input_signature: Any = None,
    sample: Any = None,
    verify: bool = True,
    overwrite: bool = False,
) -> Exported:
    """Write ``model`` as a SavedModel, TFLite or ONNX file that computes in float32.

    The artefact predicts as the model does with all its layers under float32: from the
    float32 weights, with float32 inputs and outputs, and with ``training=False``.
    `keras.Model.export` would write the layers in the precision they train in, which
    TFLite's convolutions and many servers cannot run.

    The model itself stays as it is, with its policies, weights, optimizer and the
    functions that `fit` has compiled. Its layers are under float32 only during the
    export, so do not train it in another thread meanwhile. Layers inside a
    `keras_mp.layers.Float32`, in float64 or of integers stay as they are.

    Nothing appears at ``path`` before the artefact is complete and, by default, has
    been loaded and run: a failed export leaves what was there.

    Args:
        model: A Keras model that has been built.
        path: The file or folder to write. The folder it is in must exist.
        format: ``"saved_model"``, a folder for `tf.saved_model.load` and TF Serving,
            with the function ``serve``; ``"tflite"``; or ``"onnx"``, which takes
            ``pip install 'keras_mp[export]'``. None to go by ``path``: ``.tflite``,
            ``.onnx``, or no suffix for a SavedModel.
        input_signature: None for the model's own inputs, with any batch size where the
            model allows it; or what `keras.Model.export` takes: a list with one
            `keras.InputSpec`, or a structure of them, per argument of ``call``. A
            float16 or bfloat16 dtype becomes float32. Without it, a model of your own
            class takes all its inputs in float32.
        sample: None to verify with two random rows: floats from 0 to 1, integers 0
            and 1; or the inputs to verify with, a batch of what ``call`` takes (a tuple
            for several arguments). Needed where such inputs mean nothing to the model.
        verify: Whether to load the artefact, run it, and compare its predictions with
            the model's in float32. It costs a load and two predictions, and finds a
            converter's mistakes. Floats may differ by 1e-4 of the largest one: kernels
            that sum in another order differ by 1e-7 to 1e-5, while one rounding to
            float16 costs 5e-4.
        overwrite: Whether to replace what is at ``path``: a file, or a SavedModel.

    Returns:
        An `Exported`: path, format, size in bytes and the difference found.

    Raises:
        TypeError: ``model`` is not a Keras model, or ``path`` is no path.
        ValueError: The format is unknown; ``path`` exists, or its folder does not; the
            model is not built, or was quantized under a policy of low precision; an
            operation has a float16 or bfloat16 dtype of its own; or the predictions do
            not agree.
        ImportError: The format is ``"onnx"``, and tf2onnx or onnxruntime is missing.

    Warns:
        UserWarning: A TFLite model was saved but could not be run, because it needs
            TensorFlow's own operations (an LSTM of any batch size does) and this
            interpreter has none.

    Synchronises with the device: weights and predictions are copied to the host.

    Example:

    >>> exported = keras_mp.export(model, "model.tflite")
    >>> exported.format, exported.difference < 1e-4
    ('tflite', True)
    """
    advice = "Wrap a single layer as keras.Sequential([layer])."
    arguments.check_model("keras_mp.export(model, ...)", model, advice)
    path = pathlib.Path(checked_path("keras_mp.export", "path", path))
    chosen = formats.get(format, path)
    chosen.check_installed()
    files.check(path, overwrite)
    with in_float32(model), files.put_at(path) as new:
        specs = signature.of(model, input_signature)
        function = precision.traced(model, specs)
        chosen.write(model, function, specs, new)
        difference = None
        if verify:
            inputs = agreement.inputs_for(specs, sample)
            expected = agreement.predictions(model, inputs)
            got = chosen.predict(new, specs, expected, inputs)
            if got is not None:
                difference = agreement.checked(path, chosen.name, got, expected)
        size = files.size(new)
    return Exported(path, chosen.name, size, difference)
