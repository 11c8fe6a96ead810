"""Rows of the table: the ResNet-18 triples of OpenOOD v1.5.

One archive per training set, on Google Drive, holds s0/best.ckpt, s1/best.ckpt and s2/best.ckpt.
OpenOOD publishes no checksums.
"""

from __future__ import annotations

from .row import IMAGENET, File, Weights

SOURCE = "https://github.com/Jingkang50/OpenOOD"
# {training set: (id on Google Drive, recipe in the name of its folder, arguments of `Weights`)}
SETS = {
    "cifar10": (
        "1byGeYxM_PlLjT72wZsMQvP6popJeWBgt", "resnet18_32x32_base_e100_lr0.1_default",
        dict(
            arch="resnet18", num_classes=10,
            mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
        ),
    ),
    "cifar100": (
        "1s-1oNrRtmA0pGefxXJOUVRYpaoAML0C-", "resnet18_32x32_base_e100_lr0.1_default",
        dict(
            arch="resnet18", num_classes=100,
            mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761),
        ),
    ),
    "imagenet200": (
        "1ddVmwc8zmzSjdLUO84EuV4Gz1c7vhIAs", "resnet18_224x224_base_e90_lr0.1_default",
        dict(arch="torchvision_resnet18", num_classes=200, size=256, crop=224, **IMAGENET),
    ),
}
# Accuracies on the validation set, as the names of the files beside best.ckpt say them.
VALIDATION = {
    ("cifar100", "s0"): 0.7810, ("cifar100", "s1"): 0.7710, ("imagenet200", "s0"): 0.8500,
}


def _row(dataset: str, seed: str) -> Weights:
    drive, recipe, details = SETS[dataset]
    accuracy = VALIDATION.get((dataset, seed))
    epochs = recipe.partition("_e")[2].partition("_")[0]
    return Weights(
        f"resnet-18/{dataset}/crossentropy/openood-{seed}", dataset=dataset, seed=seed,
        file=File(
            drive=drive, file=f"{dataset}_res18_v1.5.zip",
            folder=f"openood/{dataset}_resnet18", inside=f"{seed}/best.ckpt",
        ),
        source=SOURCE, paper="https://arxiv.org/abs/2306.09301", licence="MIT (repository)",
        accuracy={"validation": accuracy} if accuracy else {},
        notes=f"{dataset}_{recipe}: SGD, {epochs} epochs, lr 0.1", **details,
    )


ROWS = tuple(_row(dataset, seed) for dataset in SETS for seed in ("s0", "s1", "s2"))
