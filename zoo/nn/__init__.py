"""Pure torch building blocks: networks, losses, mixing, augmentation and pseudo-label weighting."""

from zoo.nn.audio_features import AudioFeatures
from zoo.nn.augment import DACSAugment, PhotometricJitter
from zoo.nn.blur import blur_kernel_size, gaussian_blur
from zoo.nn.border import BorderMask
from zoo.nn.class_statistics import ClassStatistics, FeatureBank
from zoo.nn.color import color_jitter
from zoo.nn.contrast import bank_contrast, contrast_regulariser, distribution_contrast, proto_contrast
from zoo.nn.cowmix import CowMix
from zoo.nn.crop import ClassBalancedCrop
from zoo.nn.day_night import DayNight, DayNightFusion, ScoreShare, rarity_weights
from zoo.nn.distillation import cross_view_loss, koleo_loss, masked_patch_loss, soft_cross_entropy
from zoo.nn.entropy import masked_percentile, prediction_entropy
from zoo.nn.fbank import LogMel
from zoo.nn.heads import (
    DECODE_HEADS,
    DAFormerHead,
    DeepLabV2Head,
    DeepLabV3PlusHead,
    DINOHead,
    FCNHead,
    FPNHead,
    MultiHead,
    ProjectionHead,
    PSPHead,
    PSPShuffleHead,
    UPerHead,
    create_decode_head,
)
from zoo.nn.inference import Inference
from zoo.nn.losses import (
    downscale_label,
    entropy_filtered_cross_entropy,
    feature_distance,
    label_of_cells,
    ohem_cross_entropy,
    pixel_cross_entropy,
)
from zoo.nn.masked_prediction import image_of, match_scores, matching_accuracy, matching_loss, patches_of
from zoo.nn.masking import BlockMasking, Masks
from zoo.nn.masking_clusters import ClusterMasking, UniformMasking, masks_at
from zoo.nn.mixing import ClassMix, CutMix, CutOut, NoMix, UnlabelledClassMix
from zoo.nn.multicrop import MultiCrop
from zoo.nn.participant_contrast import participant_info_nce
from zoo.nn.prediction import Prediction
from zoo.nn.schedules import WeightSchedule, weight_schedule
from zoo.nn.segmentor import Segmentor, build_segmentor
from zoo.nn.signal_augment import SignalAugment
from zoo.nn.targets import Centre, Sinkhorn, sinkhorn_knopp
from zoo.nn.token_network import TokenNetwork
from zoo.nn.tokens import TokenBackbone, Tokens
from zoo.nn.video_augment import MultiScaleCrop, VideoAugment
from zoo.nn.volume_crops import VolumeCrops
from zoo.nn.volume_flips import VolumeFlips
from zoo.nn.volume_inference import SlidingWindow
from zoo.nn.weighting import (
    ClassBalanced,
    ConfidenceShare,
    EntropyFilter,
    FixedThreshold,
    FlexMatch,
    FreeMatch,
    Weighting,
    create_weighting,
    weigh,
)

__all__ = [
    "DECODE_HEADS",
    "AudioFeatures",
    "BlockMasking",
    "BorderMask",
    "Centre",
    "ClassBalanced",
    "ClassBalancedCrop",
    "ClassMix",
    "ClassStatistics",
    "ClusterMasking",
    "ConfidenceShare",
    "CowMix",
    "CutMix",
    "CutOut",
    "DACSAugment",
    "DAFormerHead",
    "DINOHead",
    "DayNight",
    "DayNightFusion",
    "DeepLabV2Head",
    "DeepLabV3PlusHead",
    "EntropyFilter",
    "FCNHead",
    "FPNHead",
    "FeatureBank",
    "FixedThreshold",
    "FlexMatch",
    "FreeMatch",
    "Inference",
    "LogMel",
    "Masks",
    "MultiCrop",
    "MultiHead",
    "MultiScaleCrop",
    "NoMix",
    "PSPHead",
    "PSPShuffleHead",
    "PhotometricJitter",
    "Prediction",
    "ProjectionHead",
    "ScoreShare",
    "Segmentor",
    "SignalAugment",
    "Sinkhorn",
    "SlidingWindow",
    "TokenBackbone",
    "TokenNetwork",
    "Tokens",
    "UPerHead",
    "UniformMasking",
    "UnlabelledClassMix",
    "VideoAugment",
    "VolumeCrops",
    "VolumeFlips",
    "WeightSchedule",
    "Weighting",
    "bank_contrast",
    "blur_kernel_size",
    "build_segmentor",
    "color_jitter",
    "contrast_regulariser",
    "create_decode_head",
    "create_weighting",
    "cross_view_loss",
    "distribution_contrast",
    "downscale_label",
    "entropy_filtered_cross_entropy",
    "feature_distance",
    "gaussian_blur",
    "image_of",
    "koleo_loss",
    "label_of_cells",
    "masked_patch_loss",
    "masked_percentile",
    "masks_at",
    "match_scores",
    "matching_accuracy",
    "matching_loss",
    "ohem_cross_entropy",
    "participant_info_nce",
    "patches_of",
    "pixel_cross_entropy",
    "prediction_entropy",
    "proto_contrast",
    "rarity_weights",
    "sinkhorn_knopp",
    "soft_cross_entropy",
    "weigh",
    "weight_schedule",
]
