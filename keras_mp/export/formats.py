"""The formats: how each is written, and how it is run to be verified."""

import importlib.util
import pathlib
import tempfile
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mp.export import agreement

_SERVED = "serving_default"  # The name of the only signature.


class SavedModel:
    """A folder for `tf.saved_model.load` and TensorFlow Serving.

    It is the base of the other formats too.
    """

    name = "saved_model"
    suffix = ""
    needs: tuple[str, ...] = ()

    @classmethod
    def check_installed(cls) -> None:
        """Raise ImportError if a package that the format needs is missing."""
        missing = [name for name in cls.needs if importlib.util.find_spec(name) is None]
        if missing:
            raise ImportError(
                f"keras_mp.export(..., format='{cls.name}') needs "
                f"{' and '.join(missing)}. pip install 'keras_mp[export]', or "
                f"pip install {' '.join(cls.needs)}."
            )

    @staticmethod
    def write(
        model: keras.Model, function: Any, specs: list[Any], path: pathlib.Path
    ) -> None:
        """Write ``function``, a `tf.function` that predicts, to ``path``."""
        archive = keras.export.ExportArchive()
        archive.track(model)  # For lookup tables; variables are found in the trace.
        archive.add_endpoint("serve", function)
        archive.write_out(str(path), verbose=False)

    @staticmethod
    def predict(
        path: pathlib.Path, specs: list[Any], expected: Any, inputs: list[Any]
    ) -> list[np.ndarray] | None:
        """Return what the file or folder at ``path`` predicts for ``inputs``.

        Args:
            path: What `write` wrote.
            specs: The signature that it was written with.
            expected: The model's predictions, a structure, for names and order.
            inputs: A list with a structure of arrays for each argument.

        Returns:
            A list of arrays in the order of `keras.tree.flatten`; None, after a warning
            that says why, if it cannot be run here.
        """
        with agreement.ON_CPU():
            loaded = tf.saved_model.load(str(path))  # Kept: it owns the variables.
            outputs = keras.tree.flatten(loaded.serve(*inputs))
        return [np.asarray(each) for each in outputs]


class TFLite(SavedModel):
    """A flatbuffer for LiteRT, once TensorFlow Lite."""

    name = "tflite"
    suffix = ".tflite"

    @staticmethod
    def write(model, function, specs, path):
        with tempfile.TemporaryDirectory() as folder:
            SavedModel.write(model, function, specs, pathlib.Path(folder))
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            # TensorFlow's own operations only where TFLite has none.
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
            outputs = run(**_by_name(specs, inputs))
        except RuntimeError as error:
            if "Select TensorFlow op" not in str(error):
                raise
            warnings.warn(
                f"keras_mp.export: '{path.name}' was saved but not verified. It needs "
                "TensorFlow's own operations (the Flex delegate), which this "
                "interpreter does not have. An LSTM or GRU does not need them if the "
                "batch size is fixed: input_signature=[keras.InputSpec((1, ...))].",
                stacklevel=3,
            )
            return None
        return [outputs[name] for name in _output_names(expected)]


class ONNX(SavedModel):
    """A file for ONNX Runtime and other programs that read ONNX."""

    name = "onnx"
    suffix = ".onnx"
    needs = ("tf2onnx", "onnxruntime")

    @staticmethod
    def write(model, function, specs, path):
        import onnx
        import tf2onnx

        # tf2onnx has no `Erfc`, which GELU is computed with.
        handlers = {"Erfc": (_one_minus_erf, [])}
        tf2onnx.convert.from_function(
            function, specs, custom_op_handlers=handlers, output_path=str(path)
        )
        try:
            # tf2onnx writes an operation that it does not know as if ONNX had it.
            onnx.checker.check_model(str(path))
        except onnx.checker.ValidationError as error:
            raise ValueError(
                f"keras_mp.export: model '{model.name}' cannot be written as ONNX, "
                f"because tf2onnx lacks one of its operations: {error}"
            ) from error

    @staticmethod
    def predict(path, specs, expected, inputs):
        import onnxruntime

        session = onnxruntime.InferenceSession(
            str(path), providers=["CPUExecutionProvider"]
        )
        return session.run(None, _by_name(specs, inputs))


FORMATS = {each.name: each for each in (SavedModel, TFLite, ONNX)}


def get(name: str | None, path: pathlib.Path) -> type[SavedModel]:
    """Return the format called ``name``; for None, the format of ``path``'s suffix.

    Raises:
        ValueError: There is none.
    """
    known = f"Formats are {', '.join(map(repr, FORMATS))}"
    if name is not None:
        if not isinstance(name, str) or name not in FORMATS:
            raise ValueError(f"keras_mp.export(..., format={name!r}): {known}.")
        return FORMATS[name]
    for each in FORMATS.values():
        if path.suffix == each.suffix:
            return each
    raise ValueError(
        f"keras_mp.export(..., path='{path}'): no format has the suffix "
        f"'{path.suffix}'. {known}, with the suffix .tflite, .onnx, or none for a "
        "SavedModel: pass format=... if the path is meant."
    )


def _by_name(specs: list[Any], inputs: list[Any]) -> dict[str, np.ndarray]:
    """Return the arrays of ``inputs`` by the names that ``specs`` give them."""
    names = [spec.name for spec in keras.tree.flatten(specs)]
    return dict(zip(names, keras.tree.flatten(inputs), strict=True))


def _one_minus_erf(context: Any, node: Any, name: str, arguments: Any) -> None:
    """Rewrite TensorFlow's ``Erfc`` as 1 - erf(x): a handler for `tf2onnx`.

    The error is at most float32's epsilon: where erfc(x) is smaller, the result is 0.
    """
    dtype = keras.backend.standardize_dtype(node.get_attr_value("T", "float32"))
    one = context.make_const(f"{name}_one", np.ones((), dtype)).output[0]
    erf = node.output[0]
    node.type = "Erf"
    context.insert_new_node_on_output("Sub", erf, f"{name}_sub", inputs=[one, erf])


def _interpreter(path: pathlib.Path) -> Any:
    with warnings.catch_warnings():
        # It advises another package, which is not installed with TensorFlow.
        warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter is depr")
        return tf.lite.Interpreter(str(path))


def _output_names(expected: Any) -> list[str]:
    """Return the names that TensorFlow gives the outputs of a signature."""
    if isinstance(expected, dict):
        return sorted(expected)
    return [f"output_{index}" for index in range(len(keras.tree.flatten(expected)))]
