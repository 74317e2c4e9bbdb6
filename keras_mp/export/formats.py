"""The formats: how each is written, and how it is run to see whether it agrees."""

import importlib.util
import pathlib
import tempfile
import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_mp.export import agreement, signature

_SERVED = "serving_default"  # The one signature of a SavedModel and its TFLite.


class SavedModel:
    """A folder for `tf.saved_model.load` and TensorFlow Serving."""

    name = "saved_model"
    suffixes = ("",)
    needs = ()

    @classmethod
    def check_installed(cls):
        """Raise if a package is missing that the format is written or run with."""
        missing = [name for name in cls.needs if importlib.util.find_spec(name) is None]
        if missing:
            raise ImportError(
                f"keras_mp.export(..., format='{cls.name}') needs "
                f"{' and '.join(missing)}. pip install 'keras_mp[export]', or "
                f"pip install {' '.join(cls.needs)}."
            )

    @staticmethod
    def write(model, function, specs, path):
        """Write ``function``, the traced predictions of ``model``, to ``path``."""
        archive = keras.export.ExportArchive()
        archive.track(model)  # Its lookup tables; variables are found in the trace.
        archive.add_endpoint("serve", function)
        archive.write_out(str(path), verbose=False)

    @staticmethod
    def predict(path, specs, expected, inputs):
        """Return what the artefact predicts for ``inputs``, as a flat list of arrays.

        Args:
            path: The artefact.
            specs: The signature that it was written with.
            expected: The model's predictions, any structure, for names and order.
            inputs: A list with a structure of arrays for each argument.

        Returns:
            Arrays in the order of `keras.tree.flatten`; None if the artefact cannot be
            run here, after a warning that says why.
        """
        with agreement.ON_CPU():
            loaded = tf.saved_model.load(str(path))  # Held: it owns the variables.
            outputs = keras.tree.flatten(loaded.serve(*inputs))
        return [np.asarray(each) for each in outputs]


class TFLite(SavedModel):
    """A flatbuffer for LiteRT, once TensorFlow Lite."""

    name = "tflite"
    suffixes = (".tflite",)

    @staticmethod
    def write(model, function, specs, path):
        with tempfile.TemporaryDirectory() as folder:
            SavedModel.write(model, function, specs, pathlib.Path(folder))
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            # The second only where the first has no counterpart.
            converter.target_spec.supported_ops = [
                tf.lite.OpsSet.TFLITE_BUILTINS,
                tf.lite.OpsSet.SELECT_TF_OPS,
            ]
            # Variables that a call assigns, as a stateful RNN does.
            converter.experimental_enable_resource_variables = True
            path.write_bytes(converter.convert())

    @staticmethod
    def predict(path, specs, expected, inputs):
        try:
            run = _interpreter(path).get_signature_runner(_SERVED)
            names = signature.flat_names(specs)
            arrays = keras.tree.flatten(inputs)
            outputs = run(**dict(zip(names, arrays, strict=True)))
        except RuntimeError as error:
            if "Select TensorFlow op" not in str(error):
                raise
            warnings.warn(
                f"keras_mp.export: '{path.name}' was saved but not verified. It needs "
                "TensorFlow's own operations (the Flex delegate), which this "
                "interpreter has none of. An LSTM or GRU does without them if the "
                "batch size is fixed: input_signature=[keras.InputSpec((1, ...))].",
                stacklevel=3,
            )
            return None
        return [outputs[name] for name in _output_names(expected)]


class ONNX(SavedModel):
    """A file for ONNX Runtime and whatever else reads ONNX."""

    name = "onnx"
    suffixes = (".onnx",)
    needs = ("tf2onnx", "onnxruntime")

    @staticmethod
    def write(model, function, specs, path):
        import onnx
        import tf2onnx

        # tf2onnx has no `Erfc`, which is what GELU comes down to.
        handlers = {"Erfc": (_one_minus_erf, [])}
        tf2onnx.convert.from_function(
            function, specs, custom_op_handlers=handlers, output_path=str(path)
        )
        try:
            # It writes an operation that it does not know as if ONNX had it.
            onnx.checker.check_model(str(path))
        except onnx.checker.ValidationError as error:
            raise ValueError(
                f"keras_mp.export: model '{model.name}' does not go into ONNX, because "
                f"tf2onnx lacks an operation of it: {error}"
            ) from error

    @staticmethod
    def predict(path, specs, expected, inputs):
        import onnxruntime

        session = onnxruntime.InferenceSession(
            str(path), providers=["CPUExecutionProvider"]
        )
        names = signature.flat_names(specs)
        arrays = keras.tree.flatten(inputs)
        return session.run(None, dict(zip(names, arrays, strict=True)))


FORMATS = {each.name: each for each in (SavedModel, TFLite, ONNX)}


def get(name: str | None, path: pathlib.Path):
    """Return the format called ``name``, or the one that ``path`` has the suffix of.

    Raises:
        ValueError: There is none.
    """
    known = f"Formats are {', '.join(map(repr, FORMATS))}"
    if name is not None:
        if name not in FORMATS:
            raise ValueError(f"keras_mp.export(..., format={name!r}): {known}.")
        return FORMATS[name]
    for each in FORMATS.values():
        if path.suffix in each.suffixes:
            return each
    raise ValueError(
        f"keras_mp.export(..., path='{path}'): no format has the suffix "
        f"'{path.suffix}'. {known}, with the suffix .tflite, .onnx, or none for a "
        "SavedModel: pass format=... if the path is meant."
    )


def _one_minus_erf(context, node, name, arguments):
    """Rewrite TensorFlow's ``Erfc`` as a handler of `tf2onnx` does.

    Within eps of 1; to 1 - erf(x), far out a small number is 0.
    """
    dtype = keras.backend.standardize_dtype(node.get_attr_value("T", "float32"))
    one = context.make_const(f"{name}_one", np.ones((), dtype)).output[0]
    erf = node.output[0]
    node.type = "Erf"
    context.insert_new_node_on_output("Sub", erf, f"{name}_sub", inputs=[one, erf])


def _interpreter(path):
    with warnings.catch_warnings():
        # TensorFlow moves it to another package, which is not installed with it.
        warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter is depr")
        return tf.lite.Interpreter(str(path))


def _output_names(expected):
    """Return the names that TensorFlow gives the outputs of a signature."""
    if isinstance(expected, dict):
        return sorted(expected)
    return [f"output_{index}" for index in range(len(keras.tree.flatten(expected)))]
