"""Training of a classifier: the settings, what a data set changes in their defaults, and the run from images to best.pt.

    run = train_classifier(models, {"id_dataset": "cifar10", "arch": "resnet18", "loss": "logitnorm"})

What classifier_pretraining.py and, for a config with a `loss`, ood_training.py do.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch

from ood import cli, distributed, losses
from ood.config import CROSS_ENTROPY, InputError, build, read_json, split, to_dict
from ood.data import Augment, ImageSet, Preprocess, auxiliary, info, load
from ood.data.registry.table import DatasetInfo, is_folder_path
from ood.data.transforms import KINDS
from ood.training import loop, runs
from ood.training.batches import MixedBatches

HALF = dict(mean=(0.5,), std=(0.5,))  # [0, 1] -> [-1, 1], the heatmap paper's normalisation
DIGITS = "rotate_resized_crop"  # a mirrored digit is another character

# What a data set changes in the defaults of Settings.
RECIPES = {
    "mnist5k": dict(
        arch="small_cnn",
        epochs=12,
        batch_size=64,
        schedule="onecycle",
        valid_split=0.1,
        augment=DIGITS,
        **HALF,
    ),
    "mnist": dict(augment=DIGITS),
    "svhn": dict(augment="none"),
    "cifar10": dict(arch="resnet18", **HALF),
    "cifar100": dict(arch="resnet18", **HALF),
    "tinyimagenet": dict(
        arch="resnet50", epochs=200, batch_size=128, augment="resized_crop_flip", **HALF
    ),
    "imagenet": dict(
        epochs=90,
        batch_size=256,
        weight_decay=1e-4,
        schedule="steps",
        milestones=(30, 60),
        augment="resized_crop_flip",
    ),
}
FOLDER = dict(valid_split=0.1)  # for an image folder: usually a small set
OUTLIERS = {
    "mnist5k": "letters+patches"
}  # training halves that a loss with outliers takes when -ood_dataset names none
FREE = (
    "device",
    "data_dir",
    "download",
    "num_workers",
    "tensorboard",
    "epochs",
)  # what may change when a run is resumed
SHAPE = (
    "num_classes",
    "depth",
    "width",
)  # in config.json they are never None, if the network knows them
FACTS = (
    "kind",
    "started",
    "in_channels",
    "image_size",
)  # what config.json holds besides the settings


@dataclass(frozen=True)
class Settings:
    """The whole experiment; the defaults are the heatmap paper's for CIFAR."""

    id_dataset: str = "mnist5k"  # a registered set or an image folder
    arch: str | None = None  # a name of models.names(), or torchvision_<name>
    depth: int | None = None  # of densenet, wrn, wideresnet; None: the network's own default
    width: int | None = None
    model_args: dict = field(default_factory=dict)
    num_classes: int | None = None  # checked against the data
    size: int | None = None  # side of the images, pixels; None: the data set's own
    mean: tuple[float, ...] | None = (
        None  # one value or one per channel, of pixels in [0, 1]; None: the data set's
    )
    std: tuple[float, ...] | None = None
    augment: Literal[KINDS] = "crop_flip"
    valid_split: float = 0.01  # fraction of the training set
    valid_augment: bool = False  # released behaviour: validation images are augmented too
    loss: str = CROSS_ENTROPY  # a name of ood.losses.names()
    loss_args: dict = field(default_factory=dict)
    ood_dataset: str | tuple[str, ...] | None = (
        None  # auxiliary outliers: registered sets, folders, .npy arrays; "letters+patches"
    )
    ood_batch_size: int | None = None  # outliers per step; None: as many as batch_size
    init: str | None = None  # weight file to begin from
    needs_init: bool = (
        False  # a recipe that continues a trained network says so: random weights are then refused
    )
    epochs: int = 100
    batch_size: int = 200
    optimizer: Literal[loop.OPTIMIZERS] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4  # on all parameters, norms and biases included
    schedule: Literal[loop.SCHEDULES] = "plateau"
    milestones: tuple[int, ...] = ()  # of schedule steps, in epochs done
    gamma: float = 0.1  # factor of schedules steps and plateau
    patience: int = 10  # of schedule plateau, in epochs
    clip_norm: float | None = None
    ema: float | None = (
        None  # decay of a moving average of the weights, which is then what is validated and kept
    )
    sampler: Literal["shuffle", "balanced"] = "shuffle"  # balanced: every class equally often
    sync_batchnorm: bool = False  # under torchrun: batch statistics of all processes
    compile: bool = False
    tensorboard: bool = False
    precision: Literal[loop.PRECISIONS] = "fp32"
    channels_last: Literal["auto", "on", "off"] = "auto"  # auto: on a GPU
    seed: int = 0
    deterministic: bool = False
    limit: int | None = None  # at most so many images per split, evenly spread, every class kept
    data_dir: str = "./datasets"
    download: bool = False
    num_workers: int | None = None  # threads that decode large images; None: one per core
    device: str | None = None


