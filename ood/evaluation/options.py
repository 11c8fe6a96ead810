"""Flags that scripts with a config share, each declared once.

parser = cli.Parser("...")
options.add(parser, "config", "checkpoint", "limit", *options.PLACES)
parser.flag("-detector", help="...")            # flags of the script's own
...
context = options.context(models, flags)
"""

from __future__ import annotations

import shlex
from pathlib import Path
from types import ModuleType

from ood import cli
from ood.cache import Cache
from ood.training.context import Context

FLAGS: dict[str, dict] = {
    "config": {
        "help": "JSON config: data set, architecture, benchmark, detectors",
        "default": "./configs/mnist5k_small_cnn.json",
    },
    "weights": {
        "metavar": "NAME",
        "help": "published weights by name: fetched if missing, verified, and tested by -config, "
        "else by the config that fits them; 'list' prints the names",
    },
    "checkpoint": {
        "help": "weight file of any known format; default: the newest run of exactly this "
        "configuration",
    },
    "arch": {
        "help": "architecture: one of ours, timm:NAME, torchvision:NAME, hf:NAME, "
        "FILE.py:FUNCTION, or an exported FILE.pt2 or FILE.ts; default: the config's or the weight "
        "file's",
    },
    "pretrained": {
        "action": "store_true",
        "help": "with the published weights of -arch's library, downloaded on first use",
        "default": False,
    },
    "head": {
        "choices": ("own", "none", "linear"),
        "help": "own; none: features without logits, for knn, mds, ...; linear: fitted on the "
        "features of the ID training images; default: the config's, else own",
    },
    "size": {
        "type": int,
        "help": "side of the images in pixels; default: the network's, else the benchmark's",
    },
    "checkpoint_name": {"help": "run folder inside -checkpoints_dir, instead of -checkpoint"},
    "datasets": {
        "nargs": "+",
        "metavar": "NAME",
        "help": "only these OOD sets of the benchmark; default: all",
    },
    "benchmark": {
        "help": "benchmark: a name in configs/benchmarks or a JSON file; default: the config's",
    },
    "limit": {
        "type": int,
        "help": "at most this many images per set, for a quick look; default: all",
    },
    "batch_size": {
        "type": int,
        "help": "images per forward pass; on the CPU, at most as many as fit its caches; "
        "default: the config's, else 256",
    },
    "seed": {
        "type": int,
        "help": "seed of generated images and of random choices; default: the config's, else 1",
    },
    "device": {"help": "cpu, cuda:0, ...; default: cuda:0 where there is one, else cpu"},
    "data_dir": {"help": "root of the data sets", "default": "./datasets"},
    "checkpoints_dir": {"help": "root of the run folders", "default": "./checkpoints"},
    "cache_dir": {
        "help": "where outputs of forward passes are kept; default: CHECKPOINTS_DIR/.outputs",
    },
    "no_cache": {
        "action": "store_true",
        "help": "keep no outputs of forward passes on disk",
        "default": False,
    },
    "download": {
        "action": "store_true",
        "help": "fetch data sets that are missing (see scripts/download_data.py)",
        "default": False,
    },
}
PLACES = ("device", "data_dir", "checkpoints_dir", "cache_dir", "no_cache")


def add(parser: cli.Parser, *names: str) -> None:
    """Declare the flags with these names (keys of FLAGS), in this order."""
    for name in names:
        parser.flag(f"-{name}", **FLAGS[name])


def context(networks: ModuleType, flags) -> Context:
    """Where things are, on what to compute and how to speak, as the flags say.

    Args:
        networks: the package `models`.
        flags: parsed; those of PLACES, and -download where the script has it.

    Raises: InputError for a device that is not there.
    """
    folder = flags.cache_dir or Path(flags.checkpoints_dir) / ".outputs"
    return Context(
        networks,
        cli.choose_device(flags.device),
        flags.data_dir,
        flags.checkpoints_dir,
        download=getattr(flags, "download", False),
        cache=None if flags.no_cache else Cache(folder),
        progress=cli.progress,
        log=cli.log,
        **training(flags),
    )


def training(flags) -> dict:
    """Return {"training": the command that trains what -config describes}, or {} without one."""
    config = getattr(flags, "config", None)
    return {"training": f"python3 ood_training.py -config {shlex.quote(config)}"} if config else {}
