"""Rows of the table: the weights that pytorch-ood 0.4.0 loads by name.

Its own are on Hugging Face, one file per seed, all trained by one person. The others belong to the
papers' repositories and to torchvision. Names, addresses and checksums are those of its registry.
"""

from __future__ import annotations

from .row import HALF, IMAGENET, File, Weights

HUB = "https://huggingface.co/kkirchheim/pytorch-ood-models"
ENERGY = "https://github.com/wetliu/energy_ood"
EXPOSURE = "https://github.com/hendrycks/outlier-exposure"
PRETRAINING = "https://github.com/hendrycks/pre-training"
TORCHVISION = "https://pytorch.org/vision/stable/models.html"
WRN = {"depth": 40, "width": 2, "dropout": 0.3}
# The statistics of CIFAR-10 in steps of 1/255; these papers use them for CIFAR-100 too.
PAPERS = {
    "mean": tuple(x / 255 for x in (125.3, 123.0, 113.9)),
    "std": tuple(x / 255 for x in (63.0, 62.1, 66.7)),
}
# Arguments of `Weights` by training set, for the networks on Hugging Face.
SETS = {
    "cifar10": dict(
        arch="wrn", options=WRN, num_classes=10,
        mean=(0.4913, 0.4823, 0.4467), std=(0.247, 0.2435, 0.2616),
    ),
    "cifar100": dict(
        arch="wrn", options=WRN, num_classes=100,
        mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762),
    ),
    "imagenet200": dict(
        arch="torchvision_resnet18", num_classes=200, size=(256, 256), crop=224, **IMAGENET,
    ),
}
# {training set: (epochs from scratch, outliers from scratch, outliers of the fine-tuning)}
OUTLIERS = {
    "cifar10": (100, "80 Million Tiny Images", "300K random images"),
    "cifar100": (100, "80 Million Tiny Images", "300K random images"),
    "imagenet200": (90, "ImageNet-800", "ImageNet-800"),
}
TUNED = {"oe": 0.001, "energy": 0.001, "vos": 0.1}  # {loss: learning rate of the fine-tuning}
LOSSES = {
    "crossentropy": "https://arxiv.org/abs/1610.02136",
    "entropic": "https://arxiv.org/abs/1811.04110",
    "logitnorm": "https://arxiv.org/abs/2205.09310",
    "oe": "https://arxiv.org/abs/1812.04606",
    "energy": "https://arxiv.org/abs/2010.03759",
    "vos": "https://arxiv.org/abs/2202.01197",
}
# {name without the seed: (seed, sha256, accuracy after the last epoch, best accuracy)}
OWN = {
    "resnet-18/imagenet200/crossentropy": (
        ("s0", "f4807cb4ea6828f3ebfa21bac46e04e340b242b90d46f2e9ea4cd70bcf300e76", 0.85, 0.858),
        ("s1", "64022f83262be54a74a58ee8f2d64f69a515a7f64f7b2b7ab2d9ddd000e2534d", 0.845, 0.849),
        ("s2", "ac9415e147eb6137516c6db7672b2899a5a0f2e8dbcdcbc7f4a8eaa37d5454d1", 0.842, 0.848),
    ),
    "resnet-18/imagenet200/energy": (
        ("s0", "e5694bf7d2bc162714e8c1accf01a3793977586e4905db6c69b27754a8ea0eb1", 0.845, 0.845),
        ("s1", "d0792e4d01e8688f43ce739962b3a870df3931aa27d6c54d7eeb2e08cd7829d8", 0.846, 0.847),
        ("s2", "cdd46dc500a0d80070d0784031c601e90abd3dbf0c7098a0ea10c649d3f0068c", 0.826, 0.827),
    ),
    "resnet-18/imagenet200/entropic": (
        ("s0", "93fef586a085e884bad7048d8195d5a5ba93f053f401ac30eeefd871dd31f3cc", 0.849, 0.849),
        ("s1", "5db3425a88b59bf95c3b154f1b87df2fad77440adddfb40d679e96773959c494", 0.847, 0.847),
        ("s2", "8d9119218862acf978013a2cde74bd1799efdeb9e590b6aceb9a2b7b70389da5", 0.837, 0.846),
    ),
    "resnet-18/imagenet200/logitnorm": (
        ("s0", "08eed212862970d40145cb78443cbacdcc52e93aeb2c49f17c25c0a4f6b544ea", 0.847, 0.857),
        ("s1", "f252ad1c8d33caa4a3e33d8cdfa3850cb3f74d5cd440795d54142b026db473f0", 0.846, 0.847),
        ("s2", "ce53f305ec80ee414aee0c9debf0cc597d87f290d319e53e63251af78f05dd93", 0.847, 0.853),
    ),
    "resnet-18/imagenet200/oe": (
        ("s0", "5798c74848753feef58215813c5f38a941459e58aa59637952f7e0bf42ce5b23", 0.858, 0.858),
        ("s1", "4c1b951acf9503406f75484ba2cd5ef42c75bcca39588d0b1c186a3dd288b4cc", 0.846, 0.85),
        ("s2", "da72bbbd08f4c70778a842ddf37caa7da05ee13c4c5cca92c896457830a646fb", 0.839, 0.841),
    ),
    "resnet-18/imagenet200/vos": (
        ("s0", "6125bfafe3b6c92d85b32007d83d247de54d72948fe68781eefa2e4d3d0739a1", 0.854, 0.855),
        ("s1", "284911365e826187b2f77ce569284ff9545503863e8fd84945e2956b6ca7526c", 0.85, 0.853),
        ("s2", "8f9642c7f6d66d39658e36bcc898c25e55cf24dd04434fdc27860d86709ad58f", 0.839, 0.844),
    ),
    "wrn-40-2/cifar10/crossentropy": (
        ("s1", "b1b7465567ee249481b8ff631f9d96fcc80d4c27783dc117aa2020888607cdf7", 0.948, 0.9484),
        ("s2", "9c18ac23901a26b7787de79042051ec90a75e8036e5b2c7858c2db8ab437816b", 0.9484, 0.9484),
    ),
    "wrn-40-2/cifar10/energy": (
        ("s0", "d798f066e7912d4a267c387121f2dcaa4b59611a2559269462972cb9eda4e812", 0.9525, 0.9525),
        ("s2", "92f4f18cb4dfad21e22a4bf43d1674b952ffe60885fe3a0a7782929007001559", 0.9494, 0.9501),
    ),
    "wrn-40-2/cifar10/entropic": (
        ("s0", "481c83f11ccb4b2ae1b99e7480c62582c93d08fc15c368f8708379b6a60f08da", 0.9534, 0.954),
        ("s1", "653ef4ffd71c68048527f1d7bcd8272c3c66a8c298acfa3ebe9997c388d4946a", 0.9535, 0.9541),
        ("s2", "cb8865fedf8ed74eff2fbbb72c07d9e03e6c57c1cdba68bb4b3f788ee4b49b00", 0.9534, 0.9541),
    ),
    "wrn-40-2/cifar10/logitnorm": (
        ("s0", "bcd6754f4a4cfbd8b0cc28d432ef3fe63b715ab8bf2776dec42059ae445b7419", 0.943, 0.9436),
        ("s1", "7d932b6fe7a6bb435d50345b88234286ab5d859e02cb2451146f3e4d2f9605ba", 0.9479, 0.9479),
        ("s2", "7de464bd4ce3c4bf6efaa1dddddb23e38bed99653036a38ef02bcb50cff214f6", 0.9435, 0.9436),
    ),
    "wrn-40-2/cifar10/oe": (
        ("s0", "4b018f801843365c8ba578d20caa97be2f995eb7eb93c5909f1c0273bc7b6022", 0.945, 0.9454),
        ("s1", "71896c06742c88c7135d2869682ee1fe190d3b5e1f63129c65f1fdd338908e2a", 0.9414, 0.9417),
        ("s2", "0e08d73c2cc4259562f5bcd09abfb33c6b53c10e3010b807434d68da98165bb5", 0.9456, 0.9456),
    ),
    "wrn-40-2/cifar10/vos": (
        ("s0", "8a70f61ad4ce2c6fdebf15ce5408a28d2880dfb890ed45614e906cc6a97e18f4", 0.9466, 0.9466),
        ("s1", "3bc58d14199aabd838484318a36c58e0d0b2cf1e3e7556a3ce20dd538b4d0b41", 0.9469, 0.9469),
        ("s2", "cda47e9257f785499473ebc9ff7a6b238bedc6d7c425a207408b21aaf2c1ec6b", 0.9475, 0.9475),
    ),
    "wrn-40-2/cifar100/crossentropy": (
        ("s0", "4b5b3ed2f448b40cc48abe05221b4af39e351b04ce215edf2c0ea7a113593d2f", 0.7557, 0.7576),
        ("s1", "1b8e15072dc0d88776dc59c23192628354b958fa22bdc21073664d60d862d685", 0.757, 0.7605),
        ("s2", "f1a77c51f747d58e16bc4a7a04d8a6b7f65d3a7c694e63e5b6480fd08a8f423e", 0.7611, 0.7619),
    ),
    "wrn-40-2/cifar100/energy": (
        ("s0", "ebd0fcc793f5a22fbf20f1d29638138b36c69eebcf64f9cf96aa2c945259e420", 0.7558, 0.7564),
        ("s2", "50d7d6802391a24f2f2aa32603f07d97a9761b6aadeb21e74f50857a5873ccbb", 0.7617, 0.7617),
    ),
    "wrn-40-2/cifar100/entropic": (
        ("s0", "cbabacfd3c396d11d115afcdbd242dd863fb5de863907a3cf5d15e6630a6eeb6", 0.7585, 0.7586),
        ("s1", "bd96368e7713e60b9f312767e9a883e097cc9e17ce3564ff7c8a5c23afd6a99b", 0.7571, 0.759),
        ("s2", "f572bdb2685bcede584ad3ad110ab77310983c4b99252f2bd457df5e1ff86593", 0.7628, 0.7643),
    ),
    "wrn-40-2/cifar100/logitnorm": (
        ("s0", "cfd67c89d658c2c9b04b26b8ec82a1154ebb7e765fb0c4ba42c73b95c56416e6", 0.7587, 0.7598),
        ("s1", "34c383093454288984d09ba998852f394eb3eb511727679a7e1a05bc65184e65", 0.7635, 0.7656),
        ("s2", "663f69475582ae9f034755aa123e995cbd9b82f29a74fe2e4a5f62276ac60182", 0.7639, 0.7643),
    ),
    "wrn-40-2/cifar100/oe": (
        ("s0", "f713cea10b512718f1dc8772f54b3220a827a23114713bcc9f50d95d1460d920", 0.7457, 0.7458),
        ("s1", "4d9c5eaac646477b706f006337b4a0f7c49a2be4bc064f230dd7766229851e89", 0.7517, 0.7517),
        ("s2", "51ec426d53fe2a2747bfa03301b905029166eaa09d38061158905265cf5fe05a", 0.7495, 0.7501),
    ),
    "wrn-40-2/cifar100/vos": (
        ("s0", "49e6b2e898c7a486300273ee6bea7209ccfc11b6642de130319c60d9e6f3ff81", 0.7582, 0.7582),
        ("s1", "7c9fd1931e5b1b62ba098fcafab550b93ff189ceae3f37f5bccbd27b95c445f7", 0.7621, 0.7621),
        ("s2", "4eaffc7283aa6993cd86e378fbf877d14c1c1f07e8b8782bfe94eb0acbb44aca", 0.757, 0.757),
    ),
}


