"""Trainable methods: a room per paper. A config names one of them in its key `method`."""

from ood.methods.base import Context, Method, get, names

__all__ = ["Context", "Method", "get", "names"]
