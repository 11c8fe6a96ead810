"""Network architectures: `build` by name, `adapt` any other network, `checkpoints` to read and write weight files."""

import os

os.environ.setdefault(
    "GOMP_SPINCOUNT", "1000"
)  # read when torch is loaded: waiting threads give their cores back; beside other work the default is up to 20 times slower

from models import checkpoints, densenet, mnist_conv, resnet, small, vgg, wideresnet  # noqa: F401  (each registers its architectures)
from models.adapter import adapt
from models.autoencoder import AutoEncoder, build_autoencoder
from models.checkpoints import CheckpointError
from models.classifier import Activations, Classifier, ModelError
from models.decoder import Decoder, decoder_for
from models.registry import build, names, options

__all__ = [
    "Activations",
    "AutoEncoder",
    "CheckpointError",
    "Classifier",
    "Decoder",
    "ModelError",
    "adapt",
    "build",
    "build_autoencoder",
    "checkpoints",
    "decoder_for",
    "names",
    "options",
]
