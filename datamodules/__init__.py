"""Benchmarks: official data trees as Lightning datamodules. Importing this package imports no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.amos22 import AMOS22
    from datamodules.audio import AudioDataModule
    from datamodules.audio_folders import AudioFolders
    from datamodules.audio_visual import AudioVisualDataModule
    from datamodules.audio_visual_lists import AudioVisualLists
    from datamodules.audioset import AudioSet, AudioSetLibriSpeech
    from datamodules.base import BenchmarkDataModule
    from datamodules.btcv import BTCV
    from datamodules.cifar import CIFAR10, CIFAR100
    from datamodules.cityscapes_acdc import CityscapesACDC
    from datamodules.cityscapes_darkzurich import CityscapesDarkZurich
    from datamodules.cityscapes_semi import CityscapesSemi
    from datamodules.crema_d import CREMAD
    from datamodules.decathlon import DecathlonVolumes
    from datamodules.denoising import DenoisingDataModule
    from datamodules.dnd import DND
    from datamodules.embedded import StreetShift, StreetShiftSemi
    from datamodules.esc50 import ESC50
    from datamodules.eye_lists import EyeImageLists, EyeVolumeLists
    from datamodules.eye_phantom import EyePhotographs, EyeScans
    from datamodules.eyepacs import EyePACS
    from datamodules.fashion_mnist import FashionMNIST
    from datamodules.file_images import FileImageDataModule
    from datamodules.flare22 import FLARE22
    from datamodules.fsd50k import FSD50K
    from datamodules.gamma import GAMMA, GAMMAScans
    from datamodules.gta5_cityscapes import GTA5Cityscapes
    from datamodules.ichallenge_amd import IChallengeAMD
    from datamodules.ichallenge_pm import IChallengePM
    from datamodules.iemocap import IEMOCAP
    from datamodules.imagenet import ImageNet, ImageNet100
    from datamodules.imagenette import Imagenette
    from datamodules.images import ImageDataModule
    from datamodules.libri_light import LibriLight
    from datamodules.librispeech import LibriSpeech
    from datamodules.luna16 import LUNA16
    from datamodules.mafw import MAFW
    from datamodules.memory_images import MemoryImageDataModule
    from datamodules.msd import MSD
    from datamodules.msp_improv import MSPIMPROV
    from datamodules.octa500 import OCTA500
    from datamodules.omni_volumes import OmniVolumes
    from datamodules.optdigits import Optdigits
    from datamodules.own_footage import OwnFootage
    from datamodules.packaged_brains import PackagedBrains
    from datamodules.packaged_photographs import PackagedPhotographs
    from datamodules.prect import PreCT
    from datamodules.ptbxl import PTBXL
    from datamodules.pulse_people import PulsePeople
    from datamodules.racetracks import RaceTracks
    from datamodules.ravdess import RAVDESS
    from datamodules.segmentation import UDASegmentation
    from datamodules.semi_segmentation import SemiSegmentation
    from datamodules.sidd import SIDD
    from datamodules.signal_folders import SignalFolders
    from datamodules.signals import SignalDataModule
    from datamodules.speech_commands import SpeechCommandsV1, SpeechCommandsV2
    from datamodules.spoken_keywords import SpokenKeywords
    from datamodules.stl10 import STL10
    from datamodules.synthia_cityscapes import SYNTHIACityscapes
    from datamodules.taking_turns import TakingTurns
    from datamodules.talking_blobs import TalkingBlobs
    from datamodules.telephone_prompts import TelephonePrompts
    from datamodules.tiny_imagenet import TinyImageNet
    from datamodules.torso_phantom import TorsoPhantom, TorsoScanners
    from datamodules.voc_semi import VOCSemi
    from datamodules.volume_folders import VolumeFolders
    from datamodules.volumes import VolumeDataModule
    from datamodules.voxceleb1 import VoxCeleb1
    from datamodules.voxceleb2 import VoxCeleb2
    from datamodules.werewolf_xl import WerewolfXL

__all__ = [
    "AMOS22",
    "BTCV",
    "CIFAR10",
    "CIFAR100",
    "CREMAD",
    "DND",
    "ESC50",
    "FLARE22",
    "FSD50K",
    "GAMMA",
    "IEMOCAP",
    "LUNA16",
    "MAFW",
    "MSD",
    "MSPIMPROV",
    "OCTA500",
    "PTBXL",
    "RAVDESS",
    "SIDD",
    "STL10",
    "AudioDataModule",
    "AudioFolders",
    "AudioSet",
    "AudioSetLibriSpeech",
    "AudioVisualDataModule",
    "AudioVisualLists",
    "BenchmarkDataModule",
    "CityscapesACDC",
    "CityscapesDarkZurich",
    "CityscapesSemi",
    "DecathlonVolumes",
    "DenoisingDataModule",
    "EyeImageLists",
    "EyePACS",
    "EyePhotographs",
    "EyeScans",
    "EyeVolumeLists",
    "FashionMNIST",
    "FileImageDataModule",
    "GAMMAScans",
    "GTA5Cityscapes",
    "IChallengeAMD",
    "IChallengePM",
    "ImageDataModule",
    "ImageNet",
    "ImageNet100",
    "Imagenette",
    "LibriLight",
    "LibriSpeech",
    "MemoryImageDataModule",
    "OmniVolumes",
    "Optdigits",
    "OwnFootage",
    "PackagedBrains",
    "PackagedPhotographs",
    "PreCT",
    "PulsePeople",
    "RaceTracks",
    "SYNTHIACityscapes",
    "SemiSegmentation",
    "SignalDataModule",
    "SignalFolders",
    "SpeechCommandsV1",
    "SpeechCommandsV2",
    "SpokenKeywords",
    "StreetShift",
    "StreetShiftSemi",
    "TakingTurns",
    "TalkingBlobs",
    "TelephonePrompts",
    "TinyImageNet",
    "TorsoPhantom",
    "TorsoScanners",
    "UDASegmentation",
    "VOCSemi",
    "VolumeDataModule",
    "VolumeFolders",
    "VoxCeleb1",
    "VoxCeleb2",
    "WerewolfXL",
]

_MODULES = {
    "AMOS22": "amos22",
    "AudioDataModule": "audio",
    "AudioFolders": "audio_folders",
    "AudioSet": "audioset",
    "AudioSetLibriSpeech": "audioset",
    "AudioVisualDataModule": "audio_visual",
    "AudioVisualLists": "audio_visual_lists",
    "BTCV": "btcv",
    "BenchmarkDataModule": "base",
    "CIFAR10": "cifar",
    "CIFAR100": "cifar",
    "CREMAD": "crema_d",
    "CityscapesACDC": "cityscapes_acdc",
    "CityscapesDarkZurich": "cityscapes_darkzurich",
    "CityscapesSemi": "cityscapes_semi",
    "DND": "dnd",
    "DecathlonVolumes": "decathlon",
    "DenoisingDataModule": "denoising",
    "ESC50": "esc50",
    "EyeImageLists": "eye_lists",
    "EyePACS": "eyepacs",
    "EyePhotographs": "eye_phantom",
    "EyeScans": "eye_phantom",
    "EyeVolumeLists": "eye_lists",
    "FLARE22": "flare22",
    "FSD50K": "fsd50k",
    "FashionMNIST": "fashion_mnist",
    "FileImageDataModule": "file_images",
    "GAMMA": "gamma",
    "GAMMAScans": "gamma",
    "GTA5Cityscapes": "gta5_cityscapes",
    "IChallengeAMD": "ichallenge_amd",
    "IChallengePM": "ichallenge_pm",
    "IEMOCAP": "iemocap",
    "ImageDataModule": "images",
    "ImageNet": "imagenet",
    "ImageNet100": "imagenet",
    "Imagenette": "imagenette",
    "LUNA16": "luna16",
    "LibriLight": "libri_light",
    "LibriSpeech": "librispeech",
    "MAFW": "mafw",
    "MSD": "msd",
    "MSPIMPROV": "msp_improv",
    "MemoryImageDataModule": "memory_images",
    "OCTA500": "octa500",
    "OmniVolumes": "omni_volumes",
    "Optdigits": "optdigits",
    "OwnFootage": "own_footage",
    "PTBXL": "ptbxl",
    "PackagedBrains": "packaged_brains",
    "PackagedPhotographs": "packaged_photographs",
    "PreCT": "prect",
    "RAVDESS": "ravdess",
    "PulsePeople": "pulse_people",
    "RaceTracks": "racetracks",
    "SIDD": "sidd",
    "STL10": "stl10",
    "SYNTHIACityscapes": "synthia_cityscapes",
    "SemiSegmentation": "semi_segmentation",
    "SignalDataModule": "signals",
    "SignalFolders": "signal_folders",
    "SpeechCommandsV1": "speech_commands",
    "SpeechCommandsV2": "speech_commands",
    "SpokenKeywords": "spoken_keywords",
    "StreetShift": "embedded",
    "StreetShiftSemi": "embedded",
    "TakingTurns": "taking_turns",
    "TalkingBlobs": "talking_blobs",
    "TelephonePrompts": "telephone_prompts",
    "TinyImageNet": "tiny_imagenet",
    "TorsoPhantom": "torso_phantom",
    "TorsoScanners": "torso_phantom",
    "UDASegmentation": "segmentation",
    "VOCSemi": "voc_semi",
    "VolumeDataModule": "volumes",
    "VolumeFolders": "volume_folders",
    "VoxCeleb1": "voxceleb1",
    "VoxCeleb2": "voxceleb2",
    "WerewolfXL": "werewolf_xl",
}


def __getattr__(name: str) -> Any:
    """Import a public class when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
