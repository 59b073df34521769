"""Feature extractors. Importing this package registers our own; every timm model works by its own name."""

from zoo.backbones.ast import AST
from zoo.backbones.blind_spot import ConditionalBlindSpot
from zoo.backbones.conformer import ConformerBackbone
from zoo.backbones.efficientnet1d import EfficientNet1d
from zoo.backbones.elastic import ElasticBackbone
from zoo.backbones.elastic_resnet import ElasticResNet
from zoo.backbones.elastic_swin import ElasticSwin
from zoo.backbones.elastic_vit import ElasticViT
from zoo.backbones.mit import MixTransformer
from zoo.backbones.residual_unet import ResidualUNetEncoder
from zoo.backbones.resnet_deeplab import DeepLabResNet
from zoo.backbones.small import StreetCNN
from zoo.backbones.swin_unetr import SwinUNETREncoder
from zoo.backbones.timm import TimmBackbone, create_timm_backbone
from zoo.backbones.tokens import PooledMaps, TimmViT, create_token_backbone
from zoo.backbones.unified_vit import UnifiedViT

__all__ = [
    "AST",
    "ConditionalBlindSpot",
    "ConformerBackbone",
    "DeepLabResNet",
    "EfficientNet1d",
    "ElasticBackbone",
    "ElasticResNet",
    "ElasticSwin",
    "ElasticViT",
    "MixTransformer",
    "PooledMaps",
    "ResidualUNetEncoder",
    "StreetCNN",
    "SwinUNETREncoder",
    "TimmBackbone",
    "TimmViT",
    "UnifiedViT",
    "create_timm_backbone",
    "create_token_backbone",
]
