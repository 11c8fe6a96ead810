"""WikiText: good articles of Wikipedia, line by line."""

from __future__ import annotations

from ood.compat.dataset.txt.base import Fact, TextSet
from ood.data.registry import info


class WikiText2(TextSet):
    """Lines of Wikipedia's articles, two million words; empty lines and headings are lines too.

    `ood.data.texts.sentences` makes the sentences of them that outlier exposure trains with.

    Args: split: "train", "test" or "val".
    Raises: ValueError for another split.
    Source: Merity et al., "Pointer Sentinel Mixture Models", ICLR 2017, arXiv 1609.07843.
    """

    row = "wikitext2"
    url, md5, base_dir = Fact("url"), Fact("md5"), Fact("place")
    filenames = info("wikitext2").options["files"]

    def __init__(self, root, split, transform=None, target_transform=None, download=False):
        if split not in self.filenames:
            raise ValueError(f"Invalid split: {split}; the splits are {', '.join(self.filenames)}")
        self.split = split
        super().__init__(root, transform, target_transform, download)


class WikiText103(WikiText2):
    """The same with a hundred million words."""

    row = "wikitext103"
