"""Rows of the table: what the papers of this repository, and two of its neighbours, published.

DICE, outlier exposure, PixMix, the leave-out ensemble, the heatmap decoder, VMDLS, and the CIFAR
ResNets of He et al. in a well-known implementation.
"""

from __future__ import annotations

from .pytorch_ood import EXPOSURE, PAPERS, TORCHVISION, WRN
from .row import HALF, IMAGENET, File, Weights

CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}  # DICE, VMDLS

# DICE: the repository holds weights and statistics; sums computed from its files.
DICE = "https://github.com/deeplearning-wisc/dice"
RAW = "https://raw.githubusercontent.com/deeplearning-wisc/dice"
WEIGHTS_AT = "ca6c275c5e1948858a911ea40924d6d5c412aac2"  # commits: mirrors that cannot change
MEANS_AT = "43896f8142f63159226228f4166afbbfcde7eb89"


def _dice_file(path: str, commit: str, sha256: str, size: int) -> File:
    return File((f"{RAW}/{commit}/{path}", f"{DICE}/raw/HEAD/{path}"), sha256, bytes=size)


def _dice_mean(name: str, sha256: str, size: int) -> File:
    return _dice_file(f"cache/{name}_feat_stat.npy", MEANS_AT, sha256, size)


def _dice(classes: int, sha256: str, size: int, mean: File) -> Weights:
    """Make the row of a DenseNet-BC (depth 100, growth 12) of the DICE authors."""
    path = f"checkpoints/CIFAR-{classes}/densenet/checkpoint_100.pth.tar"
    return Weights(
        f"densenet-100-12/cifar{classes}/crossentropy/dice", "densenet", classes, f"cifar{classes}",
        _dice_file(path, WEIGHTS_AT, sha256, size), options={"depth": 100}, source=DICE,
        paper="https://arxiv.org/abs/2111.09805", licence="MIT (repository)",
        notes="SGD, 100 epochs, batch size 64", config=f"dice_cifar{classes}", feature_mean=mean,
        **CIFAR,
    )


# He et al.: depths 20 to 110 by Y. Idelbayev; a file's name says how its sha256 begins.
AKAMASTER = "https://github.com/akamaster/pytorch_resnet_cifar10"


def _akamaster(depth: int, sha256: str, published: float, **details) -> Weights:
    url = f"{AKAMASTER}/raw/master/pretrained_models/resnet{depth}-{sha256[:8]}.th"
    return Weights(
        f"resnet-{depth}/cifar10/crossentropy", f"resnet{depth}", 10, "cifar10",
        File((url,), sha256, **details), source=AKAMASTER, paper="https://arxiv.org/abs/1512.03385",
        licence="BSD-2-Clause (repository)", accuracy={"published": published}, **IMAGENET,
    )


# Outlier exposure: networks beside the two that pytorch-ood loads too.


def _exposure(classes: int, kind: str, accuracy: float) -> Weights:
    """Make the row of a Wide ResNet in the repository of outlier exposure."""
    loss = {"oe_scratch": "oe", "baseline": "crossentropy"}[kind]
    outliers = "; outliers: 80 Million Tiny Images" if loss == "oe" else ""
    path = f"CIFAR/snapshots/{kind}/cifar{classes}_wrn_{kind}_epoch_99.pt"
    return Weights(
        f"wrn-40-2/cifar{classes}/{loss}/hendrycks-{kind.removeprefix('oe_')}", "wrn", classes,
        f"cifar{classes}", File((f"{EXPOSURE}/raw/master/{path}",)), options=WRN, loss=loss,
        source=EXPOSURE, paper="https://arxiv.org/abs/1812.04606", accuracy={"final": accuracy},
        notes=f"100 epochs from scratch{outliers}", **PAPERS,
    )


def _pixmix(classes: int) -> Weights:
    """Make the row of a Wide ResNet 40-4 that was trained with PixMix."""
    return Weights(
        f"wrn-40-4/cifar{classes}/pixmix", "wrn", classes, f"cifar{classes}",
        File((f"https://cse.ovgu.de/files/cifar{classes}-pixmix.pt",)), loss="crossentropy",
        options={"depth": 40, "width": 4}, source="https://github.com/andyzoujm/pixmix",
        paper="https://arxiv.org/abs/2112.05135", notes="augmented with PixMix, 100 epochs", **HALF,
    )


# The leave-out ensemble: one archive holds the five folds of a setting.
LEAVEOUT = "https://github.com/YU1ut/Ensemble-of-Leave-out-Classifiers"


