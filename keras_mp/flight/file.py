"""One file that holds a `Flight`: arrays of NumPy and a text in JSON, never pickled."""

from __future__ import annotations

import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from keras_mp import archives
from keras_mp.diagnosis import Culprit
from keras_mp.flight import structure
from keras_mp.recording import Batch
from keras_mp.saved_files import checked_path

_FORMAT, _VERSION = "keras_mp.flight", 1


class Flight(NamedTuple):
    """A step whose gradients were not finite, with what is needed to repeat it.

    Attributes:
        model: The name of the model.
        time: When it was, as text.
        step: The number of the step in its ``fit``, from 1.
        replica: The number of the replica; None if only the sum was not finite.
        cause: What overflowed, in words.
        culprits: A tuple of `Culprit`.
        variables: A tuple of the paths of the variables whose gradients were not
            finite.
        scales: The last loss scales as float32, the one of the step last.
        weights: A digest of the trainable weights.
        seeds: The states of the model's random generators.
        batch: The `Batch` of the replica, or some rows of it; None if left out.
        rows: The first of these rows, and the one after the last; None for all.
        left_out: Why the batch was left out; empty if it was not.
    """

    model: str
    time: str
    step: int
    replica: int | None
    cause: str
    culprits: tuple[Culprit, ...]
    variables: tuple[str, ...]
    scales: np.ndarray
    weights: str
    seeds: list[np.ndarray]
    batch: Batch | None = None
    rows: tuple[int, int] | None = None
    left_out: str = ""

    @property
    def scale(self) -> float:
        """The loss scale of the step."""
        return float(self.scales[-1])

    def text(self) -> str:
        """Return what was recorded, in words."""
        where = "" if self.replica is None else f" on replica {self.replica}"
        scales = self.scales
        lines = [
            f"recorded: {self.time}, step {self.step}{where} of model '{self.model}'",
            f"{self.cause} at the loss scale {self.scale:g}",
            f"loss scales of the last {len(scales)} steps: from {scales.min():g} to "
            f"{scales.max():g}",
        ]
        if self.rows is not None:
            first, after = self.rows
            lines.append(f"of its batch, rows {first} to {after - 1} are in the file")
        return "\n".join(lines)


def write(flight: Flight, path: pathlib.Path) -> None:
    """Write ``flight`` to a new file, which is there whole or not at all.

    Args:
        flight: The `Flight`.
        path: The file; a temporary one beside it is renamed to it at the end.

    Raises:
        OSError: It cannot be written.
    """
    form, leaves = structure.packed(flight.batch and tuple(flight.batch))
    about = flight._asdict() | {
        "format": _FORMAT,
        "version": _VERSION,
        "batch": form,
        "leaves": len(leaves),
        "seeds": len(flight.seeds),
    }
    del about["scales"]
    arrays = {"scales": np.asarray(flight.scales, "float32")}
    arrays |= {f"leaf_{index}": leaf for index, leaf in enumerate(leaves)}
    arrays |= {f"seed_{index}": seed for index, seed in enumerate(flight.seeds)}
    archives.write(path, about, arrays)


def read(path: str | os.PathLike[str]) -> Flight:
    """Return the `Flight` in a file.

    Raises:
        TypeError: ``path`` is no path.
        ValueError: There is no such file, or it holds none that can be read.
    """
    path = checked_path("keras_mp.replay", "file", path)
    damaged = "a file that is damaged or of another kind. Take another one"
    try:
        about, arrays = archives.read(path)
        is_ours = about["format"] == _FORMAT
        is_newer = about["version"] > _VERSION
        flight = _flight(about, arrays) if is_ours and not is_newer else None
    except FileNotFoundError:
        raise _refused(path, "no such file. Check the path") from None
    except (ValueError, TypeError, KeyError, IndexError):
        raise _refused(path, damaged) from None
    if flight is None:
        newer = "one of a newer version. Update keras_mp"
        raise _refused(path, newer if is_ours else damaged)
    return flight


def _refused(path: str, got: str) -> ValueError:
    return ValueError(
        f"keras_mp.replay({path!r}, model) needs a file that "
        f"keras_mp.callbacks.FlightRecorder has written. Got {got}."
    )


def _flight(about: dict[str, Any], arrays: Any) -> Flight:
    leaves = [arrays[f"leaf_{index}"] for index in range(about["leaves"])]
    batch = structure.unpacked(about["batch"], leaves)
    return Flight(
        model=about["model"],
        time=about["time"],
        step=about["step"],
        replica=about["replica"],
        cause=about["cause"],
        culprits=tuple(Culprit(*each) for each in about["culprits"]),
        variables=tuple(about["variables"]),
        scales=arrays["scales"],
        weights=about["weights"],
        seeds=[arrays[f"seed_{index}"] for index in range(about["seeds"])],
        batch=batch and Batch(*batch),
        rows=about["rows"] and tuple(about["rows"]),
        left_out=about["left_out"],
    )
