"""The sets of OpenOOD v1.5 that are no part of another collection here.

OpenOOD publishes archives on Google Drive, without checksums. Where the set's own authors publish
the same images with a checksum, these are fetched (iNaturalist, OpenImage-O, ImageNet-V2).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath

from ood.compat.dataset.base import check_choice
from ood.compat.dataset.img.base import ImageDatasetBase
from ood.data.registry import Archive, DatasetInfo
from ood.data.registry.imagenet import OPENIMAGE_O, openimage_o_files


class OpenOOD(ImageDatasetBase):
    """Images of one archive on Google Drive, with the label -1.

    A subclass names a row of our registry, or sets pytorch-ood's class attributes.

    Attributes:
        gdrive_id, filename: the archive: its id on Google Drive, its name.
        target_dir: folder below `root` that it is unpacked into.
        base_folder: folder of the images below `root`.
    """

    gdrive_id: str | None = None
    target_dir: str | None = None

    def _row(self) -> DatasetInfo:
        folder = Path(self.base_folder).as_posix()
        archive = Archive((), self.target_dir, drive=self.gdrive_id, file=self.filename)
        return DatasetInfo(type(self).__name__, "ood", "folder", (folder,), archives=(archive,))


class iNaturalist(OpenOOD):
    """10,000 images of 110 plants. Labels are -1.

    Source: Huang and Li, "MOS: towards scaling out-of-distribution detection for large semantic
    space", CVPR 2021, arXiv 2105.01879.
    """

    row = "iNaturalist"


class OpenImagesO(OpenOOD):
    """OpenImage-O by OpenOOD's lists, in their order: 15,869 images for test, 1,763 for val.

    Labels are -1.

    Args:
        subset: "test" or "val".

    Raises: ValueError for another subset (an AssertionError in pytorch-ood). DatasetError if an
        image of the list is missing.

    Source: Wang et al., "ViM: out-of-distribution with virtual-logit matching", CVPR 2022, arXiv
    2203.10807; the lists: Zhang et al., arXiv 2306.09301.
    """

    row = "openimage_o"

    def __init__(self, root, subset="test", transform=None, target_transform=None, download=False):
        check_choice("subset", subset, list(OPENIMAGE_O))
        super().__init__(root, transform, target_transform, download)
        place = {PurePosixPath(path).name: path for path in self.found.paths}
        wanted = openimage_o_files(subset)
        absent = [name for name in wanted if name not in place]
        if absent:
            raise self.error(
                f"'{self.found.folder}' lacks {len(absent):,} of the {len(wanted):,} images of "
                f"OpenImage-O ({subset}), e.g. '{absent[0]}'; remove it, and give download=True"
            )
        self.found = replace(self.found, paths=[place[name] for name in wanted], labels=None)


class Places365(OpenOOD):
    """36,500 images of scenes. Labels are -1.

    Benchmarks for CIFAR leave out the images that show a class of CIFAR. This set has them all.

    Source: Zhou et al., "Places: a 10 million image database for scene recognition", PAMI 2017.
    """

    row = "places365_whole"


class ImageNetV2(OpenOOD):
    """A second test set for ImageNet: 10 images for each of the 1,000 classes.

    Labels are the classes 0 to 999, the names of the folders. Transforms are applied; pytorch-ood
    ignores them for this set.

    Source: Recht et al., "Do ImageNet classifiers generalize to ImageNet?", ICML 2019, arXiv
    1902.10811.
    """

    row, labelled = "imagenet_v2", True


class ImageNetES(OpenOOD):
    """64,000 photographs of 200 classes of ImageNet under other light and camera settings.

    Labels are ImageNet's, 0 to 999. Transforms are applied; pytorch-ood ignores them for this set.

    Source: Baek et al., "Unexplored faces of robustness and out-of-distribution", CVPR 2024, arXiv
    2404.15882.
    """

    row, labelled = "imagenet_es_whole", True


class SSBHard(OpenOOD):
    """49,000 images of the hard unknown classes of the Semantic Shift Benchmark. Labels are -1.

    Source: Vaze et al., "Open-set recognition: a good closed-set classifier is all you need?", ICLR
    2022, arXiv 2110.06207.
    """

    row = "ssb_hard"
