"""Train a classifier: the network whose features, logits and predicted classes the OOD methods look at.

    python3 classifier_pretraining.py                                                 # 4,000 embedded MNIST images, small_cnn, CPU
    python3 classifier_pretraining.py -dataset cifar10 -arch resnet18 -device cuda:0
    python3 classifier_pretraining.py -dataset cifar100 -arch wideresnet -depth 40 -width 2
    python3 classifier_pretraining.py -dataset ./photos -size 32 -arch resnet18       # folders ./photos/{train,test}/<class>/*.jpg
    python3 classifier_pretraining.py -loss outlier_exposure                          # learns from outliers too: letters and patches
    python3 classifier_pretraining.py -dataset cifar10 -loss energy_bounded -ood_dataset 300K_random_images.npy -init best.pt -lr 0.001 -epochs 10
    python3 classifier_pretraining.py -resume -out_dir checkpoints/RUN                # continue a run that was interrupted
    torchrun --nproc_per_node 4 classifier_pretraining.py -dataset cifar10 -arch resnet18 -batch_size 50      # 4 GPUs, 200 images a step

Writes checkpoints/<data set>_<arch>_<time>/ (or -out_dir): config.json, log.jsonl, last.pt (everything a resume needs), best.pt (the
weights with the highest validation accuracy). A weight file holds the network, whatever -loss trained it, and under "objective" what the
loss learned beside it (centres, a confidence head, ...). Without other flags the recipe is that of "Heatmap-based Out-of-Distribution Detection"
(Hornauer and Belagiannis, WACV 2023): 100 epochs, batches of 200, SGD 0.1 with a tenth of it whenever the validation accuracy has not
risen for ten epochs. It differs from the authors' code where that is wrong by its own text: validation images are not augmented
(-valid_augment does as released), the split is seeded, the best weights are tested as well as the last.
"""
from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

import models
from ood import cli, distributed, losses, report, runs, train
from ood.config import InputError, build, merge, read_json, to_dict
from ood.data import Augment, ImageSet, Preprocess, info, load
from ood.data.registry import DatasetInfo, is_folder_path
from ood.data.transforms import KINDS

HALF = dict(mean=(0.5,), std=(0.5,))     # [0, 1] -> [-1, 1], the heatmap paper's normalisation
DIGITS = "rotate_resized_crop"           # a mirrored digit is another character

# What a data set changes in the defaults of Settings.
RECIPES = {
    "mnist5k": dict(arch="small_cnn", epochs=12, batch_size=64, schedule="onecycle", valid_split=0.1, augment=DIGITS, **HALF),
    "mnist": dict(augment=DIGITS),
    "svhn": dict(augment="none"),
    "cifar10": dict(arch="resnet18", **HALF),
    "cifar100": dict(arch="resnet18", **HALF),
    "tinyimagenet": dict(arch="resnet50", epochs=200, batch_size=128, augment="resized_crop_flip", **HALF),
    "imagenet": dict(epochs=90, batch_size=256, weight_decay=1e-4, schedule="steps", milestones=(30, 60), augment="resized_crop_flip"),
}
FOLDER = dict(valid_split=0.1)           # for an image folder: usually a small set
OUTLIERS = {"mnist5k": "letters+patches"}    # training halves that a loss with outliers takes when -ood_dataset names none
FREE = ("device", "data_dir", "download", "num_workers", "tensorboard", "epochs")     # what may change when a run is resumed
FIXED_LENGTH = ("cosine", "onecycle")    # schedules that depend on the number of epochs from the first one on
SHAPE = ("num_classes", "depth", "width")          # in config.json they are never None, if the network knows them
FACTS = ("kind", "started", "in_channels", "image_size")               # what config.json holds besides the settings


