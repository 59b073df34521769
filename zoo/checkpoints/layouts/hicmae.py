"""HiCMAE as released, after pre-training and after fine-tuning."""

from __future__ import annotations

from zoo.checkpoints.files import Tensors
from zoo.checkpoints.rules import Importer, Rename


def describe(state: Tensors) -> str:
    """``HiCMAE of width 512, 10 + 2 blocks``."""
    width = state["backbone.video.patch_embed.proj.weight"].shape[0]

    def blocks(part: str) -> int:
        return len({name.split(".")[3] for name in state if name.startswith(f"backbone.{part}.")})

    return f"HiCMAE of width {width}, {blocks('video.blocks')} + {blocks('fusion.video_blocks')} blocks"


HICMAE = Importer(
    "hicmae",
    "HiCMAE as released, after pre-training or fine-tuning",
    (
        r"^encoder\.patch_embed\.proj\.weight$",
        r"^encoder_audio\.patch_embed\.proj\.weight$",
        r"^encoder_fusion\.blocks_audio\.0\.",
    ),
    (
        Rename(r"^encoder_fusion\.(blocks|norm)_audio\.", r"backbone.fusion.audio_\1."),
        Rename(r"^encoder_fusion\.(blocks|norm)\.", r"backbone.fusion.video_\1."),
        Rename(r"^encoder_audio\.", "backbone.audio."),
        Rename(r"^encoder\.", "backbone.video."),
        Rename(r"^decoder_audio\.", "audio_decoder."),
        Rename(r"^decoder\.", "video_decoder."),
        Rename(r"^encoder_to_decoder_audio\.", "audio_decoder.projection."),
        Rename(r"^encoder_to_decoder\.", "video_decoder.projection."),
        Rename(r"^mask_token_audio$", "audio_decoder.mask_token"),
        Rename(r"^mask_token$", "video_decoder.mask_token"),
    ),
    describe=describe,
    note="frames are normalised by the network, spectrograms as the features of configs/hicmae do it",
)
