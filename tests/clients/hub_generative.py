"""KerasHub: encoders with decoders, audio, diffusion, mixtures of experts."""

import dataclasses

import keras
import keras_hub
import numpy as np
from keras_hub.src.models.flux.flux_model import FluxBackbone
from keras_hub.src.models.stable_diffusion_3.mmdit import MMDiT
from keras_hub.src.models.vae.vae_backbone import VAEBackbone

from . import data
from .client import Client
from .hub_text import GROUPED, HEADS, SMALL, decoder

models = keras_hub.models


def _pair():
    x = {
        "encoder_token_ids": data.ids(),
        "encoder_padding_mask": data.mask(),
        "decoder_token_ids": data.ids(),
        "decoder_padding_mask": data.mask(),
    }
    return x, np.roll(data.ids(), -1, axis=1), data.mask().astype("float32")


def _seq2seq(name, backbone, **options):
    return Client(
        name,
        "encoder and decoder",
        lambda: getattr(models, f"{name}Seq2SeqLM")(backbone()),
        _pair,
        **options,
    )


def _in_float32(client, *rules):
    """Return ``client`` with layers in float32: what 16 bits are too few for."""
    name = f"{client.name}, rules for float32"
    return dataclasses.replace(client, name=name, rules=rules, faults={})


def _of_sequences():
    return dict(loss="mse")


def _whisper():
    backbone = models.WhisperBackbone(
        **SMALL,
        **HEADS,
        num_mels=8,
        max_encoder_sequence_length=16,
        max_decoder_sequence_length=data.LENGTH,
    )
    decoded = backbone.output["decoder_sequence_output"]
    return keras.Model(backbone.input, keras.layers.Dense(data.VOCABULARY)(decoded))


def _speech():
    x = {
        "encoder_features": data.rng().normal(size=(data.ROWS, 16, 8)),
        "decoder_token_ids": data.ids(),
        "decoder_padding_mask": data.mask(),
    }
    x["encoder_features"] = x["encoder_features"].astype("float32")
    return x, np.roll(data.ids(), -1, axis=1)


def _crossentropy():
    return dict(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )


def _mmdit():
    return MMDiT(
        patch_size=2,
        hidden_dim=16,
        num_layers=2,
        num_heads=2,
        position_size=8,
        latent_shape=(8, 8, 4),
        context_shape=(data.LENGTH, 16),
        pooled_projection_shape=(16,),
    )


def _noisy():
    rng = data.rng()
    x = {
        "latent": rng.normal(size=(data.ROWS, 8, 8, 4)),
        "context": rng.normal(size=(data.ROWS, data.LENGTH, 16)),
        "pooled_projection": rng.normal(size=(data.ROWS, 16)),
        "timestep": rng.integers(0, 1000, (data.ROWS, 1)),
    }
    x = {name: each.astype("float32") for name, each in x.items()}
    return x, rng.normal(size=(data.ROWS, 8, 8, 4)).astype("float32")


def _vae():
    return VAEBackbone(
        [32, 32], [1, 1], [32, 32], [1, 1], sample_channels=8, sampler_method="mode"
    )


def _flux():
    return FluxBackbone(
        input_channels=8,
        hidden_size=16,
        mlp_ratio=2.0,
        num_heads=2,
        depth=1,
        depth_single_blocks=1,
        axes_dim=[2, 2, 4],
        theta=10_000,
        use_bias=True,
        image_shape=(4, 8),
        text_shape=(4, 8),
        image_ids_shape=(4, 3),
        text_ids_shape=(4, 3),
        y_shape=(16,),
    )


def _flow():
    rng = data.rng()

    def normal(*shape):
        return rng.normal(size=(data.ROWS, *shape)).astype("float32")

    ids = np.tile(np.arange(4.0)[:, None], (data.ROWS, 1, 3)).astype("float32")
    x = {
        "image": normal(4, 8),
        "image_ids": ids,
        "text": normal(4, 8),
        "text_ids": ids,
        "y": normal(16),
        "timesteps": np.linspace(0, 1, data.ROWS).astype("float32"),
        "guidance": np.ones(data.ROWS, "float32"),
    }
    return x, normal(4, 8)


def _rwkv():
    return models.RWKV7CausalLM(
        models.RWKV7Backbone(
            hidden_size=16,
            head_size=8,
            num_layers=2,
            vocabulary_size=data.VOCABULARY,
            intermediate_dim=32,
            gate_lora=8,
            mv_lora=8,
            aaa_lora=8,
            decay_lora=8,
        )
    )


T5 = _seq2seq(
    "T5",
    lambda: models.T5Backbone(**SMALL, **HEADS),
    faults={
        "train": "It adds -1e9 to hide tokens, which is infinite in float16. keras_mp "
        "says that every step is skipped, and what to do: the rule below."
    },
)
FLUX = Client(
    "Flux",
    "diffusion",
    _flux,
    _flow,
    _of_sequences,
    faults={
        "train": "It multiplies time steps by 1,000 before it takes their sine, more "
        "than 16 bits tell apart. The rule below keeps that in float32."
    },
)
RWKV = Client(
    "RWKV7",
    "recurrent",
    _rwkv,
    data.next_tokens,
    faults={
        "train": "It hides tokens by -1e9 and divides by norms of at least 1e-12, "
        "which float16 does not have. keras_mp says that every step is skipped, and "
        "what to do: the rule below."
    },
)

CLIENTS = [
    _seq2seq("Bart", lambda: models.BartBackbone(**SMALL, **HEADS)),
    T5,
    _in_float32(T5, ".*attention"),
    Client("Whisper", "audio", _whisper, _speech, _crossentropy),
    Client("StableDiffusion3's MMDiT", "diffusion", _mmdit, _noisy, _of_sequences),
    FLUX,
    _in_float32(FLUX, "timestep_embedding.*"),
    Client(
        "VAE",
        "generative",
        _vae,
        lambda: (data.images(16), data.images(16)),
        _of_sequences,
    ),
    decoder(
        "Mixtral",
        lambda: models.MixtralBackbone(**SMALL, **GROUPED, num_experts=4),
        kind="mixture of experts",
    ),
    decoder(
        "Qwen3Moe",
        lambda: models.Qwen3MoeBackbone(
            **SMALL,
            **GROUPED,
            head_dim=8,
            moe_intermediate_dim=16,
            num_experts=4,
            top_k=2,
        ),
        kind="mixture of experts",
    ),
    decoder(
        "GptOss",
        lambda: models.GptOssBackbone(**SMALL, **GROUPED, num_experts=4),
        kind="mixture of experts",
    ),
    RWKV,
    _in_float32(RWKV, "RWKV_TIME_MIX"),
]
