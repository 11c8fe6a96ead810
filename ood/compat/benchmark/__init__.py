"""pytorch-ood's benchmarks: an ID set, OOD sets, and one call that scores them all.

    from ood.compat.benchmark import CIFAR10_OpenOOD  # was: pytorch_ood.benchmark
    from ood.compat.detector import EnergyBased, ViM

    benchmark = CIFAR10_OpenOOD(root="datasets", transform=transform)
    detectors = [EnergyBased(model), ViM(model.features, 64, model.fc.weight, model.fc.bias)]
    benchmark.fit(detectors, loader_kwargs={"batch_size": 128})
    results = benchmark.evaluate(detectors, loader_kwargs={"batch_size": 128}, cache=True)
    benchmark.averages(results)  # over the near and over the far sets

Names, arguments, sets, order and keys are those of pytorch-ood 0.4.0. `evaluate` differs in what it
takes and costs, not in what it gives; see there. Every class names its twin in configs/benchmarks
(`json`), which `eval_ood.py` evaluates from the shell.
"""

from ood.compat.benchmark.base import Benchmark
from ood.compat.benchmark.img import (
    CIFAR10_ODIN,
    CIFAR100_ODIN,
    CUB_SSB,
    Aircraft_SSB,
    CIFAR10_OpenOOD,
    CIFAR100_OpenOOD,
    ImageNet1K_OpenOOD,
    ImageNet200_OpenOOD,
    ImageNet_OpenOOD,
    MIDOG_OpenMIBOOD,
    OASIS3_OpenMIBOOD,
    PhaKIR_OpenMIBOOD,
    StanfordCars_SSB,
)

__all__ = [
    "Aircraft_SSB",
    "Benchmark",
    "CIFAR100_ODIN",
    "CIFAR100_OpenOOD",
    "CIFAR10_ODIN",
    "CIFAR10_OpenOOD",
    "CUB_SSB",
    "ImageNet1K_OpenOOD",
    "ImageNet200_OpenOOD",
    "ImageNet_OpenOOD",
    "MIDOG_OpenMIBOOD",
    "OASIS3_OpenMIBOOD",
    "PhaKIR_OpenMIBOOD",
    "StanfordCars_SSB",
]
