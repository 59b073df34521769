"""Predictions as the label files that evaluation servers take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image

from callbacks.output_folder import PredictionWriter
from datamodules.labels import ENCODINGS


class WritePredictions(PredictionWriter):
    """In prediction, one PNG per image, at its stored size and under its own name.

    All files lie in one folder, ready to be zipped: the servers of Cityscapes (ids), ACDC and Dark Zurich
    (trainIds) find a prediction by the beginning of its name, which is that of the image. Only where the benchmark
    names images with their folders (:class:`datamodules.OwnFootage`) predictions lie in these as well. For files that
    are to be read as labels again (training on them offline), set ``suffix`` to that of the label files.

    Args:
        encoding: how classes are stored: ``ids``, ``trainIds``, ``colors`` or another key of
            ``datamodules.labels.ENCODINGS``; ``None`` takes the one that the benchmark's server wants
            (``submission`` of the datamodule).
        folder: where to write; default ``predictions`` in the trainer's ``default_root_dir``, which the command
            ``zoo`` sets to the run's folder. A trainer that was given no folder writes nothing.
        suffix: what follows an image's stem in place of its own suffix, such as ``_gtFine_labelIds.png``;
            ``None`` keeps the image's file name, as PNG.

    Raises:
        MisconfigurationException: an unknown encoding; in prediction, a method without labels ``[B, H, W]``,
            batches without ``name``, or two images of one name.
    """

    written = ("Label maps", "images")
    family = "write_predictions"

    def __init__(
        self, encoding: str | None = None, folder: str | None = None, suffix: str | None = None
    ) -> None:
        if encoding is not None and encoding not in ENCODINGS:
            raise MisconfigurationException(
                f"WritePredictions(encoding={encoding!r}): expected one of {', '.join(ENCODINGS)}"
            )
        if suffix is not None and not suffix.endswith(".png"):
            raise MisconfigurationException(
                f"WritePredictions(suffix={suffix!r}): label maps are PNGs, end it with .png"
            )
        super().__init__(folder)
        self.encoding, self.suffix = encoding, suffix

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Write the label maps of one batch."""
        folder = self.target(trainer)
        if folder is None:
            return
        if not isinstance(outputs, dict) or "label" not in outputs or not outputs.get("name"):
            raise MisconfigurationException(
                f"WritePredictions needs label maps and names: {type(pl_module).__name__}.predict_step must return "
                "a dict with 'label' [B, H, W] and 'name', and the benchmark's batches must hold 'name'"
            )
        benchmark: Any = getattr(trainer, "datamodule", None)
        wanted: str = getattr(benchmark, "submission", "ids") if self.encoding is None else self.encoding
        encoding = ENCODINGS[wanted]
        labels = outputs["label"].cpu().numpy()
        for label, name in zip(labels, self._file_names(trainer, outputs["name"], batch), strict=True):
            path = folder / name
            self.claim(path, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(encoding.encode(label)).save(path)

    def _file_names(self, trainer: L.Trainer, stems: list[str], batch: Any) -> list[str]:
        """The names of a batch's files."""
        if self.suffix is not None:
            return [stem + self.suffix for stem in stems]
        loader: Any = trainer.predict_dataloaders
        pairs = getattr(loader.dataset, "pairs", None)
        if pairs is None:
            return [f"{stem}.png" for stem in stems]
        shown = [pairs[index] for index in batch["index"].tolist()]
        return [f"{Path(pair.name).with_name(pair.image.stem)}.png" for pair in shown]
