"""What a row of the table of data sets says.

The rows themselves lie in one file per family beside this one; `table.py` puts them together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))  # DICE and VMDLS: CIFAR-100 too
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GREY = ((0.5,), (0.5,))
SEE_PAGE = "see page"
IMAGENET_TERMS = "ImageNet terms of access (non-commercial research)"
DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
SVHN_PER_LABEL = 1000  # DICE's select_svhn_data.py keeps the first 1000 images of each label
DOWNLOAD = "`python3 scripts/download_data.py {name}{flag} -data_dir {data_dir}`"
# Where pip installed the library there are no scripts, and messages name the argument instead.
SCRIPTS = (Path(__file__).resolve().parents[3] / "scripts" / "download_data.py").is_file()


@dataclass(frozen=True)
class Archive:
    """A file to fetch, and what it becomes under the data root.

    Attributes:
        urls: mirrors, tried in order; none for a file that only a person can get.
        place: the folder that it becomes (the file, where `unpack` is false). It appears there
            whole or not at all.
        inside: the part of the archive that becomes `place`; "" takes all of it.
        md5, sha256, bytes: as published by the source, or as other libraries enforce them. Where
            neither sum is known, the sha256 of the first download is recorded in the lock file and
            enforced from then on (trust on first use).
        choose: take only this many of its images, a seeded choice.
        drive: id of the file on Google Drive, the last mirror.
        file: its name on disk; default: the last part of the first URL.
        split: the only split that needs it; None: all do.
    """

    urls: tuple[str, ...]
    place: str
    inside: str = ""
    md5: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    unpack: bool = True
    choose: int | None = None
    drive: str | None = None
    file: str | None = None
    split: str | None = None

    @property
    def name(self) -> str:
        return self.file or self.urls[0].split("?")[0].rsplit("/", 1)[-1]

    @property
    def mirrors(self) -> tuple[str, ...]:
        return self.urls + ((DRIVE.format(self.drive),) if self.drive else ())

    @property
    def by_hand(self) -> bool:
        """Whether only a person can get it (a form, a login)."""
        return not self.mirrors


@dataclass(frozen=True)
class DatasetInfo:
    """One data set.

    Attributes:
        role: "id" (labelled; may serve as an OOD set too) or "ood" (labels are -1).
        reader: key of `readers.READERS`.
        folders: places under the data root, looked at in order; {split} stands for the names in
            `splits`.
        splits: for each split, the folder names that may hold it.
        mean, std: default normalisation, in pixel units (0..1).
        size, resize: usual input side, and usual shorter side before the crop.
        count: published number of images per split.
        fetch: how to get the set where `archives` cannot say it.
        torchvision: name of torchvision's class, where that reads the files.
        archives: files to download.
        needs: other sets that have to be there first.
        prepare: key of `prepare.STAGED` or `prepare.AFTER`: what is done after the download.
        steps: what a person has to do where no program may.
        options: for the reader.
    """

    name: str
    role: str
    reader: str
    folders: tuple[str, ...] = ()
    splits: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {"train": ("",), "test": ("",)}
    )
    mean: tuple[float, ...] = HALF[0]
    std: tuple[float, ...] = HALF[1]
    size: int = 32
    resize: int | None = None
    channels: int = 3
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    count: dict[str, int] = field(default_factory=dict)
    layout: str = ""
    source: str = ""
    licence: str = SEE_PAGE
    fetch: str = ""
    torchvision: str | None = None
    archives: tuple[Archive, ...] = ()
    needs: tuple[str, ...] = ()
    prepare: str | None = None
    steps: str = ""
    aliases: tuple[str, ...] = ()
    options: dict = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """What the set holds, for messages."""
        return "texts" if self.reader == "texts" else "images"

    def how(self, data_dir: object = "datasets", again: bool = False) -> str:
        """Say in one line how to get the set; `again`: it is there, but damaged or not whole."""
        if self.fetch:
            return self.fetch.format(data_dir=data_dir)
        if not SCRIPTS:
            return f"give download=True to fetch it{' again' if again else ''}"
        if again:
            return f"add -download to fetch it again, or use {self.command(data_dir, ' -replace')}"
        return f"add -download, or fetch it with {self.command(data_dir)}"

    def by_hand(self, data_dir: object = "datasets") -> str:
        """Say in one line what a person has to do where `archives` do not give the whole set."""
        if self.fetch:
            return self.fetch.format(data_dir=data_dir)
        return f"{self.command(data_dir, ' -dry_run')} lists what you have to do yourself"

    def command(self, data_dir: object, flag: str = "") -> str:
        """Give the command that fetches the set."""
        return DOWNLOAD.format(name=self.name.partition(":")[0], flag=flag, data_dir=data_dir)
