"""Training of a classifier: the run from images to best.pt, and how its run is found again.

    run = train_classifier(models, {"id_dataset": "cifar10", "loss": "logitnorm"})

This is what classifier_pretraining.py does, and ood_training.py for a config with a `loss`.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from ood import cli, distributed, losses
from ood.config import InputError, to_dict
from ood.data import Augment, ImageSet, PixMix, Preprocess, auxiliary, info, load, pixmix
from ood.data.registry import is_folder_path
from ood.data.registry.table import DatasetInfo
from ood.training import batches, loop, runs
from ood.training.batches import ImageBatches, MixedBatches
from ood.training.settings import FREE, Settings, mixing, resolve, with_known_names

# In config.json these are never None if the network knows them.
SHAPE = ("num_classes", "depth", "width")


def train_classifier(
    networks: ModuleType,
    given: dict,
    *,
    root: str | Path = "./checkpoints",
    out_dir: str | Path | None = None,
    resume: bool = False,
) -> runs.Run:
    """Train a classifier to the end, measure it on the test set, and return its run folder.

    Args:
        networks: the package `models`.
        given: settings that differ from the defaults and from the data set's recipe.
        root: where run folders are made.
        out_dir: the run folder itself.
        resume: continue the run in out_dir (begin it if there is none yet), or the newest run of
            these very settings below root.
    Raises:
        InputError: before anything is written.
        RunError: a loss is not finite.
    """
    given = with_known_names(networks, given)
    resumed = find_run(given, root, out_dir) if resume else None
    settings = continued(resumed, given) if resumed else resolve(given)
    device = cli.choose_device(settings.device)
    if settings.tensorboard:
        runs.require_tensorboard()
    cli.set_seed(settings.seed, settings.deterministic)
    cli.log(
        f"device {cli.describe_device(device)} | {settings.id_dataset} | {settings.arch} | "
        f"{settings.loss} | seed {settings.seed}"
    )
    if resume and not resumed:
        cli.log(f"no run in {out_dir} yet: beginning one")

    data = Data(settings)
    training = Training(networks, settings, device, data, fresh=resumed is None)
    # The run folder is made only now that nothing can be wrong with the input any more.
    run = resumed or kind(settings.loss).create(
        stem(settings), describe(settings, training.network), root=root, out_dir=out_dir
    )
    with run.locked():
        run.update(epochs=settings.epochs)
        run.begin(settings, device, data.digests(), resumed=bool(resumed), **data.sizes())
        cli.log(f"{data.describe()} | run folder {run.folder}")
        history = training.fit(run, resume)
        training.test(run, history.epochs)
    return run


class Data:
    """The images of a training.

    Attributes:
        images: the training set; pixels as uint8.
        kept, held_out: image numbers of its training and validation part, split by the seed.
        test: the test images. A folder without a test part gives its validation images.
        outliers: auxiliary outliers, or None.
        pictures: the mixing set of pixmix, or None.
        channels, side: of every image.
    """

    def __init__(self, settings: Settings):
        self.images = load_images(settings, "train")
        self.test = load_images(settings, "test")
        check_labels(self.images, self.test, settings)
        self.kept, self.held_out = batches.split(
            len(self.images), settings.valid_split, settings.seed
        )
        if self.images.split == "all":
            self.test = self.images.subset(self.held_out)
            cli.log(f"{settings.id_dataset} has no test part: the validation images stand for it")
        self.channels, self.side, _ = self.images.shape
        self.outliers = None
        if settings.ood_dataset:
            self.outliers = auxiliary.load_outliers(
                settings.ood_dataset,
                settings.data_dir,
                size=self.side,
                channels=self.channels,
                download=settings.download,
                limit=settings.limit,
            )
        self.pictures = None
        if settings.mixing_set:
            self.pictures = pixmix.load_pictures(
                settings.mixing_set,
                settings.data_dir,
                side=self.side,
                channels=self.channels,
                download=settings.download,
                limit=settings.limit,
            )

    def sizes(self) -> dict[str, int]:
        """Return the numbers of images, by name, for the log."""
        sizes = {
            "train_images": len(self.kept),
            "valid_images": len(self.held_out),
            "test_images": len(self.test),
        }
        more = {"ood_images": self.outliers, "mixing_pictures": self.pictures}
        return {**sizes, **{name: len(images) for name, images in more.items() if images}}

    def digests(self) -> dict[str, str]:
        sets = {"train": self.images, "test": self.test}
        more = {"ood": self.outliers, "mixing": self.pictures}
        sets.update((name, images) for name, images in more.items() if images)
        return {name: images.digest for name, images in sets.items()}

    def describe(self) -> str:
        others = "" if self.outliers is None else f", {len(self.outliers)} outliers"
        others += "" if self.pictures is None else f", {len(self.pictures)} pictures to mix in"
        return (
            f"{len(self.kept)} training, {len(self.held_out)} validation, "
            f"{len(self.test)} test images{others}"
        )


class Training:
    """A classifier in training: its network and loss, its batches, its validation and weight file.

    Args: fresh: begin with settings.init, where it is given; a resumed run has its own weights.
    """

    def __init__(
        self,
        networks: ModuleType,
        settings: Settings,
        device: torch.device,
        data: Data,
        *,
        fresh: bool,
    ):
        self.networks, self.settings, self.device, self.data = networks, settings, device, data
        self.preprocess = Preprocess(*normalisation(settings, data.channels))
        self.augment = (
            PixMix(data.pictures, mixing(settings))
            if settings.augment == "pixmix"
            else Augment(settings.augment)
        )
        automatic = settings.channels_last == "auto" and device.type == "cuda"
        nhwc = settings.channels_last == "on" or automatic
        self.layout = torch.channels_last if nhwc else torch.contiguous_format
        # All batches have one shape, so that the fastest kernels are worth looking for.
        torch.backends.cudnn.benchmark = device.type == "cuda" and not settings.deterministic
        self.network = self._network(fresh)
        self._make_batches()

    def _network(self, fresh: bool) -> nn.Module:
        """Build the network, and self.objective: the loss with what it learns itself."""
        s, data = self.settings, self.data
        network = self.networks.build(
            s.arch,
            data.images.num_classes,
            in_channels=data.channels,
            image_size=data.side,
            **s.shape(),
            **s.model_args,
        )
        if s.init and fresh:
            self.networks.checkpoints.load_into(network, s.init)
        self.objective = losses.Objective(s.loss, network, **s.loss_args).to(self.device)
        network.to(self.device, memory_format=self.layout)
        if s.sync_batchnorm:
            distributed.synchronise_batchnorm(network, self.device)
        if s.compile:
            loop.compiled(network, self.device)
        return network

    def _make_batches(self) -> None:
        """Make self.training, self.looked_at, self.validation and self.testing."""
        s, data, common = self.settings, self.data, self._common()
        self.training = ImageBatches(
            data.images,
            indices=data.kept,
            transform=self._augmented,
            balanced=s.sampler == "balanced",
            views=losses.get(s.loss).views,
            **common,
        )
        if data.outliers is not None:
            size, seed = s.ood_batch_size or s.batch_size, batches.mix(s.seed, 2)
            options = {**common, "batch_size": size, "seed": seed}
            outliers = ImageBatches(data.outliers, transform=self._augmented, **options)
            self.training = MixedBatches(self.training, outliers)
        in_order = {"shuffle": False, **common}
        # What a loss looks at between epochs.
        self.looked_at = ImageBatches(
            data.images, indices=data.kept, transform=self._as_is, **in_order
        )
        self.validation = ImageBatches(
            data.images,
            indices=data.held_out,
            transform=self._augmented if s.valid_augment else self._as_is,
            **in_order,
        )
        self.testing = ImageBatches(data.test, transform=self._as_is, **in_order)

    def _common(self) -> dict:
        s = self.settings
        return {"batch_size": s.batch_size, "device": self.device, "seed": s.seed}

    # From pixels (B, C, H, W) to what the network takes, on the device, a batch at a time.

    def _as_is(self, pixels: Tensor, generator) -> Tensor:
        return self.preprocess(pixels).contiguous(memory_format=self.layout)

    def _augmented(self, pixels: Tensor, generator) -> Tensor:
        return self._as_is(self.augment(pixels, generator), generator)

    # -- the epochs

    def fit(self, run: runs.Run, resume: bool) -> loop.History:
        """Run the epochs."""
        s, validates = self.settings, len(self.data.held_out) > 0
        own = {"objective": self.objective.own} if self.objective.own.state_dict() else {}
        with runs.board(run, s.tensorboard) as tell:
            hooks = loop.Hooks(
                validate=self.validate if validates else None,
                before_epoch=self.before_epoch,
                state=own,
                tell=tell,
            )
            plan = self.plan("valid_accuracy" if validates else None)
            return loop.fit(
                self.step, self.network, self.training, plan, run, self.pack, hooks, resume=resume
            )

    def plan(self, select: str | None) -> loop.Plan:
        """Return optimiser, schedule and length of the training."""
        s = self.settings
        optimizer = loop.make_optimizer(
            s.optimizer,
            [parameter for parameter in self.objective.parameters() if parameter.requires_grad],
            s.lr,
            momentum=s.momentum,
            nesterov=s.nesterov,
            weight_decay=s.weight_decay,
        )
        schedule = loop.Schedule(
            optimizer,
            s.schedule,
            s.epochs,
            milestones=s.milestones,
            gamma=s.gamma,
            patience=s.patience,
        )
        return loop.Plan(
            s.epochs,
            optimizer,
            schedule,
            select,
            precision=s.precision,
            clip_norm=s.clip_norm,
            ema=s.ema,
        )

    def step(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict]:
        """Return the loss of (images (B, C, H, W), labels (B,)); labels below 0 mark outliers."""
        return self.objective(*batch)

    def before_epoch(self, epoch: int) -> None:
        """Let the loss look at the training images; every process looks at all of them."""
        with distributed.solo():
            self.objective.before_epoch(epoch, self.looked_at)

    def validate(self, epoch: int) -> dict[str, float]:
        self.objective.finish_head()
        measured = self.measure(self.validation, epoch)
        return {"valid_loss": measured["loss"], "valid_accuracy": measured["accuracy"]}

    def measure(self, images: ImageBatches, epoch: int = 0) -> dict[str, float]:
        return loop.measure(self.network, images, precision=self.settings.precision, epoch=epoch)

    def pack(self, epoch: int, metrics: dict) -> dict:
        """Return the content of a weight file."""
        self.objective.finish_head()
        names = self.data.images.class_names
        more = {"objective": self.objective.describe(), "class_names": names}
        return runs.payload(
            self.networks, self.network, epoch, metrics, self.preprocess, self.data.side, **more
        )

    def test(self, run: runs.Run, epochs: int) -> None:
        """Measure the test set, with the last weights and with the best ones.

        The released code prints the accuracy of the last weights. The best ones are the best by
        validation accuracy.
        """
        last = self.measure(self.testing)
        best_epoch = self.networks.checkpoints.load_into(self.network, run.best)["epoch"]
        best = self.measure(self.testing)
        run.log(
            {
                "event": "end",
                "epoch": epochs,
                "best_epoch": best_epoch,
                "test_accuracy_last": last["accuracy"],
                "test_accuracy_best": best["accuracy"],
                "test_loss_last": last["loss"],
                "test_loss_best": best["loss"],
            }
        )
        cli.log(
            f"test accuracy: best {best['accuracy']:.2%} (epoch {best_epoch}), "
            f"last {last['accuracy']:.2%} (epoch {epochs})"
        )
        cli.log(f"weights: {run.best}")


# ---- the run ---------------------------------------------------------------------------------


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
    defaults = {} if networks.is_foreign(arch) else networks.options(arch)
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
    """Return the first part of the run folder's name.

    For example cifar10_wideresnet_40_2, or mnist5k_small_cnn_outlier_exposure.
    """
    dataset = settings.id_dataset
    if is_folder_path(dataset):
        dataset = Path(dataset).resolve().name
    words = [dataset, settings.arch, *settings.shape().values()]
    if settings.loss != Settings.loss:
        words.append(settings.loss)
    return "_".join(map(str, words))


# ---- data ------------------------------------------------------------------------------------


def facts(settings: Settings) -> DatasetInfo | None:
    """Return the registry's entry; None for an image folder."""
    return None if is_folder_path(settings.id_dataset) else info(settings.id_dataset)


