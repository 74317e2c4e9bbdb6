"""KerasHub: encoders, decoders, mixtures of experts, encoders with decoders."""

import keras_hub
import numpy as np

from . import data
from .client import Client

models = keras_hub.models

# Sizes by the names that most backbones share.
SMALL = dict(
    vocabulary_size=data.VOCABULARY, num_layers=2, hidden_dim=16, intermediate_dim=32
)
HEADS = dict(num_heads=2, dropout=0.0)
GROUPED = dict(num_query_heads=4, num_key_value_heads=2)


def _segmented():
    return {**data.tokens(), "segment_ids": np.zeros_like(data.ids())}


def _classifier(name, backbone, segments=False, **sizes):
    """Return a client that classifies texts."""

    def build():
        task = getattr(models, f"{name}TextClassifier")
        return task(backbone(), num_classes=data.CLASSES, dropout=0.0)

    inputs = _segmented if segments else data.tokens
    return Client(name, "encoder", build, lambda: (inputs(), data.labels()))


def _masked(name, backbone):
    """Return a client that predicts masked tokens."""

    def inputs():
        positions = np.tile([1, 3], (data.ROWS, 1)).astype("int32")
        x = {**_segmented(), "mask_positions": positions}
        return x, data.ids()[:, [1, 3]], np.ones((data.ROWS, 2), "float32")

    return Client(
        f"{name} MaskedLM",
        "encoder",
        lambda: getattr(models, f"{name}MaskedLM")(backbone()),
        inputs,
    )


def decoder(name, backbone, kind="decoder", lora=False):
    """Return a client that predicts the next token."""

    def build():
        made = backbone()
        if lora:
            made.enable_lora(2)
        return getattr(models, f"{name}CausalLM")(backbone=made, preprocessor=None)

    title = f"{name}, LoRA" if lora else name
    arguments = {"sampler": "greedy"}
    return Client(
        title,
        kind,
        build,
        data.next_tokens,
        lambda: dict(arguments),
        generate=_greedy,
        merges=lora,
    )


def _greedy(model):
    """Check that each token generated is one that the model predicts most."""
    prompt = data.ids()
    known = np.zeros_like(prompt)
    known[:, :3] = 1
    x = {"token_ids": prompt * known, "padding_mask": known}
    made = model.generate(x, stop_token_ids=None)
    logits = model.predict({**made, "padding_mask": np.ones_like(prompt)}, verbose=0)
    logits = logits[:, 2:-1].astype("float32")
    chosen = np.take_along_axis(logits, made["token_ids"][:, 3:, None], axis=-1)[..., 0]
    behind = np.max(logits.max(axis=-1) - chosen)
    # The cache and `predict` may round differently: some roundings in bfloat16.
    assert behind <= 2**-5 * np.abs(logits).max(), f"{behind} behind the best token"


def _bert():
    return models.BertBackbone(**SMALL, **HEADS)


def _gemma(**options):
    return models.GemmaBackbone(**SMALL, **GROUPED, head_dim=8, **options)


def _llama():
    return models.LlamaBackbone(**SMALL, **GROUPED)


def _gpt2():
    return models.GPT2Backbone(**SMALL, **HEADS)


ENCODERS = [
    _classifier("Bert", _bert, segments=True),
    _masked("Bert", _bert),
    _classifier("DistilBert", lambda: models.DistilBertBackbone(**SMALL, **HEADS)),
    _classifier("Roberta", lambda: models.RobertaBackbone(**SMALL, **HEADS)),
    _classifier("XLMRoberta", lambda: models.XLMRobertaBackbone(**SMALL, **HEADS)),
    _classifier(
        "DebertaV3", lambda: models.DebertaV3Backbone(**SMALL, **HEADS, bucket_size=4)
    ),
    _classifier(
        "Albert",
        lambda: models.AlbertBackbone(**SMALL, **HEADS, embedding_dim=8),
        segments=True,
    ),
]
DECODERS = [
    decoder("GPT2", _gpt2),
    decoder("GPT2", _gpt2, lora=True),
    decoder("GPTNeoX", lambda: models.GPTNeoXBackbone(**SMALL, **HEADS)),
    decoder("OPT", lambda: models.OPTBackbone(**SMALL, **HEADS)),
    decoder("Bloom", lambda: models.BloomBackbone(**SMALL, **HEADS)),
    decoder(
        "Falcon",
        lambda: models.FalconBackbone(**SMALL, num_attention_heads=2),
    ),
    decoder("Gemma", _gemma),
    decoder("Gemma", lambda: _gemma(), lora=True),
    decoder(
        "Gemma3",
        lambda: models.Gemma3Backbone(
            **SMALL, **GROUPED, head_dim=8, image_size=16, use_query_key_norm=True
        ),
    ),
    decoder("Llama", _llama),
    decoder("Llama", _llama, lora=True),
    decoder("Llama3", lambda: models.Llama3Backbone(**SMALL, **GROUPED)),
    decoder("Mistral", lambda: models.MistralBackbone(**SMALL, **GROUPED)),
    decoder("Phi3", lambda: models.Phi3Backbone(**SMALL, **GROUPED)),
    decoder("Qwen", lambda: models.QwenBackbone(**SMALL, **GROUPED)),
    decoder("Qwen3", lambda: models.Qwen3Backbone(**SMALL, **GROUPED, head_dim=8)),
]
CLIENTS = [*ENCODERS, *DECODERS]
