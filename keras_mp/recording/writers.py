"""Where a monitor writes what it has read: a CSV file, and TensorBoard's logs."""

from __future__ import annotations

import contextlib
import csv
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_mp.recording.measures import Measures
from keras_mp.recording.probe import Reading


class Snapshot(NamedTuple):
    """What the layers of a model did in one step.

    Attributes:
        step: The number of the step, counted over all calls of ``fit``.
        scale: The loss scale; 1 without loss scaling.
        loss: The loss, not scaled.
        layers: A dict of a layer's path to its `Reading`.
    """

    step: int
    scale: float
    loss: float
    layers: dict[str, Reading]


def _numbers(measures: Measures) -> dict[str, float]:
    return {
        "largest": measures.largest,
        "smallest": measures.smallest,
        "zeros": measures.zeros / max(measures.size, 1),
        "finite": float(measures.finite),
    }


def _columns(reading: Reading) -> dict[str, float]:
    """Return what is written of a layer: of what it returned, and of the gradients."""
    back = _numbers(reading.gradient)
    return {
        "headroom": reading.headroom,
        **_numbers(reading.output),
        "gradient_headroom": reading.gradient_headroom,
        **{f"gradient_{name}": value for name, value in back.items()},
    }


class CsvWriter:
    """Writes a row for each layer of each step that was looked at.

    Args:
        path: The file, which is written anew.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = pathlib.Path(path)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        names = _columns(Reading("float32", Measures(), Measures()))
        with self._file.open("w", newline="") as file:
            head = ("step", "scale", "loss", "layer", "dtype", *names)
            csv.writer(file).writerow(head)

    def write(self, snapshot: Snapshot) -> None:
        """Add the rows of a `Snapshot`."""
        step, scale, loss, layers = snapshot
        with self._file.open("a", newline="") as file:
            csv.writer(file).writerows(
                (step, scale, loss, path, reading.dtype, *_columns(reading).values())
                for path, reading in layers.items()
            )


@contextlib.contextmanager
def _with_os_errors() -> Iterator[None]:
    """Raise what TensorFlow raises of files as Python's own writers do."""
    try:
        yield
    except tf.errors.OpError as error:
        raise OSError(error.message) from None


class TensorBoardWriter:
    """Writes scalars and histograms of exponents, which TensorBoard shows.

    By TensorFlow alone: the package ``tensorboard`` is needed to look at them only.

    Args:
        folder: The folder of the logs.

    Raises:
        OSError: Nothing can be written there; by ``write`` too.
    """

    @_with_os_errors()
    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._writer = tf.summary.create_file_writer(os.fspath(folder))

    @_with_os_errors()
    def write(self, snapshot: Snapshot) -> None:
        """Add the scalars and histograms of a `Snapshot`."""
        with self._writer.as_default(snapshot.step), tf.summary.record_if(True):
            _scalar("numerics/scale", snapshot.scale)
            _scalar("numerics/loss", snapshot.loss)
            for path, reading in snapshot.layers.items():
                for name, value in _columns(reading).items():
                    _scalar(f"{path}/{name}", value)
                _histogram(f"{path}/exponents", reading.output)
                _histogram(f"{path}/gradient_exponents", reading.gradient)
        self._writer.flush()


def _scalar(name: str, value: float) -> None:
    metadata = _metadata("scalars", "DATA_CLASS_SCALAR")
    tf.summary.write(name, np.float32(value), metadata=metadata)


def _histogram(name: str, measures: Measures) -> None:
    """Write how many numbers have a magnitude from 2**n to below 2**(n + 1), by n."""
    bins = [(n, n + 1, count) for n, count in measures.exponents.items()]
    values = np.asarray(bins, "float64").reshape(-1, 3)
    metadata = _metadata("histograms", "DATA_CLASS_TENSOR")
    tf.summary.write(name, values, metadata=metadata)


def _metadata(plugin: str, kind: str) -> Any:
    metadata = tf.compat.v1.SummaryMetadata(data_class=kind)
    metadata.plugin_data.plugin_name = plugin
    return metadata
