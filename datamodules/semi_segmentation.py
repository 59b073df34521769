"""Semi-supervised segmentation: few labelled and many unlabelled images of one domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from datamodules.layout import CITYSCAPES, Layout, LayoutReport, Pair
from datamodules.readers import Cache, SegmentationDataset, Size
from datamodules.sampling import JointDataset
from datamodules.segmentation import SegmentationDataModule


class SemiSegmentation(SegmentationDataModule):
    """Semi-supervised learning: few labelled and many unlabelled training images of one Cityscapes tree.

    Training batches are ``{"labelled": {image, label, index}, "unlabelled": {image, index}}``. An epoch is
    one pass over the unlabelled images, during which the labelled ones are repeated; labels of the former are
    not opened.

    Args:
        root: folder of the tree.
        num_labelled: labelled images: the first of a permutation of the training images.
        labelled_list: instead, a text file with one labelled image a line: its path below the root, or its
            stem. What follows the first blank is ignored, as is an empty line.
        split_seed: of that permutation; apart from ``seed``, so that seeds are compared on the same images.
        batch_size: labelled images, and unlabelled images, a step on every device.
        eval_batch_size: images a batch in validation, test and prediction; 1 where their sizes differ.
        num_workers: loader processes; 0 loads in the training process.
        seed: of everything the loaders draw; None takes that of ``seed_everything``.
        resize: bounds of the long and short side; the aspect ratio is kept.
        crop: height and width of training windows; None takes whole images.
        flip: probability of mirroring a training image.
        cache: ``ram`` keeps decoded images in memory, for small sets.
        skip_broken: leave out damaged pairs and count them, instead of stopping.
        allow_partial: accept another number of images than was published.

    Raises:
        ValueError: not exactly one of ``num_labelled`` and ``labelled_list``; in ``setup``, more labelled
            images than there are, or a listed image that does not exist.
    """

    name = "cityscapes_semi"
    layout: ClassVar[Mapping[str, Layout]] = {"root": CITYSCAPES}
    eval_root = "root"

    def __init__(
        self,
        root: str | None = None,
        num_labelled: int | None = None,
        labelled_list: str | None = None,
        split_seed: int = 0,
        batch_size: int = 2,
        eval_batch_size: int = 1,
        num_workers: int = 4,
        seed: int | None = None,
        resize: Size | None = None,
        crop: Size | None = (769, 769),
        flip: float = 0.5,
        cache: Cache = "none",
        skip_broken: bool = False,
        allow_partial: bool = False,
    ) -> None:
        super().__init__(
            resize,
            crop,
            flip,
            cache,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            skip_broken=skip_broken,
            allow_partial=allow_partial,
        )
        if (num_labelled is None) == (labelled_list is None):
            raise ValueError(
                "Set exactly one of num_labelled and labelled_list, "
                f"got num_labelled={num_labelled} and labelled_list={labelled_list!r}."
            )
        if num_labelled is not None and num_labelled < 1:
            raise ValueError(f"num_labelled must be at least 1, got {num_labelled}.")
        self.root, self.num_labelled, self.labelled_list = root, num_labelled, labelled_list
        self.split_seed = split_seed

    def needs(self, stage: str | None = None) -> dict[str, dict[str, bool]]:
        """Labelled training images, and the images of evaluation."""
        splits = dict.fromkeys(self.eval_splits(stage).values(), True)
        return {"root": {"train": True, **splits} if stage in (None, "fit") else splits}

    def train_dataset(self, reports: Mapping[str, LayoutReport]) -> JointDataset:
        """Independent draws of labelled and unlabelled images."""
        report = reports["root"]
        labelled, unlabelled = self._divide(self.usable_pairs(report, "train"))
        encoding = report.splits["train"].encoding
        domains = {
            name: SegmentationDataset(pairs, kind, self.resize, crop=self.crop, cache=self.cache)
            for name, pairs, kind in (("labelled", labelled, encoding), ("unlabelled", unlabelled, None))
        }
        return JointDataset(domains, self.draw_seed)

    def _divide(self, pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
        """Labelled and unlabelled pairs, both in the order of ``pairs``."""
        if self.labelled_list is not None:
            listed = _read_list(Path(self.labelled_list), pairs, self.root)
            chosen = {index for index, pair in enumerate(pairs) if pair in listed}
        else:
            order = np.random.default_rng(self.split_seed).permutation(len(pairs))
            chosen = set(order[: self.num_labelled].tolist())
        wanted = self.num_labelled or len(chosen)
        if wanted >= len(pairs):
            argument = "num_labelled" if self.labelled_list is None else "labelled_list"
            raise ValueError(
                f"{argument} asks for {wanted} labelled images of {len(pairs)} in {self.root}: "
                "at least one must remain unlabelled."
            )
        labelled = [pair for index, pair in enumerate(pairs) if index in chosen]
        return labelled, [pair for index, pair in enumerate(pairs) if index not in chosen]


def _read_list(file: Path, pairs: Sequence[Pair], root: str | None) -> set[Pair]:
    """The pairs a list names by path below the root or by stem."""
    base = Path(root or "").expanduser()
    by_name = {pair.name: pair for pair in pairs}
    by_name.update({pair.image.relative_to(base).as_posix(): pair for pair in pairs})
    entries = [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
    unknown = [entry for entry in entries if entry not in by_name]
    if unknown or not entries:
        problem = f"{len(unknown)} of its {len(entries)} entries are no training image: {unknown[:3]}"
        raise ValueError(
            f"labelled_list={str(file)!r}: {problem if entries else 'it is empty'} (root {root})."
        )
    return {by_name[entry] for entry in entries}
