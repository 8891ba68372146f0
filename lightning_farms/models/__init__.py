"""Neural operators, the reading and writing of their checkpoints, and image classifiers for small images."""

from lightning_farms.models.dpot.config import DPOTConfig
from lightning_farms.models.dpot.network import DPOT, DPOTOutput
from lightning_farms.models.dpot.weights.converting import convert_checkpoint
from lightning_farms.models.dpot.weights.hub import download_released
from lightning_farms.models.dpot.weights.loading import load_weights
from lightning_farms.models.dpot.weights.released import RELEASED_SIZES, ReleasedSize, released_size
from lightning_farms.models.dpot.weights.report import LoadReport
from lightning_farms.models.dpot.weights.saving import save_weights
from lightning_farms.models.image_classifier import ImageClassifier
from lightning_farms.models.operator_module import OperatorModule
from lightning_farms.models.resnet import ResNet, resnet18, resnet34
from lightning_farms.models.vgg import VGG, vgg16, vgg19

__all__ = [
    "DPOT",
    "RELEASED_SIZES",
    "VGG",
    "DPOTConfig",
    "DPOTOutput",
    "ImageClassifier",
    "LoadReport",
    "OperatorModule",
    "ReleasedSize",
    "ResNet",
    "convert_checkpoint",
    "download_released",
    "load_weights",
    "released_size",
    "resnet18",
    "resnet34",
    "save_weights",
    "vgg16",
    "vgg19",
]
