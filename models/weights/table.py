"""The table of published weights: a row for each name."""

from __future__ import annotations

from ..classifier import one_of
from . import openood, papers, pytorch_ood
from .row import Weights

FAMILIES = (papers, openood, pytorch_ood)
TABLE: dict[str, Weights] = {row.name: row for family in FAMILIES for row in family.ROWS}


def names() -> list[str]:
    """Return the names of all published weights, sorted."""
    return sorted(TABLE)


def find(name: str) -> Weights:
    """Return the row of a name.

    Raises: ModelError for an unknown name; the message lists the nearest ones.
    """
    one_of("weights", name, TABLE)
    return TABLE[name]
