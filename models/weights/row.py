"""What a row of the table of published weights says.

The rows themselves lie in one file per publisher beside this one; `table.py` puts them together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..classifier import require
from .transform import image_transform

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SEE_PAGE = "see page"
CONFIGS = {  # the config that tests a classifier of a data set, where its row names none
    "cifar10": "openood_cifar10",
    "cifar100": "openood_cifar100",
    "imagenet200": "openood_imagenet200",
    "imagenet": "openood_imagenet",
}


@dataclass(frozen=True)
class File:
    """A file to fetch.

    Attributes:
        urls: mirrors, tried in order; none for a file that only a person can get.
        sha256, md5: as published. A sum may be cut off: a name such as resnet50-19c8e357.pth says
            how the sha256 begins. Where no sum is known, that of the first download is recorded and
            enforced from then on.
        bytes: the size, where it is known.
        drive: id of the file on Google Drive, the last mirror.
        file: its name on disk; default: the last part of the first URL.
        folder: for an archive, the folder that it becomes; rows may share it. "": no archive.
        inside: for an archive, how the path of what is wanted in it ends.
    """

    urls: tuple[str, ...] = ()
    sha256: str | None = None
    md5: str | None = None
    bytes: int | None = None
    drive: str | None = None
    file: str | None = None
    folder: str = ""
    inside: str = ""

    @property
    def name(self) -> str:
        return self.file or self.urls[0].split("?")[0].rsplit("/", 1)[-1]

    @property
    def by_hand(self) -> bool:
        """Whether only a person can get it."""
        return not self.urls and not self.drive


@dataclass(frozen=True)
class Weights:
    """Published weights of one network.

    Attributes:
        name: <architecture>/<data set>/<loss>, and a seed or the publisher where there are several.
        arch, num_classes, options: arguments of `models.build`. For weights of a method, they
            belong to the classifier or encoder in it.
        dataset: the training set, by its name in `ood.data`.
        file: the weights.
        kind: "classifier"; "heatmap", "leaveout" or "vmdls" for the weights of a trained method;
            "autoencoder" for a part of one.
        loss, seed: what it was trained with; None: not published.
        mean, std: the normalisation of its input, in pixel units [0, 1]; None: not published.
        size: an image is first resized to this: (height, width), or its shorter side.
        crop: side of the centre crop after that; None: no crop.
        source: the page where the weights are published.
        paper: the page of the paper.
        licence: of the repository that publishes them.
        accuracy: published accuracies on the test set, fractions, by what they are: "final",
            "best", ...
        notes: what else is known of the training.
        steps: what a person has to do where no program can fetch the file; {place} stands for where
            it goes.
        config: the config in configs/ that tests it, without .json.
        needs: {setting of the method: name of the row that it comes from}.
        feature_mean: the publisher's mean training feature, which DICE takes.
    """

    name: str
    arch: str
    num_classes: int
    dataset: str
    file: File
    options: dict = field(default_factory=dict)
    kind: str = "classifier"
    loss: str | None = "crossentropy"
    seed: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | tuple[int, int] = (32, 32)
    crop: int | None = None
    source: str = ""
    paper: str = ""
    licence: str = SEE_PAGE
    accuracy: dict = field(default_factory=dict)
    notes: str = ""
    steps: str = ""
    config: str = ""
    needs: dict = field(default_factory=dict)
    feature_mean: File | None = None

    @property
    def image_size(self) -> int:
        """Side of the network's square input."""
        return self.crop or (self.size if isinstance(self.size, int) else self.size[0])

    @property
    def tested_by(self) -> str:
        """Name of the config that tests it, or ""."""
        usual = CONFIGS.get(self.dataset, "") if self.kind == "classifier" else ""
        return self.config or usual

    def place(self, file: File | None = None) -> str:
        """Return where a file of this row lies below the root."""
        file = file or self.file
        return file.folder or f"{self.name}/{file.name}"

    def transform(self):
        """Make the transform of a PIL image to the network's input; see `image_transform`.

        Raises: ModelError if the normalisation is not published.
        """
        require(
            self.mean is not None,
            f"the normalisation of '{self.name}' is not published; see {self.source}",
        )
        return image_transform(self.mean, self.std, self.size, self.crop)