def load_images(settings: Settings, split: str) -> ImageSet:
    """Return one split at the network's size, limited to settings.limit images."""
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


def check_labels(images: ImageSet, test: ImageSet, settings: Settings) -> None:
    """Raise InputError for images that no classifier can be trained on."""
    name, count = settings.id_dataset, images.num_classes
    if count is None or count < 2:
        raise InputError(
            f"'{name}' has {'no labels' if count is None else 'one class only'}; a classifier "
            "needs two classes or more (sub-folders of the folder, or a labelled data set)"
        )
    if images.split == "all" and settings.valid_split == 0:
        raise InputError(
            f"'{name}' has no sub-folders train and test, so the validation images stand for a "
            "test set; -valid_split 0 leaves none"
        )
    if settings.limit is not None and settings.limit < count:
        raise InputError(
            f"-limit is {settings.limit}, but '{name}' has {count} classes; a classifier needs an "
            f"image of each: give -limit {count} or more"
        )
    if settings.num_classes not in (None, count):
        raise InputError(
            f"'{name}' has {count} classes, num_classes says {settings.num_classes}; "
            "they must agree"
        )
    if test.num_classes != count or test.shape != images.shape:
        raise InputError(
            f"'{name}': training images are {images.shape} in {count} classes, test images "
            f"{test.shape} in {test.num_classes}; they must agree (-size gives both one size)"
        )
    if images.shape[1] != images.shape[2]:
        raise InputError(
            f"'{name}' has images of {images.shape[2]}x{images.shape[1]} pixels; "
            "networks take squares: give -size"
        )
    if len(images) < 2:
        raise InputError(f"'{name}' has {len(images)} training image(s); at least 2 are needed")


def normalisation(settings: Settings, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return (mean, std), one value per channel: the setting's, else the data set's."""
    row = facts(settings)
    values = []
    for name in ("mean", "std"):
        value = getattr(settings, name) or (getattr(row, name) if row else (0.5,))
        if len(value) not in (1, channels):
            raise InputError(
                f"-{name} has {len(value)} values, the images have {channels} channel(s); "
                "give one value or one per channel"
            )
        values.append(tuple(value) * (channels // len(value)))
    return values[0], values[1]
