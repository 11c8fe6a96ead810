"""Published weights: what there is (`names`, `find`), and networks with them (`load`)."""

from .loading import ROOT, Published, build_from, fresh, load
from .row import File, Weights
from .table import TABLE, find, names

__all__ = [
    "ROOT",
    "TABLE",
    "File",
    "Published",
    "Weights",
    "build_from",
    "find",
    "fresh",
    "load",
    "names",
]
