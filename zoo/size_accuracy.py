"""How good the networks of an elastic family are: k-nearest-neighbour accuracy of each on one image benchmark."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor

from zoo.backbones.elastic import ElasticBackbone
from zoo.nn.elastic import Size
from zoo.nn.knn import check_k, knn_scores

if TYPE_CHECKING:
    from datamodules.images import ImageDataModule

K = 20


class SizeJudge:
    """Weighted k-NN accuracy of class tokens, in percent, for any number of networks on the same images.

    The labelled training images are the bank. Images are read once and kept as bytes.

    Args:
        data: an image benchmark.
        subset: the images to classify: ``val`` or ``test``.
        k: number of neighbours.
        limit: use at most so many images of the bank, and of the subset, with equal shares of the classes.

    Raises:
        ValueError: k is larger than the bank.
    """

    def __init__(
        self, data: ImageDataModule, subset: str = "val", k: int = K, limit: int | None = None
    ) -> None:
        self.k, self.num_classes = k, data.num_classes
        self.bank, self.labels = _images(data, "labelled", limit)
        self.query, self.truth = _images(data, subset, limit)
        check_k([k], len(self.labels))

    @torch.no_grad()
    def accuracy(self, backbone: ElasticBackbone, size: Size | None = None) -> float:
        """Percent of the images whose class the neighbours name, by the features of that size (default: intact)."""
        self.mean, self.std = (torch.tensor(v).view(1, -1, 1, 1) for v in (backbone.mean, backbone.std))
        features = self._features(backbone, size, self.bank)
        labels, right = self.labels.to(features.device), 0
        for images, truth in zip(self.query.split(256), self.truth.split(256), strict=True):
            query = self._features(backbone, size, images)
            votes = knn_scores(query, features, labels, self.num_classes, [self.k])[self.k]
            right += int((votes.argmax(1).cpu() == truth).sum())
        return 100.0 * right / len(self.truth)

    def _features(self, backbone: ElasticBackbone, size: Size | None, images: Tensor) -> Tensor:
        device = next(backbone.parameters()).device
        parts = (part.to(device).float() / 255 for part in images.split(256))
        mean, std = self.mean.to(device), self.std.to(device)
        return torch.cat([backbone.forward_tokens((x - mean) / std, size=size).cls for x in parts])


def accuracies(judge: SizeJudge, backbone: ElasticBackbone, sizes: Iterable[Size]) -> dict[str, float]:
    """Accuracy by the name of the size."""
    return {backbone.size_name(size): judge.accuracy(backbone, size) for size in sizes}


def benchmark_of(config: Path) -> ImageDataModule:
    """The image benchmark of a config, or of the ``config.yaml`` of a run.

    Raises:
        ValueError: the file has no image benchmark, or wrong options of it.
    """
    from jsonargparse import ArgumentParser

    import datamodules
    from datamodules.images import ImageDataModule

    section: Any = (yaml.safe_load(config.read_text(encoding="utf-8")) or {}).get("data") or {}
    section = {"class_path": section} if isinstance(section, str) else dict(section)
    section["init_args"] = {k: v for k, v in (section.get("init_args") or {}).items() if k != "views"}
    name = str(section.get("class_path", ""))
    section["class_path"] = f"datamodules.{name}" if hasattr(datamodules, name) else name
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageDataModule, "data")
    try:
        data = parser.instantiate_classes(parser.parse_object({"data": section})).data
    except Exception as error:  # jsonargparse answers what does not fit with errors of several kinds
        raise ValueError(
            f"{config}: its data ({name or 'none'}) is no image benchmark to measure accuracies on: {error}"
        ) from error
    data.prepare_data()
    return data


def _images(data: ImageDataModule, subset: str, limit: int | None) -> tuple[Tensor, Tensor]:
    """Images ``[N, 3, H, W]`` uint8 and their labels ``[N]``."""
    from datamodules.image_sets import balanced_choice

    images = data.subset(subset)
    if limit is not None and limit < len(images):
        images = images.part(balanced_choice(images.labels, limit, 0))
    positions = torch.arange(len(images)).split(1024)
    batches = [images.batch(part.numpy()) for part in positions]
    return torch.cat([b["image"] for b in batches]), torch.cat([b["label"] for b in batches])
