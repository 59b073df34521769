"""Multi-crop views a CPU second: the zoo's batched ones over torchvision v2 on tensors, sample by sample.

Two views of 224 and eight of 96 pixels from uint8 images of 384 × 512, DINOv2's recipe with the same probabilities and
a blur of nine taps. First both get the same boxes, factors, orders and sigmas, and must give the same views: crops
to within 1/255 (they are rounded to bytes), colour and blur to within 1e-4.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from benchmarks.speed.paired import in_turns, keep, markdown, options, over, shown, spread
from zoo.nn.blur import gaussian_blur
from zoo.nn.multicrop import MultiCrop
from zoo.nn.photometric import jitter, solarize
from zoo.nn.resample import crop_resize

CROP_TOLERANCE, COLOUR_TOLERANCE = 1.01 / 255, 1e-4


def chain(crop: MultiCrop, kind: int) -> v2.Transform:
    """torchvision's transforms for view 1, view 2 or local views (0, 1, 2)."""
    size, scale = (crop.local_size, crop.local_scale) if kind == 2 else (crop.global_size, crop.global_scale)
    brightness, contrast, saturation = crop.strengths
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale, crop.ratio, v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(crop.flip),
            v2.RandomApply([v2.ColorJitter(brightness, contrast, saturation, crop.hue)], crop.jitter),
            v2.RandomGrayscale(crop.grey),
            v2.RandomApply([v2.GaussianBlur(crop.blur_kernel, crop.blur_sigma)], crop.blur[kind]),
            v2.RandomSolarize(128, crop.solarize[kind]),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )


def one_by_one(crop: MultiCrop, images: Tensor) -> list[Tensor]:
    """All views of every image, as a dataset would make them."""
    kinds = [0, 1, *[2] * crop.num_local]
    chains = {kind: chain(crop, kind) for kind in kinds}
    return [chains[kind](image) for image in images for kind in kinds]


def differences(images: Tensor) -> dict[str, float]:
    """Largest difference of crops, colour, blur and solarising from torchvision's, for the same draws."""
    torch.manual_seed(0)
    B, found = len(images), {}
    boxes = torch.tensor([[10 + 7 * b, 20 + 5 * b, 200 + 9 * b, 260 - 11 * b] for b in range(B)])
    own = crop_resize(images, boxes[None], torch.zeros(1, B, dtype=torch.bool), 96)
    other = [
        tv.resized_crop(image, *box, [96, 96], v2.InterpolationMode.BICUBIC, antialias=True)
        for image, box in zip(images, boxes.tolist(), strict=True)
    ]
    found["crop"] = float((own - torch.stack(other).float() / 255).abs().max())

    factors = torch.empty(B, 4).uniform_(0.7, 1.3)
    factors[:, 3] = torch.empty(B).uniform_(-0.1, 0.1)
    orders = torch.rand(B, 4).argsort(1)
    operations = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    changed = []
    for view, strength, order in zip(own, factors.tolist(), orders.tolist(), strict=True):
        for number in order:
            view = operations[number](view, strength[number])
        changed.append(view)
    found["colour"] = float((jitter(own.clone(), factors, orders) - torch.stack(changed)).abs().max())

    sigma = torch.linspace(0.2, 2.0, B)
    blurred = [tv.gaussian_blur(view, [9, 9], [float(s)] * 2) for view, s in zip(own, sigma, strict=True)]
    found["blur"] = float((gaussian_blur(own, sigma, 9) - torch.stack(blurred)).abs().max())
    found["solarise"] = float((solarize(own, 0.5) - tv.solarize(own, 0.5)).abs().max())
    for name, gap in found.items():
        if gap > (CROP_TOLERANCE if name == "crop" else COLOUR_TOLERANCE):
            raise AssertionError(f"{name}: views differ by {gap:.1e} from torchvision's")
    return found


def main() -> None:
    parser = options(__doc__, rounds=7)
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    coarse = torch.rand(arguments.batch, 3, 12, 16)
    images = torch.nn.functional.interpolate(coarse, (384, 512), mode="bicubic").clamp(0, 1)
    images = (255 * images).round().to(torch.uint8)
    gaps = differences(images)
    images = images.to(arguments.device)
    crop = MultiCrop()
    pieces = {"zoo": lambda: crop(images), "torchvision v2": lambda: one_by_one(crop, images)}
    seconds = in_turns(pieces, arguments.rounds, arguments.device)
    gain = over({"rate": seconds["torchvision v2"], "zoo": seconds["zoo"]}, "zoo")["rate"]
    rates = {name: spread([arguments.batch / turn for turn in turns]) for name, turns in seconds.items()}
    rows = [[name, shown(rate, 1)] for name, rate in rates.items()]
    print(markdown(["views", "images a CPU second"], rows))
    print(f"zoo / torchvision: {shown(gain)}, target 2; differences {gaps}")
    keep(
        arguments.json,
        arguments.device,
        {"gain": gain, "target": 2.0, "images_per_s": rates, "differences": gaps},
    )


if __name__ == "__main__":
    main()
