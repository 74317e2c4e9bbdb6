"""KerasRS: recommenders."""

import keras
import keras_rs
import numpy as np

from . import data
from .client import Client

ROWS, USERS, ITEMS = 8, 50, 60


def _ids(size, *shape):
    return data.rng().integers(0, size, (ROWS, *shape)).astype("int32")


def _crossed():
    """Return a Deep & Cross network on three features."""
    inputs = [keras.Input((1,), dtype="int32", name=name) for name in "abc"]
    x = keras.layers.Concatenate()(
        [
            keras.layers.Flatten()(keras.layers.Embedding(USERS, 8)(each))
            for each in inputs
        ]
    )
    crossed = x
    for _ in range(2):
        crossed = keras_rs.layers.FeatureCross(projection_dim=8)(x, crossed)
    deep = keras.layers.Dense(16, activation="relu")(crossed)
    return keras.Model(inputs, keras.layers.Dense(1)(deep))


def _interacting():
    """Return a network as DLRM's: dot products of embeddings and a dense feature."""
    dense = keras.Input((4,), name="numbers")
    ids = [keras.Input((), dtype="int32", name=name) for name in "ab"]
    found = [keras.layers.Embedding(USERS, 8)(each) for each in ids]
    found.append(keras.layers.Dense(8, activation="relu")(dense))
    x = keras.layers.Concatenate()([keras_rs.layers.DotInteraction()(found), found[-1]])
    x = keras.layers.Dense(16, activation="relu")(x)
    return keras.Model([dense, *ids], keras.layers.Dense(1, "sigmoid")(x))


def _pooled():
    """Return a model that reduces the embeddings of a basket, with weights."""
    items = keras.Input((5,), dtype="int32", name="items")
    weights = keras.Input((5,), name="weights")
    x = keras_rs.layers.EmbedReduce(ITEMS, 8, combiner="mean")(items, weights)
    return keras.Model([items, weights], keras.layers.Dense(1)(x))


@keras.saving.register_keras_serializable("clients")
class TwoTowers(keras.Model):
    """Users and items, trained by retrieval within the batch."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.users = keras.layers.Embedding(USERS, 8)
        self.items = keras.layers.Embedding(ITEMS, 8)
        self.ids = keras_rs.layers.RemoveAccidentalHits()
        self.hard = keras_rs.layers.HardNegativeMining(num_hard_negatives=4)

    def build(self, shapes):
        self.users.build(shapes["user"])
        self.items.build(shapes["item"])

    def call(self, x):
        users, items = self.users(x["user"]), self.items(x["item"])
        scores = keras.ops.matmul(users, keras.ops.transpose(items))
        labels = keras.ops.eye(ROWS, dtype=scores.dtype)
        scores = self.ids(scores, labels, candidate_ids=x["item"])
        scores, labels = self.hard(scores, labels)
        return {"scores": scores, "labels": labels}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **kwargs):
        return keras.ops.mean(
            keras.losses.categorical_crossentropy(
                y_pred["labels"], y_pred["scores"], from_logits=True
            )
        )


def _towers():
    model = TwoTowers()
    model(_towers_data()[0])
    return model


def _towers_data():
    return ({"user": _ids(USERS), "item": _ids(ITEMS)},)


def _ranking():
    """Return a network that scores the items of a list."""
    items = keras.Input((6, 4), name="items")
    x = keras.layers.Dense(16, activation="relu")(items)
    x = keras.layers.Dense(1)(x)
    return keras.Model(items, keras.layers.Reshape((6,))(x))


def _lists():
    rng = data.rng()
    relevance = rng.integers(0, 3, (ROWS, 6)).astype("float32")
    return rng.normal(size=(ROWS, 6, 4)).astype("float32"), relevance


def _ranked(loss):
    return lambda: {"loss": loss(), "metrics": [keras_rs.metrics.NDCG(k=3)]}


def _rating():
    return data.rng().uniform(1, 5, (ROWS, 1)).astype("float32")


def _clicks():
    return np.arange(ROWS)[:, None] % 2


CLIENTS = [
    Client(
        "FeatureCross",
        "recommender",
        _crossed,
        lambda: ([_ids(USERS, 1)] * 3, _rating()),
        lambda: {"loss": "mse"},
    ),
    Client(
        "DotInteraction",
        "recommender",
        _interacting,
        lambda: (
            [data.rng().normal(size=(ROWS, 4)).astype("float32"), *[_ids(USERS)] * 2],
            _clicks(),
        ),
        lambda: {"loss": "binary_crossentropy", "metrics": ["accuracy"]},
    ),
    Client(
        "EmbedReduce",
        "recommender",
        _pooled,
        lambda: ([_ids(ITEMS, 5), np.ones((ROWS, 5), "float32")], _rating()),
        lambda: {"loss": "mse"},
    ),
    Client("HardNegativeMining", "recommender", _towers, _towers_data),
    *(
        Client(loss.__name__, "recommender", _ranking, _lists, _ranked(loss))
        for loss in (
            keras_rs.losses.ListMLELoss,
            keras_rs.losses.PairwiseLogisticLoss,
            keras_rs.losses.PairwiseHingeLoss,
        )
    ),
]
