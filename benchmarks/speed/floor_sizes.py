"""At which sizes :mod:`benchmarks.speed.floors` measures a method: those of its embedded or its published config.

Batches of embedded configs are the benchmark's. Published recipes are built at fewer images, and where one core would
take minutes for a step, with a smaller network of the family or smaller crops; their batches are random, in the form
that the method gets from its benchmark.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.cli import Unstarted, import_classes
from zoo.config_files import resolve_configs
from zoo.method import Method
from zoo.nn.positions import base_boxes

Batch = dict[str, Any]
Builder = Callable[[Method], Batch]
#: Terms that begin later begin at once: a step is one of the middle of a run.
BEGUN: dict[str, dict[str, Any]] = {
    "fst": {"mix_start": 0},
    "fst_semi": {"copy_epochs": 0},
    "poa": {"mask_start_epochs": 0},
    "self_training": {"mix_start": 0},
    "semi_mean_teacher": {"copy_epochs": 0},
    "sepico": {"mix_start": 0, "contrast_start": 0},
    "voco_omni": {"semi_start": 0},
}
#: Prototypes that stand still at first do not.
THAWED = {"optim.frozen": [], "optim.frozen_epochs": 0, "optim.frozen_steps": 0}


@dataclasses.dataclass(frozen=True)
class Real:
    """A published recipe as one core can train it.

    Args:
        config: that of the recipe.
        batch: makes what the method gets.
        told: what was changed, and the batch, for the table.
        model: arguments of the method that differ.
    """

    config: str
    batch: Builder
    told: str
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def blocks(classes: int, rows: int, *sides: int) -> Tensor:
    """Label maps of larger areas, as real ones are: int64 ``[rows, *sides]``."""
    coarse = torch.randint(classes, (rows, 1, *(-(-side // 16) for side in sides))).float()
    return torch.nn.functional.interpolate(coarse, sides)[:, 0].long()


def streets(
    rows: int, height: int, width: int, target: tuple[int, int] | None = None, classes: int = 19
) -> Builder:
    """A labelled and an unlabelled domain."""

    def build(method: Method) -> Batch:
        source = {"image": torch.rand(rows, 3, height, width), "label": blocks(classes, rows, height, width)}
        other = {"image": torch.rand(rows, 3, *(target or (height, width)))}
        parts = {"source": source, "target": other}
        return {name: {**part, "index": torch.arange(rows)} for name, part in parts.items()}

    return build


def few_labels(rows: int, side: int) -> Builder:
    """Labelled and unlabelled images of 21 classes."""

    def build(method: Method) -> Batch:
        image = [torch.rand(rows, 3, side, side) for _ in range(2)]
        index = torch.arange(rows)
        labelled = {"image": image[0], "label": blocks(21, rows, side, side), "index": index}
        return {"labelled": labelled, "unlabelled": {"image": image[1], "index": index}}

    return build


def crops(images: int, local: int = 8, sides: tuple[int, int] = (224, 96)) -> Builder:
    """Two global views of every image, and local ones."""

    def build(method: Method) -> Batch:
        large, small = (torch.rand(n * images, 3, s, s) for n, s in zip((2, local), sides, strict=True))
        return {"views": {"global": large, "local": small}, "index": torch.arange(images)}

    return build


def spectrograms(clips: int, frames: int, mels: int = 128, classes: int = 0) -> Builder:
    """Log-mel features, with labels where there are classes."""

    def build(method: Method) -> Batch:
        batch = {"spectrogram": torch.randn(clips, frames, mels) / 2, "index": torch.arange(clips)}
        batch["frames"] = torch.full((clips,), frames)
        return {**batch, "label": torch.randint(classes, (clips,))} if classes else batch

    return build


def talking(clips: int, classes: int = 0) -> Builder:
    """Videos of 16 frames of 160 pixels with 2.56 s of sound."""

    def build(method: Method) -> Batch:
        sound = spectrograms(clips, 256, classes=classes)(method)
        return {**sound, "video": torch.rand(clips, 3, 16, 160, 160)}

    return build


def pictures(images: int, side: int, classes: int = 0) -> Builder:
    """Images, with labels where there are classes."""

    def build(method: Method) -> Batch:
        batch = {"image": torch.rand(images, 3, side, side), "index": torch.arange(images)}
        return {**batch, "label": torch.randint(classes, (images,))} if classes else batch

    return build


def volumes(scans: int, side: int, classes: int, maps: bool = False) -> Builder:
    """Cubes with label maps or one label each."""

    def build(method: Method) -> Batch:
        label = blocks(classes, scans, side, side, side) if maps else torch.randint(classes, (scans,))
        return {
            "volume": torch.rand(scans, 1, side, side, side),
            "label": label,
            "index": torch.arange(scans),
        }

    return build


def positions(scans: int, side: int, crops: int = 2, grid: tuple[int, int, int] = (2, 2, 1)) -> Builder:
    """Random crops and the base crops of a grid."""

    def build(method: Method) -> Batch:
        cube, bases = (side, side, side), base_boxes((side,) * 3, grid, torch.device("cpu"))
        most = torch.tensor([(n - 1) * side + 1 for n in grid])
        start = (torch.rand(scans, crops, 3) * most).long()
        return {
            "crops": torch.rand(scans, crops, 1, *cube),
            "base": torch.rand(scans, len(bases), 1, *cube),
            "crop_box": torch.cat((start, start + side), -1),
            "base_box": bases.expand(scans, -1, -1),
            "index": torch.arange(scans),
        }

    return build


def omni(scans: int, side: int, classes: int, crops: int, grid: tuple[int, int, int]) -> Builder:
    """Positions beside labelled cubes."""

    def build(method: Method) -> Batch:
        labelled = volumes(scans, side, classes, maps=True)(method)
        return {"labelled": labelled, "unlabelled": positions(scans, side, crops, grid)(method)}

    return build


def pairs(people: int, samples: int, channels: int) -> Builder:
    """Two segments of each of so many people."""

    def build(method: Method) -> Batch:
        return {
            "pair": torch.randn(people, 2, channels, samples),
            "participant": torch.arange(people),
            "index": torch.arange(people),
        }

    return build


DAFORMER = {"backbone": "mit_b0", "pretrained": False}
DEEPLAB = {
    "backbone": "resnet50_deeplab", "pretrained": False,
    "backbone_args": {"stem": "wide", "multi_grid": [2, 2, 4], "ceil_mode": True},
}  # fmt: skip
VIT_S = {
    "backbone": "vit_small_patch16_224", "backbone_args": {"img_size": 224}, "prototypes": 65536,
    "head_args": {}, **THAWED,
}  # fmt: skip
IBOT_S = {**VIT_S, "prototypes": 8192}
SMALL_POA = {
    "backbone_args": {"widths": list(range(192, 385, 64)), "depths": list(range(8, 13, 2)), "head_dim": 64},
    "prototypes": [4096, 8192], **THAWED,
}  # fmt: skip
QUARTER_B = {"backbone_args": {"checkpointing": True, "feature_size": 12}}
CONFORMER = {"frames": 1600, "embed_dim": 256, "num_heads": 4}
REAL: dict[str, Real] = {
    "audio_classifier": Real(
        "audio_classifier/esc50", spectrograms(1, 512, classes=50), "AST-S, 1 clip of 5 s",
        {"backbone": "ast_small"},
    ),
    "cbsn": Real("cbsn/sidd", pictures(1, 60), "1 crop of 60 px"),
    "dino": Real("dino/embedded", crops(2), "ViT-S/16, 2 images, crops: 2 of 224, 8 of 96 px", VIT_S),
    "dinov2": Real("dinov2/embedded", crops(2), "ViT-S/16, 2 images, crops: 2 of 224, 8 of 96 px", VIT_S),
    "eye_classifier": Real(
        "eye_classifier/eyepacs", pictures(2, 224, 5), "ViT-S, 2 images of 224 px", {"backbone": "unified_vit_small"}
    ),
    "fst": Real("fst/gta5_cityscapes", streets(1, 128, 128), "MiT-B0, 1 + 1 crops of 128 px", DAFORMER),
    "fst_semi": Real("fst_semi/voc_semi", few_labels(2, 97), "ResNet-50, 2 + 2 crops of 97 px", DEEPLAB),
    "hicmae": Real("hicmae/voxceleb2_small", talking(4), "small, 4 clips"),
    "hicmae_classifier": Real(
        "hicmae_classifier/crema_d", talking(1, 6), "tiny, 1 clip", {"backbone": "hicmae_tiny"}
    ),
    "ibot": Real("ibot/embedded", crops(2), "ViT-S/16, 2 images, crops: 2 of 224, 8 of 96 px", IBOT_S),
    # At two images what is done once a parameter (gradients added up, clipping, moments, teacher) weighs.
    "poa": Real("poa/imagenet_vit_large", crops(4), "ViT up to S/16, 4 images, crops: 2 of 224, 8 of 96 px", SMALL_POA),
    "self_training": Real(
        "self_training/gta5_cityscapes", streets(1, 192, 192), "MiT-B0, 1 + 1 crops of 192 px", DAFORMER
    ),
    "semi_mean_teacher": Real(
        "semi_mean_teacher/voc_semi", few_labels(2, 129), "ResNet-50, 2 + 2 crops of 129 px", DEEPLAB
    ),
    "sepico": Real(
        "sepico/gta5_cityscapes", streets(1, 192, 192, target=(192, 384)),
        "MiT-B0, 1 + 1 crops of 192 px, the target's out of 192 by 384 px", DAFORMER,
    ),
    "source_only": Real(
        "source_only/racetracks", streets(1, 192, 192), "MiT-B0, DAFormer's head, 1 crop of 192 px",
        {**DAFORMER, "decode_head": "daformer", "num_classes": 19},
    ),
    "ssast": Real("ssast/patch_small", spectrograms(1, 1024), "AST-S, 1 clip of 10 s"),
    "uni4eye": Real(
        "uni4eye/lists", pictures(2, 224), "ViT-S with the published decoder, 2 images of 224 px",
        {"backbone": "unified_vit_small"},
    ),
    # A core takes seconds for every crop, and the network none below 64³: one random crop, two of the grid.
    "voco": Real(
        "voco/prect", positions(1, 64, 1, (2, 1, 1)), "quarter of Swin-B, 1 volume, 3 crops of 64³", QUARTER_B
    ),
    "voco_cvpr": Real(
        "voco_cvpr/prect", positions(1, 64, 1, (2, 1, 1)), "quarter of Swin-B, 1 volume, 3 crops of 64³", QUARTER_B
    ),
    "voco_omni": Real(
        "voco_omni/prect", omni(1, 64, 21, 1, (2, 1, 1)), "quarter of Swin-B, 1 + 1 volumes, 4 crops of 64³", QUARTER_B
    ),
    "volume_classifier": Real(
        "volume_classifier/embedded", volumes(2, 64, 2), "half of Swin-B, 2 volumes of 64³",
        {"backbone": "swin_unetr_b", "backbone_args": {"feature_size": 24}},
    ),
    "volume_segmenter": Real(
        "volume_segmenter/btcv", volumes(1, 64, 14, maps=True), "half of Swin-B, 1 crop of 64³",
        {"backbone_args": {"feature_size": 24}},
    ),
    "w2v_bert": Real(
        "w2v_bert/librispeech", spectrograms(1, 1600, mels=80), "24 layers of 256 channels, 1 clip of 16 s",
        {"backbone_args": CONFORMER},
    ),
    "wearable_biosignals": Real(
        "wearable_biosignals/ppg", pairs(8, 3840, 4), "8 people, 2 segments of 60 s each"
    ),
}  # fmt: skip


def parsed(name: str, size: str) -> Unstarted:
    """The command that trains a method at a size, with everything that begins later begun."""
    if size == "real":
        return command(name, REAL[name].config, REAL[name].model)
    return command(name, f"{name}/embedded", THAWED if name in ("dino", "dinov2", "ibot", "poa") else {})


def command(name: str, config: str, model: Mapping[str, Any]) -> Unstarted:
    """The command that trains a method by a config with other arguments, with everything that begins later begun."""
    import_classes()
    options = [
        text
        for key, value in {**BEGUN.get(name, {}), **model}.items()
        for text in (f"--model.{key}", value if isinstance(value, str) else json.dumps(value))
    ]
    return Unstarted(resolve_configs(["fit", "--config", config, *options]))
