"""Benchmarks: official data trees as Lightning datamodules. Importing this package imports no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.base import BenchmarkDataModule
    from datamodules.embedded import StreetShift, StreetShiftSemi
    from datamodules.gta5_cityscapes import GTA5Cityscapes
    from datamodules.segmentation import UDASegmentation
    from datamodules.semi_segmentation import SemiSegmentation

__all__ = [
    "BenchmarkDataModule",
    "GTA5Cityscapes",
    "SemiSegmentation",
    "StreetShift",
    "StreetShiftSemi",
    "UDASegmentation",
]

_MODULES = {
    "BenchmarkDataModule": "base",
    "GTA5Cityscapes": "gta5_cityscapes",
    "SemiSegmentation": "semi_segmentation",
    "StreetShift": "embedded",
    "StreetShiftSemi": "embedded",
    "UDASegmentation": "segmentation",
}


def __getattr__(name: str) -> Any:
    """Import a public class when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
