"""RaceTracks: from summer to snow on the tracks of a racing game, rendered from its files with exact labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from torch import nn

from datamodules.cache import cache_root
from datamodules.layout import Layout
from datamodules.readers import Cache, Size
from datamodules.segmentation import UDASegmentation
from datamodules.track_labels import CLASSES, PALETTE
from datamodules.track_tree import SOURCE_LAYOUT, TARGET_LAYOUT, TrackTree


class RaceTracks(UDASegmentation):
    """Adaptation from seven tracks in summer, labelled, to one in snow: the game TORCS, five classes.

    The tracks come with the Debian package ``torcs-data`` (1.3.7) and are rendered on first use. Training,
    validation and test views of the snow track come from stretches of its lap 150 m apart; choose settings on
    ``val`` and report ``test``. Vehicles, people, water and the painted landscape behind the track are not labelled.

    Args:
        root: the folder the package was extracted to, or the one that holds ``tracks`` and ``data``; None looks
            where the package is installed (``/usr/share/games/torcs``). Not needed once everything is rendered.
        num_source: labelled views of summer tracks.
        num_target: unlabelled views of the snow track.
        num_val: snow views of validation.
        num_test: snow views of test and prediction.
        height: rows in pixels.
        width: columns in pixels.
        other_version: accept tracks of another version of the package, for which no results are comparable.
        cache_folder: folder for the rendered trees; None takes ``$SELFZOO_CACHE`` or ``~/.cache/selfzoo``.
        batch_size: source images, and target images, a step on every device.
        eval_batch_size: images a batch in validation, test and prediction.
        num_workers: loader processes; 0 loads in the training process.
        seed: of everything the loaders draw; None takes that of ``seed_everything``. The views never change.
        crop: height and width of training windows; None takes whole images.
        flip: probability of mirroring a training image.
        source_augment: photometric augmentation of labelled images, see ``UDASegmentation``.
        oracle: labelled images are those of the target: the upper bound of adaptation.
        rare_class_temperature: draw source images by the rarity of their classes; None draws them uniformly.
        rare_class_min_pixels: an image is a candidate for a class if it has more pixels of it than this.
        cache: ``ram`` keeps decoded images in memory; see ``UDASegmentation``.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "racetracks"
    keeps_truth = True
    classes = CLASSES
    palette = PALETTE
    num_classes = len(CLASSES)
    eval_classes = tuple(range(len(CLASSES)))
    layout: ClassVar[Mapping[str, Layout]] = {"source_root": SOURCE_LAYOUT, "target_root": TARGET_LAYOUT}
    test_split = "test"

    def __init__(
        self,
        root: str | None = None,
        num_source: int = 280,
        num_target: int = 240,
        num_val: int = 60,
        num_test: int = 100,
        height: int = 64,
        width: int = 128,
        other_version: bool = False,
        cache_folder: str | None = None,
        batch_size: int = 8,
        eval_batch_size: int = 20,
        num_workers: int = 0,
        seed: int | None = None,
        crop: Size | None = None,
        flip: float = 0.5,
        source_augment: nn.Module | bool = False,
        oracle: bool = False,
        rare_class_temperature: float | None = None,
        rare_class_min_pixels: int = 8,
        cache: Cache = "ram",
    ) -> None:
        self._base = Path(cache_folder).expanduser() if cache_folder else cache_root()
        version = str(root) if other_version else ""
        target = {"train": num_target, "val": num_val, "test": num_test}
        self._source_tree = TrackTree("source", {"train": num_source}, height, width, version)
        self._target_tree = TrackTree("target", target, height, width, version)
        super().__init__(
            source_root=str(self._source_tree.folder(self._base)),
            target_root=str(self._target_tree.folder(self._base)),
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            source_resize=None,
            target_resize=None,
            crop=crop,
            flip=flip,
            source_augment=source_augment,
            oracle=oracle,
            rare_class_temperature=rare_class_temperature,
            rare_class_min_pixels=rare_class_min_pixels,
            cache=cache,
        )
        self.root = root

    def prepare_data(self) -> None:
        """Render both domains, unless they are there already; raises TrackError where the package is missing."""
        self._source_tree.ensure(self._base, self.root)
        self._target_tree.ensure(self._base, self.root)
        super().prepare_data()