def train_classifier(
    networks: ModuleType,
    given: dict,
    *,
    root: str | Path = "./checkpoints",
    out_dir: str | Path | None = None,
    resume: bool = False,
) -> runs.Run:
    """Train to the end (or, with resume, from where the run stopped), measure the test set, and return the run folder.

    Args:
        networks: the package `models`. given: settings that differ from the defaults and the data set's recipe.
        root: where run folders are made; out_dir: the run folder itself.
        resume: continue the run in out_dir (begin it if there is none yet), or the newest run of these very settings in root.
    Raises: InputError, before anything is written; RunError for a loss that is not finite.
    """
    given = with_known_names(networks, given)
    resumed = find_run(given, root, out_dir) if resume else None
    settings = continued(resumed, given) if resumed else resolve(given)
    device = cli.choose_device(settings.device)
    if settings.tensorboard:
        runs.require_tensorboard()
    cli.set_seed(settings.seed, settings.deterministic)
    cli.log(
        f"device {cli.describe_device(device)} | {settings.id_dataset} | {settings.arch} | {settings.loss} | seed {settings.seed}"
    )
    if resume and not resumed:
        cli.log(f"no run in {out_dir} yet: beginning one")

    # Data: pixels as uint8; the training images are split once, by the seed.
    images, test = load_images(settings, "train"), load_images(settings, "test")
    check_labels(images, test, settings)
    kept, held_out = loop.split(len(images), settings.valid_split, settings.seed)
    if images.split == "all":
        test = images.subset(held_out)
        cli.log(f"{settings.id_dataset} has no test part: the validation images stand for it")

    channels, side, _ = images.shape
    outliers = load_outliers(settings, side, channels) if settings.ood_dataset else None

    # Model, and the loss with what it learns beside it.
    shape = {
        name: getattr(settings, name)
        for name in ("depth", "width")
        if getattr(settings, name) is not None
    }
    network = networks.build(
        settings.arch,
        images.num_classes,
        in_channels=channels,
        image_size=side,
        **shape,
        **settings.model_args,
    )
    nhwc = (
        settings.channels_last == "on" or settings.channels_last == "auto" and device.type == "cuda"
    )
    layout = torch.channels_last if nhwc else torch.contiguous_format
    if settings.init and not resumed:
        networks.checkpoints.load_into(network, settings.init)
    torch.backends.cudnn.benchmark = (
        device.type == "cuda" and not settings.deterministic
    )  # all batches have one shape
    objective = losses.Objective(settings.loss, network, **settings.loss_args).to(device)
    network.to(device, memory_format=layout)
    if settings.sync_batchnorm:
        distributed.synchronise_batchnorm(network, device)
    if settings.compile:
        loop.compiled(network, device)

    # From pixels (B, C, H, W) to what the network takes: on the device, a batch at a time.
    mean, std = normalisation(settings, channels)
    preprocess, augment = Preprocess(mean, std), Augment(settings.augment)

    def as_is(pixels, generator):
        return preprocess(pixels).contiguous(memory_format=layout)

    def augmented(pixels, generator):
        return as_is(augment(pixels, generator), generator)

    common = dict(batch_size=settings.batch_size, device=device, seed=settings.seed)
    training = loop.ImageBatches(
        images,
        indices=kept,
        transform=augmented,
        shuffle=True,
        balanced=settings.sampler == "balanced",
        views=losses.get(settings.loss).views,
        **common,
    )
    if outliers is not None:
        common_ood = {
            **common,
            "batch_size": settings.ood_batch_size or settings.batch_size,
            "seed": loop.mix(settings.seed, 2),
        }
        training = MixedBatches(
            training, loop.ImageBatches(outliers, transform=augmented, shuffle=True, **common_ood)
        )
    looked_at = loop.ImageBatches(
        images, indices=kept, transform=as_is, shuffle=False, **common
    )  # by a loss, between epochs
    validation = loop.ImageBatches(
        images,
        indices=held_out,
        transform=augmented if settings.valid_augment else as_is,
        shuffle=False,
        **common,
    )
    testing = loop.ImageBatches(test, transform=as_is, shuffle=False, **common)

    # Step, selection, optimiser, schedule.
    def step(batch):
        inputs, labels = batch  # (B, C, H, W), (B,): below 0 for outliers
        return objective(inputs, labels)

    def before_epoch(epoch):
        with distributed.solo():  # every process looks at all of them
            objective.before_epoch(epoch, looked_at)

    def validate(epoch):
        objective.finish_head()
        measured = loop.measure(network, validation, precision=settings.precision, epoch=epoch)
        return {"valid_loss": measured["loss"], "valid_accuracy": measured["accuracy"]}

    def pack(epoch, metrics):
        objective.finish_head()
        more = {"objective": objective.describe()}
        return runs.payload(networks, network, epoch, metrics, preprocess, side, **more)

    learned = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = loop.make_optimizer(
        settings.optimizer,
        learned,
        settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )
    schedule = loop.Schedule(
        optimizer,
        settings.schedule,
        settings.epochs,
        milestones=settings.milestones,
        gamma=settings.gamma,
        patience=settings.patience,
    )

    # The run folder: made only now that nothing can be wrong with the input any more.
    run = resumed or kind(settings.loss).create(
        stem(settings), describe(settings, network), root=root, out_dir=out_dir
    )
    run.update(epochs=settings.epochs)
    sizes = {"train_images": len(kept), "valid_images": len(held_out), "test_images": len(test)}
    digests = {"train": images.digest, "test": test.digest}
    if outliers is not None:
        sizes["ood_images"], digests["ood"] = len(outliers), outliers.digest
    run.begin(settings, device, digests, resumed=bool(resumed), **sizes)
    cli.log(
        f"{len(kept)} training, {len(held_out)} validation, {len(test)} test images{f', {len(outliers)} outliers' if outliers else ''} | run folder {run.folder}"
    )
    with runs.board(run, settings.tensorboard) as tell:
        history = loop.fit(
            step,
            network,
            training,
            epochs=settings.epochs,
            optimizer=optimizer,
            schedule=schedule,
            run=run,
            pack=pack,
            validate=validate if len(held_out) else None,
            select="valid_accuracy" if len(held_out) else None,
            resume=resume,
            precision=settings.precision,
            clip_norm=settings.clip_norm,
            ema=settings.ema,
            before_epoch=before_epoch,
            state={"objective": objective.own} if objective.own.state_dict() else None,
            tell=tell,
        )

    # The test set, with the last weights (what the released code prints) and with the best ones by validation accuracy.
    last = loop.measure(network, testing, precision=settings.precision)
    best_epoch = networks.checkpoints.load_into(network, run.best)["epoch"]
    best = loop.measure(network, testing, precision=settings.precision)
    run.log(
        {
            "event": "end",
            "epoch": history.epochs,
            "best_epoch": best_epoch,
            "test_accuracy_last": last["accuracy"],
            "test_accuracy_best": best["accuracy"],
            "test_loss_last": last["loss"],
            "test_loss_best": best["loss"],
        }
    )
    cli.log(
        f"test accuracy: best {best['accuracy']:.2%} (epoch {best_epoch}), last {last['accuracy']:.2%} (epoch {history.epochs})"
    )
    cli.log(f"weights: {run.best}")
    return run


