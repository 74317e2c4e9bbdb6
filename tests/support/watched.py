"""A small model of named blocks, and its training, for callbacks that watch layers."""

import keras
import numpy as np

import keras_mp
from keras_mp.scaling import DynamicLossScale

LAYERS = [
    "net/first",
    "net/block_1/ffn",
    "net/block_1/norm",
    "net/block_1/drop",
    "net/block_2/ffn",
    "net/block_2/norm",
    "net/block_2/drop",
    "net/head",
]


@keras.saving.register_keras_serializable("watched")
class Coarse(keras.layers.Layer):
    """Rounds what flows back to a few bits, in low precision only: a planted fault."""

    def call(self, x):
        if x.dtype == "float32":
            return x

        @keras.ops.custom_gradient
        def coarse(x):
            def back(*args, upstream=None):
                upstream = args[0] if upstream is None else upstream
                largest = keras.ops.max(keras.ops.abs(upstream))
                return keras.ops.round(upstream / largest) * largest

            return x, back

        return coarse(x)


def data(rows=24):
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 8)).astype("float32")
    return x, x[:, :2] ** 2


def block(name, fault=None):
    """Return a model of four layers; the layer ``fault()`` is put after the first."""
    inputs = keras.Input((16,))
    hidden = keras.layers.Dense(16, activation="tanh", name="ffn")(inputs)
    if fault is not None:
        hidden = fault(name="fault")(hidden)
    hidden = keras.layers.BatchNormalization(name="norm")(hidden)
    outputs = keras.layers.Dropout(0.2, name="drop")(hidden)
    return keras.Model(inputs, outputs, name=name)


def compiled(policy="mixed_float16", scaling=None, *, faults=(None, None), **options):
    """Return a compiled model: a layer, a block for each of ``faults``, a head."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8,))
    hidden = keras.layers.Dense(16, name="first")(inputs)
    for number, fault in enumerate(faults, start=1):
        hidden = block(f"block_{number}", fault)(hidden)
    outputs = keras.layers.Dense(2, name="head", dtype="float32")(hidden)
    model = keras.Model(inputs, outputs, name="net")
    if policy == "mixed_float16":
        scaling = scaling or DynamicLossScale(initial_scale=1024.0)
    keras_mp.compile(
        model, "adam", "mse", metrics=["mae"], policy=policy, scaling=scaling, **options
    )
    return model


def fit(model, callbacks, rows=24, epochs=3, **options):
    x, y = data(rows)
    return model.fit(
        x, y, batch_size=4, epochs=epochs, verbose=0, callbacks=callbacks, **options
    ).history


def state(model):
    """Return all that training changes in ``model``, as arrays."""
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return [np.asarray(keras.ops.convert_to_numpy(each)) for each in variables]
