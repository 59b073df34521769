"""The layouts of released weights: one small file per source, one list of all.

A layout is an :class:`~zoo.checkpoints.rules.Importer`; a new one is written beside the others and added here,
the more particular before the more general.
"""

from __future__ import annotations

from zoo.checkpoints.layouts.ast import AST, AST_TRANSFORMERS, SSAST, VIT_AS_AST
from zoo.checkpoints.layouts.dino import DINO, POA
from zoo.checkpoints.layouts.hicmae import HICMAE
from zoo.checkpoints.layouts.own import EXPORTED, OWN
from zoo.checkpoints.layouts.resnet import DEEPLAB, MMSEG_RESNET
from zoo.checkpoints.layouts.segformer import PVT_AS_MIT, SEGFORMER, SEGFORMER_AS_PVT
from zoo.checkpoints.layouts.semi import SEMI
from zoo.checkpoints.layouts.timm import TIMM
from zoo.checkpoints.layouts.torchvision import TORCHVISION_SWIN, TORCHVISION_VIT
from zoo.checkpoints.layouts.uni4eye import UNI4EYE, UNI4EYE_AS_VIT, VIT_AS_UNIFIED
from zoo.checkpoints.layouts.voco import SWIN_UNETR, VOCO
from zoo.checkpoints.rules import Importer
from zoo.registry import UnknownNameError

IMPORTERS: dict[str, Importer] = {
    importer.name: importer
    for importer in (
        OWN,
        EXPORTED,
        SEGFORMER,
        SEGFORMER_AS_PVT,
        PVT_AS_MIT,
        MMSEG_RESNET,
        DEEPLAB,
        SEMI,
        SSAST,
        AST,
        AST_TRANSFORMERS,
        HICMAE,
        UNI4EYE,
        UNI4EYE_AS_VIT,
        POA,
        DINO,
        TORCHVISION_VIT,
        TORCHVISION_SWIN,
        VOCO,
        SWIN_UNETR,
        TIMM,
        VIT_AS_AST,
        VIT_AS_UNIFIED,
    )
}


def get_importer(name: str) -> Importer:
    """The importer of a name.

    Raises:
        UnknownNameError: there is none; the message holds the nearest ones.
    """
    if name not in IMPORTERS:
        raise UnknownNameError(
            "importer", name, IMPORTERS, f"zoo import --help; known: {', '.join(IMPORTERS)}"
        )
    return IMPORTERS[name]


__all__ = ["IMPORTERS", "get_importer"]