def _own(group: str, seed: str, sha256: str, final: float, best: float) -> Weights:
    """Make the row of a file on Hugging Face."""
    _, dataset, loss = group.split("/")
    epochs, scratch, tuning = OUTLIERS[dataset]
    if loss in TUNED:
        rate = 0.001 if dataset == "imagenet200" else TUNED[loss]
        notes = f"cross-entropy network fine-tuned for 10 epochs (lr {rate:g}); outliers: {tuning}"
    else:
        outliers = f"; outliers: {scratch}" if loss == "entropic" else ""
        notes = f"SGD, {epochs} epochs{outliers}"
    name = f"{group}/{seed}"
    return Weights(
        name, dataset=dataset, loss=loss, seed=seed, source=HUB, paper=LOSSES[loss], notes=notes,
        file=File((f"{HUB}/resolve/main/{name}/model-{sha256[:16]}.pt",), sha256),
        accuracy={"final": final, "best": best}, **SETS[dataset],
    )


def _paper(
    name: str, source: str, path: str, sha256: str, *, num_classes: int, loss: str, paper: str,
    normal: dict = PAPERS, **details,
) -> Weights:
    """Make the row of a Wide ResNet in a paper's repository."""
    return Weights(
        name, "wrn", num_classes, name.split("/")[1],
        File((f"{source}/raw/master/{path}",), sha256), options=WRN, loss=loss, source=source,
        paper=f"https://arxiv.org/abs/{paper}",
        **normal, **details,
    )


