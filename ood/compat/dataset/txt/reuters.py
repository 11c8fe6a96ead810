"""News of Reuters-21578 with one topic each."""

from __future__ import annotations

from ood.compat.dataset.txt.base import NamedTopics, Topics
from ood.compat.dataset.txt.stop_words import stop_words
from ood.data.registry import info

__all__ = ["Reuters52", "Reuters8", "stop_words"]


class Reuters52(NamedTopics):
    """News of 52 topics: 6,532 for training, 2,568 for tests. Stop words are left out.

    Attributes: class2index: {topic: label}.

    Source: Lewis, Reuters-21578, 1997, as prepared by Cachopo. The words are whole, although the
        name of the file says that they are stemmed.
    """

    row = "reuters52"
    class2index = {name: label for label, name in enumerate(info("reuters52").class_names)}


class Reuters8(Topics):
    """News of the eight largest topics: 5,485 for training, 2,189 for tests, else as `Reuters52`.

    The file holds the numbers of the topics. `class2index` has their names; in pytorch-ood it has
    those of the 52 topics, whose numbers are others.
    """

    row = "reuters8"
    class2index = {name: label for label, name in enumerate(info("reuters8").class_names)}
