"""The base class for image sets of your own, by pytorch-ood's four class attributes."""

from __future__ import annotations

from pathlib import Path

from ood.compat.dataset.base import RegistrySet
from ood.data.registry import Archive, DatasetInfo


class ImageDatasetBase(RegistrySet):
    """Images of one archive of your own, with the label -1.

    A subclass either names a row of our registry (`row`), or sets the four class attributes of
    pytorch-ood. Then the row is made of these: the archive is fetched from `url`, verified, and
    unpacked below `root`.

    Attributes:
        base_folder: folder of the images below `root`, which is also their folder in the archive.
        url, filename, md5hash: the archive: its address, its name, its md5 (None: unknown).
    """

    base_folder: str | None = None
    url: str | None = None
    filename: str | None = None
    md5hash: str | None = None

    def __init__(self, root, transform=None, target_transform=None, download=False):
        if getattr(self, "row", None) is None:
            self.row = self._row()
        super().__init__(root, transform, target_transform, download)

    def _row(self) -> DatasetInfo:
        folder = Path(self.base_folder)
        place = folder.parts[0]
        archive = Archive((self.url,), place, place, md5=self.md5hash, file=self.filename)
        name = type(self).__name__
        return DatasetInfo(name, "ood", "folder", (folder.as_posix(),), archives=(archive,))
