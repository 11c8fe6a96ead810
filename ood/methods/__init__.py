"""Trainable methods: one paper a file, made by the name that a config gives in `method`."""

from ood.methods.base import Context, Method, get, names

__all__ = ["Context", "Method", "get", "names"]