def _leaveout(classes: int, arch: str, word: str, dropbox: str, **options) -> Weights:
    archive = f"cifar{classes}_{word}.tar.gz"
    network = {"densenet": "densenet", "wrn": "wideresnet"}[arch]
    return Weights(
        f"leaveout/cifar{classes}/{arch}", arch, classes, f"cifar{classes}",
        File(
            (f"https://www.dropbox.com/s/{dropbox}/{archive}?dl=1",), file=archive,
            folder=f"leaveout/cifar{classes}_{word}",
            inside=f"cifar{classes}_fold_1_{word}_checkpoint",
        ),
        kind="leaveout", options=options, loss="leaveout", source=LEAVEOUT,
        paper="https://arxiv.org/abs/1809.03576", config=f"cifar{classes}_{network}_leaveout",
        notes="five folds, each with a fifth of the classes left out", **PAPERS,
    )


# The heatmap decoder: classifiers and decoders are in two shared folders of a university.
HEATMAP = "https://github.com/jhornauer/heatmap_ood"
CLASSIFIERS = "https://cloudstore.uni-ulm.de/s/Wtpcebb3i4NXDcp"
DECODERS = "https://cloudstore.uni-ulm.de/s/9mCCHeXfHNDFKmk"


def _heatmap(
    dataset: str, classes: int, arch: str, size: int, suffix: str = "", **options,
) -> tuple[Weights, Weights]:
    """Make the rows of a classifier and of the decoder that belongs to it."""
    shared = dict(
        arch=arch, num_classes=classes, dataset=dataset, options=options, size=(size, size),
        paper="https://arxiv.org/abs/2211.08115", licence="Apache-2.0 (repository)", **HALF,
    )
    classifier = Weights(
        f"{arch}/{dataset}/crossentropy/heatmap",
        file=File(file=f"{dataset}_{arch}{suffix.replace('x', '_')}.pt"), source=CLASSIFIERS,
        steps="open the page, download the classifier of this name, save it as '{place}'",
        **shared,
    )
    decoder = Weights(
        f"heatmap/{dataset}/{arch}", kind="heatmap", loss="heatmap", file=File(file="model.pt"),
        source=DECODERS, needs={"classifier": classifier.name},
        config=f"{dataset}_{arch}{suffix}_ood",
        steps="open the page, download model.pt of this setting, save it as '{place}'",
        notes="one of the five runs that the paper averages", **shared,
    )
    return classifier, decoder


# VMDLS (github.com/BGU-CS-VIL/vmdls): everything is in one folder on Google Drive.
VMDLS_DRIVE = "https://drive.google.com/drive/folders/10lGq9LNyaWhFaN0eCGQd_sMaTob87ZaL"
VMDLS_DETAILS = {"loss": "vmdls", "source": VMDLS_DRIVE, "licence": "GPL-3.0 (repository)"}
FROM_DRIVE = "open the page, download {name}, save it as '{{place}}'"


def _vmdls(
    name: str, dataset: str, classes: int, arch: str, file: str, *, kind: str = "vmdls",
    urls: tuple[str, ...] = (), **details,
) -> Weights:
    grey = dataset == "mnist"
    normal = {"mean": (0.5,), "std": (0.5,), "size": (28, 28)} if grey else dict(CIFAR)
    return Weights(
        name, arch, classes, dataset, File(urls, file=file), kind=kind,
        paper="https://openreview.net/forum?id=ScLeuUUi9gq",
        steps="" if urls else FROM_DRIVE.format(name=file),
        **{**VMDLS_DETAILS, **normal, **details},
    )


BOLTS = "https://pl-bolts-weights.s3.us-east-2.amazonaws.com/ae/ae-cifar10/checkpoints"
CIFAR10_AE, CIFAR100_AE = "autoencoder/cifar10/vmdls", "autoencoder/cifar100/vmdls"
MNIST_AE = "autoencoder/mnist/vmdls"
UNKNOWN = {"mean": None, "std": None}  # normalisation

