"""PackagedBrains: pseudo-subjects of the two real brain templates that packages ship."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, get_args

from datamodules.brain_templates import (
    WARP_VERSION,
    Template,
    class_names,
    pseudo_subject,
    read_template,
    template_folder,
)
from datamodules.cache import cache_root
from datamodules.layout import Layout
from datamodules.rendered_volumes import RenderedVolumes, Rendering, rendered_layout
from datamodules.volume_processing import Processing
from datamodules.volume_sets import Size3
from datamodules.volumes import VolumeDataModule


class PackagedBrains(VolumeDataModule):
    """T1-weighted MRI with real intensities: MNI152 with tissues, or Colin-27 with the 116 regions of AAL, warped.

    All subjects share the anatomy of one template, so this is for pretext tasks and for trying things out: few labels
    are as good as many. Needs the extra ``medical`` and one of the packages.

    Args:
        template: ``mni152`` (of the PyPI package nilearn) or ``colin27`` (of the Debian package mricron-data).
        root: folder of the template's files, or the one its package was unpacked to; None looks where packages are
            installed.
        num_train: training volumes.
        num_val: volumes of validation.
        num_test: volumes of test and prediction.
        stride: voxels of 1 mm that become one.
        rendered: folder for the warped volumes; None takes ``$SELFZOO_CACHE`` or ``~/.cache/selfzoo``.
        batch_size: training volumes a step, on every device.
        eval_batch_size: volumes a batch in evaluation.
        num_workers: loader processes; 0 loads in the training process.
        crop: sides of training windows in voxels; None gives whole volumes.
        num_crops: windows of each volume in supervised training.
        **common: see :class:`~datamodules.volumes.VolumeDataModule`.

    Raises:
        ValueError: an argument is out of range.
        LayoutError: the template is not installed.
    """

    name = "packaged_brains"
    layout: ClassVar[Mapping[str, Layout]] = {"root": rendered_layout("PackagedBrains")}

    def __init__(
        self,
        template: Template = "mni152",
        root: str | None = None,
        num_train: int = 20,
        num_val: int = 4,
        num_test: int = 4,
        stride: int = 4,
        rendered: str | None = None,
        batch_size: int = 2,
        eval_batch_size: int = 2,
        num_workers: int = 0,
        crop: Size3 | None = None,
        num_crops: int = 1,
        **common: Any,
    ) -> None:
        if template not in get_args(Template):
            raise ValueError(f"template must be one of {', '.join(get_args(Template))}, got {template!r}.")
        if not 1 <= stride <= 8:
            raise ValueError(f"stride must lie in 1..8, got {stride}.")
        template_folder(template, root)
        self._template: Template = template
        self._source, self._stride = root, stride
        self.classes = class_names(template, root)  # type: ignore[misc]
        self.num_classes = len(self.classes)  # type: ignore[misc]
        self.eval_classes = tuple(range(1, self.num_classes))  # type: ignore[misc]
        counts = {"train": num_train, "val": num_val, "test": num_test}
        settings = [WARP_VERSION, template, stride]
        self._tree = RenderedVolumes("brains", settings, counts, self.classes, self._render)
        self._base = Path(rendered).expanduser() if rendered else cache_root()
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
        """The stored grid; MRI has no fixed window."""
        return Processing(spacing=None, window=None, crop_foreground=False)

    def prepare_data(self) -> None:
        """Warp the template and process the volumes, unless they are there already."""
        self._tree.ensure(self._base)
        super().prepare_data()

    def _render(self, seed: int) -> Rendering:
        return pseudo_subject(read_template(self._template, self._source, self._stride), seed)
