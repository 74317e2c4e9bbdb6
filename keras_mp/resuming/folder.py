"""A folder of backups: the last ones, each whole and checked."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Iterator

from keras_mp import archives
from keras_mp.resuming import backup
from keras_mp.resuming.backup import Backup

_NAME = "backup-{:08d}.npz"
_PATTERN = "backup-*.npz"


class Folder:
    """Backups with serial numbers.

    Args:
        path: The folder, which is made if it is not there.
        keep: How many backups stay.
    """

    def __init__(self, path: pathlib.Path, keep: int) -> None:
        self.path = path
        self._keep = keep

    def write(self, serial: int, taken: Backup) -> None:
        """Write a backup, and remove all but the last ones.

        Args:
            serial: Its number, larger than that of any backup that is to stay.
            taken: The backup.

        Raises:
            OSError: It cannot be written. Earlier ones stay.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        archives.write(self._file(serial), *backup.packed(taken))
        for number in self._serials()[: -self._keep]:
            self._file(number).unlink(missing_ok=True)

    def newest(self, up_to: float = float("inf")) -> tuple[int, Backup] | None:
        """Return the newest backup that can be read, with its number, or None.

        Warns of each that cannot, because it is damaged or another program's.

        Args:
            up_to: The largest number to look at.
        """
        for serial in reversed(self._serials()):
            if serial > up_to:
                continue
            try:
                archive = archives.read(self._file(serial))
                return serial, backup.unpacked(archive)
            except archives.Damaged as error:
                warnings.warn(
                    f"{self._file(serial)} cannot be used ({error}). Training goes on "
                    "from the backup before it.",
                    stacklevel=2,
                )
        return None

    def remove_after(self, serial: int) -> None:
        """Remove backups with larger numbers, and what a killed process left."""
        for file in self._leavings(serial):
            file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove all backups, and the folder if nothing else is in it."""
        self.remove_after(-1)
        try:
            self.path.rmdir()
        except OSError:  # not there, or not empty
            pass

    def _leavings(self, serial: int) -> Iterator[pathlib.Path]:
        yield from self.path.glob(f".{_PATTERN}.tmp")
        yield from (self._file(each) for each in self._serials() if each > serial)

    def _serials(self) -> list[int]:
        names = [file.name for file in self.path.glob(_PATTERN)]
        numbers = (name[len("backup-") : -len(".npz")] for name in names)
        serials = {int(number) for number in numbers if number.isdecimal()}
        # Not what another program wrote, such as backup-7.npz.
        return sorted(each for each in serials if _NAME.format(each) in names)

    def _file(self, serial: int) -> pathlib.Path:
        return self.path / _NAME.format(serial)