# ---- settings ----------------------------------------------------------------------------------------------------------------


def read_settings(path: str | Path | None) -> dict:
    """The settings in a JSON file; `dataset` stands for `id_dataset`, and the config.json of a run is a config too.

    Keys that only eval_ood.py needs (benchmark, detectors, ...) are left out: one file serves both.
    """
    if path is None:
        return {}
    values = {key: value for key, value in read_json(path).items() if key not in FACTS}
    if "dataset" in values:
        values["id_dataset"] = values.pop("dataset")
    values = split(values, Settings, str(path))[1]
    settings = build(Settings, values, str(path))
    return {key: getattr(settings, key) for key in values}


def with_known_names(networks: ModuleType, given: dict) -> dict:
    """The data set under its registered name, the network's and the loss's names checked. Raises InputError or ModelError before any data is read."""
    dataset, arch = given.get("id_dataset"), given.get("arch")
    if arch is not None and not arch.startswith("torchvision_"):
        networks.options(arch)
    losses.get(given.get("loss", Settings.loss))
    return (
        given
        if dataset is None or is_folder_path(dataset)
        else {**given, "id_dataset": info(dataset).name}
    )


def resolve(given: dict) -> Settings:
    """Defaults, then the data set's recipe, then what is given; every value in its range. Raises InputError."""
    dataset = given.get("id_dataset", Settings.id_dataset)
    settings = build(
        Settings,
        {**(FOLDER if is_folder_path(dataset) else RECIPES.get(dataset, {})), **given},
        "settings",
    )
    if settings.arch is None:
        raise InputError(
            f"-arch is needed for '{dataset}': the name of a network (classifier_pretraining.py -h lists them)"
        )
    for key, least in dict(
        epochs=1,
        batch_size=1,
        ood_batch_size=1,
        limit=1,
        size=1,
        num_workers=1,
        patience=0,
        momentum=0,
        weight_decay=0,
        seed=0,
    ).items():
        if getattr(settings, key) is not None and not least <= getattr(settings, key) < float(
            "inf"
        ):
            raise InputError(f"-{key} is {getattr(settings, key)}; it must be at least {least}")
    for key in ("lr", "gamma", "clip_norm"):
        if getattr(settings, key) is not None and not 0 < getattr(settings, key) < float("inf"):
            raise InputError(f"-{key} is {getattr(settings, key)}; it must be above 0")
    if not 0 <= settings.valid_split < 1:
        raise InputError(
            f"-valid_split is {settings.valid_split}; it is a fraction, from 0 (no validation) to below 1"
        )
    if settings.valid_split == 0 and settings.schedule == "plateau":
        raise InputError(
            "-schedule plateau looks at the validation accuracy, but -valid_split is 0; hold images out or choose another schedule"
        )
    if settings.schedule == "steps" and not settings.milestones:
        raise InputError("-schedule steps needs -milestones, e.g. -milestones 50 75")
    if settings.ema is not None and not 0 <= settings.ema < 1:
        raise InputError(
            f"-ema is {settings.ema}; it is a decay, from 0 (no memory) to below 1, e.g. 0.999"
        )
    if settings.nesterov and (settings.optimizer != "sgd" or settings.momentum == 0):
        raise InputError("-nesterov needs -optimizer sgd and a -momentum above 0")
    return with_outliers(settings)


