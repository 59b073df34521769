"""Feature extractors. Importing this package registers our own; every timm model works by its own name."""

from zoo.backbones.small import StreetCNN
from zoo.backbones.timm import TimmBackbone, create_timm_backbone

__all__ = ["StreetCNN", "TimmBackbone", "create_timm_backbone"]
