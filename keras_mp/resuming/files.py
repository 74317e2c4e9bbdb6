"""Files that go on exactly: Keras's own with what they leave out, and one of ours."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import warnings
import weakref
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_mp import archives, arguments, distribute, private
from keras_mp.resuming import packing, values
from keras_mp.resuming.values import Values
from keras_mp.saved_files import checked_path
from keras_mp.wrapping import wrap_once

# Its name among the assets of a ``.keras`` file.
_ASSET = "keras_mp_training_state.npz"


def attach(model: keras.Model) -> None:
    """Have every file that ``model`` is saved in hold what Keras's files leave out.

    That is ``model.save``, and a `tf.train.Checkpoint` of the model. Plain Keras opens
    both as before. Does nothing twice.
    """
    if not hasattr(model, "save_assets"):
        vars(model)["save_assets"] = lambda folder: None
    wrap_once(model, "save_assets", "training state", _saving(model))
    if keras.backend.backend() == "tensorflow":
        _track(model)


@contextlib.contextmanager
def restored_from(path: str | os.PathLike[str]) -> Iterator[Callable]:
    """Yield ``restore(model)``, for the model that is loaded from a path in the block.

    It gives the model what `attach` has put into the file, or nothing if the file has
    no such part. If the values are of another number of replicas, there is a warning,
    and none is restored.
    """
    found: list[bytes] = []

    def load(_: keras.Model, folder: str | None) -> None:
        if folder is None:  # a model inside, which has no part in the file
            return
        file = pathlib.Path(folder, _ASSET)
        if file.is_file():
            found.append(file.read_bytes())

    def restore(model: keras.Model) -> None:
        content = found[0] if found else _asset_of(path)
        if content is not None:
            _assign_if_fits(model, packing.unpacked(archives.from_bytes(content)))

    with private.trainer.assets_loaded_by(load):
        yield restore


def save_training_state(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Write all that training changes in ``model`` to one file.

    Weights, the states of layers, of random generators and of metrics, and the
    optimizer's variables, on every replica of this machine: with them training goes on
    bit for bit. It is what to save where ``model.save_weights`` leaves out random
    states. The file is there whole or not at all, whenever the process is killed.
    Synchronises with the device.

    Args:
        model: A built Keras model, compiled or not.
        path: The file, such as ``state.npz``. One that is there is replaced.

    Raises:
        TypeError: ``model`` is no Keras model, or ``path`` no path.
        ValueError: The model is not built.
        OSError: The file cannot be written.

    Example:

    >>> keras_mp.save_training_state(model, "state.npz")
    """
    _check("keras_mp.save_training_state", model, path)
    state = values.read(values.variables_of(model))
    archives.write(pathlib.Path(path), *packing.packed(state))


def load_training_state(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Give ``model`` what `save_training_state` has written.

    Args:
        model: A Keras model that was made and compiled in the same way, and is built.
            The variables of its optimizer are made if they are not there yet.
        path: The file.

    Raises:
        TypeError: ``model`` is no Keras model, or ``path`` no path.
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or of another model; or the model is not
            built. The model is as it was.

    Example:

    >>> keras_mp.save_training_state(model, "state.npz")
    >>> keras_mp.load_training_state(model, "state.npz")
    """
    _check("keras_mp.load_training_state", model, path)
    called = f"keras_mp.load_training_state(model, {os.fspath(path)!r})"
    try:
        state = packing.unpacked(archives.read(path))
    except archives.Damaged as error:
        raise ValueError(
            f"{called} needs a file that keras_mp.save_training_state has written. "
            f"Got one that is damaged or of another kind ({error}). Take another one."
        ) from None
    _build_optimizer(model)
    try:
        values.check_same_model(model, state)
        values.assign(model, state)
    except ValueError as error:
        raise ValueError(
            f"{called} needs a model as it was saved. Got another one: {error}."
        ) from None


def _build_optimizer(model: keras.Model) -> None:
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        with distribute.scope_of(model):
            optimizer.build(model.trainable_variables)


def _check(called: str, model: Any, path: Any) -> None:
    arguments.check_model(f"{called}(model, path)", model)
    checked_path(called, "path", path)
    if not model.built:
        raise ValueError(
            f"{called}(model, path) needs a model that has its variables. Got one that "
            "is not built. Call it on a batch, or model.build(shape), first."
        )


# In Keras's files.


def _saving(model: keras.Model) -> Callable:
    def saving(save_assets: Callable) -> Callable:
        @functools.wraps(save_assets)
        def save_with_state(folder: str) -> None:
            save_assets(folder)
            state = values.left_out_of_files(model)
            archives.write(pathlib.Path(folder, _ASSET), *packing.packed(state))

        return save_with_state

    return saving


def _asset_of(path: str | os.PathLike[str]) -> bytes | None:
    """Return it from the file, if a model has a ``load_assets`` of its own."""
    name = f"assets/{_ASSET}"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return archive.read(name) if name in archive.namelist() else None
    file = pathlib.Path(path, name)
    return file.read_bytes() if file.is_file() else None


def _assign_if_fits(model: keras.Model, state: Values) -> None:
    try:
        values.assign(model, state)
    except ValueError as error:
        warnings.warn(
            f"The states of random generators and replicas of model '{model.name}' "
            f"could not be restored: {error}. Training goes on with new ones.",
            stacklevel=3,
        )


# In TensorFlow's checkpoints.


def _track(model: keras.Model) -> None:
    """Have a `tf.train.Checkpoint` of ``model`` hold what it leaves out."""
    import tensorflow as tf

    owner = weakref.ref(model)
    pending: list[Values] = []

    class LeftOut(tf.train.experimental.PythonState):
        def serialize(self) -> bytes:
            state = values.left_out_of_files(owner())
            return archives.to_bytes(*packing.packed(state))

        def deserialize(self, content: bytes) -> None:
            state = packing.unpacked(archives.from_bytes(content))
            # TensorFlow restores the variables later, those of an optimizer that is
            # not built when it is. Random generators are not among them.
            pending[:] = [state]
            shared = {key: each for key, each in state.items() if len(each) == 1}
            _assign_if_fits(owner(), shared)

    def assigning(make: Callable) -> Callable:
        @functools.wraps(make)
        def make_with_state(*args: Any, **kwargs: Any) -> Any:
            while pending:
                _assign_if_fits(model, pending.pop())
            return make(*args, **kwargs)

        return make_with_state

    private.trainer.track(model, LeftOut(), "keras_mp_training_state")
    wrap_once(model, "make_train_function", "training state", assigning)