@dataclass(frozen=True)
class Settings:
    """The whole experiment; the defaults are the heatmap paper's for CIFAR."""
    id_dataset: str = "mnist5k"                  # a registered set or an image folder
    arch: str | None = None                      # a name of models.names(), or torchvision_<name>
    depth: int | None = None                     # of densenet, wrn, wideresnet; None: the network's own default
    width: int | None = None
    model_args: dict = field(default_factory=dict)
    num_classes: int | None = None               # checked against the data
    size: int | None = None                      # side of the images, pixels; None: the data set's own
    mean: tuple[float, ...] | None = None        # one value or one per channel, of pixels in [0, 1]; None: the data set's
    std: tuple[float, ...] | None = None
    augment: Literal[KINDS] = "crop_flip"
    valid_split: float = 0.01                    # fraction of the training set
    valid_augment: bool = False                  # released behaviour: validation images are augmented too
    loss: str = "cross_entropy"                  # a name of ood.losses.names()
    loss_args: dict = field(default_factory=dict)
    ood_dataset: str | tuple[str, ...] | None = None    # auxiliary outliers: registered sets, folders, .npy arrays; "letters+patches"
    ood_batch_size: int | None = None            # outliers per step; None: as many as batch_size
    init: str | None = None                      # weight file to begin from
    epochs: int = 100
    batch_size: int = 200
    optimizer: Literal[train.OPTIMIZERS] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4                   # on all parameters, norms and biases included
    schedule: Literal[train.SCHEDULES] = "plateau"
    milestones: tuple[int, ...] = ()             # of schedule steps, in epochs done
    gamma: float = 0.1                           # factor of schedules steps and plateau
    patience: int = 10                           # of schedule plateau, in epochs
    clip_norm: float | None = None
    ema: float | None = None                     # decay of a moving average of the weights, which is then what is validated and kept
    sampler: Literal["shuffle", "balanced"] = "shuffle"    # balanced: every class equally often
    sync_batchnorm: bool = False                 # under torchrun: batch statistics of all processes
    compile: bool = False
    tensorboard: bool = False
    precision: Literal[train.PRECISIONS] = "fp32"
    channels_last: Literal["auto", "on", "off"] = "auto"   # auto: on a GPU
    seed: int = 0
    deterministic: bool = False
    limit: int | None = None                     # a seeded choice of so many images per split
    data_dir: str = "./datasets"
    download: bool = False
    num_workers: int | None = None               # threads that decode large images; None: one per core
    device: str | None = None


parser = cli.Parser("Train a classifier.", "Exit code: 0 trained, 2 bad input, 1 the run failed (a loss that is not finite).")
parser.flag("-config", help="JSON file with any of the settings below (by the flags' names); flags win")
parser.flag("-dataset", dest="id_dataset", aliases=("-id_dataset",), help="registered data set or image folder [default: mnist5k]")
parser.flag("-arch", help=f"network: {', '.join(models.names())}, torchvision_NAME "
            "[default: small_cnn for mnist5k, resnet18 for cifar, resnet50 for tinyimagenet]")
parser.flag("-depth", type=int, help="depth of densenet, wrn, wideresnet [default: the network's]")
parser.flag("-width", type=int, help="width of wrn, wideresnet, small_* [default: the network's]")
parser.flag("-model_args", nargs="+", metavar="KEY=VALUE", help="further options of the network, e.g. dropout=0.3 pool=adaptive")
parser.flag("-size", type=int, help="side of the images in pixels [default: the data set's]")
parser.flag("-mean", type=float, nargs="+", metavar="M", help="normalisation, pixel units of [0, 1] [default: 0.5, or the data set's]")
parser.flag("-std", type=float, nargs="+", metavar="S", help="normalisation [default: 0.5, or the data set's]")
parser.flag("-augment", choices=KINDS, help=f"of training images: {', '.join(KINDS)} [default: crop_flip; resized_crop_flip for tinyimagenet; "
            f"{DIGITS} for digits]")
parser.flag("-valid_split", type=float, help="fraction of the training set held out for validation [default: 0.01; mnist5k: 0.1]")
parser.flag("-valid_augment", action="store_true", help="augment validation images too: released behaviour [default: off]")
parser.flag("-loss", help=f"objective: {', '.join(losses.names())} [default: cross_entropy]")
parser.flag("-loss_args", nargs="+", metavar="KEY=VALUE", help="arguments of the loss, e.g. alpha=0.5 [default: the paper's]")
parser.flag("-ood_dataset", nargs="+", metavar="NAME", help="auxiliary outliers, for a loss that learns from them: registered sets (their training halves), "
            "folders, .npy arrays; several are joined [default: letters+patches for mnist5k, else none]")
