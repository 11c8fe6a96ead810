"""What the sets of texts share: they are rows of our registry, and each item is (text, label)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ood.compat.dataset.base import MissingFile, RegistrySet
from ood.data.registry import info
from ood.data.stop_words import STOP_WORDS


class Fact:
    """A class attribute that says where the row fetches a file from: pytorch-ood's `url` and so on.

    Args:
        what: "url", "md5", or "place", which is the name below the root.
        split: of the file; None: all splits are in one.
    """

    def __init__(self, what: str, split: str | None = None):
        self.what, self.split = what, split

    def __get__(self, _, owner) -> str:
        archive = next(a for a in info(owner.row).archives if a.split == self.split)
        return archive.urls[0] if self.what == "url" else getattr(archive, self.what)


class TextSet(RegistrySet):
    """Items (text, label) of one set of texts. The files lie directly below `root`.

    Args: as of `RegistrySet`; `transform` is a function of the text, a str.
    Raises: DatasetError, which is a FileNotFoundError too, if the set is missing or damaged.
    """

    error = MissingFile

    def image(self, index: int) -> str:
        """Give one text before `transform`."""
        return self.found.images[index]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} texts of '{self.found.folder}')"


class TrainOrTest(TextSet):
    """A set of texts with a file for training and one for tests.

    Args:
        train: read the training texts (True) or the others (False).
    """

    train_url, test_url = Fact("url", "train"), Fact("url", "test")
    train_md5, test_md5 = Fact("md5", "train"), Fact("md5", "test")
    train_filename, test_filename = Fact("place", "train"), Fact("place", "test")

    def __init__(
        self,
        root: str | Path,
        transform: Callable | None = None,
        target_transform: Callable | None = None,
        train: bool = True,
        download: bool = False,
    ):
        self.split, self.is_train = "train" if train else "test", train
        super().__init__(root, transform, target_transform, download)


class Topics(TrainOrTest):
    """A labelled set whose texts lose their stop words."""

    labelled = True

    def image(self, index: int) -> str:
        return " ".join(self.kept(super().image(index).split()))

    def kept(self, words: list[str]) -> list[str]:
        """Choose the words of a text that an item holds."""
        return [word for word in words if word not in STOP_WORDS]


class NamedTopics(Topics):
    """A set whose lines begin with the name of the class.

    The first word of each text is missing, as in pytorch-ood, which takes it for a part of that
    name. `ood.data.texts.load` gives the whole text.
    """

    def kept(self, words: list[str]) -> list[str]:
        return super().kept(words[1:])
