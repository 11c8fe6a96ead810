"""Evaluate OOD detectors on every pixel of images with masks, with a segmentation network.

    python3 scripts/segment_ood.py -datasets lostandfound -arch torchvision:deeplabv3_resnet50 \\
        -num_classes 19 -checkpoint cityscapes.pth -download -device cuda:0
    python3 scripts/segment_ood.py -datasets streethazards -arch smp:Unet -num_classes 12 \\
        -arch_args encoder_name=resnet34 -checkpoint unet.pt -detectors msp energy klm
    python3 scripts/segment_ood.py -datasets ./scenes -checkpoint checkpoints/scenes.pt
                                         # ./scenes/test/{images,masks}; the file knows its network

One forward pass for each image serves all detectors. The scores of the pixels are kept up to
-exact_pixels, then counted in bins; the report says how far the metrics can be off.

Writes OUT_DIR/{metrics.csv, metrics.json, per_image.csv, report.md, figures/<set>.png}.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import ood

ood.catch_interrupts()  # before torch loads

import models
from models import segmentation as networks
from ood import cli, detectors, files, provenance
from ood.config import InputError
from ood.data import Preprocess, load_masked
from ood.data.registry.entry import IMAGENET
from ood.data.registry.masks import TABLE
from ood.detectors.base import parse
from ood.evaluation import options, overlays, pixels, segmentation
from ood.evaluation.segmentation_report import Report
from ood.outputs import weights_digest

parser = cli.Parser(
    "Evaluate OOD detectors on every pixel of images with masks.",
    "Exit code: 0 everything that was asked for is done, 2 bad input, 1 the run failed.",
)
parser.flag(
    "-datasets",
    aliases=("-dataset",),
    nargs="+",
    metavar="NAME",
    help=f"sets with masks: {', '.join(TABLE)}, or a folder with images/ and masks/",
    required=True,
)
parser.flag("-split", help="of the sets", default="test")
parser.flag(
    "-arch",
    help="small_unet, torchvision:NAME (fcn_resnet50, deeplabv3_resnet50, lraspp_*, ...) or "
    "smp:NAME (Unet, ...); default: what -checkpoint says",
)
parser.flag(
    "-arch_args",
    nargs="+",
    metavar="KEY=VALUE",
    help="further options of the network, e.g. width=16, aux_loss=true, encoder_name=resnet34",
)
parser.flag("-num_classes", type=int, help="classes of the network; default: as -arch")
parser.flag(
    "-checkpoint",
    help="weight file: of reproduce_segmentation.py, or a state dict of the library's network",
    required=True,
)
parser.flag(
    "-mean",
    type=float,
    nargs="+",
    metavar="M",
    help="normalisation, pixel units of [0, 1]; default: the checkpoint's, else ImageNet's",
)
parser.flag("-std", type=float, nargs="+", metavar="S", help="normalisation; default: as -mean")
parser.flag(
    "-size",
    type=int,
    nargs=2,
    metavar=("HEIGHT", "WIDTH"),
    help="size of the images for the network; logits are brought back to the masks' size; "
    "default: as they are",
)
parser.flag(
    "-detectors",
    nargs="+",
    metavar="NAME",
    help=f"of logits, e.g. msp energy gen:gamma=0.2: {', '.join(segmentation.usable_names())}",
    default=["msp", "maxlogit", "energy", "entropy"],
)
parser.flag(
    "-fit_dataset",
    help="set with masks that detectors are fitted to (klm, openmax, temp_scaling), its split "
    "train; default: the first of -datasets",
)
parser.flag(
    "-exact_pixels",
    type=int,
    help="pixels of a set up to which metrics are exact; beyond, they are counted in bins",
    default=pixels.EXACT,
)
parser.flag("-bins", type=int, help="number of these bins", default=pixels.BINS)
parser.flag("-overlays", type=int, help="images in the figure of each set", default=4)
parser.flag("-base", help="for fishyscapes: the folder leftImg8bit/val of Cityscapes")
parser.flag("-seed", type=int, help="of the pixels that detectors are fitted to", default=0)
options.add(parser, "limit", "device", "data_dir", "download")
parser.flag("-out_dir", help="folder of the results", default="./results/segmentation")


def main() -> None:
    flags = parser.parse_args()
    cli.set_seed(flags.seed)
    made = segmentation.usable({name: read_detector(name) for name in flags.detectors})
    network, preprocess = read_network(flags)
    device = cli.choose_device(flags.device)
    maps = segmentation.Maps(network, preprocess, device, flags.size)
    cli.log(f"device {cli.describe_device(device)} | {network.arch['arch']} | {', '.join(made)}")

    sets = [open_set(name, flags.split, flags) for name in flags.datasets]
    if len({images.name for images in sets}) < len(sets):
        raise InputError(f"-datasets {' '.join(flags.datasets)}: two sets have the same name")
    if any(detector.requires_fit for detector in made.values()):
        train = open_set(flags.fit_dataset or flags.datasets[0], "train", flags)
        segmentation.fit(maps, train, made, seed=flags.seed, progress=cli.progress)

    out_dir, results, figures = Path(flags.out_dir), [], []
    for images in sets:
        result = segmentation.evaluate(
            maps,
            images,
            made,
            exact=flags.exact_pixels,
            bins=flags.bins,
            shown=flags.overlays,
            progress=cli.progress,
        )
        results.append(result)
        if result.shown:
            path = out_dir / "figures" / f"{files.file_stem(images.name)}.png"
            figures.append(overlays.draw(result.shown, path, images.class_names))
    report = Report(
        results,
        provenance.provenance(
            ["python3", *sys.argv],
            {key: value for key, value in vars(flags).items() if value is not None},
            flags.seed,
            cli.describe_device(device),
            {"network": weights_digest(network), **{s.name: s.digest for s in sets}},
            {f"{r.dataset}, {what}": s for r in results for what, s in r.seconds.items()},
        ),
        setting={
            "network": ", ".join(f"{key} {value}" for key, value in network.arch.items()),
            "weights": flags.checkpoint,
            "size": flags.size or "as the images are",
        },
        figures=figures,
    )
    report.write(out_dir)
    cli.log(report.console())
    cli.log(f"report: {out_dir / 'report.md'}")


def read_detector(text: str):
    name, hyperparameters = parse(text)
    return detectors.create(name, **hyperparameters)


def open_set(name: str, split: str, flags):
    return load_masked(
        name,
        split,
        flags.data_dir,
        download=flags.download,
        limit=flags.limit,
        base=flags.base,
    )


def read_network(flags) -> tuple[networks.Segmenter, Preprocess]:
    """Build the network of the flags, or the one that the weight file names, and load it."""
    stored = networks.read_arch(flags.checkpoint) or {}
    given = cli_options(flags.arch_args)
    arch, classes = flags.arch or stored.get("arch"), flags.num_classes or stored.get("num_classes")
    if not arch or not classes:
        raise InputError(
            f"'{flags.checkpoint}' does not say which network it is of: give -arch, e.g. "
            "torchvision:fcn_resnet50, and -num_classes"
        )
    if stored.get("arch") == arch:
        kept = {k: v for k, v in stored.items() if k not in ("arch", "num_classes")}
        given = {**kept, **given}
    network = networks.build(arch, classes, **given)
    facts = networks.load_into(network, flags.checkpoint).get("preprocess") or {}
    usual = dict(zip(("mean", "std"), IMAGENET))
    values = [getattr(flags, name) or facts.get(name) or usual[name] for name in ("mean", "std")]
    return network, Preprocess(*values)


def cli_options(words: list[str] | None) -> dict:
    """['width=8'] -> {'width': 8}."""
    _, values = parse(f"arch:{','.join(words or [])}")
    return values


if __name__ == "__main__":
    cli.run(main, (models.ModelError, models.CheckpointError))
