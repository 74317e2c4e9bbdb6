"""Training goes on bit for bit from each kind of file, in each state of it."""

import importlib.util
import json
import os
import pathlib
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.damage import Outcome
from support.processes import run_alone, run_workers, strategy_here
from support.resumed import BATCH, OPTIMIZERS, X, Y, bytes_of, made

import keras_mp
from keras_mp import archives

SAVED = "Training that is saved in one of six ways, and goes on from the file"

# Of a window of three micro-batches, two are done after five steps.
FIRST, ALL = slice(0, 5 * BATCH), slice(0, 7 * BATCH)


def train(model, rows, callbacks=()):
    model.fit(
        X[rows],
        Y[rows],
        batch_size=BATCH,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
    )


def go_on(model):
    """Train on the rest, and return what it left."""
    train(model, slice(FIRST.stop, ALL.stop))
    return bytes_of(model)


def loaded_from(file, model):
    with model.distribute_strategy.scope():
        return keras_mp.load_model(file)


def by_keras_file(model, make, folder):
    model.save(folder / "model.keras")
    return lambda: loaded_from(folder / "model.keras", model)


def by_model_checkpoint(model, make, folder):
    file = folder / "checkpoint.keras"
    callback = keras.callbacks.ModelCheckpoint(str(file))
    callback.set_model(model)
    callback.on_epoch_end(0, {})
    return lambda: loaded_from(file, model)


def by_orbax_checkpoint(model, make, folder):
    callback = keras.callbacks.OrbaxCheckpoint(str(folder), save_on_background=False)
    callback.set_model(model)
    callback.on_epoch_end(0, {})
    callback.on_train_end()
    return lambda: loaded_from(folder, model)


def by_training_state(model, make, folder):
    keras_mp.save_training_state(model, folder / "state.npz")

    def load():
        loaded = make()
        keras_mp.load_training_state(loaded, folder / "state.npz")
        return loaded

    return load


def by_weights_and_state(model, make, folder):
    """What must be saved beside weights, which then may be loaded or not."""
    model.save_weights(folder / "model.weights.h5")
    load_state = by_training_state(model, make, folder)

    def load():
        loaded = load_state()
        loaded.load_weights(folder / "model.weights.h5")
        keras_mp.load_training_state(loaded, folder / "state.npz")
        return loaded

    return load


def by_tf_checkpoint(model, make, folder):
    path = tf.train.Checkpoint(model=model).save(str(folder / "checkpoint"))

    def load():
        loaded = make()
        tf.train.Checkpoint(model=loaded).restore(path)
        return loaded

    return load


def by_checkpoint_manager(model, make, folder):
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    tf.train.CheckpointManager(checkpoint, str(folder), max_to_keep=1).save()

    def load():
        loaded = make()
        checkpoint = tf.train.Checkpoint(model=loaded, optimizer=loaded.optimizer)
        manager = tf.train.CheckpointManager(checkpoint, str(folder), max_to_keep=1)
        manager.restore_or_initialize()
        return loaded

    return load


WAYS = [
    by_keras_file,
    by_model_checkpoint,
    by_training_state,
    by_weights_and_state,
    by_tf_checkpoint,
    by_checkpoint_manager,
]


def gone_on(make, folder, ways=WAYS):
    """Return the `Outcome` of ways to go on, lost where it is not bit for bit."""
    model = make()
    train(model, FIRST)
    loads = {}
    for way in ways:
        (folder / way.__name__).mkdir()
        loads[way.__name__] = way(model, make, folder / way.__name__)
    straight = go_on(model)
    lost = [name for name, load in loads.items() if go_on(load()) != straight]
    return Outcome(len(loads), len(loads) - len(lost), tuple(lost))


# One way of each kind: Keras's file, ours, and a checkpoint of TensorFlow.
KINDS = [by_keras_file, by_training_state, by_tf_checkpoint]

# What CI has time for: each way with the sums of a window, under which policy is told
# apart by each way too, and one of each kind with averages that overwrite.
SHORT = {
    ("mixed_bfloat16", "window"): WAYS,
    ("mixed_bfloat16", "average"): KINDS,
    ("float32", "window"): [by_keras_file, by_weights_and_state, by_checkpoint_manager],
    ("mixed_float16", "window"): [
        by_model_checkpoint,
        by_training_state,
        by_tf_checkpoint,
    ],
}
EACH = [
    *(("mixed_bfloat16", name) for name in OPTIMIZERS),
    ("float32", "window"),
    ("mixed_float16", "window"),
]


