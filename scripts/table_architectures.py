"""Which networks of other libraries work here: a table over timm, torchvision and transformers.

    python3 scripts/table_architectures.py                      # all of them, several minutes
    python3 scripts/table_architectures.py -only timm:vit_tiny_patch16_224 torchvision:vgg11
    python3 scripts/table_architectures.py -record              # also for docs/results.md

Every network is built by its spelling with random weights and runs on random images. The table says
whether its features under the linear head give its logits, whether it has a last feature map, and
how many detectors of `all` run on it. -record writes docs/data/architectures.json.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import ood

ood.catch_interrupts()  # before torch loads


import numpy as np
import torch

import models
from ood import cli, detectors
from ood.cache import Cache
from ood.config import InputError
from ood.data import Preprocess
from ood.data.images import ArrayImages
from ood.detectors.base import possible
from ood.evaluation import measurements, options, scoring
from ood.evaluation.passes import Passes

CLASSES, TRAIN, TEST = 5, 30, 8  # images per set; enough to fit every detector of small features
SIDE = 64  # of the images, where the network takes it
FEW = {  # hyper-parameters that need more images than there are by default
    "knn": {"k": 3},
    "nnguide": {"k": 3},
    "combood": {"k": 3},
    "relation": {},
}
NAMES = """
timm: resnet10t resnet18 resnetv2_50x1_bit seresnet18 resnext26ts wide_resnet50_2 res2net50_26w_4s
timm: vit_tiny_patch16_224 vit_small_patch16_dinov3 deit_tiny_patch16_224 beit_base_patch16_224
timm: deit_tiny_distilled_patch16_224 deit3_small_patch16_224 eva02_tiny_patch14_224 cait_xxs24_224
timm: swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 levit_128s mixer_s32_224 resmlp_12_224
timm: gmlp_s16_224 maxvit_rmlp_pico_rw_256 coatnet_nano_rw_224 convnext_atto convnextv2_atto
timm: convmixer_768_32 mobilenetv3_small_050 mobilenetv4_conv_small efficientnet_b0 fastvit_t8
timm: efficientnetv2_rw_t edgenext_xx_small efficientformer_l1 mobilevit_xxs mobileone_s0
timm: poolformer_s12 pvt_v2_b0 pit_ti_224 tnt_s_patch16_224 coat_lite_tiny xcit_nano_12_p16_224
timm: repvgg_a0 ghostnet_050 hrnet_w18_small inception_v4 xception41 nfnet_f0 dla34 vovnet39a
timm: regnetx_002 densenet121 dpn48b volo_d1_224 visformer_tiny crossvit_tiny_240 tiny_vit_5m_224
torchvision: resnet18 alexnet vgg11 vgg11_bn densenet121 googlenet inception_v3 mobilenet_v2
torchvision: mobilenet_v3_small shufflenet_v2_x0_5 mnasnet0_5 squeezenet1_1 efficientnet_b0
torchvision: regnet_y_400mf convnext_tiny swin_t swin_v2_t vit_b_32 maxvit_t
hf: vit deit beit swin swinv2 convnext convnextv2 resnet regnet mobilenet_v1 mobilenet_v2 mobilevit
hf: poolformer pvt pvt_v2 levit focalnet cvt bit dinov2 efficientnet segformer
"""
SIDES = {  # of the networks that take no other
    "torchvision:inception_v3": 96,
    "torchvision:maxvit_t": 224,
    "torchvision:swin_v2_t": 64,
    "timm:maxvit_rmlp_pico_rw_256": 256,
    "timm:coatnet_nano_rw_224": 224,
    "timm:levit_128s": 224,
    "timm:mixer_s32_224": 224,
    "timm:resmlp_12_224": 224,
    "timm:gmlp_s16_224": 224,
    "timm:tnt_s_patch16_224": 224,
    "timm:crossvit_tiny_240": 240,
    "timm:efficientformer_l1": 224,
    "timm:volo_d1_224": 224,
    "timm:swinv2_tiny_window8_256": 256,
    "timm:swin_tiny_patch4_window7_224": 224,
    "timm:pit_ti_224": 224,
    "timm:visformer_tiny": 224,
    "timm:coat_lite_tiny": 224,
    "timm:cait_xxs24_224": 224,
    "timm:eva02_tiny_patch14_224": 224,
}
TINY = {  # of a transformers config, where the type has such a setting
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": SIDE,
    "num_labels": CLASSES,
}

parser = cli.Parser(
    "Which networks of other libraries work here.",
    "Exit code: 0 done, 2 bad input, 1 the run failed.",
)
parser.flag("-only", nargs="+", metavar="ARCH", help="only these architectures; default: all")
parser.flag("-seed", type=int, help="seed of weights and images", default=0)
options.add(parser, "device")
measurements.add_flag(parser)


def main() -> None:
    flags = parser.parse_args()
    known = spelled()
    for name in flags.only or ():
        if name not in known:
            raise InputError(f"unknown architecture '{name}'; known: {', '.join(known)}")
    device, began = cli.choose_device(flags.device), time.perf_counter()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    rows = []
    for arch in flags.only or known:
        rows.append(row_of(arch, flags.seed, device))
        cli.log(" | ".join(map(str, rows[-1])))
    works = sum(row[2] == "yes" for row in rows)
    maps = sum(row[3] == "yes" for row in rows)
    said = (
        f"{works} of {len(rows)} networks work: their features under the linear head give their "
        f"logits; {maps} have a last feature map. Random weights and images, {TRAIN} training "
        f"images of {CLASSES} classes. Detectors: how many of `all` run; the others need feature "
        "maps, dropout, or more images than there are."
    )
    cli.log(said)
    columns = ["architecture", "input", "works", "feature map", "head", "features", "detectors"]
    tables = [{"caption": "", "columns": columns, "rows": rows}]
    if flags.record:
        measurements.write(
            "architectures",
            page="results",
            order=600,
            title="Networks of other libraries",
            command="python3 scripts/table_architectures.py",
            seeds=[flags.seed],
            text=[said],
            tables=tables,
            device=cli.describe_device(device),
            seconds={"total": time.perf_counter() - began},
        )


def spelled() -> list[str]:
    """All architectures of NAMES by their spelling."""
    found = []
    for line in NAMES.strip().splitlines():
        prefix, *names = line.split()
        found += [f"{prefix}{name}" for name in names]
    return found


def row_of(arch: str, seed: int, device) -> list:
    """One row of the table; a network that does not work says why."""
    torch.manual_seed(seed)
    side = SIDES.get(arch, SIDE)
    with tempfile.TemporaryDirectory() as folder:
        try:
            network = build(arch, side, Path(folder)).eval()
        except (models.ModelError, InputError) as error:
            return [arch, side, f"no: {str(error).removeprefix(arch + ': ')}", "", "", "", ""]
        return tried(arch, network, seed, Path(folder) / "outputs")


def tried(arch: str, network, seed: int, cache_dir: Path) -> list:
    """One row of the table for a network that was built."""
    side = network.arch["image_size"]
    train, test, others = (
        images(count, side, seed + number) for number, count in enumerate((TRAIN, TEST, TEST))
    )
    x = test.read(slice(0, 2))
    with torch.no_grad():
        every = network.everything(x)
        equal = torch.allclose(network.fc(every.features), network(x), rtol=1e-3, atol=1e-3)
    made = {n: detectors.create(n, **FEW.get(n, {})) for n in detectors.names()}
    made, _ = possible(made, network)
    normal = Preprocess((0.5,) * 3, (0.25,) * 3)
    passes = Passes(network, normal, batch_size=TRAIN, cache=Cache(cache_dir))
    sets = (passes, train, test, others)
    ran = list(made) if runs(made, *sets) else [n for n in made if runs({n: made[n]}, *sets)]
    kind = type(getattr(network, "_head", None)).__name__.lower().replace("head", "linear")
    return [
        arch,
        side,
        "yes" if equal else "no: features under the head differ from the logits",
        "yes" if every.maps else "no",
        kind,
        every.features.shape[1],
        f"{len(ran)} of {len(detectors.names())}",
    ]


def runs(made: dict, passes: Passes, train, test, others) -> bool:
    """Whether these detectors give finite scores on these images, in one pass for all."""
    try:
        sets = [scoring.TestSet("others", others)]
        result = scoring.evaluate(passes, train, test, sets, made)
    except (InputError, models.ModelError):
        return False
    return all(np.isfinite(s).all() for part in result.scores.values() for s in part.values())


def images(count: int, side: int, seed: int) -> ArrayImages:
    generator = np.random.default_rng(seed)
    pixels = generator.random((count, 3, side, side), dtype=np.float32)
    return ArrayImages(pixels, np.arange(count) % CLASSES)


def build(arch: str, side: int, folder: Path):
    """Build a network with random weights; one of transformers from a tiny configuration."""
    if not arch.startswith("hf:"):
        return models.build(arch, CLASSES, image_size=side)
    try:
        import transformers
    except ImportError:
        raise InputError("transformers is not installed: pip install transformers") from None
    kind = arch.removeprefix("hf:")
    config = transformers.AutoConfig.for_model(kind)
    for name, value in TINY.items():
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, value)
    config.num_labels = CLASSES
    config.save_pretrained(folder)
    network = models.build(f"hf:{folder}", image_size=side, pretrained=False)
    network.arch["arch"] = arch
    return network


if __name__ == "__main__":
    cli.run(main, (models.ModelError, models.CheckpointError))
