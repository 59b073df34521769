"""Crops of a batch of images, resized to one size: bicubic with antialias, as torchvision and PIL do it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_resize(image: Tensor, boxes: Tensor, flip: Tensor, size: int) -> Tensor:
    """Cut boxes out of images, resize them to a square and mirror some.

    Only pixels of the box count (torchvision's ``resized_crop``). On the CPU every box goes through torch's own
    uint8 kernel, so the result equals torchvision's on uint8 tensors. On other devices all boxes are resized
    together, as two batched products with interpolation matrices in float: the same but for the rounding to
    1/255 that uint8 brings.

    Args:
        image: uint8 ``[B, C, H, W]``.
        boxes: (top, left, height, width) of V boxes in every image, int64 ``[V, B, 4]``, on the host.
        flip: which to mirror, bool ``[V, B]``, on the host.
        size: side of the result in pixels.

    Returns:
        Float32 ``[V * B, C, size, size]`` in [0, 1], view-major, in memory of its own.
    """
    resize = _resize_each if image.device.type == "cpu" else _resize_together
    return resize(image, boxes, flip, size)


def _resize_each(image: Tensor, boxes: Tensor, flip: Tensor, size: int) -> Tensor:
    crops = []
    for of_view, mirrored in zip(boxes.tolist(), flip.tolist(), strict=True):
        for pixels, (top, left, height, width), mirror in zip(image, of_view, mirrored, strict=True):
            crop = pixels[None, :, top : top + height, left : left + width]
            crop = F.interpolate(crop, (size, size), mode="bicubic", antialias=True)
            crops.append(crop.flip(3) if mirror else crop)
    return torch.cat(crops).float().div_(255.0)


def _resize_together(image: Tensor, boxes: Tensor, flip: Tensor, size: int) -> Tensor:
    (V, B), (C, H, W) = boxes.shape[:2], image.shape[1:]
    # Per image the views lie side by side: the image is read once, whatever their number.
    top, left, height, width = boxes.permute(2, 1, 0).to(image.device, torch.float32, non_blocking=True)
    mirrored = flip.T.to(image.device, non_blocking=True)
    across = interpolation_matrix(left, width, size, W, mirrored)  # [B, V, size, W]
    down = interpolation_matrix(top, height, size, H)
    rows = torch.bmm(image.view(B, C * H, W).float(), across.flatten(1, 2).transpose(1, 2))
    rows = rows.view(B, C, H, V, size).permute(3, 0, 2, 1, 4).reshape(V * B, H, C * size)
    pixels = torch.bmm(down.transpose(0, 1).reshape(V * B, size, H), rows)
    return pixels.view(V * B, size, C, size).transpose(1, 2).div(255.0).clamp_(0.0, 1.0)


def interpolation_matrix(
    start: Tensor, length: Tensor, size: int, full: int, mirrored: Tensor | None = None
) -> Tensor:
    """Matrices that resize the pixels ``start .. start + length`` of a line of ``full`` to ``size`` pixels.

    The cubic kernel with a = -1/2, widened by the scale where it shrinks (antialias), cut at the box and
    normalised.

    Args:
        start: first pixel, float ``[...]``.
        length: number of pixels, float ``[...]``.
        size: of the result.
        full: length of the line.
        mirrored: where to run backwards, bool ``[...]``.

    Returns:
        Float ``[..., size, full]``, rows sum to 1.
    """
    place = torch.arange(size, device=start.device, dtype=torch.float32) + 0.5
    if mirrored is not None:
        place = torch.where(mirrored[..., None], size - place, place)
    scale = (length / size)[..., None]
    centre = start[..., None] + scale * place
    pixel = torch.arange(full, device=start.device, dtype=torch.float32) + 0.5
    x = ((pixel - centre[..., None]) / scale.clamp(min=1.0)[..., None]).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1.0, ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    weight = torch.where(x < 1.0, near, torch.where(x < 2.0, far, 0.0))
    first, last = start[..., None, None], (start + length)[..., None, None]
    weight = weight * ((pixel > first) & (pixel < last))
    return weight / weight.sum(-1, keepdim=True)
