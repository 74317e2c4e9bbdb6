"""kimm: image networks whose sizes can be chosen."""

import keras
import kimm

from . import data
from .client import Client

OPTIONS = dict(
    input_shape=(32, 32, 3),
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


def _of(network):
    return Client(
        network.__name__,
        "vision",
        lambda: network(**OPTIONS),
        lambda: (data.images(), data.labels()),
        lambda: {
            "loss": "sparse_categorical_crossentropy",
            "metrics": ["accuracy"],
        },
    )


CLIENTS = [_of(network) for network in NETWORKS]
