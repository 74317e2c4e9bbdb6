"""KerasHub: networks that see, and those that find and segment."""

import keras
import keras_hub
import numpy as np

from . import data
from .client import Client

models = keras_hub.models

IMAGE = (32, 32, 3)
TRANSFORMER = dict(num_layers=2, num_heads=2, hidden_dim=16)


def _classifier(name, backbone, faults=(), **options):
    return Client(
        name,
        "vision",
        lambda: getattr(models, f"{name}ImageClassifier")(
            backbone(), num_classes=data.CLASSES, **options
        ),
        lambda: (data.images(), data.labels()),
        faults=dict(faults),
    )


def _resnet():
    return models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 16, 16],
        stackwise_num_blocks=[1, 1, 1],
        stackwise_num_strides=[1, 2, 2],
        block_type="basic_block",
        image_shape=IMAGE,
    )


def _vit():
    return models.ViTBackbone(
        image_shape=IMAGE, patch_size=8, mlp_dim=32, **TRANSFORMER
    )


def _deit():
    return models.DeiTBackbone(
        image_shape=IMAGE, patch_size=8, intermediate_dim=32, **TRANSFORMER
    )


def _swin():
    return models.SwinTransformerBackbone(
        image_shape=IMAGE,
        embed_dim=16,
        depths=(1, 2),
        num_heads=(2, 2),
        window_size=4,
        drop_path=0.0,
    )


def _mit():
    return models.MiTBackbone(
        layerwise_depths=[1, 1],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[2, 1],
        max_drop_path_rate=0.0,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        image_shape=IMAGE,
        hidden_dims=[16, 32],
    )


def _densenet():
    return models.DenseNetBackbone(
        stackwise_num_repeats=[1, 1], growth_rate=8, image_shape=IMAGE
    )


def _vgg():
    return models.VGGBackbone(
        stackwise_num_repeats=[1, 1], stackwise_num_filters=[8, 16], image_shape=IMAGE
    )


def _xception():
    return models.XceptionBackbone(
        stackwise_conv_filters=[[8, 8], [16, 16], [16, 16]],
        stackwise_pooling=[True, True, False],
        image_shape=IMAGE,
    )


def _deeplab():
    encoder = models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 16, 16],
        stackwise_num_blocks=[1, 1, 1],
        stackwise_num_strides=[1, 2, 2],
        block_type="basic_block",
        image_shape=(64, 64, 3),
    )
    backbone = models.DeepLabV3Backbone(
        image_encoder=encoder,
        low_level_feature_key="P2",
        spatial_pyramid_pooling_key="P4",
        dilation_rates=[6, 12, 18],
        upsampling_size=4,
        image_shape=(64, 64, 3),
    )
    return models.DeepLabV3ImageSegmenter(backbone, num_classes=data.CLASSES)


def _segformer():
    return models.SegFormerImageSegmenter(
        models.SegFormerBackbone(image_encoder=_mit(), projection_filters=8),
        num_classes=data.CLASSES,
    )


def _retinanet():
    backbone = models.RetinaNetBackbone(
        image_encoder=models.ResNetBackbone(
            input_conv_filters=[64],
            input_conv_kernel_sizes=[7],
            stackwise_num_filters=[64, 16, 16, 16],
            stackwise_num_blocks=[1, 1, 1, 1],
            stackwise_num_strides=[1, 2, 2, 2],
            block_type="basic_block",
            image_shape=(64, 64, 3),
        ),
        min_level=3,
        max_level=5,
        use_p5=False,
        image_shape=(64, 64, 3),
    )
    return models.RetinaNetObjectDetector(
        backbone, num_classes=data.CLASSES, pre_logits_num_conv_layers=1
    )


def _boxes():
    boxes = np.array([[[4.0, 4, 40, 40], [20, 10, 60, 50]]] * data.ROWS, "float32")
    classes = np.array([[0.0, 2.0]] * data.ROWS, "float32")
    return data.images(64), {"boxes": boxes, "labels": classes}


def _masks(size):
    rows = data.rng().integers(0, data.CLASSES, (data.ROWS, size, size))
    return np.eye(data.CLASSES, dtype="float32")[rows]


def _clip(name):
    vision = getattr(models, f"{name}VisionEncoder")
    text = getattr(models, f"{name}TextEncoder")
    sizes = dict(num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=32)
    seen = vision(patch_size=8, image_shape=IMAGE, **sizes)
    read = text(
        vocabulary_size=data.VOCABULARY,
        embedding_dim=16,
        max_sequence_length=data.LENGTH,
        **sizes,
    )
    return seen, read


def _pairs():
    x = {"images": data.images(), "token_ids": data.ids()}
    ranks = np.eye(data.ROWS, dtype="float32")
    return x, {"vision_logits": ranks, "text_logits": ranks}


CLIENTS = [
    _classifier("ResNet", _resnet),
    _classifier("ViT", _vit),
    _classifier("DeiT", _deit),
    _classifier("SwinTransformer", _swin),
    _classifier("MiT", _mit),
    _classifier("DenseNet", _densenet),
    _classifier(
        "VGG",
        _vgg,
        pooling="avg",
        faults={"save": "KerasHub saves no dtype of it: it is loaded in float32."},
    ),
    _classifier("Xception", _xception),
    Client(
        "DeepLabV3",
        "segmentation",
        _deeplab,
        lambda: (data.images(64), _masks(64)),
    ),
    Client(
        "SegFormer",
        "segmentation",
        _segformer,
        lambda: (data.images(), _masks(32)),
    ),
    Client("RetinaNet", "detection", _retinanet, _boxes),
    Client(
        "CLIP",
        "vision and text",
        lambda: models.CLIPBackbone(*_clip("CLIP"), projection_dim=16),
        _pairs,
        lambda: dict(
            loss={
                each: keras.losses.CategoricalCrossentropy(from_logits=True)
                for each in ("vision_logits", "text_logits")
            }
        ),
    ),
    Client(
        "SigLIP",
        "vision and text",
        lambda: models.SigLIPBackbone(*_clip("SigLIP")),
        _pairs,
        faults={
            "save": "Its loss tells that the head is to be in float32. KerasHub saves "
            "neither that nor the loss; `compile` after loading tells again."
        },
    ),
]
