"""Benchmarks under pytorch-ood's names."""

from ood.compat.benchmark.base import Benchmark

__all__ = ["Benchmark"]
