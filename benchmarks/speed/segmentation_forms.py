"""Pieces of domain-adaptive segmentation as their papers' code computes them, written anew from the equations.

Row by row, class by class or sample by sample: what :mod:`benchmarks.speed.segmentation_pieces` measures the zoo
against. SePiCo: Xie et al., arXiv 2204.08808; ClassMix and strong augmentation as in DACS (Tranheden et al., WACV
2021), whose jitter is that of kornia 0.5.8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.nn.blur import blur_kernel_size


def rows(features: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings ``[N, A]`` of the pixels that are not ignored, with their classes ``[N]``."""
    flat, classes = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1]), label.flatten()
    return flat[classes != 255], classes[classes != 255]


def regulariser(q: Tensor, mean: Tensor, tau: float) -> Tensor:
    return (mean @ q.mean(0) / tau).log_softmax(0).mean() / math.log(len(mean))


def distribution_loss(features: Tensor, label: Tensor, mean: Tensor, variance: Tensor, tau: float) -> Tensor:
    """DistCL and its regulariser."""
    q, y = rows(features, label)
    scores = q @ mean.T / tau + 0.5 * q.square() @ (variance / tau).T / tau
    own = 0.5 * (q.square() * (variance / tau)[y]).sum(1) / tau
    return (F.cross_entropy(scores, y, reduction="none") + own).mean() + regulariser(q, mean, tau)


def bank_loss(features: Tensor, label: Tensor, entries: Tensor, mean: Tensor, tau: float) -> Tensor:
    """BankCL and its regulariser, one class of pixels and one class of negatives at a time."""
    q, y = rows(features, label)
    terms = []
    for own in y.unique().tolist():
        pixels = q[y == own]
        positive = pixels @ entries[own].T / tau
        others = [k for k in range(len(entries)) if k != own]
        negative = torch.stack([(pixels @ entries[k].T / tau).mean(1) for k in others], 1)
        total = positive.exp() + negative.exp().sum(1, keepdim=True)
        terms.append(-(positive - total.log()).mean(1))
    return torch.cat(terms).mean() + regulariser(q, mean, tau)


def batch_moments(features: Tensor, label: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and biased variance of each class, from a tensor of pixels × classes × channels."""
    q, y = rows(features, label)
    member = F.one_hot(y, num_classes).to(q.dtype)[:, :, None]
    spread = q[:, None, :].expand(-1, num_classes, -1) * member
    count = member.sum(0)
    mean = spread.sum(0) / count.clamp(min=1)
    deviation = (spread - mean) * member
    return count[:, 0], mean, deviation.square().sum(0) / count.clamp(min=1)


def merged(
    state: Sequence[Tensor], count: Tensor, mean: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Running moments (count, mean, variance) with those of a batch."""
    n, old, spread = state
    w = (count / (count + n).clamp(min=1))[:, None]
    variance = (1 - w) * spread + w * variance + w * (1 - w) * (old - mean).square()
    return n + count, (1 - w) * old + w * mean, variance


def cell_label(label: Tensor, factor: int, num_classes: int, least: float) -> Tensor:
    """Majority of each cell, by one-hot planes and average pooling."""
    classes = torch.where(label == 255, num_classes, label)
    planes = F.one_hot(classes, num_classes + 1).permute(0, 3, 1, 2).float()
    share, winner = F.avg_pool2d(planes, factor).max(1)
    winner[winner == num_classes] = 255
    winner[share < least] = 255
    return winner


def class_mix(
    image: Tensor, label: Tensor, target: Tensor, pseudo: Tensor, weight: Tensor, chosen: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """ClassMix sample by sample; what is drawn from each sample's look at the batch's classes is given."""
    mixed: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for index, classes in enumerate(chosen):
        present = torch.unique(label)
        classes = present[torch.isin(present, classes)]
        mask = (label[index][None] == classes[:, None, None]).sum(0, keepdim=True)
        pairs = (
            (image[index], target[index]),
            (label[index], pseudo[index]),
            (torch.ones_like(weight[index]), weight[index]),
        )
        for kept, (own, other) in zip(mixed, pairs, strict=True):
            kept.append(mask * own[None] + (1 - mask) * other[None])
    image, label, weight = (torch.cat(parts) for parts in mixed)
    return image.view_as(target), label, weight


# -- strong augmentation -----------------------------------------------------------------------------------


def to_hsv(rgb: Tensor) -> Tensor:
    """HSV ``[3, H, W]``, hue in turns."""
    value, place = rgb.max(0)
    chroma = value - rgb.min(0).values
    safe = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    red, green, blue = rgb
    sectors = torch.stack(((green - blue) / safe, (blue - red) / safe + 2, (red - green) / safe + 4))
    hue = sectors.gather(0, place[None])[0] / 6 % 1
    return torch.stack((hue, chroma / (value + 1e-12), value))


def to_rgb(hsv: Tensor) -> Tensor:
    hue, saturation, value = hsv
    sector = (hue * 6).floor() % 6
    part = hue * 6 % 6 - sector
    p, q = value * (1 - saturation), value * (1 - part * saturation)
    t = value * (1 - (1 - part) * saturation)
    table = torch.stack((value, q, p, p, t, value, t, value, value, q, p, p, p, p, t, value, value, q))
    index = torch.stack((sector, sector + 6, sector + 12)).long()
    return table.gather(0, index)


def jitter(rgb: Tensor, factors: Sequence[float], order: Sequence[int]) -> Tensor:
    """Brightness, contrast, saturation and hue of one image in the given order, through HSV and back."""
    for operation in order:
        factor = factors[operation]
        if operation == 0:
            rgb = (rgb + (factor - 1)).clamp(0, 1)
        elif operation == 1:
            rgb = (rgb * factor).clamp(0, 1)
        else:
            hue, saturation, value = to_hsv(rgb)
            if operation == 2:
                saturation = (saturation * factor).clamp(0, 1)
            else:
                hue = (hue + factor) % 1
            rgb = to_rgb(torch.stack((hue, saturation, value)))
    return rgb


def blur(rgb: Tensor, sigma: float) -> Tensor:
    """One image under a whole two-dimensional kernel as long as a tenth of its side, reflected at borders."""
    sizes = [blur_kernel_size(side) for side in rgb.shape[-2:]]
    lines = []
    for size in sizes:
        x = torch.arange(size, device=rgb.device, dtype=rgb.dtype) - size // 2
        line = torch.exp(-0.5 * (x / sigma) ** 2)
        lines.append(line / line.sum())
    kernel = torch.outer(*lines).expand(len(rgb), 1, -1, -1)
    padded = F.pad(rgb[None], (sizes[1] // 2, sizes[1] // 2, sizes[0] // 2, sizes[0] // 2), mode="reflect")
    return F.conv2d(padded, kernel, groups=len(rgb))[0]


def strong_augment(
    image: Tensor, factors: Sequence[Sequence[float]], orders: Sequence[Sequence[int]], sigma: Sequence[float]
) -> Tensor:
    """Jitter and blur, image by image."""
    return torch.stack(
        [blur(jitter(*each), s) for *each, s in zip(image, factors, orders, sigma, strict=True)]
    )
