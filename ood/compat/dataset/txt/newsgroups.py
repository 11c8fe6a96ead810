"""20 Newsgroups."""

from __future__ import annotations

from ood.compat.dataset.txt.base import NamedTopics
from ood.compat.dataset.txt.stop_words import stop_words
from ood.data.registry import info

__all__ = ["NewsGroup20", "stop_words"]


class NewsGroup20(NamedTopics):
    """Posts of 20 newsgroups: 11,293 for training, 7,528 for tests. Stop words are left out.

    Attributes:
        class_names: the groups; a label is the place of its group.
        class_map: {group: label}.

    Source: Lang, "NewsWeeder: Learning to Filter Netnews", ICML 1995, as prepared by Cachopo.
    """

    row = "newsgroups20"
    class_names = list(info("newsgroups20").class_names)
    class_map = {name: label for label, name in enumerate(class_names)}
