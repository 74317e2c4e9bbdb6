"""kimm: image networks whose sizes can be chosen."""

import keras
import kimm
import numpy as np

from . import data
from .client import Client

# Of four images of 32 x 32, the last normalizations would see four numbers each.
SIZE, ROWS = 64, 16
OPTIONS = dict(
    input_shape=(SIZE, SIZE, 3),
    include_preprocessing=False,
    classes=data.CLASSES,
    weights=None,
)

NETWORKS = [
    kimm.models.GhostNetW050,
    kimm.models.LCNet035,
    kimm.models.MobileViTXXS,
    kimm.models.RepVGGA0,
]

# Their names are not known to Keras, which looks for them in `kimm.models.xy`.
keras.saving.get_custom_objects().update({each.__name__: each for each in NETWORKS})


def _photos():
    x = data.rng().uniform(-1, 1, (ROWS, SIZE, SIZE, 3)).astype("float32")
    return x, np.arange(ROWS) % data.CLASSES


def _of(network):
    return Client(
        network.__name__,
        "vision",
        lambda: network(**OPTIONS),
        _photos,
        lambda: {
            "loss": "sparse_categorical_crossentropy",
            "metrics": ["accuracy"],
        },
        faults={"save": "kimm saves no dtype of it: it is loaded in float32."},
    )


CLIENTS = [_of(network) for network in NETWORKS]
