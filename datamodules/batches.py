"""What is done to whole batches: stacking, conversion, flipping, and cutting off the future ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Domain = dict[str, Tensor]


#: What a domain may hold besides its label: its images, and the same places by day.
IMAGES = ("image", "day")


def to_float(tensors: dict[str, Any]) -> dict[str, Any]:
    """Images to float32 in [0, 1], labels to int64; everything else as it is."""
    images = {key: tensors[key].float().div_(255) for key in IMAGES if key in tensors}
    converted = {**tensors, **images}
    if "label" in tensors:
        converted["label"] = tensors["label"].long()
    return converted


def random_flip(tensors: Domain, probability: float) -> Domain:
    """Mirror every image, together with its label, truth and day partner, left to right with ``probability``."""
    image = tensors["image"]
    flip = torch.rand(len(image), device=image.device) < probability
    flipped = {
        key: torch.where(flip.view(-1, *[1] * (value.ndim - 1)), value.flip(-1), value)
        for key, value in tensors.items()
        if key in (*IMAGES, "label", "truth")
    }
    return {**tensors, **flipped}


def split_future(batch: dict[str, Domain], batch_size: int) -> dict[str, Any]:
    """Cut a batch of ``(1 + N) * batch_size`` images a domain into the batch and N more under ``future``.

    Raises:
        ValueError: the batch is not a multiple of ``batch_size``.
    """
    size = len(next(iter(batch.values()))["image"])
    if size % batch_size:
        raise ValueError(f"A training batch holds {size} images, not a multiple of batch_size={batch_size}.")
    parts: list[dict[str, Any]] = [{domain: {} for domain in batch} for _ in range(size // batch_size)]
    for domain, tensors in batch.items():
        for key, value in tensors.items():
            for part, piece in zip(parts, value.split(batch_size), strict=True):
                part[domain][key] = piece
    current, *future = parts
    return {**current, "future": future} if future else current


def set_aside(batch: dict[str, Any], key: str = "truth") -> Tensor | None:
    """Take ``key`` out of every domain of a nested batch, and of its future ones; that of the batch itself."""
    for future in batch.get("future", ()):
        set_aside(future, key)
    found = [part.pop(key) for part in batch.values() if isinstance(part, dict) and key in part]
    return found[0] if found else None


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples, which may be nested; integers become an int64 tensor, other values a list.

    Raises:
        ValueError: images or labels of one batch differ in size.
    """
    batch: dict[str, Any] = {}
    for key, first in samples[0].items():
        values = [sample[key] for sample in samples]
        if isinstance(first, dict):
            batch[key] = collate(values)
        elif isinstance(first, Tensor):
            sizes = {tuple(value.shape[-2:]) for value in values}
            if len(sizes) > 1:
                raise ValueError(
                    f"One batch holds {key}s of different sizes (height, width): {sorted(sizes)}. "
                    "Set eval_batch_size: 1 for evaluation; for training set crop, or resize to equal sizes."
                )
            batch[key] = torch.stack(values)
        else:
            batch[key] = torch.tensor(values) if isinstance(first, int) else values
    return batch
