"""pytorch-ood's networks and its registry of weights, over `models` of this repository.

    from ood.compat.model import load_model, load_transform  # was: pytorch_ood.model

    model = load_model("wrn-40-2/cifar10/energy/s1").cuda()
    preprocess = load_transform("wrn-40-2/cifar10/energy/s1")

State-dict keys are those of pytorch-ood, so weight files of one library load into the other.
"""

from ood.compat.model.centers import ClassCenters, RunningCenters
from ood.compat.model.gru import GRUClassifier
from ood.compat.model.registry import (
    ImagePreprocessing,
    ModelEntry,
    Preprocessing,
    get_model_info,
    list_models,
    load_model,
    load_transform,
)
from ood.compat.model.resnet import ResNet18, ResNet50
from ood.compat.model.wrn import WideResNet

__all__ = [
    "ClassCenters",
    "GRUClassifier",
    "ImagePreprocessing",
    "ModelEntry",
    "Preprocessing",
    "ResNet18",
    "ResNet50",
    "RunningCenters",
    "WideResNet",
    "get_model_info",
    "list_models",
    "load_model",
    "load_transform",
]
