"""DND (Plötz and Roth, CVPR 2017): photographs of four cameras whose clean versions nobody has but the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datamodules.denoising import WholePictures
from datamodules.layout import Layout, LayoutError, Split
from datamodules.mat_files import read_dnd_boxes, read_dnd_image
from datamodules.patched_images import PatchedImages


class BoxedPictures:
    """Boxes of images, one after the other, image by image.

    Args:
        images: their files.
        boxes: for each ``[n, 4]``, first row and column and those behind the last.
    """

    def __init__(self, images: Sequence[Path], boxes: Sequence[np.ndarray]) -> None:
        numbered = [(i, n, b) for i, each in zip(images, boxes, strict=True) for n, b in enumerate(each, 1)]
        self._places = [(image, box) for image, _, box in numbered]
        self.names = [f"{image.stem}_{number:02d}" for image, number, _ in numbered]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, position: int) -> np.ndarray:
        image, (top, left, bottom, right) = self._places[position]
        picture = _latest(image)
        if not (0 <= top < bottom <= picture.shape[0] and 0 <= left < right <= picture.shape[1]):
            raise ValueError(
                f"info.mat has the box {top}, {left}, {bottom}, {right} for {image}, which has {picture.shape[0]} x "
                f"{picture.shape[1]} pixels: they do not belong together"
            )
        return picture[top:bottom, left:right]


class DND(PatchedImages):
    """50 noisy sRGB images, of which the server compares 20 boxes of 512 x 512 pixels each with clean ones.

    Training uses the noisy images themselves, as the published row that is trained on the test set does. There are no
    clean images, so validation shows ``val_boxes`` boxes of each image by themselves (``CBSN`` logs its blind loss) and
    ``zoo test`` is refused. ``zoo predict`` denoises all 1,000 boxes; ``callbacks.WriteImages(form="mat")`` writes them
    as the server takes them. Boxes are named as there: ``0001_01`` to ``0050_20``.

    Args:
        root: the folder ``dnd_2017``, which holds ``images_srgb`` and ``info.mat``.
        val_boxes: boxes of each image in validation.
        eval_batch_size: boxes a batch in evaluation.
        **common: see :class:`~datamodules.patched_images.PatchedImages`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "dnd"
    layout: ClassVar[Mapping[str, Layout]] = {
        "root": Layout(
            title="DND",
            images=".",
            suffix=".mat",
            labels=(),
            splits={
                "train": Split("images_srgb/*", (50,)),
                "boxes": Split(("images_srgb/*", "info"), (51,)),
            },
            origin="noise.visinf.tu-darmstadt.de: dnd_2017.zip (sRGB images)",
            unit="files",
        )
    }
    val_split = test_split = "boxes"
    predict_split = "boxes"

    def __init__(
        self, root: str | None = None, val_boxes: int = 1, eval_batch_size: int = 1, **common: Any
    ) -> None:
        super().__init__(root, eval_batch_size=eval_batch_size, **common)
        if val_boxes < 1:
            raise ValueError(f"val_boxes must be at least 1, got {val_boxes}.")
        self.val_boxes = val_boxes

    read = staticmethod(read_dnd_image)

    def needs(self, stage: str | None = None) -> dict[str, dict[str, bool]]:
        """The images of training, and with their boxes those of evaluation."""
        train = {"train": False} if stage in (None, "fit") else {}
        return {"root": {**train, **dict.fromkeys(self.eval_splits(stage).values(), False)}}

    def setup(self, stage: str | None = None) -> None:
        """Open what a stage reads.

        Raises:
            LayoutError: the root is not as its layout declares; there is nothing to test against.
        """
        if stage == "test":
            raise LayoutError(
                "DND publishes no clean images, so nothing can be tested here: denoise its boxes with zoo predict and "
                "send them to its server"
            )
        super().setup(stage)

    def evaluated(self, stage: str | None) -> dict[str, Any]:
        """Boxes of the images: a few to validate, all to predict."""
        found = {}
        for name in self.eval_splits(stage).keys() - {"test"}:
            pairs = self.reports["root"].splits["boxes"].pairs
            images = [pair.image for pair in pairs if pair.image.parent.name == "images_srgb"]
            info = next(pair.image for pair in pairs if pair.name == "info")
            boxes = read_dnd_boxes(info)
            if len(boxes) < len(images):
                raise LayoutError(f"{info} has boxes of {len(boxes)} images, and there are {len(images)}.")
            # Boxes are numbered like files; of a part of the images, each keeps its own.
            mine = [boxes[int(image.stem) - 1] for image in images]
            shown = BoxedPictures(images, mine if name == "predict" else [b[: self.val_boxes] for b in mine])
            found[name] = WholePictures(shown, shown.names)
        return found


@lru_cache(maxsize=1)
def _latest(path: Path) -> np.ndarray:
    """An image that is asked for box by box is read once."""
    return read_dnd_image(path)
