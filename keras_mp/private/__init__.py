"""All that Keras and TensorFlow keep private or lack, by subject, and why it is needed.

Every function here is tested on the oldest and the newest supported Keras.
"""

from keras_mp.private import (
    attention,
    attributes,
    devices,
    draws,
    epochs,
    errors,
    graphs,
    kernels,
    layers,
    optimizers,
    tensors,
    tracing,
    trainer,
    variables,
)

__all__ = [
    "attention",
    "attributes",
    "devices",
    "draws",
    "epochs",
    "errors",
    "graphs",
    "kernels",
    "layers",
    "optimizers",
    "tensors",
    "tracing",
    "trainer",
    "variables",
]