ROWS = (
    _paper(
        "wrn-40-2/cifar10/crossentropy", ENERGY,
        "CIFAR/snapshots/pretrained/cifar10_wrn_pretrained_epoch_99.pt",
        "0b59e178577382a0cf5d1e079d1d019f6a33b0801b7d123a59e51b4b32972637",
        num_classes=10, loss="crossentropy", paper="1610.02136",
    ),
    _paper(
        "wrn-40-2/cifar100/crossentropy", ENERGY,
        "CIFAR/snapshots/pretrained/cifar100_wrn_pretrained_epoch_99.pt",
        "3751f516b81ef9d27290f08a3de78d65a3771f477bd6a6caefa81b330dc34baf",
        num_classes=100, loss="crossentropy", paper="1610.02136",
    ),
    _paper(
        "wrn-40-2/cifar10/oe", EXPOSURE,
        "CIFAR/snapshots/oe_tune/cifar10_wrn_oe_tune_epoch_9.pt",
        "b473f1c463c9fe16057647746907b68b6ade615f93ac4bdf005263ed69d542d0",
        num_classes=10, loss="oe", paper="1812.04606", accuracy={"final": 0.9473},
        notes="fine-tuned for 10 epochs; outliers: 80 Million Tiny Images",
    ),
    _paper(
        "wrn-40-2/cifar100/oe", EXPOSURE,
        "CIFAR/snapshots/oe_tune/cifar100_wrn_oe_tune_epoch_9.pt",
        "1d4dd53f7605d66f64bcdf146ed9327ecbebbd5da42a9f7d70b9d6a28ee9bb51",
        num_classes=100, loss="oe", paper="1812.04606", accuracy={"final": 0.7575},
        notes="fine-tuned for 10 epochs; outliers: 80 Million Tiny Images",
    ),
    _paper(
        "wrn-40-2/cifar10/energy/s1", ENERGY,
        "CIFAR/snapshots/energy_ft/cifar10_wrn_s1_energy_ft_epoch_9.pt",
        "78a288517f9e9f3501c1e881aee8daa1d9c64a23805023fc013a28946274c54b",
        num_classes=10, loss="energy", seed="s1", paper="2010.03759",
        notes="fine-tuned for 10 epochs; outliers: 80 Million Tiny Images",
    ),
    _paper(
        "wrn-40-2/cifar100/energy/s1", ENERGY,
        "CIFAR/snapshots/energy_ft/cifar100_wrn_s1_energy_ft_epoch_9.pt",
        "4899110e41b8c96a01ec52e779e3336436da69db201f6162b2dce9a207f0f51f",
        num_classes=100, loss="energy", seed="s1", paper="2010.03759",
        notes="fine-tuned for 10 epochs; outliers: 80 Million Tiny Images",
    ),
    _paper(
        "wrn-40-2/imagenet32/crossentropy", PRETRAINING,
        "downsampled_train/snapshots/40_2/imagenet_wrn_baseline_epoch_99.pt",
        "4a722ecf93e43a040b6b82c7c1e305fbf1c455a54c16e66fd77301291157bd5c",
        num_classes=1000, loss="crossentropy", paper="1901.09960", normal=HALF,
        notes="ImageNet at 32 x 32 pixels",
    ),
    _paper(
        "wrn-40-2/imagenet32-nocifar/crossentropy", PRETRAINING,
        "uncertainty/CIFAR/snapshots/imagenet/cifar10_excluded/imagenet_wrn_baseline_epoch_99.pt",
        "6f0f46d44ddfc96f85b97ef04ca9d61e78279d27c80015dcc92aabd52b1773c6",
        num_classes=1000, loss="crossentropy", paper="1901.09960", normal=HALF,
        notes="ImageNet at 32 x 32 pixels without the classes of CIFAR-10",
    ),
    Weights(
        "resnet-50/imagenet1k/crossentropy", "torchvision_resnet50", 1000, "imagenet",
        File(
            ("https://download.pytorch.org/models/resnet50-11ad3fa6.pth",),
            "11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca",
        ),
        size=(232, 232), crop=224, source=TORCHVISION, licence="BSD-3-Clause (repository)",
        accuracy={"published": 0.80858}, notes="IMAGENET1K_V2 of torchvision", **IMAGENET,
    ),
    *(_own(group, *row) for group, rows in OWN.items() for row in rows),
)
