"""Every config of the package runs a step through the real command line, on miniature data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import datamodules
from tests import (
    tiny,
    tiny_audio,
    tiny_denoising,
    tiny_eyes,
    tiny_images,
    tiny_signals,
    tiny_streets,
    tiny_tracks,
    tiny_videos,
    tiny_voc,
    tiny_volumes,
)
from zoo.__main__ import main
from zoo.config_files import package_configs
from zoo.methods.segmentation.base import SegmentationMethod
from zoo.nn import build_segmentor
from zoo.registry import get_method, list_methods, method_card

_FILES = {
    path.relative_to(package_configs()).with_suffix("").as_posix(): path
    for path in sorted(package_configs().rglob("*.yaml"), reverse=True)
    if path.parent.name != "trainer"  # overlays: tests/test_overlays.py
}
CONFIGS = sorted(_FILES)
#: Benchmarks that differ in names and numbers alone → the one that stands for them.
ALIKE = dict.fromkeys(("AudioVisualLists", "MAFW", "MSPIMPROV", "RAVDESS"), "CREMAD")
ALIKE |= dict.fromkeys(("EyePACS", "GAMMA", "IChallengeAMD", "IChallengePM"), "EyePhotographs")
ALIKE |= dict.fromkeys(("GAMMAScans", "OCTA500"), "EyeScans")
ALIKE["AudioFolders"] = "LibriLight"


def kind_of(path: Path) -> str:
    benchmark: str = yaml.safe_load(path.read_text())["data"]["class_path"]
    return ALIKE.get(benchmark, benchmark)


#: One config of every method and benchmark.
WHOLE_LIVES = set({(path.parent.name, kind_of(path)): name for name, path in _FILES.items()}.values())
WHOLE_LIVES -= {"ibot/imagenet", "dinov2/imagenet"}  # those of ibot/embedded with the data of dino/imagenet
QUIET = [
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.enable_model_summary",
    "false",
    "--trainer.accelerator",
    "cpu",
]
STEP = [
    "--trainer.max_steps",
    "1",
    "--trainer.val_check_interval",
    "1",
    "--trainer.check_val_every_n_epoch",
    "1",
    "--trainer.num_sanity_val_steps",
    "0",
    # Or the learning rate would be zero after the one step, and the resumed one would change nothing.
    "--model.optim.total_steps",
    "4",
]


def streetshift(_: Path) -> dict[str, Any]:
    return tiny.STREETSHIFT


def streetshift_semi(_: Path) -> dict[str, Any]:
    return {**tiny.STREETSHIFT_SEMI, "num_target": 8}  # three batches an epoch


def gta5_cityscapes(folder: Path) -> dict[str, Any]:
    source, target = tiny.gta5_tree(folder / "gta5"), tiny.cityscapes_tree(folder / "cityscapes")
    return {
        **tiny.GTA5_CITYSCAPES,
        **tiny_streets.ANY_PIXEL,
        "source_root": source,
        "target_root": target,
    }


def racetracks(folder: Path) -> dict[str, Any]:
    game = tiny_tracks.tracks_tree(folder / "game")
    return {**tiny_tracks.RACETRACKS, "root": game, "cache_folder": folder / "rendered"}


#: Class of a benchmark, or a config where that does not tell → settings that put it on miniature data, which may be
#: written below a folder.
MINIATURES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "StreetShift": streetshift,
    "StreetShiftSemi": streetshift_semi,
    "GTA5Cityscapes": gta5_cityscapes,
    "RaceTracks": racetracks,
    "SYNTHIACityscapes": tiny_streets.synthia_cityscapes,
    "CityscapesDarkZurich": tiny_streets.cityscapes_darkzurich,
    "CityscapesACDC": tiny_streets.cityscapes_acdc,
    "OwnFootage": tiny_streets.own_footage,
    "VOCSemi": tiny_voc.voc_semi,
    "DND": tiny_denoising.dnd,
    "PackagedPhotographs": tiny_denoising.photographs,
    "SIDD": tiny_denoising.sidd,
    "Optdigits": tiny_images.optdigits,
    "ImageNet": tiny_images.imagenet,
    "CityscapesSemi": tiny_voc.cityscapes_semi,
    "AudioFolders": tiny_audio.audio_folders,
    "AudioSet": tiny_audio.audioset,
    "AudioSetLibriSpeech": tiny_audio.audioset_librispeech,
    "ESC50": tiny_audio.esc50,
    "FSD50K": tiny_audio.fsd50k,
    "IEMOCAP": tiny_audio.iemocap,
    "SpeechCommandsV1": tiny_audio.speech_commands_v1,
    "SpeechCommandsV2": tiny_audio.speech_commands_v2,
    "SpokenKeywords": tiny_audio.spoken_keywords,
    "LibriLight": tiny_audio.libri_light,
    "LibriSpeech": tiny_audio.librispeech,
    "TelephonePrompts": tiny_audio.telephone_prompts,
    "VoxCeleb1": tiny_audio.voxceleb1,
    "AudioVisualLists": tiny_videos.audio_visual_lists,
    "CREMAD": tiny_videos.listed("CREMA-D", "01"),
    "MAFW": tiny_videos.listed("MAFW", "01"),
    "MSPIMPROV": tiny_videos.listed("MSP-IMPROV", "01"),
    "RAVDESS": tiny_videos.listed("RAVDESS", "01"),
    "TalkingBlobs": tiny_videos.talking_blobs,
    "VoxCeleb2": tiny_videos.voxceleb2,
    "WerewolfXL": tiny_videos.listed("Werewolf-XL", ["0.5 1.0 0.0", "1.5 0.25 1.0"]),
    "AMOS22": tiny_volumes.supervised(tiny_volumes.amos22_tree),
    "BTCV": tiny_volumes.supervised(tiny_volumes.btcv_tree),
    "FLARE22": tiny_volumes.supervised(tiny_volumes.flare22_tree),
    "LUNA16": tiny_volumes.luna16,
    "MSD": tiny_volumes.msd,
    "OmniVolumes": tiny_volumes.omni_volumes,
    "PreCT": tiny_volumes.prect,
    "voco_omni/prect": tiny_volumes.omni_prect,
    "EyePhotographs": tiny_eyes.photographs,
    "EyeScans": tiny_eyes.scans,
    "TakingTurns": tiny_eyes.taking_turns,
    "uni4eye/lists": tiny_eyes.lists,
    "EyePACS": tiny_eyes.images_of(tiny_eyes.eyepacs_tree),
    "IChallengeAMD": tiny_eyes.images_of(tiny_eyes.amd_tree),
    "IChallengePM": tiny_eyes.images_of(tiny_eyes.pm_tree),
    "GAMMA": tiny_eyes.images_of(tiny_eyes.gamma_tree),
    "GAMMAScans": tiny_eyes.volumes_of(tiny_eyes.gamma_tree),
    "OCTA500": tiny_eyes.volumes_of(tiny_eyes.octa500_tree),
    "TorsoPhantom": tiny_volumes.torso,
    "TorsoScanners": tiny_volumes.torso,
    "PulsePeople": tiny_signals.pulse_people,
    "SignalFolders": tiny_signals.signal_folders,
    "wearable_biosignals/ecg": tiny_signals.ecg_folders,
    "PTBXL": tiny_signals.ptbxl,
}


#: In place of backbones that take gigabytes to train: the smallest of the same family, if there is a small one.
SMALLER = {
    "mit_b5": "mit_b0",
    "resnet101c": "street_cnn",
    "resnet101_deeplab": "street_cnn",
    "ast_base": "ast_tiny",
    "ast_small": "ast_tiny",
}


def miniature(config: str, folder: Path) -> list[str]:
    """The command-line options that put a config on miniature data and never ask for a download."""
    content = yaml.safe_load((package_configs() / f"{config}.yaml").read_text())
    settings = MINIATURES.get(config) or MINIATURES[content["data"]["class_path"]]
    options = tiny.as_options(settings(folder))
    model = content["model"]["init_args"]
    if model.get("pretrained"):
        options += ["--model.pretrained", "false"]
    if model.get("backbone") in SMALLER:
        options += ["--model.backbone", SMALLER[model["backbone"]]]
        if SMALLER[model["backbone"]] == "street_cnn":
            options += ["--model.backbone_args", "null"]
    if model.get("backbone", "").startswith("ast_"):
        options += ["--model.backbone_args.depth", "1"]
    if model.get("backbone", "").startswith("conformer_"):
        options += tiny_audio.small_conformer(content["model"]["class_path"])
    if model.get("backbone", "").startswith("hicmae_"):
        options += tiny_videos.small_network(model)
    if model.get("backbone", "") in ("elastic_vit_large", "elastic_swin_base", "elastic_resnet152"):
        options += tiny_images.small_family(model["backbone"])
    if config in ("dino/imagenet", "ibot/imagenet", "dinov2/imagenet"):
        options += tiny_images.small_vit(model["backbone_args"])
    if content["model"]["class_path"] == "CBSN":
        options += tiny_denoising.SMALL_NETWORK
    if model.get("backbone") == "unified_vit_large":
        options += tiny_eyes.small_network(model)
    if content["model"]["class_path"] == "WearableContrast":
        options += tiny_signals.SMALL
    if model.get("backbone") == "swin_unetr_b":
        options += tiny_volumes.small_network(model)
    return options


def run(verb: str, config: str, data: list[str], folder: Path, *options: str) -> None:
    command = [verb, "--config", config, *data, *QUIET, "--run_dir", str(folder), *options]
    assert main(command) == 0, f"zoo {' '.join(command)}"


@pytest.mark.parametrize("config", CONFIGS)
def test_a_step_through_the_command_line(config: str, tmp_path: Path) -> None:
    """A step and its validation; further, unless a sibling config does, resume, validate and predict."""
    data, folder = miniature(config, tmp_path), tmp_path / "run"
    run("fit", config, data, folder, *STEP)
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert resolved["trainer"]["max_steps"] == 1
    last = folder / "checkpoints" / "last.ckpt"
    assert last.is_file()
    method: Any = get_method(config.partition("/")[0])
    metrics = (folder / "metrics.csv").read_text()
    assert method.monitor is None or method.monitor in metrics
    if issubclass(method, SegmentationMethod):
        assert list((folder / "pictures").glob("*.png"))
    if config not in WHOLE_LIVES:
        return
    run("fit", config, data, folder, *STEP, "--trainer.max_steps", "2", "--ckpt_path", str(last))
    assert torch.load(last, weights_only=True)["global_step"] == 2
    run("validate", config, data, tmp_path / "validated", "--ckpt_path", str(last))
    assert (tmp_path / "validated" / "metrics.csv").is_file()
    run("predict", config, data, tmp_path / "predicted", "--ckpt_path", str(last))
    if issubclass(method, SegmentationMethod):
        assert list((tmp_path / "predicted" / "predictions").glob("*.png"))


REPLACED = [
    c
    for c in CONFIGS
    if (model := yaml.safe_load(_FILES[c].read_text())["model"]["init_args"]).get("backbone") in SMALLER
    and "decode_head" in model
]


@pytest.mark.parametrize("config", REPLACED)
def test_what_the_step_replaced_can_be_built(config: str) -> None:
    """The full network, without memory: its arguments fit one another and the benchmark."""
    content = yaml.safe_load(_FILES[config].read_text())
    model = content["model"]["init_args"]
    with torch.device("meta"):
        network = build_segmentor(
            model["backbone"],
            model["decode_head"],
            model["num_classes"],
            backbone_kwargs=model.get("backbone_args"),
            head_kwargs=model.get("head_args"),
        ).eval()
        logits = network(torch.zeros(1, 3, 64, 64))
    benchmark = getattr(datamodules, content["data"]["class_path"])
    assert logits.shape == (1, benchmark.num_classes, 64, 64)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_first_line_is_the_command(config: str) -> None:
    first = (package_configs() / f"{config}.yaml").read_text().splitlines()[0]
    assert first == f"# zoo fit --config {config}"


def test_cards_and_configs_name_each_other() -> None:
    named = {config for name in list_methods() for config in method_card(name).configs}
    assert named == set(CONFIGS)
