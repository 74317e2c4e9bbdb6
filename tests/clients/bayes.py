"""BayesFlow: generative models that estimate posteriors, with a train_step."""

import bayesflow as bf
import numpy as np

from . import data
from .client import Client

ROWS = 16
SMALL = {"widths": (16, 16), "dropout": 0.0}


def _simulated(set_size=5):
    """Return parameters and a set of observations of each."""
    rng = data.rng()
    means = rng.normal(size=(ROWS, 2)).astype("float32")
    noise = rng.normal(size=(ROWS, set_size, 2)).astype("float32")
    return {
        "inference_variables": means,
        "summary_variables": means[:, None] + noise,
    }


def _dataset():
    return {
        "dataset": bf.datasets.OfflineDataset(
            _simulated(), batch_size=ROWS, adapter=None, shuffle=False
        )
    }


def _approximator(network, summary):
    model = bf.ContinuousApproximator(
        inference_network=network(), summary_network=summary()
    )
    model.build({name: each.shape for name, each in _simulated().items()})
    return model


def _densities(model):
    return model.log_prob(_simulated())


def _samples(model):
    conditions = {"summary_variables": _simulated()["summary_variables"]}
    found = model.sample(num_samples=3, conditions=conditions)
    for name, each in found.items():
        assert np.isfinite(each).all(), f"{name} is not finite"


def _deep_set():
    return bf.networks.DeepSet(
        summary_dim=4,
        embed_dim=16,
        depth=1,
        mlp_widths=(16,),
        num_heads=2,
        dropout=0.0,
    )


def _transformer():
    return bf.networks.SetTransformer(
        summary_dim=4, embed_dims=(16,), num_heads=(2,), dropout=0.0
    )


def _coupling():
    return bf.networks.CouplingFlow(depth=2, subnet_kwargs=SMALL)


CLIENTS = [
    Client(
        "CouplingFlow, DeepSet",
        "generative",
        lambda: _approximator(_coupling, _deep_set),
        _dataset,
        predict=_densities,
        generate=_samples,
    ),
    Client(
        "CouplingFlow, SetTransformer",
        "generative",
        lambda: _approximator(_coupling, _transformer),
        _dataset,
        predict=_densities,
        generate=_samples,
    ),
    *(
        Client(
            network.__name__,
            "diffusion",
            lambda network=network: _approximator(
                lambda: network(subnet_kwargs=SMALL), _deep_set
            ),
            _dataset,
            predict=_densities,
            generate=_samples,
            draws=True,
        )
        for network in (bf.networks.FlowMatching, bf.networks.DiffusionModel)
    ),
]