def with_outliers(settings: Settings) -> Settings:
    """The loss and its arguments tried, the auxiliary outliers that it needs named. Raises InputError."""
    loss = losses.check(settings.loss, settings.loss_args)
    if settings.ood_dataset is None and loss.outliers == "needed":
        default = OUTLIERS.get(settings.id_dataset)
        if default is None:
            raise InputError(
                f"-loss {settings.loss} learns from outliers: name them with -ood_dataset, e.g. a folder of images, 300K_random_images.npy or a "
                f"registered set ({OUTLIERS['mnist5k']} for grey images of 28x28)"
            )
        settings = dataclasses.replace(settings, ood_dataset=default)
    if settings.ood_dataset is None and settings.ood_batch_size is not None:
        raise InputError(
            f"-ood_batch_size is {settings.ood_batch_size}, but there are no outliers: name them with -ood_dataset"
        )
    if settings.ood_dataset is not None and loss.outliers == "ignored":
        raise InputError(
            f"-loss {settings.loss} does not learn from outliers; leave -ood_dataset out, or choose one of "
            f"{', '.join(name for name in losses.names() if losses.get(name).outliers != 'ignored')}"
        )
    if settings.needs_init and settings.init is None:
        raise InputError(
            f"this recipe of {settings.loss} continues a trained network (needs_init): give its weights with -init FILE (ood_training.py: -weights FILE)"
        )
    if loss.pretrained and settings.init is None and "full_train_loss" not in settings.loss_args:
        raise InputError(
            f"-loss {settings.loss} continues a trained network: give its weights with -init FILE, or the cross-entropy that it is to keep "
            "within reach of with -loss_args full_train_loss=0.05"
        )
    return settings


