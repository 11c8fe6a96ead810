"""Networks: `build` one by name, `load` a published one, `adapt` any other; `checkpoints`."""

import os

# torch reads this when it is loaded. Waiting threads then give their cores back: beside other work
# on the machine, the default is up to 20 times slower.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from . import (  # noqa: F401  (each module registers its architectures)
    checkpoints,
    densenet,
    mnist_conv,
    resnet,
    resnet_cifar,
    small,
    vgg,
    wideresnet,
)
from .adapter import adapt, downloaded
from .autoencoder import AutoEncoder, build_autoencoder
from .checkpoints import CheckpointError
from .classifier import Activations, Classifier, ModelError
from .decoder import Decoder, decoder_for
from .foreign import is_foreign, recipe, runs_code
from .gru import GRUClassifier
from .registry import build, names, options, rebuild
from .rehead import with_head, without_head
from .weights import load

__all__ = [
    "Activations",
    "AutoEncoder",
    "CheckpointError",
    "Classifier",
    "Decoder",
    "GRUClassifier",
    "ModelError",
    "adapt",
    "build",
    "build_autoencoder",
    "checkpoints",
    "decoder_for",
    "downloaded",
    "is_foreign",
    "load",
    "names",
    "options",
    "rebuild",
    "recipe",
    "runs_code",
    "with_head",
    "without_head",
]
