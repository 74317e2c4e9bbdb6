"""K3IM: transformers and mixers for images, sequences and videos."""

import keras
from k3im import cct, convmixer, fnet_1d, vit, vit_3d

from . import data
from .client import Client

TRANSFORMER = {
    "dim": 16,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 32,
    "dim_head": 8,
    "num_classes": data.CLASSES,
}


def _vit():
    return vit.ViT(image_size=32, patch_size=8, **TRANSFORMER)


def _video():
    return vit_3d.ViT3DModel(
        image_size=16,
        image_patch_size=8,
        frames=4,
        frame_patch_size=2,
        pool="mean",
        **TRANSFORMER,
    )


def _sequence():
    return fnet_1d.FNet1DModel(
        seq_len=16, patch_size=4, num_classes=data.CLASSES, dim=16, depth=2
    )


def _compact():
    return cct.CCT(
        input_shape=(32, 32, 3),
        num_heads=2,
        projection_dim=16,
        kernel_size=3,
        stride=2,
        padding=1,
        transformer_units=[32, 16],
        stochastic_depth_rate=0.0,
        transformer_layers=2,
        num_classes=data.CLASSES,
        positional_emb=True,
    )


def _mixer():
    return convmixer.ConvMixer(filters=16, depth=2, num_classes=data.CLASSES)


def _of(name, kind, build, *shape):
    def examples():
        x = data.rng().uniform(-1, 1, (data.ROWS, *shape)).astype("float32")
        return x, data.labels()

    return Client(name, kind, build, examples, _crossentropy)


def _crossentropy():
    return {
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "metrics": ["accuracy"],
    }


CLIENTS = [
    _of("k3im's ViT", "vision", _vit, 32, 32, 3),
    _of("ViT3D", "video", _video, 4, 16, 16, 3),
    _of("FNet1D", "sequence", _sequence, 16, 3),
    _of("CCT", "vision", _compact, 32, 32, 3),
    _of("ConvMixer", "vision", _mixer, 32, 32, 3),
]
