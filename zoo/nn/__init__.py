"""Pure torch building blocks: networks, losses, mixing, augmentation and pseudo-label weighting."""

from zoo.nn.augment import DACSAugment, PhotometricJitter
from zoo.nn.blur import blur_kernel_size, gaussian_blur
from zoo.nn.class_statistics import ClassStatistics, FeatureBank
from zoo.nn.color import color_jitter
from zoo.nn.contrast import bank_contrast, contrast_regulariser, distribution_contrast, proto_contrast
from zoo.nn.crop import ClassBalancedCrop
from zoo.nn.day_night import DayNight, DayNightFusion, ScoreShare, rarity_weights
from zoo.nn.entropy import masked_percentile, prediction_entropy
from zoo.nn.heads import (
    DECODE_HEADS,
    DAFormerHead,
    DeepLabV2Head,
    FPNHead,
    ProjectionHead,
    create_decode_head,
)
from zoo.nn.losses import (
    downscale_label,
    entropy_filtered_cross_entropy,
    feature_distance,
    label_of_cells,
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
    "ClassBalancedCrop",
    "ClassMix",
    "ClassStatistics",
    "ConfidenceShare",
    "CutMix",
    "CutOut",
    "DACSAugment",
    "DAFormerHead",
    "DayNight",
    "DayNightFusion",
    "DeepLabV2Head",
    "EntropyFilter",
    "FPNHead",
    "FeatureBank",
    "FixedThreshold",
    "FlexMatch",
    "FreeMatch",
    "NoMix",
    "PhotometricJitter",
    "ProjectionHead",
    "ScoreShare",
    "Segmentor",
    "UnlabelledClassMix",
    "bank_contrast",
    "blur_kernel_size",
    "build_segmentor",
    "color_jitter",
    "contrast_regulariser",
    "create_decode_head",
    "distribution_contrast",
    "downscale_label",
    "entropy_filtered_cross_entropy",
    "feature_distance",
    "gaussian_blur",
    "label_of_cells",
    "masked_percentile",
    "ohem_cross_entropy",
    "pixel_cross_entropy",
    "prediction_entropy",
    "proto_contrast",
    "rarity_weights",
]
