"""Sets of texts. An item is (text, label); a label of OOD data is -1.

`ood.data.texts` cuts the texts into words, numbers them and makes batches of them.
"""

from ood.compat.dataset.txt.multi30k import Multi30k
from ood.compat.dataset.txt.newsgroups import NewsGroup20
from ood.compat.dataset.txt.reuters import Reuters8, Reuters52
from ood.compat.dataset.txt.wiki import WikiText2, WikiText103
from ood.compat.dataset.txt.wmt16 import WMT16Sentences

__all__ = [
    "Multi30k",
    "NewsGroup20",
    "Reuters52",
    "Reuters8",
    "WMT16Sentences",
    "WikiText103",
    "WikiText2",
]
