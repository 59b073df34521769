"""selfzoo: a PyTorch Lightning model zoo of self-training and self-supervised methods.

Every name below is imported on first use, so that ``import zoo`` and ``zoo list`` stay instant: ``zoo.FST``
imports torch, ``zoo.list_methods`` does not. Method classes come from the cards.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public names that are not classes of a method card, and the module each lives in.
_MODULES = {
    "LoadReport": "zoo.checkpoints.report",
    "Method": "zoo.method",
    "Teacher": "zoo.teacher",
    "create_backbone": "zoo.registry",
    "list_backbones": "zoo.registry",
    "list_benchmarks": "zoo.registry",
    "list_methods": "zoo.registry",
    "load_pretrained": "zoo.checkpoints.load",
    "register_backbone": "zoo.registry",
}

if TYPE_CHECKING:  # for type checkers and editors; a test keeps it in step with what __getattr__ serves
    from zoo.checkpoints.load import load_pretrained as load_pretrained
    from zoo.checkpoints.report import LoadReport as LoadReport
    from zoo.method import Method as Method
    from zoo.methods.audio.classifier import AudioClassifier as AudioClassifier
    from zoo.methods.audio.ssast import SSAST as SSAST
    from zoo.methods.audio.w2v_bert import W2vBERT as W2vBERT
    from zoo.methods.audio_visual.classifier import HiCMAEClassifier as HiCMAEClassifier
    from zoo.methods.audio_visual.hicmae import HiCMAE as HiCMAE
    from zoo.methods.image.cbsn import CBSN as CBSN
    from zoo.methods.image.dino import DINO as DINO
    from zoo.methods.image.dinov2 import DINOv2 as DINOv2
    from zoo.methods.image.ibot import IBOT as IBOT
    from zoo.methods.image.poa import POA as POA
    from zoo.methods.medical.classifier import VolumeClassifier as VolumeClassifier
    from zoo.methods.medical.eye_classifier import EyeClassifier as EyeClassifier
    from zoo.methods.medical.segmenter import VolumeSegmenter as VolumeSegmenter
    from zoo.methods.medical.uni4eye import Uni4Eye as Uni4Eye
    from zoo.methods.medical.voco import VoCo as VoCo
    from zoo.methods.medical.voco import VoCoCVPR as VoCoCVPR
    from zoo.methods.medical.voco_omni import VoCoOmni as VoCoOmni
    from zoo.methods.segmentation.fst import FST as FST
    from zoo.methods.segmentation.fst import FSTSemi as FSTSemi
    from zoo.methods.segmentation.self_training import SelfTraining as SelfTraining
    from zoo.methods.segmentation.self_training import SourceOnly as SourceOnly
    from zoo.methods.segmentation.semi_supervised import SemiMeanTeacher as SemiMeanTeacher
    from zoo.methods.segmentation.sepico import SePiCo as SePiCo
    from zoo.methods.signal.wearable_biosignals import WearableContrast as WearableContrast
    from zoo.registry import create_backbone as create_backbone
    from zoo.registry import list_backbones as list_backbones
    from zoo.registry import list_benchmarks as list_benchmarks
    from zoo.registry import list_methods as list_methods
    from zoo.registry import register_backbone as register_backbone
    from zoo.teacher import Teacher as Teacher


def _modules() -> dict[str, str]:
    """Every public name and its module."""
    from zoo.registry import list_methods, method_card

    cards = map(method_card, list_methods())
    return _MODULES | {card.class_name: card.module for card in cards}


def __getattr__(name: str) -> Any:
    if name.startswith("_"):  # what Python itself asks for, like __path__ of a submodule import
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    module = _MODULES.get(name) or _modules().get(name)
    if module is None:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}; it has {', '.join(__dir__())}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*_modules(), "__version__"})