parser.flag("-ood_batch_size", type=int, help="outliers in every step, beside the ID images [default: as -batch_size]")
parser.flag("-init", metavar="FILE", help="weight file to begin from, of the same network [default: random weights]")
parser.flag("-epochs", type=int, help="[default: 100; tinyimagenet: 200; mnist5k: 12]")
parser.flag("-batch_size", type=int, help="images per step, under torchrun of every process [default: 200; tinyimagenet: 128; mnist5k: 64]")
parser.flag("-optimizer", choices=train.OPTIMIZERS, help="sgd or adam [default: sgd]")
parser.flag("-lr", type=float, help="learning rate; the highest one of onecycle [default: 0.1]")
parser.flag("-momentum", type=float, help="of sgd [default: 0.9]")
parser.flag("-nesterov", action="store_true", help="Nesterov's momentum [default: off]")
parser.flag("-weight_decay", type=float, help="on all parameters [default: 0.0005]")
parser.flag("-schedule", choices=train.SCHEDULES, help=f"{', '.join(train.SCHEDULES)} [default: plateau on validation accuracy; mnist5k: onecycle]")
parser.flag("-milestones", type=int, nargs="+", metavar="EPOCH", help="of -schedule steps: epochs after which lr is multiplied by gamma")
parser.flag("-gamma", type=float, help="factor of the schedules steps and plateau [default: 0.1]")
parser.flag("-patience", type=int, help="of -schedule plateau, epochs [default: 10]")
parser.flag("-clip_norm", type=float, help="largest norm of the gradient [default: no clipping]")
parser.flag("-ema", type=float, metavar="DECAY", help="keep a moving average of the weights, e.g. 0.999: it is validated, tested and saved [default: off]")
parser.flag("-sampler", choices=("shuffle", "balanced"), help="balanced: every class equally often, for sets with rare classes [default: shuffle]")
parser.flag("-precision", choices=train.PRECISIONS, help="fp32, or bf16: autocast, weights stay fp32 [default: fp32]")
parser.flag("-channels_last", choices=("auto", "on", "off"), help="memory layout NHWC: on, off, auto [default: auto, on a GPU]")
parser.flag("-compile", action="store_true", help="torch.compile: a slow first step, faster ones after it [default: off]")
parser.flag("-sync_batchnorm", action="store_true", help="under torchrun: BatchNorm sees the images of all processes [default: each its own]")
parser.flag("-tensorboard", action="store_true", help="also write events for TensorBoard into the run folder [default: off]")
parser.flag("-seed", type=int, help="of the split, the weights, order, augmentation and dropout [default: 0]")
parser.flag("-deterministic", action="store_true", help="deterministic kernels on a GPU too, slower [default: off]")
parser.flag("-limit", type=int, help="a seeded choice of so many images per split (a quick look) [default: all]")
parser.flag("-device", help="cpu, cuda:0, ... [default: cuda:0 where there is one, else cpu]")
parser.flag("-data_dir", help="root of the data sets [default: ./datasets]")
parser.flag("-download", action="store_true", help="fetch a set that torchvision can fetch [default: off]")
parser.flag("-num_workers", type=int, help="threads that decode large images [default: one per core]")
parser.flag("-checkpoints_dir", help="where run folders are made", default="./checkpoints")
parser.flag("-out_dir", help="the run folder itself [default: CHECKPOINTS_DIR/DATASET_ARCH_TIME]")
parser.flag("-resume", action="store_true", default=False,
            help="continue the run in -out_dir (begin it if there is none yet), or the newest run of these very settings")


