"""Data sets, decoding, transforms and benchmarks. See `load` and `load_benchmark`."""

from ood.data.benchmark import Benchmark, Entry, benchmark_names, load_benchmark
from ood.data.images import ArrayImages, ImageSet, StreamedImages
from ood.data.loading import load
from ood.data.masked import IGNORED, MaskedImages, load_masked
from ood.data.pixmix import Mixing, PixMix
from ood.data.registry.table import DatasetInfo, info, names
from ood.data.transforms import Augment, Preprocess

__all__ = [
    "ArrayImages",
    "Augment",
    "Benchmark",
    "DatasetInfo",
    "Entry",
    "IGNORED",
    "ImageSet",
    "MaskedImages",
    "Mixing",
    "PixMix",
    "Preprocess",
    "StreamedImages",
    "benchmark_names",
    "info",
    "load",
    "load_benchmark",
    "load_masked",
    "names",
]
