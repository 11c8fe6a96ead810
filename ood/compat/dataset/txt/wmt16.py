"""WMT16."""

from __future__ import annotations

from ood.compat.dataset.txt.base import Fact, TextSet


class WMT16Sentences(TextSet):
    """The English sentences of WMT16's translation task, as Hendrycks et al. use them.

    It has a length; that of pytorch-ood has none.

    Source: Bojar et al., "Findings of the 2016 Conference on Machine Translation", WMT 2016.
    """

    row = "wmt16"
    url, md5, filename = Fact("url"), Fact("md5"), Fact("place")
