"""All clients."""

import importlib
import importlib.util

MODULES = {
    "hub_text": "keras_hub",
    "hub_vision": "keras_hub",
    "hub_generative": "keras_hub",
    "tuner": "keras_tuner",
    "recommenders": "keras_rs",
    "kimm_": "kimm",
    "bayes": "bayesflow",
    "mdn": "keras_mdn_layer",
    "proba": "keras_proba",
}


def clients(words=()):
    """Yield all clients of the packages that are here, or those with a word."""
    for module, package in MODULES.items():
        if importlib.util.find_spec(package):
            for each in importlib.import_module(f".{module}", __package__).CLIENTS:
                if not words or any(word in (module, each.name) for word in words):
                    yield each
