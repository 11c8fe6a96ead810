"""What to evaluate when no config says so: read it from the weights and from the flags.

    eval_ood.py -checkpoint checkpoints/RUN -benchmark demo
    eval_ood.py -arch timm:resnet18 -pretrained -head linear -benchmark cifar10_three

A weight file of ours knows its architecture, classes, image size and normalisation; its run folder
also knows the data set. The benchmark may be left out where only one belongs to the data set.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from ood.config import Experiment, InputError, read_json
from ood.data import load_benchmark
from ood.data.benchmark import benchmark_names
from ood.evaluation import options
from ood.evaluation.workbench import ID_ONLY, asked_for

RUN_FACTS = ("id_dataset", "loss")  # of a run's config.json
PREFERRED = "openood_"  # of several benchmarks for a data set


def source(networks: ModuleType, flags, default: str | None = None) -> str | dict:
    """Return the config file to read, or its content where the weights and flags replace it.

    Args:
        networks: the package `models`.
        flags: parsed, with config (None where it was not given), checkpoint, checkpoint_name, arch,
            dataset, benchmark and checkpoints_dir.
        default: the config file where nothing says what to evaluate; None: the scripts' default.

    Raises: InputError for weights that are not there.
    """
    if flags.config:
        return flags.config
    found = of_weights(networks, flags)
    if flags.arch and flags.arch != found.get("arch"):
        found = {k: v for k, v in found.items() if k in RUN_FACTS} | {"arch": flags.arch}
    if not found.get("arch"):
        return default or options.FLAGS["config"]["default"]
    found["benchmark"] = flags.benchmark or benchmark_for(flags.dataset or found.get("id_dataset"))
    if not flags.dataset and not found.get("id_dataset") and found["benchmark"] != ID_ONLY:
        found["id_dataset"] = load_benchmark(found["benchmark"]).id_dataset
    if flags.dataset:
        found["id_dataset"] = flags.dataset
    return found


def label(chosen: str | dict, flags) -> str:
    """Return a short name of what is evaluated, for folders of results."""
    if isinstance(chosen, str):
        return Path(chosen).stem
    if flags.checkpoint_name:
        return flags.checkpoint_name
    if flags.checkpoint:
        path = Path(flags.checkpoint)
        return path.parent.name if path.name in ("best.pt", "last.pt") else path.stem
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in flags.arch)


def of_weights(networks: ModuleType, flags) -> dict:
    """Return the keys of a config that a weight file and its run folder know; {} for others."""
    experiment = Experiment(
        id_dataset="", checkpoint=flags.checkpoint, checkpoint_name=flags.checkpoint_name
    )
    weights = asked_for(experiment, flags.checkpoints_dir)
    if weights is None:
        return {}
    folder, file = weights.parent, weights
    if weights.is_dir():
        folder, file = weights, weights / "best.pt"
    meta = networks.checkpoints.read(file).meta
    arch = meta.get("arch")
    if not isinstance(arch, dict) or "arch" not in arch:
        return {}
    if networks.runs_code(arch["arch"]) and flags.arch != arch["arch"]:
        raise InputError(
            f"'{file}' belongs to {arch['arch']}, which runs code; name it yourself: "
            f"-arch {arch['arch']}"
        )
    shape = {"arch", "num_classes", "in_channels", "image_size"}
    found = {
        "arch": arch["arch"],
        "num_classes": arch.get("num_classes"),
        "model_args": {k: v for k, v in arch.items() if k not in shape},
    }
    if (folder / "config.json").is_file():
        run = read_json(folder / "config.json")
        found |= {key: run[key] for key in RUN_FACTS if run.get(key)}
    return found


def benchmark_for(dataset: str | None) -> str:
    """Return the name of a data set's benchmark; ID_ONLY where none or several belong to it."""
    if not dataset:
        return ID_ONLY
    names = [n for n in benchmark_names() if load_benchmark(n).id_dataset == dataset]
    preferred = [n for n in names if n.startswith(PREFERRED)]
    for chosen in (names, preferred):
        if len(chosen) == 1:
            return chosen[0]
    return ID_ONLY
