"""Any set of volumes with a list as the Medical Segmentation Decathlon has it (``dataset.json``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from datamodules.layout import Layout, Split
from datamodules.volume_lists import class_names, listed_layout, read_list
from datamodules.volumes import VolumeDataModule


class DecathlonVolumes(VolumeDataModule):
    """Your own volumes, listed in a JSON file: ``training``, ``validation`` (or else some of training) and ``test``.

    Entries are ``{"image": path, "label": path}`` or a path, relative to ``root``; the classes are those under
    ``labels``.

    Args:
        list_file: the list, relative to ``root``.
        **common: see :class:`~datamodules.volumes.VolumeDataModule`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "decathlon_volumes"
    classes: ClassVar[tuple[str, ...]] = ("background", "foreground")
    num_classes = 2
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": listed_layout(
            "Decathlon list",
            "your own; see the card",
            "dataset.json",
            train=Split("training"),
            val=Split("validation"),
            test=Split("test"),
        )
    }
    test_split = "val"

    def __init__(self, list_file: str = "dataset.json", **common: Any) -> None:
        super().__init__(**common)
        self.list_file = list_file  # type: ignore[misc]

    @property
    def holds_out_val(self) -> bool:  # type: ignore[override]
        """Whether the list has no validation volumes."""
        file = Path(self.root or "").expanduser() / self.list_file
        if self.root is None or not file.is_file():
            return False
        try:
            return not read_list(file).get("validation")
        except ValueError:  # said when the volumes are looked for
            return False

    def setup(self, stage: str | None = None) -> None:
        """Read the classes, then open the processed volumes of a stage."""
        self.checked(stage)
        if self.views is None:
            self.classes = class_names(read_list(Path(self.root or "").expanduser() / self.list_file))  # type: ignore[misc]
            self.num_classes = len(self.classes)  # type: ignore[misc]
        super().setup(stage)
