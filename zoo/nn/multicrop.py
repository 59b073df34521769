"""Multi-crop views for self-distillation, made in batch on the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.nn.blur import gaussian_blur
from zoo.nn.photometric import grey, jitter, solarize
from zoo.nn.ranks import this_rank
from zoo.nn.resample import crop_resize

BLUR = {"stated": (1.0, 0.1, 0.5), "executed": (0.0, 0.9, 0.5)}
"""Blur probabilities of view 1, view 2 and local views: as papers state them, and as the released DINOv2 and POA
code executes them (a wrapper there inverts p)."""


class MultiCrop(nn.Module):
    """Two global and V local views of every image: random resized crop, flip, colour jitter, grey, blur, solarise.

    The recipe of DINO, iBOT, DINOv2 and POA. Draws follow torchvision's transforms, made for all views at once
    on the host; the work is done on the images' device, crops of one size as one batch:

    * crops: :func:`zoo.nn.resample.crop_resize` (bicubic, antialias; equal to torchvision's on the CPU, up to
      rounding to 1/255 elsewhere);
    * colour: :func:`zoo.nn.photometric.jitter`; torchvision rounds to 1/255 after each operation, here values
      stay float;
    * blur: :func:`zoo.nn.gaussian_blur` with ``blur_kernel`` taps. DINO and iBOT use PIL's approximation of a
      Gaussian that is not cut off: take 17 taps there.

    Boxes are shares of the images they are given: hand over whole images (``data.window: whole``), of which the
    published scales are meant. Padded ones come with their sizes, and no pixel behind those is read.

    Ranks draw differently: a call takes one number from torch's global generator and adds its rank.

    Args:
        global_size: side of the two global views in pixels.
        global_scale: (least, largest) share of the image's area in a global view.
        local_size: side of the local views.
        local_scale: (least, largest) share of the area in a local view.
        num_local: V, may be 0.
        ratio: (least, largest) width over height of a crop.
        flip: probability of mirroring a view.
        jitter: probability of colour jitter.
        brightness, contrast, saturation: factors within ``1 ± value``, not below 0.
        hue: turns within ``± value``, at most 0.5.
        grey: probability of losing all colour.
        blur: probability in view 1, view 2 and local views; or ``stated`` (1, .1, .5), or ``executed`` (0, .9, .5)
            as the DINOv2 and POA releases run.
        blur_kernel: taps of the blur, odd.
        blur_sigma: (least, largest) standard deviation of the blur, in pixels.
        solarize: probability in view 1, view 2 and local views.
        solarize_threshold: brightness, of 256, from which a pixel is inverted.
        allow_upscaling: accept images that are smaller than the crops.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        global_size: int = 224,
        global_scale: tuple[float, float] = (0.32, 1.0),
        local_size: int = 96,
        local_scale: tuple[float, float] = (0.05, 0.32),
        num_local: int = 8,
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        jitter: float = 0.8,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.2,
        hue: float = 0.1,
        grey: float = 0.2,
        blur: Literal["stated", "executed"] | tuple[float, float, float] = "executed",
        blur_kernel: int = 9,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        solarize: tuple[float, float, float] = (0.0, 0.2, 0.0),
        solarize_threshold: int = 128,
        allow_upscaling: bool = False,
    ) -> None:
        super().__init__()
        chances = {"flip": [flip], "jitter": [jitter], "grey": [grey], "solarize": solarize}
        if isinstance(blur, str) and blur not in BLUR:
            raise ValueError(f"blur must be stated, executed or three probabilities, got {blur!r}")
        self.blur = BLUR[blur] if isinstance(blur, str) else tuple(blur)
        for name, values in {**chances, "blur": self.blur}.items():
            if not all(0.0 <= value <= 1.0 for value in values):
                raise ValueError(f"{name} holds probabilities, which lie within [0, 1]; got {list(values)}")
        for name, (low, high) in {"global_scale": global_scale, "local_scale": local_scale}.items():
            if not 0.0 < low <= high <= 1.0:
                raise ValueError(f"{name} must be (least, largest) within (0, 1], got {(low, high)}")
        if min(global_size, local_size, num_local + 1) < 1 or not 0.0 < ratio[0] <= ratio[1]:
            raise ValueError(
                f"global_size={global_size}, local_size={local_size}, num_local={num_local}, ratio={ratio}: sizes and "
                "ratios must be positive, num_local at least 0"
            )
        self.global_size, self.global_scale = global_size, global_scale
        self.local_size, self.local_scale, self.num_local = local_size, local_scale, num_local
        self.ratio, self.flip, self.jitter, self.grey = ratio, flip, jitter, grey
        self.strengths, self.hue = (brightness, contrast, saturation), hue
        self.blur_kernel, self.blur_sigma = blur_kernel, blur_sigma
        self.solarize, self.solarize_threshold = solarize, solarize_threshold / 255
        self.allow_upscaling = allow_upscaling

    def forward(self, image: Tensor, size: Tensor | None = None) -> dict[str, Tensor]:
        """Make the views of a batch.

        Args:
            image: uint8 ``[B, 3, H, W]``.
            size: (height, width) of what is no padding, from the top left corner, int64 ``[B, 2]``, on the host or the
                device waits; None: everything.

        Returns:
            ``{"global": [2B, 3, g, g], "local": [V*B, 3, l, l]}``, float32 in [0, 1], view-major: view 1 of all
            images, then view 2, ... Without local views there is no ``local``.

        Raises:
            TypeError: the images are not uint8.
            ValueError: images smaller than a crop, sizes that do not belong to them.
        """
        sizes = self._sizes(image, size)
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())) + this_rank())
        views = {"global": self._views(image, sizes, (0, 1), generator)}
        if self.num_local:
            views["local"] = self._views(image, sizes, (2,) * self.num_local, generator)
        return views

    def _sizes(self, image: Tensor, size: Tensor | None) -> Tensor:
        """(height, width) of every image, int64 ``[B, 2]`` on the host, once all is right."""
        if image.dtype != torch.uint8 or image.dim() != 4 or image.shape[1] != 3:
            raise TypeError(
                f"views are made from uint8 images [B, 3, H, W], got {image.dtype} {list(image.shape)}: make them "
                "before images become float"
            )
        full = torch.tensor(image.shape[-2:])
        sizes = full.expand(len(image), 2) if size is None else size.cpu()
        if (
            sizes.shape != (len(image), 2)
            or sizes.is_floating_point()
            or bool((sizes < 1).any() | (sizes > full).any())
        ):
            raise ValueError(
                f"size must be the height and width of each of {len(image)} images, whole numbers from 1 to "
                f"{full.tolist()}; got {sizes.dtype} {list(sizes.shape)}, {sizes.tolist()[:3]}"
            )
        largest = max(self.global_size, self.local_size if self.num_local else 0)
        height, width = sizes[sizes.amin(1).argmin()].tolist()
        if min(height, width) < largest and not self.allow_upscaling:
            raise ValueError(
                f"images of {height}x{width} are smaller than crops of {largest}x{largest}: lower "
                "views.global_size and views.local_size, read larger images, or set views.allow_upscaling"
            )
        return sizes

    def _views(
        self, image: Tensor, sizes: Tensor, kinds: tuple[int, ...], generator: torch.Generator
    ) -> Tensor:
        """Views of one size; ``kinds`` says which probabilities of blur and solarise each has."""
        V, B, n = len(kinds), len(image), len(kinds) * len(image)
        size, scale = (
            (self.local_size, self.local_scale) if kinds[0] == 2 else (self.global_size, self.global_scale)
        )

        def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
            return torch.rand(shape, generator=generator) * (high - low) + low

        def chosen(probability: Tensor | float) -> Tensor:
            return (uniform(n) < probability).nonzero().flatten()

        boxes = random_boxes(sizes.repeat(V, 1), scale, self.ratio, generator)
        views = crop_resize(image, boxes.view(V, B, 4), uniform(V, B) < self.flip, size)

        rows = chosen(self.jitter)
        factors = [uniform(len(rows), low=max(0.0, 1 - s), high=1 + s) for s in self.strengths]
        factors.append(uniform(len(rows), low=-self.hue, high=self.hue))
        _change(views, rows, lambda x: jitter(x, torch.stack(factors, 1), uniform(len(rows), 4).argsort(1)))
        _change(views, chosen(self.grey), lambda x: grey(x).expand_as(x))

        rows = chosen(torch.tensor([self.blur[kind] for kind in kinds]).repeat_interleave(B))
        sigma = uniform(len(rows), low=self.blur_sigma[0], high=self.blur_sigma[1])
        sigma = sigma.to(views.device, non_blocking=True)
        _change(views, rows, lambda x: gaussian_blur(x, sigma, self.blur_kernel))
        rows = chosen(torch.tensor([self.solarize[kind] for kind in kinds]).repeat_interleave(B))
        _change(views, rows, lambda x: solarize(x, self.solarize_threshold))
        return views


