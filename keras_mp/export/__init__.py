"""A trained model as a float32 artefact: SavedModel, TFLite or ONNX."""

from keras_mp.export.api import Exported, export

__all__ = ["Exported", "export"]