ROWS = (
    _dice(
        10, "deaefd082911a1c6c92aacdcfecf03c71b932acc5c08b779c85c44eccdc0c817", 3_381_795,
        _dice_mean(
            "CIFAR-10_densenet",
            "e9aa39f06dabfb58ae09d9d8f3141b5f88ffa0c954b369bf3af79b061d2ce7ef", 2864,
        ),
    ),
    _dice(
        100, "56cbe261c2612976e11aedcbd60ba00766e8c01c78f96c3f18ff561ead804d47", 3_505_315,
        _dice_mean(
            "CIFAR-100_densenet",
            "6183e3887c89cd0b241a1a2cf2dff4d108c2630f1d0805f2c85b9e3a35fed7f6", 2864,
        ),
    ),
    Weights(
        "resnet-50/imagenet1k/crossentropy/v1", "torchvision_resnet50", 1000, "imagenet",
        File(("https://download.pytorch.org/models/resnet50-19c8e357.pth",), "19c8e357"),
        size=256, crop=224, source=TORCHVISION, paper="https://arxiv.org/abs/2111.09805",
        licence="BSD-3-Clause (repository)", accuracy={"published": 0.7613}, config="dice_imagenet",
        notes="IMAGENET1K_V1 of torchvision in the file that DICE used",
        feature_mean=_dice_mean(
            "imagenet_resnet50",
            "46d20b0aa4f996acfb11a58b97b7ed8497d67b918b1db335fcb0183e099b5f3f", 16512,
        ),
        **IMAGENET,
    ),
    _akamaster(
        20, "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8", 0.9173,
        bytes=1_099_231,
    ),
    _akamaster(32, "d509ac18", 0.9263),
    _akamaster(44, "014dd654", 0.9310),
    _akamaster(
        56, "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367", 0.9339,
        bytes=3_471_733,
    ),
    _akamaster(110, "1d1ed7c2", 0.9368),
    _exposure(10, "baseline", 0.9484),
    _exposure(100, "baseline", 0.7596),
    _exposure(10, "oe_scratch", 0.9574),
    _exposure(100, "oe_scratch", 0.7672),
    _pixmix(10),
    _pixmix(100),
    _leaveout(10, "densenet", "dense", "mo2xay9rpfk8emu", depth=100),
    _leaveout(100, "densenet", "dense", "oo8fyxlosqkiov6", depth=100),
    _leaveout(10, "wrn", "wide", "6set3ilyto2adol", depth=28, width=10),
    _leaveout(100, "wrn", "wide", "ig5uftywotlt9i5", depth=28, width=10),
    *_heatmap("cifar10", 10, "resnet18", 32),
    *_heatmap("cifar10", 10, "wideresnet", 32, "_40x2", depth=40, width=2),
    *_heatmap("cifar100", 100, "resnet18", 32),
    *_heatmap("cifar100", 100, "wideresnet", 32, "_40x2", depth=40, width=2),
    *_heatmap("tinyimagenet", 200, "resnet50", 64),
    _vmdls(
        CIFAR10_AE, "cifar10", 10, "resnet18", "epoch=96.ckpt", kind="autoencoder",
        urls=(f"{BOLTS}/epoch%3D96.ckpt",), loss="reconstruction", **UNKNOWN,
        source="https://github.com/Lightning-Universe/lightning-bolts",
        licence="Apache-2.0 (repository)",
        notes="auto-encoder of pytorch-lightning-bolts, which VMDLS weights its scores with",
    ),
    _vmdls(
        CIFAR100_AE, "cifar100", 100, "resnet50", "ae_cifar100.ckpt", kind="autoencoder",
        loss="reconstruction", **UNKNOWN,
    ),
    _vmdls(
        MNIST_AE, "mnist", 10, "mnist_conv", "ae_mnist.ckpt", kind="autoencoder",
        loss="reconstruction", **UNKNOWN,
    ),
    *(
        _vmdls(
            f"vmdls/cifar10/{arch}", "cifar10", 10, arch, f"cifar10_{word}.ckpt",
            config=f"vmdls_cifar10_{word if word != 'resnet' else 'resnet18'}",
            needs={"autoencoder": CIFAR10_AE},
        )
        for arch, word in (
            ("densenet", "densenet"), ("resnet18", "resnet"), ("vgg", "vgg"),
            ("vmdls_wrn", "wresnet"),
        )
    ),
    _vmdls(
        "vmdls/cifar100/densenet", "cifar100", 100, "densenet", "cifar100_densenet.ckpt",
        config="vmdls_cifar100_densenet", needs={"autoencoder": CIFAR100_AE},
    ),
    _vmdls(
        "vmdls/mnist/mnist_conv", "mnist", 10, "mnist_conv", "cnn_mnist.ckpt",
        config="vmdls_mnist", needs={"autoencoder": MNIST_AE},
    ),
    _vmdls(
        "densenet-100-12/cifar100/crossentropy/vmdls", "cifar100", 100, "densenet",
        "checkpoint_100.pth.tar", kind="classifier", loss="crossentropy", **UNKNOWN,
        notes="where VMDLS begins its fine-tuning on CIFAR-100",
    ),
    _vmdls(
        "wrn-28-10/cifar10/crossentropy/vmdls", "cifar10", 10, "vmdls_wrn",
        "finetuning_wideresnet.tar", kind="classifier", loss="crossentropy", **UNKNOWN,
        notes="where VMDLS begins its fine-tuning with a Wide ResNet",
    ),
)
