"""Network architectures: `build` by name, `adapt` any other network, `checkpoints` to read and write weight files."""
from models import densenet, mnist_conv, resnet, small, vgg, wideresnet  # noqa: F401  (each registers its architectures)
from models import checkpoints
from models.checkpoints import CheckpointError
from models.classifier import Activations, Classifier, ModelError
from models.registry import build, names, options

__all__ = ["Activations", "CheckpointError", "Classifier", "ModelError", "build", "checkpoints", "names", "options"]