@pytest.mark.long
@pytest.mark.every(2)
@pytest.mark.parametrize("policy, optimizer", SHORT)
def test_policies_and_optimizers(policy, optimizer, tmp_path, check_faults):
    ways = SHORT[policy, optimizer]
    check_faults(SAVED, gone_on(lambda: made(policy, optimizer), tmp_path, ways))


@pytest.mark.slow
@pytest.mark.parametrize("policy, optimizer", EACH)
def test_each_way_with_each(policy, optimizer, tmp_path, check_faults):
    check_faults(SAVED, gone_on(lambda: made(policy, optimizer), tmp_path))


@pytest.mark.long
def test_keras_alone_goes_on_with_other_random_numbers(tmp_path):
    """Else nothing here would be needed."""
    model = made()
    train(model, FIRST)
    model.save(tmp_path / "model.keras")
    straight = go_on(model)
    assert go_on(keras.saving.load_model(tmp_path / "model.keras")) != straight


def check_replicas(strategy, folder, check_faults, *arguments):
    run = run_alone if strategy == "mirrored" else run_workers
    found = run(__file__, str(folder), *arguments)
    for outcome in [found] if strategy == "mirrored" else found:
        check_faults(SAVED, Outcome(*outcome))


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["mirrored", "multi-worker"])
def test_replicas(strategy, tmp_path, check_faults):
    short = ("mixed_bfloat16", "window", "KINDS")
    check_replicas(strategy, tmp_path, check_faults, *short)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["mirrored", "multi-worker"])
@pytest.mark.parametrize("policy, optimizer", EACH)
def test_each_on_replicas(strategy, policy, optimizer, tmp_path, check_faults):
    check_replicas(strategy, tmp_path, check_faults, policy, optimizer, "WAYS")


def test_another_process(tmp_path):
    model = made()
    train(model, FIRST)
    model.save(tmp_path / "model.keras")
    assert run_alone(__file__, "load", str(tmp_path / "model.keras")) == go_on(model)


@pytest.mark.long
def test_a_checkpoint_restores_random_generators_at_once(tmp_path):
    """For loops of the user's own, which never call ``fit``."""
    model = made()
    train(model, FIRST)
    seed = model.layers[1].seed_generator.state.numpy().tolist()
    path = tf.train.Checkpoint(model=model).save(str(tmp_path / "checkpoint"))
    other = made()
    assert other.layers[1].seed_generator.state.numpy().tolist() != seed
    tf.train.Checkpoint(model=other).restore(path)
    assert other.layers[1].seed_generator.state.numpy().tolist() == seed


# Keras 3.15 finds variables by path, and that of a Sequential model's is another one in
# the model that it loads: without a word it loads nothing.
@pytest.mark.long
@pytest.mark.skipif(
    importlib.util.find_spec("orbax") is None
    or not hasattr(keras.callbacks, "OrbaxCheckpoint"),
    reason="needs Keras 3.15 and pip install '.[orbax]'",
)
def test_orbax(tmp_path):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(2)(keras.layers.Dropout(0.5)(inputs))
    model = keras.Model(inputs, outputs)
    keras_mp.compile(model, OPTIMIZERS["window"](), "mse", policy="mixed_bfloat16")
    train(model, FIRST)
    load = by_orbax_checkpoint(model, None, tmp_path)
    straight = go_on(model)
    assert go_on(load()) == straight


@pytest.mark.long
def test_the_generator_of_layers_without_a_seed(tmp_path):
    """Keras's global one, which draws for `keras.random` without a seed."""

    class Noise(keras.layers.Layer):
        def call(self, x):
            return x + keras.random.normal((4,))

    def make():
        keras.backend.clear_session()
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((4,)), Noise(), keras.layers.Dense(2)])
        keras_mp.compile(model, "sgd", "mse", guard=True)
        return model

    model = make()
    train(model, FIRST)
    load = by_training_state(model, make, tmp_path)
    straight = go_on(model)
    assert go_on(load()) == straight


# What is left alone.


@pytest.mark.long
def test_plain_keras_opens_the_file(tmp_path):
    model = made()
    train(model, FIRST)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))