def main() -> None:
    flags = vars(parser.parse_args())
    config, root, out_dir, resume = (flags.pop(name) for name in ("config", "checkpoints_dir", "out_dir", "resume"))
    flags.update({name: options(flags[name], name) for name in ("model_args", "loss_args")})
    flags["ood_dataset"] = flags["ood_dataset"] and "+".join(flags["ood_dataset"])
    given = with_known_names(merge(read_settings(config), flags))
    resumed = find_run(given, root, out_dir) if resume else None
    settings = continued(resumed, given) if resumed else resolve(given)
    device = cli.choose_device(settings.device)
    if settings.tensorboard:
        runs.require_tensorboard()
    cli.set_seed(settings.seed, settings.deterministic)
    cli.log(f"device {cli.describe_device(device)} | {settings.id_dataset} | {settings.arch} | {settings.loss} | seed {settings.seed}")
    if resume and not resumed:
        cli.log(f"no run in {out_dir} yet: beginning one")

    # Data: pixels as uint8; the training images are split once, by the seed.
    images, test = load_images(settings, "train"), load_images(settings, "test")
    check_labels(images, test, settings)
    kept, held_out = train.split(len(images), settings.valid_split, settings.seed)
    if images.split == "all":
        test = images.subset(held_out)
        cli.log(f"{settings.id_dataset} has no test part: the validation images stand for it")

    channels, side, _ = images.shape
    outliers = load_outliers(settings, side, channels) if settings.ood_dataset else None

    # Model, and the loss with what it learns beside it.
    shape = {name: getattr(settings, name) for name in ("depth", "width") if getattr(settings, name) is not None}
    network = models.build(settings.arch, images.num_classes, in_channels=channels, image_size=side, **shape, **settings.model_args)
    nhwc = settings.channels_last == "on" or settings.channels_last == "auto" and device.type == "cuda"
    layout = torch.channels_last if nhwc else torch.contiguous_format
    if settings.init and not resumed:
        models.checkpoints.load_into(network, settings.init)
    objective = losses.Objective(settings.loss, network, **settings.loss_args).to(device)
    network.to(device, memory_format=layout)
    if settings.sync_batchnorm:
        distributed.synchronise_batchnorm(network, device)
    if settings.compile:
        train.compiled(network, device)

    # From pixels (B, C, H, W) to what the network takes: on the device, a batch at a time.
    mean, std = normalisation(settings, channels)
    preprocess, augment = Preprocess(mean, std), Augment(settings.augment)

    def as_is(pixels, generator):
        return preprocess(pixels).contiguous(memory_format=layout)

    def augmented(pixels, generator):
        return as_is(augment(pixels, generator), generator)

    common = dict(batch_size=settings.batch_size, device=device, seed=settings.seed)
    training = train.ImageBatches(images, indices=kept, transform=augmented, shuffle=True, balanced=settings.sampler == "balanced", **common)
    if outliers is not None:
        common_ood = {**common, "batch_size": settings.ood_batch_size or settings.batch_size, "seed": train.mix(settings.seed, 2)}
        training = losses.MixedBatches(training, train.ImageBatches(outliers, transform=augmented, shuffle=True, **common_ood))
    looked_at = train.ImageBatches(images, indices=kept, transform=as_is, shuffle=False, **common)     # by a loss, between epochs
    validation = train.ImageBatches(images, indices=held_out, transform=augmented if settings.valid_augment else as_is, shuffle=False, **common)
    testing = train.ImageBatches(test, transform=as_is, shuffle=False, **common)

    # Step, selection, optimiser, schedule.
    def step(batch):
        inputs, labels = batch                                              # (B, C, H, W), (B,): below 0 for outliers
        return objective(inputs, labels)

    def before_epoch(epoch):
        with distributed.solo():                                            # every process looks at all of them
            objective.before_epoch(epoch, looked_at)

    def validate(epoch):
        objective.finish_head()
        measured = train.measure(network, validation, precision=settings.precision, epoch=epoch)
        return {"valid_loss": measured["loss"], "valid_accuracy": measured["accuracy"]}

    def pack(epoch, metrics):
        objective.finish_head()
        return {"format": models.checkpoints.OWN_FORMAT, "arch": network.arch, "state_dict": network.state_dict(), "epoch": epoch,
                "metrics": metrics, "preprocess": {"mean": list(mean), "std": list(std), "size": side}, "objective": objective.describe()}

    learned = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = train.make_optimizer(settings.optimizer, learned, settings.lr, momentum=settings.momentum,
                                     nesterov=settings.nesterov, weight_decay=settings.weight_decay)
    schedule = train.Schedule(optimizer, settings.schedule, settings.epochs, milestones=settings.milestones, gamma=settings.gamma,
                              patience=settings.patience)

    # The run folder: made only now that nothing can be wrong with the input any more.
    run = resumed or runs.create(stem(settings), describe(settings, network), root=root, out_dir=out_dir)
    run.update(epochs=settings.epochs)
    sizes = {"train_images": len(kept), "valid_images": len(held_out), "test_images": len(test)}
    digests = {"train": images.digest, "test": test.digest}
    if outliers is not None:
        sizes["ood_images"], digests["ood"] = len(outliers), outliers.digest
    run.log({"event": "resume" if resumed else "start", **sizes, **report.provenance(sys.argv, to_dict(settings), settings.seed, device, digests, {})})
    cli.log(f"{len(kept)} training, {len(held_out)} validation, {len(test)} test images{f', {len(outliers)} outliers' if outliers else ''} | run folder {run.folder}")
    with runs.board(run, settings.tensorboard) as tell:
        history = train.fit(step, network, training, epochs=settings.epochs, optimizer=optimizer, schedule=schedule, run=run, pack=pack,
                            validate=validate if len(held_out) else None, select="valid_accuracy" if len(held_out) else None,
                            resume=resume, precision=settings.precision, clip_norm=settings.clip_norm, ema=settings.ema, before_epoch=before_epoch,
                            state={"objective": objective.own} if objective.own.state_dict() else None, tell=tell)

    # The test set, with the last weights (what the released code prints) and with the best ones by validation accuracy.
    last = train.measure(network, testing, precision=settings.precision)
    best_epoch = models.checkpoints.load_into(network, run.best)["epoch"]
    best = train.measure(network, testing, precision=settings.precision)
    run.log({"event": "end", "epoch": history.epochs, "best_epoch": best_epoch, "test_accuracy_last": last["accuracy"],
             "test_accuracy_best": best["accuracy"], "test_loss_last": last["loss"], "test_loss_best": best["loss"]})
    cli.log(f"test accuracy: best {best['accuracy']:.2%} (epoch {best_epoch}), last {last['accuracy']:.2%} (epoch {history.epochs})")
    cli.log(f"weights: {run.best}")


