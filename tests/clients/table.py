"""All clients, by the module that builds them."""

import importlib
import importlib.metadata

# The module, and the package on PyPI that it needs.
PACKAGES = {
    "hub_text": "keras-hub",
    "hub_vision": "keras-hub",
    "hub_generative": "keras-hub",
    "tuner": "keras-tuner",
    "recommenders": "keras-rs",
    "bayes": "bayesflow",
    "k3im_": "k3im",
    "kimm_": "kimm",
    "mdn": "keras-mdn-layer",
    "proba": "keras-proba",
}


def clients(module):
    """Return the clients of ``module``.

    Raises:
        ModuleNotFoundError: Its package is not installed.
    """
    return importlib.import_module(f".{module}", __package__).CLIENTS


def find(module, name):
    """Return one client by its name."""
    (found,) = (each for each in clients(module) if each.name == name)
    return found


def versions():
    """Return the versions of the packages, Keras and TensorFlow."""
    import keras
    import tensorflow as tf

    found = {"keras": keras.__version__, "tensorflow": tf.__version__}
    for package in dict.fromkeys(PACKAGES.values()):
        found[package] = importlib.metadata.version(package)
    return found