def random_boxes(
    sizes: Tensor, scale: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Boxes of torchvision's ``RandomResizedCrop``, for many images at once, on the host.

    Of ten draws of area and ratio the first that fits the image counts; if none does, the box is the largest
    central one whose ratio is within bounds.

    Args:
        sizes: (height, width) of the images, int64 ``[n, 2]``.
        scale: (least, largest) share of the area.
        ratio: (least, largest) width over height; its logarithm is uniform.
        generator: of the draws.

    Returns:
        (top, left, height, width), int64 ``[n, 4]``.
    """
    n, (full_height, full_width) = len(sizes), sizes.double().T
    draws = torch.rand(4, n, 10, generator=generator, dtype=torch.float64)
    area = full_height[:, None] * full_width[:, None] * (scale[0] + (scale[1] - scale[0]) * draws[0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = (low + (high - low) * draws[1]).exp()
    height, width = (area / aspect).sqrt().round(), (area * aspect).sqrt().round()
    fits = (height >= 1) & (width >= 1) & (height <= full_height[:, None]) & (width <= full_width[:, None])
    first = fits.int().argmax(1, keepdim=True)
    height, width, y, x = (t.gather(1, first)[:, 0] for t in (height, width, draws[2], draws[3]))
    top, left = (y * (full_height - height + 1)).floor(), (x * (full_width - width + 1)).floor()

    widest, tallest = (full_height * ratio[1]).round(), (full_width / ratio[0]).round()
    whole = torch.stack((torch.minimum(full_height, tallest), torch.minimum(full_width, widest)), 1)
    corner = ((torch.stack((full_height, full_width), 1) - whole) / 2).floor()
    fallback = torch.cat((corner, whole), 1)
    boxes = torch.where(fits.any(1)[:, None], torch.stack((top, left, height, width), 1), fallback)
    return boxes.long()


def _change(views: Tensor, rows: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    """Replace some views, chosen on the host, by what ``change`` makes of them, in place."""
    if len(rows):
        index = rows.to(views.device, non_blocking=True)
        views.index_copy_(0, index, change(views.index_select(0, index)))