def test_assets_of_the_models_own_are_saved(tmp_path):
    class Own(keras.Sequential):
        def save_assets(self, folder):
            with open(f"{folder}/own.txt", "w") as file:
                file.write("own")

    model = Own([keras.Input((4,)), keras.layers.Dense(2)])
    keras_mp.compile(model, "sgd", "mse")
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        assert archive.read("assets/own.txt") == b"own"


@pytest.mark.long
def test_assets_that_the_model_loads_itself(tmp_path):
    @keras.saving.register_keras_serializable("tests")
    class Loading(keras.Sequential):
        def load_assets(self, folder):
            self.folder = folder

    model = Loading(
        [keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(2)]
    )
    keras_mp.compile(model, "sgd", "mse", guard=True)
    train(model, FIRST)
    load = by_keras_file(model, None, tmp_path)
    straight = go_on(model)
    loaded = load()
    assert loaded.folder
    assert go_on(loaded) == straight
    assert not hasattr(keras.Model, "load_assets")


@pytest.mark.long
def test_a_file_of_another_number_of_replicas_is_loaded_with_a_warning(tmp_path):
    model = made()
    train(model, FIRST)
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as old:
        parts = {name: old.read(name) for name in old.namelist()}
    (asset,) = (name for name in parts if "keras_mp" in name)
    about, arrays = archives.from_bytes(parts[asset])
    about["copies"]["seeds/0"] = 2
    arrays["seeds/0/1"] = arrays["seeds/0/0"] + 1
    parts[asset] = archives.to_bytes(about, arrays)
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as new:
        for name, content in parts.items():
            new.writestr(name, content)
    with pytest.warns(UserWarning, match="each of 2 replicas, and here it has 1.* new"):
        keras_mp.load_model(tmp_path / "model.keras")


# Files of ours.


def test_a_state_of_another_model(tmp_path):
    keras_mp.save_training_state(made(), tmp_path / "state.npz")
    other = made(optimizer="momentum")
    other.optimizer.build(other.trainable_variables)
    before = bytes_of(other)
    with pytest.raises(ValueError, match="needs a model as it was saved. .* of 'opt"):
        keras_mp.load_training_state(other, tmp_path / "state.npz")
    assert bytes_of(other) == before


def test_a_state_of_other_shapes(tmp_path):
    def net(units):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(units)])
        keras_mp.compile(model, "sgd", "mse")
        return model

    keras_mp.save_training_state(net(2), tmp_path / "state.npz")
    other = net(3)
    before = bytes_of(other)
    with pytest.raises(ValueError, match="of shape \\(4, 3\\) and dtype float32 got"):
        keras_mp.load_training_state(other, tmp_path / "state.npz")
    assert bytes_of(other) == before


def test_damaged_and_foreign_states(tmp_path):
    model, path = made(), tmp_path / "state.npz"
    keras_mp.save_training_state(model, path)
    other = made()
    before = bytes_of(other)
    path.write_bytes(path.read_bytes()[:-100])
    np.savez(tmp_path / "data.npz", x=X)
    about = {"format": "keras_mp.training_state", "version": 1, "copies": {"a": 1}}
    archives.write(tmp_path / "part.npz", about, {})
    archives.write(tmp_path / "new.npz", about | {"version": 2}, {})
    for name in ("state.npz", "data.npz", "part.npz", "new.npz"):
        with pytest.raises(ValueError, match=f"{name}.* damaged or of another kind"):
            keras_mp.load_training_state(other, tmp_path / name)
    with pytest.raises(FileNotFoundError, match="none.npz"):
        keras_mp.load_training_state(other, tmp_path / "none.npz")
    assert bytes_of(other) == before


def test_a_model_without_variables(tmp_path):
    model = keras.Sequential([keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="save_training_state.* needs .* not built"):
        keras_mp.save_training_state(model, tmp_path / "state.npz")


def on_replicas(folder, policy, optimizer, ways):
    strategy, own = strategy_here(), pathlib.Path(folder, str(os.getpid()))
    own.mkdir()
    return gone_on(lambda: made(policy, optimizer, strategy), own, globals()[ways])


if __name__ == "__main__":
    if sys.argv[1] == "load":
        print(json.dumps(go_on(keras_mp.load_model(sys.argv[2]))))
    else:
        print(json.dumps(on_replicas(*sys.argv[1:])))