def find_run(given: dict, root: str | Path, out_dir: str | Path | None = None) -> runs.Run | None:
    """Find the run to resume; None when -out_dir holds none yet (see `Kind.to_resume`)."""
    if out_dir is not None and runs.holds_run(out_dir):  # its loss may differ from the default
        stored = runs.Run(out_dir).config.get("loss", Settings.loss)
        return kind(stored).to_resume({}, root, out_dir)
    settings = {
        key: value
        for key, value in to_dict(resolve(given)).items()
        if value is not None or key not in SHAPE
    }
    return kind(settings["loss"]).to_resume(settings, root, out_dir)


def continued(run: runs.Run, given: dict) -> Settings:
    """Return the settings of a run, with what may change taken from `given`.

    Raises: InputError when they contradict the run.
    """
    return resolve(kind(run.config.get("loss", Settings.loss)).continued(run, given))


def newest_classifier(networks: ModuleType, wanted, root: str | Path) -> runs.Run:
    """Find the newest classifier below `root` that `wanted` describes.

    This is the one rule for "the newest run of this configuration" of a classifier. eval_ood.py,
    the scripts that stand on ood.evaluation.workbench, and the heatmap method all follow it: a run
    fits when its data set, its loss, its network and every option of the network are the same.
    Depth, width and other options that are not given have the network's defaults.

    Args:
        wanted: an Experiment or a method's settings: id_dataset, arch, depth, width, model_args,
            and the loss where there is one (else cross-entropy).
    Raises: InputError when there is none, with the command that trains one.
    """
    loss = getattr(wanted, "loss", Settings.loss)
    facts = {"kind": kind(loss).name, "id_dataset": wanted.id_dataset, "arch": wanted.arch}
    given = {name: value for name in ("depth", "width") if (value := getattr(wanted, name))}
    words = ["python3 classifier_pretraining.py", f"-dataset {wanted.id_dataset}"]
    words += [f"-{name} {value}" for name, value in {"arch": wanted.arch, **given}.items()]
    if wanted.model_args:
        words += ["-model_args", *(f"{key}={value}" for key, value in wanted.model_args.items())]
    if loss != Settings.loss:
        words.append(f"-loss {loss}")

    def view(config: dict) -> dict:
        same = config.get("arch") == wanted.arch
        return {**config, **_options(networks, config)} if same else config

    match = {**facts, **_options(networks, {**facts, **given, "model_args": wanted.model_args})}
    return runs.find_newest(root, match, view=view, command=" ".join(words))


def _options(networks: ModuleType, config: dict) -> dict:
    """Return every option of a configuration's network, defaults filled in."""
    arch = config["arch"]
    defaults = {} if arch.startswith("torchvision_") else networks.options(arch)
    shape = {name: value for name in ("depth", "width") if (value := config.get(name))}
    return {**defaults, **shape, **config.get("model_args", {})}


def describe(settings: Settings, network) -> dict:
    """Return what config.json says besides the kind; `newest_classifier` looks at it."""
    shape = {name: network.arch[name] for name in SHAPE if name in network.arch}
    return {
        **to_dict(settings),
        **shape,
        "in_channels": network.arch["in_channels"],
        "image_size": network.arch["image_size"],
    }