# ---- settings ----------------------------------------------------------------------------------------------------------------

def read_settings(path: str | None) -> dict:
    """The settings in a JSON file; `dataset` stands for `id_dataset`, and the config.json of a run is a config too."""
    if path is None:
        return {}
    values = {key: value for key, value in read_json(path).items() if key not in FACTS}
    if "dataset" in values:
        values["id_dataset"] = values.pop("dataset")
    settings = build(Settings, values, path)
    return {key: getattr(settings, key) for key in values}


def options(words: list[str] | None, flag: str) -> dict | None:
    """['dropout=0.3', 'pool=adaptive'] -> {'dropout': 0.3, 'pool': 'adaptive'}."""
    if words is None:
        return None
    pairs = [word.partition("=") for word in words]
    for (key, equals, _), word in zip(pairs, words):
        if not key or not equals:
            raise InputError(f"-{flag} takes KEY=VALUE, got '{word}'")
    return {key: literal(value) for key, _, value in pairs}


def literal(text: str):
    """A number, true, false, or the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def with_known_names(given: dict) -> dict:
    """The data set under its registered name, the network's and the loss's names checked. Raises InputError or ModelError before any data is read."""
    dataset, arch = given.get("id_dataset"), given.get("arch")
    if arch is not None and not arch.startswith("torchvision_"):
        models.options(arch)
    losses.get(given.get("loss", Settings.loss))
    return given if dataset is None or is_folder_path(dataset) else {**given, "id_dataset": info(dataset).name}


def resolve(given: dict) -> Settings:
    """Defaults, then the data set's recipe, then what is given; every value in its range. Raises InputError."""
    dataset = given.get("id_dataset", Settings.id_dataset)
    settings = build(Settings, {**(FOLDER if is_folder_path(dataset) else RECIPES.get(dataset, {})), **given}, "settings")
    if settings.arch is None:
        raise InputError(f"-arch is needed for '{dataset}': one of {', '.join(models.names())}, torchvision_NAME")
    for key, least in dict(epochs=1, batch_size=1, ood_batch_size=1, limit=1, size=1, num_workers=1, patience=0, momentum=0, weight_decay=0, seed=0).items():
        if getattr(settings, key) is not None and not least <= getattr(settings, key) < float("inf"):
            raise InputError(f"-{key} is {getattr(settings, key)}; it must be at least {least}")
    for key in ("lr", "gamma", "clip_norm"):
        if getattr(settings, key) is not None and not 0 < getattr(settings, key) < float("inf"):
            raise InputError(f"-{key} is {getattr(settings, key)}; it must be above 0")
    if not 0 <= settings.valid_split < 1:
        raise InputError(f"-valid_split is {settings.valid_split}; it is a fraction, from 0 (no validation) to below 1")
    if settings.valid_split == 0 and settings.schedule == "plateau":
        raise InputError("-schedule plateau looks at the validation accuracy, but -valid_split is 0; hold images out or choose another schedule")
    if settings.schedule == "steps" and not settings.milestones:
        raise InputError("-schedule steps needs -milestones, e.g. -milestones 50 75")
    if settings.ema is not None and not 0 <= settings.ema < 1:
        raise InputError(f"-ema is {settings.ema}; it is a decay, from 0 (no memory) to below 1, e.g. 0.999")
    if settings.nesterov and (settings.optimizer != "sgd" or settings.momentum == 0):
        raise InputError("-nesterov needs -optimizer sgd and a -momentum above 0")
    return with_outliers(settings)


