"""Image classifiers, each with a config that builds it."""

from amuse_lab.tasks.image.models.config import ImageModelConfig
from amuse_lab.tasks.image.models.densenet import DenseNetConfig
from amuse_lab.tasks.image.models.resnet import ResNetConfig
from amuse_lab.tasks.image.models.vit import ViTConfig
from amuse_lab.tasks.image.models.wide_resnet import WideResNetConfig

__all__ = ["DenseNetConfig", "ImageModelConfig", "ResNetConfig", "ViTConfig", "WideResNetConfig"]