def kind(loss: str) -> runs.Kind:
    """Return the kind of run that a loss makes.

    A plain classifier's is "classifier": methods and eval_ood.py look for it. Every other loss has
    a kind of its own.
    """
    name = "classifier" if loss == Settings.loss else f"classifier, {loss}"
    return runs.Kind(name, Settings, what="a classifier", free=FREE)


def stem(settings: Settings) -> str:
    """First part of the run folder's name: cifar10_wideresnet_40_2, mnist5k_small_cnn_outlier_exposure."""
    dataset = (
        Path(settings.id_dataset).resolve().name
        if is_folder_path(settings.id_dataset)
        else settings.id_dataset
    )
    loss = None if settings.loss == Settings.loss else settings.loss
    return "_".join(
        str(word)
        for word in (dataset, settings.arch, settings.depth, settings.width, loss)
        if word is not None
    )


# ---- data --------------------------------------------------------------------------------------------------------------------


def facts(settings: Settings) -> DatasetInfo | None:
    """The registry's row; None for an image folder."""
    return None if is_folder_path(settings.id_dataset) else info(settings.id_dataset)


def load_images(settings: Settings, split: str) -> ImageSet:
    """Return one split at the network's size; with -limit so many images of it, every class kept."""
    row = facts(settings)
    size = settings.size or (row.size if row else None)
    resize = settings.size or (row.resize if row else None)
    images = load(
        settings.id_dataset,
        split,
        settings.data_dir,
        size=size,
        resize=resize,
        download=settings.download,
    )
    if settings.num_workers and hasattr(images, "workers"):
        images.workers = settings.num_workers
    return images.limited(settings.limit)


def load_outliers(settings: Settings, side: int, channels: int) -> ImageSet:
    """The auxiliary outliers at the size and with the channels of the ID images; -limit counts for them too."""
    return auxiliary.load_outliers(
        settings.ood_dataset,
        settings.data_dir,
        size=side,
        channels=channels,
        download=settings.download,
        limit=settings.limit,
    )


def check_labels(images: ImageSet, test: ImageSet, settings: Settings) -> None:
    """Raises InputError for images that no classifier can be trained on."""
    name, count = settings.id_dataset, images.num_classes
    if count is None or count < 2:
        raise InputError(
            f"'{name}' has {'no labels' if count is None else 'one class only'}; a classifier needs two classes or more "
            "(sub-folders of the folder, or a labelled data set)"
        )
    if images.split == "all" and settings.valid_split == 0:
        raise InputError(
            f"'{name}' has no sub-folders train and test, so the validation images stand for a test set; -valid_split 0 leaves none"
        )
    if settings.limit is not None and settings.limit < count:
        raise InputError(
            f"-limit is {settings.limit}, but '{name}' has {count} classes; a classifier needs an "
            f"image of each: give -limit {count} or more"
        )
    if settings.num_classes not in (None, count):
        raise InputError(
            f"'{name}' has {count} classes, num_classes says {settings.num_classes}; they must agree"
        )
    if test.num_classes != count or test.shape != images.shape:
        raise InputError(
            f"'{name}': training images are {images.shape} in {count} classes, test images {test.shape} in "
            f"{test.num_classes}; they must agree (-size gives both one size)"
        )
    if images.shape[1] != images.shape[2]:
        raise InputError(
            f"'{name}' has images of {images.shape[2]}x{images.shape[1]} pixels; networks take squares: give -size"
        )
    if len(images) < 2:
        raise InputError(f"'{name}' has {len(images)} training image(s); at least 2 are needed")


def normalisation(settings: Settings, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std), one value per channel: the setting's, else the data set's."""
    row = facts(settings)
    values = []
    for name in ("mean", "std"):
        value = getattr(settings, name) or (getattr(row, name) if row else (0.5,))
        if len(value) not in (1, channels):
            raise InputError(
                f"-{name} has {len(value)} values, the images have {channels} channel(s); give one value or one per channel"
            )
        values.append(tuple(value) * (channels // len(value)))
    return values[0], values[1]