def with_outliers(settings: Settings) -> Settings:
    """The loss and its arguments tried, the auxiliary outliers that it needs named. Raises InputError."""
    loss = losses.check(settings.loss, settings.loss_args)
    if settings.ood_dataset is None and loss.outliers == "needed":
        default = OUTLIERS.get(settings.id_dataset)
        if default is None:
            raise InputError(f"-loss {settings.loss} learns from outliers: name them with -ood_dataset, e.g. a folder of images, 300K_random_images.npy or a "
                             f"registered set ({OUTLIERS['mnist5k']} for grey images of 28x28)")
        settings = dataclasses.replace(settings, ood_dataset=default)
    if settings.ood_dataset is None and settings.ood_batch_size is not None:
        raise InputError(f"-ood_batch_size is {settings.ood_batch_size}, but there are no outliers: name them with -ood_dataset")
    if settings.ood_dataset is not None and loss.outliers == "ignored":
        raise InputError(f"-loss {settings.loss} does not learn from outliers; leave -ood_dataset out, or choose one of "
                         f"{', '.join(name for name in losses.names() if losses.get(name).outliers != 'ignored')}")
    if loss.pretrained and settings.init is None and "full_train_loss" not in settings.loss_args:
        raise InputError(f"-loss {settings.loss} continues a trained network: give its weights with -init FILE, or the cross-entropy that it is to keep "
                         "within reach of with -loss_args full_train_loss=0.05")
    return settings


def find_run(given: dict, root: str, out_dir: str | None) -> runs.Run | None:
    """The run to resume; None when -out_dir holds none yet, so that one command line both begins a run and continues it."""
    if out_dir is None:
        settings = to_dict(resolve(given))
        match = {key: value for key, value in settings.items() if key not in FREE and not (key in SHAPE and value is None)}
        try:
            return runs.find_newest(root, {"kind": kind(settings["loss"]), **match}, file="config.json")
        except InputError:
            raise InputError(f"no run of these very settings in '{root}' to resume; name its folder with -out_dir, or leave -resume out") from None
    if not runs.holds_run(out_dir):
        return None
    return runs.reopen(out_dir)


def continued(run: runs.Run, given: dict) -> Settings:
    """The settings of a run, with what may change on the way taken from the flags. Raises InputError when they contradict the run."""
    known = {f.name for f in dataclasses.fields(Settings)}
    old = {"loss": Settings.loss, **{key: value for key, value in run.config.items() if key in known}}
    if run.config.get("kind") != kind(old["loss"]):
        raise InputError(f"'{run.folder}' holds a run of kind '{run.config.get('kind')}', not a classifier's")
    settings = resolve(runs.agree(old, given, FREE, run.folder))
    if settings.epochs != old["epochs"] and settings.schedule in FIXED_LENGTH:
        raise InputError(f"the run in '{run.folder}' follows schedule {settings.schedule} over {old['epochs']} epochs; "
                         f"-epochs {settings.epochs} would be another schedule: start a new run")
    return settings


