"""The frozen classifier below a heatmap decoder, and the ID images that it was trained on."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ood.config import InputError
from ood.data import ImageSet, Preprocess, load
from ood.methods.heatmap.settings import HALF, Settings
from ood.training.context import Context
from ood.training.pretraining import newest_classifier

COPY = "classifier.pt"  # the copy of the classifier in a decoder's run folder


MODELS = "Models"  # the authors' folder of classifiers, beside their checkpoints/


def load_classifier(
    settings: Settings, context: Context, folder: Path | None = None, released: bool = False
) -> tuple[nn.Module, Preprocess, Path]:
    """Return the classifier, its normalisation and the file it came from.

    It is taken from the copy in the run folder `folder`, else from settings.classifier, else from
    the newest run of this architecture, else from the authors' folder Models/.

    Args:
        released: it belongs to a decoder of the authors. Then no run of ours will do.
    Raises: InputError when there is none (the message names the command that trains one), or when
        it does not fit the settings.
    """
    checkpoints = context.networks.checkpoints
    path = _file(settings, context, folder, released)
    weights = checkpoints.read(path)
    network = _build(settings, context, weights.meta.get("arch"), path)
    checkpoints.load_into(network, weights)
    for key, ours in (("num_classes", network.fc.out_features), ("z_dim", network.fc.in_features)):
        given = getattr(settings, key)
        if given not in (None, ours):
            raise InputError(
                f"{key} is {given} in the config, but the classifier in '{path}' has {ours}; "
                "they must agree"
            )
    said = weights.meta.get("preprocess") or {}
    halves = (HALF,) * network.arch["in_channels"]
    mean = settings.mean or said.get("mean") or halves
    std = settings.std or said.get("std") or halves
    network.requires_grad_(False)
    return network, Preprocess(mean, std), path


def _file(settings: Settings, context: Context, folder: Path | None, released: bool) -> Path:
    """Return the classifier's weight file."""
    if folder and (folder / COPY).is_file():
        return folder / COPY
    if settings.classifier:
        path = Path(settings.classifier)
        return path / "best.pt" if path.is_dir() else path
    places = _released_places(settings, context)
    theirs = next((path for path in places if path.is_file()), None)
    if released:
        if theirs:
            return theirs
        raise InputError(
            f"the authors' decoder in '{folder}' needs their classifier, which is not in "
            f"'{places[0]}'; put it there, or give it with -classifier"
        )
    try:
        return newest_classifier(context.networks, settings, context.checkpoints_dir).best
    except InputError as error:
        if theirs:
            return theirs
        raise InputError(
            f"{error}; or give its weights with -classifier, or put the authors' into '{places[0]}'"
        ) from None


def _released_places(settings: Settings, context: Context) -> list[Path]:
    """Return where the authors' layout keeps the classifier: Models/cifar10_resnet18.pt.

    Depth and width of a WideResNet follow, unless they are 28 and 10.
    """
    shape = (settings.depth, settings.width)
    bare = None in shape or shape == (28, 10)
    suffix = "" if bare else f"_{settings.depth}_{settings.width}"
    name = f"{settings.dataset_name()}_{settings.arch}{suffix}.pt"
    roots = dict.fromkeys((Path(context.checkpoints_dir).parent, Path()))
    return [root / MODELS / name for root in roots]


def _build(settings: Settings, context: Context, stored: dict | None, path: Path) -> nn.Module:
    """Build the network as its file describes it, else as the config does."""
    if stored:
        if stored["arch"] != settings.arch:
            raise InputError(
                f"the classifier in '{path}' is a {stored['arch']}, "
                f"the config's arch is {settings.arch}; they must agree"
            )
        return context.networks.rebuild(stored)
    facts = settings.facts()
    classes = settings.num_classes or (facts.num_classes if facts else None)
    if classes is None:
        raise InputError(
            f"num_classes is needed in the config for the data set '{settings.id_dataset}'"
        )
    return context.networks.build(
        settings.arch,
        classes,
        in_channels=facts.channels if facts else 3,
        image_size=settings.size or facts and facts.size,
        **settings.shape(),
        **settings.model_args,
    )


def id_training_images(settings: Settings, context: Context) -> ImageSet:
    """Return the classifier's training set, not augmented.

    With context.limit, return so many of its images, evenly spread, every class kept.
    """
    facts = settings.facts()
    images = load(
        settings.id_dataset,
        "train",
        context.data_dir,
        size=settings.size or (facts.size if facts else None),
        resize=settings.resize or (facts.resize if facts else None),
        download=context.download,
    )
    return images.limited(context.limit)


def check_images(images: ImageSet, classifier: nn.Module) -> None:
    """Raise InputError when the images do not have the shape that the classifier takes."""
    size = classifier.arch["image_size"]
    wanted = (classifier.arch["in_channels"], size, size)
    if images.shape != wanted:
        raise InputError(
            f"'{images.name}' has images {images.shape}, the classifier takes {wanted}; "
            "give size and resize in the config"
        )
