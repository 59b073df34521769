"""Inputs and released networks of the SSAST parity file; its ``recipe`` entry says how they are made."""

from __future__ import annotations

from math import gcd
from typing import Any

import torch
from torch import Tensor

from tests.parity.formulas import det
from zoo.checkpoints import WeightFile, load_pretrained
from zoo.methods.audio.classifier import AudioClassifier
from zoo.methods.audio.ssast import SSAST
from zoo.nn.masking import Masks
from zoo.nn.masking_clusters import masks_at

P = 2147483647
WIDTHS = {"tiny": 192, "small": 384, "base": 768}
PATCHES = {"patch": (16, 16), "frame": (128, 2)}
HEAD = {name: f"mlp_head.{name}" for name in ("0.bias", "0.weight", "1.bias", "1.weight")}


def q(shape: tuple[int, ...] | list[int], k: int) -> Tensor:
    """``q`` of the parity file, in float64."""
    n = torch.arange(torch.Size(shape).numel())
    K = k * 1000003 % P
    v = ((n * n % P) * 48271 + n * ((16807 + 7919 * K) % P) + K) % P
    return (2 * v.double() / P - 1).reshape(shape)


def spectrograms(case: dict[str, Any]) -> Tensor:
    """Input ``[B, T, 128]`` of a case."""
    shape = (case.get("batch", 2), case["input_tdim"], 128)
    return det(shape, case["input_k"]) if case["input"] == "det" else q(shape, case["input_k"]).float()


def rich_wave(samples: int, k: int, dc: float = 0.0) -> Tensor:
    n = torch.arange(samples, dtype=torch.float64)
    wave = 0.2 * torch.sin(0.7 * n + k) + 0.1 * torch.sin(1.3e-5 * n * n + k) + 0.05 * q((samples,), k)
    return (wave + dc).float()


def tone_wave(samples: int, k: int) -> Tensor:
    return (0.3 * torch.sin(0.7 * torch.arange(samples, dtype=torch.float64) + k)).float()


def filled(name: str, shape: list[int], k: int, mode: str) -> Tensor:
    """One tensor of a network, in fill ``S`` or ``Q``."""
    if mode == "S":
        return 0.05 * det(shape, k)
    values, is_norm = q(shape, k), "norm" in name or name == "mlp_head.0.weight"
    if is_norm and name.endswith("weight"):
        return (1 + 0.1 * values).float()
    if name.endswith(".bias"):
        return (0.1 * values).float()
    if name.rpartition(".")[2] in ("cls_token", "dist_token", "pos_embed", "mask_embed"):
        return (0.5 * values).float()
    return ((3 / (values.numel() / shape[0])) ** 0.5 * values).float()


def released_shapes(size: str, kind: str, frames: int) -> dict[str, list[int]]:
    """Names and shapes of a released pre-training file, without the data-parallel prefix."""
    D, patch = WIDTHS[size], PATCHES[kind]
    patches = (128 // patch[0]) * (frames // patch[1])
    shapes = {
        "mask_embed": [1, 1, D], "v.cls_token": [1, 1, D], "v.dist_token": [1, 1, D],
        "v.pos_embed": [1, patches + 2, D], "v.norm.weight": [D], "v.norm.bias": [D],
        "v.patch_embed.proj.weight": [D, 1, *patch], "v.patch_embed.proj.bias": [D],
        "p_input_fdim": [], "p_input_tdim": [],
    }  # fmt: skip
    linears = {f"v.{head}": (1000, D) for head in ("head", "head_dist")}
    for head in ("cpredlayer", "gpredlayer"):
        linears |= {f"{head}.0": (D, D), f"{head}.2": (256, D)}
    for i in range(12):
        block = f"v.blocks.{i}"
        linears |= {
            f"{block}.attn.qkv": (3 * D, D), f"{block}.attn.proj": (D, D),
            f"{block}.mlp.fc1": (4 * D, D), f"{block}.mlp.fc2": (D, 4 * D),
        }  # fmt: skip
        shapes |= {f"{block}.norm{j}.{part}": [D] for j in (1, 2) for part in ("weight", "bias")}
    for name, (outputs, inputs) in linears.items():
        shapes |= {f"{name}.weight": [outputs, inputs], f"{name}.bias": [outputs]}
    return shapes


def released(case: dict[str, Any], frames: int) -> dict[str, Tensor]:
    """A released pre-training file, filled by formula."""
    state = {}
    for i, (name, shape) in enumerate(sorted(released_shapes(case["size"], case["kind"], frames).items())):
        if shape:  # the two lengths count, but keep their values
            state[name] = filled(name, shape, i + case["fill_k_offset"], case["fill"])
    return state | {"p_input_fdim": torch.tensor(128), "p_input_tdim": torch.tensor(frames)}


def backbone_args(case: dict[str, Any], frames: int) -> dict[str, Any]:
    return {"frames": frames, "patch": PATCHES[case["kind"]]}


def pretraining(case: dict[str, Any], **options: Any) -> SSAST:
    """The method with the case's network, loaded from the released names."""
    frames = case["input_tdim"]
    method = SSAST(f"ast_{case['size']}", backbone_args(case, frames), masked=case["mask_patch"], **options)
    file = WeightFile("ssast.pth", released(case, frames))
    assert load_pretrained(method.student, file, show=False).complete
    return method.train()


def finetuning(case: dict[str, Any], classes: int = 5, pooling: str = "patches") -> AudioClassifier:
    """The classifier of a case: pre-trained positions brought to its grid, its head filled by formula."""
    args = backbone_args(case, case["input_tdim"]) | {"stride": (case["fstride"], case["tstride"])}
    method = AudioClassifier(f"ast_{case['size']}", classes, args, pooling=pooling)
    file = WeightFile("ssast.pth", released(case, case["pretrain_tdim"]))
    load_pretrained(method.student, file, min_share=1.0, show=False)
    if pooling != "layers":
        head = method.student.head
        shapes = {HEAD[name]: list(tensor.shape) for name, tensor in head.state_dict().items()}
        head.load_state_dict(
            {
                name: filled(HEAD[name], shapes[HEAD[name]], 1000 + case["fill_k_offset"] + i, case["fill"])
                for i, name in enumerate(sorted(HEAD))
            }
        )
    return method.eval()


def masks(case: dict[str, Any], offset: int) -> Masks:
    """Masks by the file's formula."""
    count = case["num_patches"] if "num_patches" in case else {"patch": 64, "frame": 32}[case["kind"]]
    a = next(a for a in range(5, 99) if gcd(a, count) == 1)
    b, j = torch.arange(case["batch"])[:, None], torch.arange(case["mask_patch"])
    return masks_at(((a * j + 7 * b + 1 + offset) % count).sort(1).values, count)
