"""Semi-supervised segmentation: few labelled and many unlabelled images of one domain."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Literal

import numpy as np

from datamodules.labels import IGNORE_INDEX
from datamodules.layout import LayoutReport, Pair
from datamodules.readers import Cache, SegmentationDataset, Size
from datamodules.sampling import JointDataset
from datamodules.scaled_crop import ScaledCrop
from datamodules.segmentation import SegmentationDataModule

Partition = Literal["1/16", "1/8", "1/4", "1/2", "full"]


class SemiSegmentation(SegmentationDataModule):
    """Semi-supervised learning: few labelled and many unlabelled training images of one benchmark.

    Training batches are ``{"labelled": {image, label, index}, "unlabelled": {image, index}}``. An epoch is
    one pass over the unlabelled images, during which the labelled ones are repeated; labels of the former are
    not opened, except by benchmarks that render them, which keep them aside (:attr:`truth`).

    Published partitions are lists of images somebody once drew; get the list of a paper and give it as
    ``labelled_list`` to compare with it. ``partition`` draws as many images as those lists hold: a sixteenth of
    10,582 is 662, rounded up. Smaller partitions are contained in larger ones of the same ``split_seed``.

    Args:
        root: folder of the tree.
        partition: share of the images that is labelled: the first of a permutation. ``full`` labels all;
            if nothing is left, all are unlabelled images as well.
        num_labelled: instead, so many of that permutation.
        labelled_list: instead, a text file with one labelled image a line: its path, of which the file name
            counts, or its stem. What follows the first blank is ignored, as is an empty line.
        split_seed: of the permutation; apart from ``seed``, so that seeds are compared on the same images.
        batch_size: labelled images, and unlabelled images, a step on every device.
        eval_batch_size: images a batch in validation, test and prediction; 1 where their sizes differ.
        num_workers: loader processes; 0 loads in the training process.
        seed: of everything the loaders draw; None takes that of ``seed_everything``.
        resize: bounds of the long and short side; the aspect ratio is kept.
        crop: height and width of training windows; None takes whole images.
        scale: smallest and largest factor of a random resize before the crop, which then pads images that are
            too small; see :class:`~datamodules.scaled_crop.ScaledCrop`. None: no resize.
        pad_label: trainId of the padding; 0 as released with U2PL and FST.
        flip: probability of mirroring a training image.
        cache: see :class:`~datamodules.segmentation.UDASegmentation`.
        skip_broken: leave out damaged pairs and count them, instead of stopping.
        allow_partial: accept another number of images than was published.

    Raises:
        ValueError: not exactly one of ``partition``, ``num_labelled`` and ``labelled_list``; a ``scale``
            without ``crop``; in ``setup``, more labelled images than there are, or a listed image that does not
            exist.
    """

    eval_root = "root"

    def __init__(
        self,
        root: str | None = None,
        partition: Partition | None = None,
        num_labelled: int | None = None,
        labelled_list: str | None = None,
        split_seed: int = 0,
        batch_size: int = 2,
        eval_batch_size: int = 1,
        num_workers: int = 4,
        seed: int | None = None,
        resize: Size | None = None,
        crop: Size | None = None,
        scale: tuple[float, float] | None = None,
        pad_label: int = IGNORE_INDEX,
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
        if scale is not None:
            if crop is None:
                raise ValueError(
                    f"scale={scale} resizes at random and so needs a crop; set crop, or scale: null."
                )
            self.crop = ScaledCrop(crop, scale=scale, pad_label=pad_label)
        given = {"partition": partition, "num_labelled": num_labelled, "labelled_list": labelled_list}
        if sum(value is not None for value in given.values()) != 1:
            shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
            raise ValueError(f"Set exactly one of partition, num_labelled and labelled_list, got {shown}.")
        if partition is not None and partition != "full" and not 0 < Fraction(partition) <= 1:
            raise ValueError(f"partition must be a share such as '1/16', or 'full', got {partition!r}.")
        if num_labelled is not None and num_labelled < 1:
            raise ValueError(f"num_labelled must be at least 1, got {num_labelled}.")
        self.root, self.split_seed = root, split_seed
        self.partition, self.num_labelled, self.labelled_list = partition, num_labelled, labelled_list

    def needs(self, stage: str | None = None) -> dict[str, dict[str, bool]]:
        """Labelled training images, and the images of evaluation."""
        splits = self.eval_needs(stage)
        return {"root": {"train": True, **splits} if stage in (None, "fit") else splits}

    def train_dataset(self, reports: Mapping[str, LayoutReport]) -> JointDataset:
        """Independent draws of labelled and unlabelled images."""
        pairs, eligible = self.training_pairs(reports)
        labelled, unlabelled = self._divide(pairs, eligible)
        encoding = reports["root"].splits["train"].encoding
        known = encoding if self.keeps_truth else None
        domains = {
            name: SegmentationDataset(pairs, kind, self.resize, crop=self.crop, cache=self.cache, truth=truth)
            for name, pairs, kind, truth in (
                ("labelled", labelled, encoding, False),
                ("unlabelled", unlabelled, known, True),
            )
        }
        return JointDataset(domains, self.draw_seed)

    def training_pairs(self, reports: Mapping[str, LayoutReport]) -> tuple[Sequence[Pair], Collection[str]]:
        """All training images, and the names of those that may be labelled."""
        pairs = self.usable_pairs(reports["root"], "train")
        return pairs, {pair.name for pair in pairs}

    def _divide(self, pairs: Sequence[Pair], eligible: Collection[str]) -> tuple[list[Pair], list[Pair]]:
        """Labelled and unlabelled pairs, both in the order of ``pairs``."""
        candidates = [index for index, pair in enumerate(pairs) if pair.name in eligible]
        if self.labelled_list is not None:
            listed = _read_list(Path(self.labelled_list), pairs, self.root)
            chosen = {index for index, pair in enumerate(pairs) if pair in listed}
        else:
            order = np.random.default_rng(self.split_seed).permutation(candidates)
            chosen = set(order[: self._wanted(len(candidates))].tolist())
        wanted = self.num_labelled or len(chosen)
        labelled = [pair for index, pair in enumerate(pairs) if index in chosen]
        if self.partition == "full" and len(labelled) == len(pairs):
            return labelled, list(pairs)
        too_many = self.labelled_list is None and wanted > len(candidates)
        if too_many or wanted >= len(pairs):
            argument = next(
                name
                for name in ("partition", "num_labelled", "labelled_list")
                if getattr(self, name) is not None
            )
            raise ValueError(
                f"{argument} asks for {wanted} labelled images of {len(candidates)} in {self.root}: "
                "at least one must remain unlabelled."
            )
        return labelled, [pair for index, pair in enumerate(pairs) if index not in chosen]

    def _wanted(self, candidates: int) -> int:
        """How many images are labelled; published counts are rounded up."""
        if self.partition is None:
            return self.num_labelled or 0
        return candidates if self.partition == "full" else ceil(candidates * Fraction(self.partition))


def _read_list(file: Path, pairs: Sequence[Pair], root: str | None) -> set[Pair]:
    """The pairs a list names by a path, of which the file name counts, or by stem."""
    by_name = {name: pair for pair in pairs for name in (pair.name, pair.image.stem)}
    entries = [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    found = {entry: by_name.get(entry) or by_name.get(Path(entry).stem) for entry in entries}
    unknown = [entry for entry, pair in found.items() if pair is None]
    if unknown or not entries:
        problem = f"{len(unknown)} of its {len(entries)} entries are no training image: {unknown[:3]}"
        raise ValueError(
            f"labelled_list={str(file)!r}: {problem if entries else 'it is empty'} (root {root})."
        )
    return {pair for pair in found.values() if pair is not None}
