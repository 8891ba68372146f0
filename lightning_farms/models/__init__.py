"""Neural operators, the reading and writing of their checkpoints, and image classifiers for small images."""

from lightning_farms.models.checkpoint import load_weights, save_weights
from lightning_farms.models.dpot import DPOT, DPOTConfig, DPOTOutput
from lightning_farms.models.image_classifier import ImageClassifier
from lightning_farms.models.operator_module import OperatorModule
from lightning_farms.models.resnet import ResNet, resnet18, resnet34
from lightning_farms.models.vgg import VGG, vgg16, vgg19

__all__ = [
    "DPOT",
    "VGG",
    "DPOTConfig",
    "DPOTOutput",
    "ImageClassifier",
    "OperatorModule",
    "ResNet",
    "load_weights",
    "resnet18",
    "resnet34",
    "save_weights",
    "vgg16",
    "vgg19",
]
