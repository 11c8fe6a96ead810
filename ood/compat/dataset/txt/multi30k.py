"""Multi30k."""

from __future__ import annotations

from ood.compat.dataset.txt.base import TrainOrTest


class Multi30k(TrainOrTest):
    """English descriptions of photographs: 29,000 for training, 1,014 for validation (train=False).

    Source: Elliott et al., "Multi30K: Multilingual English-German Image Descriptions", ACL workshop
        2016, arXiv 1605.00459. The words are cut apart and in lower case, as Hendrycks et al. use
        them.
    """

    row = "multi30k"
