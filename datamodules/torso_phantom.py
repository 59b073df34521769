"""TorsoPhantom: generated torsos as from two CT scanners, for segmentation and for telling the scanners apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from datamodules.cache import cache_root
from datamodules.layout import Layout, Pair
from datamodules.phantom import AFFINE, CLASSES, GENERATOR_VERSION, Style, render
from datamodules.rendered_volumes import RenderedVolumes, Rendering, rendered_layout
from datamodules.volume_classes import VolumeClassification
from datamodules.volume_processing import Processing
from datamodules.volume_sets import Size3
from datamodules.volumes import VolumeDataModule

Styles = Literal["A", "B", "both"]


class TorsoPhantom(VolumeDataModule):
    """Eight organs in torsos of 64×48×32 voxels of 2×2×2.5 mm, as NIfTI files read like any others.

    Settings are to be chosen on ``val``; ``test`` is another range of seeds, for reporting. Needs the extra
    ``medical``.

    Args:
        num_train: training volumes; ``labelled_fraction`` says how many of them have labels in supervised training.
        num_val: volumes of validation.
        num_test: volumes of test and prediction.
        style: scanner: ``A`` (sharp), ``B`` (blurred, noisy, drifting), or ``both`` by turns.
        jitter: how much organs' places and sizes differ between patients; 0.05 leaves more to learn.
        root: folder for the rendered tree; None takes ``$SELFZOO_CACHE`` or ``~/.cache/selfzoo``.
        batch_size: training volumes a step, on every device.
        eval_batch_size: volumes a batch in evaluation.
        num_workers: loader processes; 0 loads in the training process.
        crop: sides of training windows in voxels; None gives whole volumes.
        num_crops: windows of each volume in supervised training.
        **common: see :class:`~datamodules.volumes.VolumeDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "torso_phantom"
    classes: ClassVar[tuple[str, ...]] = CLASSES
    num_classes = len(CLASSES)
    eval_classes: ClassVar[tuple[int, ...]] = tuple(range(1, len(CLASSES)))
    layout: ClassVar[Mapping[str, Layout]] = {"root": rendered_layout("TorsoPhantom")}

    def __init__(
        self,
        num_train: int = 40,
        num_val: int = 6,
        num_test: int = 6,
        style: Styles = "A",
        jitter: float = 0.03,
        root: str | None = None,
        batch_size: int = 2,
        eval_batch_size: int = 2,
        num_workers: int = 0,
        crop: Size3 | None = None,
        num_crops: int = 1,
        **common: Any,
    ) -> None:
        if style not in get_args(Styles):
            raise ValueError(f"style must be one of {', '.join(get_args(Styles))}, got {style!r}.")
        if jitter < 0:
            raise ValueError(f"jitter must not be negative, got {jitter}.")
        self._style: Styles = style
        self._jitter = jitter
        counts = {"train": num_train, "val": num_val, "test": num_test}
        self._tree = RenderedVolumes(
            "torso", [GENERATOR_VERSION, style, jitter], counts, CLASSES, self._render
        )
        self._base = Path(root).expanduser() if root else cache_root()
        super().__init__(
            root=str(self._tree.folder(self._base)),
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            crop=crop,
            num_crops=num_crops,
            **common,
        )

    @classmethod
    def default_processing(cls) -> Processing:
        """The stored grid; a window that tells lungs from air."""
        return Processing(spacing=None, window=(-1000.0, 500.0), crop_foreground=False)

    def prepare_data(self) -> None:
        """Render the volumes and process them, unless they are there already."""
        self._tree.ensure(self._base)
        super().prepare_data()

    def _render(self, seed: int) -> Rendering:
        return Rendering(*render(seed, style_of(seed, self._style), self._jitter), AFFINE)


class TorsoScanners(VolumeClassification, TorsoPhantom):
    """Which of the two scanners made a torso: TorsoPhantom's volumes of both styles.

    Args:
        **common: see :class:`TorsoPhantom`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "torso_scanners"
    classes = ("sharp", "blurred")
    num_classes = 2
    eval_classes = (0, 1)

    def __init__(self, **common: Any) -> None:
        super().__init__(style="both", **common)

    def class_of(self, pair: Pair) -> int:
        """The scanner, from the seed in the volume's name."""
        return "AB".index(style_of(int(pair.name.rpartition("_")[2]), "both"))


def style_of(seed: int, styles: Styles) -> Style:
    """The scanner of a seed: of ``both`` by turns."""
    if styles != "both":
        return styles
    return "B" if seed % 2 else "A"
