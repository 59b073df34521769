"""Pure torch building blocks: networks, losses, mixing, augmentation and pseudo-label weighting."""

from zoo.nn.augment import DACSAugment, PhotometricJitter
from zoo.nn.blur import blur_kernel_size, gaussian_blur
from zoo.nn.color import color_jitter
from zoo.nn.entropy import masked_percentile, prediction_entropy
from zoo.nn.heads import DECODE_HEADS, DAFormerHead, DeepLabV2Head, FPNHead, create_decode_head
from zoo.nn.losses import (
    downscale_label,
    entropy_filtered_cross_entropy,
    feature_distance,
    ohem_cross_entropy,
    pixel_cross_entropy,
)
from zoo.nn.mixing import ClassMix, CutMix, CutOut, NoMix, UnlabelledClassMix
from zoo.nn.segmentor import Segmentor, build_segmentor
from zoo.nn.weighting import (
    ClassBalanced,
    ConfidenceShare,
    EntropyFilter,
    FixedThreshold,
    FlexMatch,
    FreeMatch,
)

__all__ = [
    "DECODE_HEADS",
    "ClassBalanced",
    "ClassMix",
    "ConfidenceShare",
    "CutMix",
    "CutOut",
    "DACSAugment",
    "DAFormerHead",
    "DeepLabV2Head",
    "EntropyFilter",
    "FPNHead",
    "FixedThreshold",
    "FlexMatch",
    "FreeMatch",
    "NoMix",
    "PhotometricJitter",
    "Segmentor",
    "UnlabelledClassMix",
    "blur_kernel_size",
    "build_segmentor",
    "color_jitter",
    "create_decode_head",
    "downscale_label",
    "entropy_filtered_cross_entropy",
    "feature_distance",
    "gaussian_blur",
    "masked_percentile",
    "ohem_cross_entropy",
    "pixel_cross_entropy",
    "prediction_entropy",
]