def describe(settings: Settings, network) -> dict:
    """What config.json says: by these fields eval_ood.py and the methods find the run."""
    shape = {name: network.arch[name] for name in SHAPE if name in network.arch}
    return {"kind": kind(settings.loss), **to_dict(settings), **shape, "in_channels": network.arch["in_channels"], "image_size": network.arch["image_size"]}


def kind(loss: str) -> str:
    """Of a run: "classifier", by which methods and eval_ood.py find the plain one; other losses have kinds of their own."""
    return "classifier" if loss == Settings.loss else f"classifier, {loss}"


def stem(settings: Settings) -> str:
    """First part of the run folder's name: cifar10_wideresnet_40_2, mnist5k_small_cnn_outlier_exposure."""
    dataset = Path(settings.id_dataset).resolve().name if is_folder_path(settings.id_dataset) else settings.id_dataset
    loss = None if settings.loss == Settings.loss else settings.loss
    return "_".join(str(word) for word in (dataset, settings.arch, settings.depth, settings.width, loss) if word is not None)


# ---- data --------------------------------------------------------------------------------------------------------------------

def facts(settings: Settings) -> DatasetInfo | None:
    """The registry's row; None for an image folder."""
    return None if is_folder_path(settings.id_dataset) else info(settings.id_dataset)


def load_images(settings: Settings, split: str) -> ImageSet:
    """One split at the network's size; -limit takes a seeded choice, because files are ordered by class."""
    row = facts(settings)
    size = settings.size or (row.size if row else None)
    resize = settings.size or (row.resize if row else None)
    images = load(settings.id_dataset, split, settings.data_dir, size=size, resize=resize, download=settings.download)
    if settings.num_workers and hasattr(images, "workers"):
        images.workers = settings.num_workers
    if settings.limit is None or settings.limit >= len(images):
        return images
    return images.subset(np.sort(np.random.RandomState(settings.seed).permutation(len(images))[:settings.limit]))


def load_outliers(settings: Settings, side: int, channels: int) -> ImageSet:
    """The auxiliary outliers at the size and with the channels of the ID images; -limit counts for them too."""
    return losses.load_outliers(settings.ood_dataset, settings.data_dir, size=side, channels=channels, download=settings.download, limit=settings.limit,
                                seed=settings.seed)


def check_labels(images: ImageSet, test: ImageSet, settings: Settings) -> None:
    """Raises InputError for images that no classifier can be trained on."""
    name, count = settings.id_dataset, images.num_classes
    if count is None or count < 2:
        raise InputError(f"'{name}' has {'no labels' if count is None else 'one class only'}; a classifier needs two classes or more "
                         "(sub-folders of the folder, or a labelled data set)")
    if images.split == "all" and settings.valid_split == 0:
        raise InputError(f"'{name}' has no sub-folders train and test, so the validation images stand for a test set; -valid_split 0 leaves none")
    if settings.num_classes not in (None, count):
        raise InputError(f"'{name}' has {count} classes, num_classes says {settings.num_classes}; they must agree")
    if test.num_classes != count or test.shape != images.shape:
        raise InputError(f"'{name}': training images are {images.shape} in {count} classes, test images {test.shape} in "
                         f"{test.num_classes}; they must agree (-size gives both one size)")
    if images.shape[1] != images.shape[2]:
        raise InputError(f"'{name}' has images of {images.shape[2]}x{images.shape[1]} pixels; networks take squares: give -size")
    if len(images) < 2:
        raise InputError(f"'{name}' has {len(images)} training image(s); at least 2 are needed")


def normalisation(settings: Settings, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std), one value per channel: the setting's, else the data set's."""
    row = facts(settings)
    values = []
    for name in ("mean", "std"):
        value = getattr(settings, name) or (getattr(row, name) if row else (0.5,))
        if len(value) not in (1, channels):
            raise InputError(f"-{name} has {len(value)} values, the images have {channels} channel(s); give one value or one per channel")
        values.append(tuple(value) * (channels // len(value)))
    return values[0], values[1]


if __name__ == "__main__":
    cli.run(main, (models.ModelError, models.CheckpointError), processes="many")
