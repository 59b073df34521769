"""HiCMAE against the authors' released model and engine; the data file's ``recipe`` says how tensors are made."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from tests.parity.formulas import load_cases
from tests.parity.ssast_networks import q
from zoo.backbones.audio_visual import AudioVisualEncoder
from zoo.checkpoints import WeightFile, load_pretrained
from zoo.methods.audio_visual.hicmae import HiCMAE
from zoo.nn.audio_visual import AudioVisualClassifierNetwork
from zoo.nn.masking import Masks
from zoo.nn.masking_clusters import masks_at
from zoo.nn.paired_contrast import paired_contrast, paired_scores

CASE: dict[str, Any] = load_cases("hicmae.json")
SIZES: dict[str, Any] = CASE["config"]
BACKBONE = {
    "embed_dim": SIZES["D"], "num_heads": SIZES["h"], "depth": SIZES["depth"], "fusion_depth": SIZES["fd"],
    "image_size": SIZES["img"], "audio_frames": SIZES["aimg"][0], "mels": SIZES["aimg"][1],
}  # fmt: skip


def filled(names: list[list[Any]], offset: int) -> dict[str, Tensor]:
    """A state dict of the release, filled by formula in the order of its names."""
    state = {}
    for k, (name, shape) in enumerate(names, start=offset):
        values = q(shape, k)
        if name.endswith("weight") and ("norm" in name):
            values = 1 + 0.1 * values
        elif len(shape) == 1:
            values = 0.1 * values
        elif name.startswith("mask_token"):
            values = 0.5 * values
        else:
            values = math.sqrt(3 / math.prod(shape[1:])) * values
        state[name] = values.float()
    return state


def loaded(network: torch.nn.Module, key: str, offset: int) -> torch.nn.Module:
    report = load_pretrained(
        network, WeightFile("hicmae.pth", filled(CASE[key], offset)), min_share=1.0, show=False
    )
    assert report.importer == "hicmae"
    assert report.complete
    assert not report.unexpected
    return network


def pretraining(**options: Any) -> HiCMAE:
    method = HiCMAE(
        backbone_args=BACKBONE,
        decoder_args={"embed_dim": SIZES["Dd"], "num_heads": SIZES["hd"]},
        levels=SIZES["feat"],
        audio_ratio=0.75,
        video_ratio=0.75,
        **options,
    )
    loaded(method.student, "state_names_shapes", SIZES["ko"])
    return method


def batch() -> dict[str, Any]:
    """Videos back in [0, 1], since networks of the zoo normalise them by themselves."""
    shape = (SIZES["B"], 3, 16, SIZES["img"], SIZES["img"])
    facts = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    mean, std = (torch.tensor(values).view(3, 1, 1, 1).double() for values in facts)
    video = (q(shape, SIZES["kx"]).float().double() * std + mean).float()
    spectrogram = q((SIZES["B"], 1, *SIZES["aimg"]), SIZES["kx"] + 1).float()[:, 0]
    return {"video": video, "spectrogram": spectrogram, "masks": masks()}


def masks() -> dict[str, Masks]:
    places, slots = (SIZES["img"] // 16) ** 2, 8
    patches = SIZES["aimg"][0] * SIZES["aimg"][1] // 256

    def hidden(visible: list[list[int]], tokens: int) -> Tensor:
        return torch.tensor([[n for n in range(tokens) if n not in row] for row in visible])

    tubes = hidden(CASE["video_mask_visible_per_frame"], places)
    shift = places * torch.arange(slots)[:, None]
    return {
        "video": masks_at((tubes[:, None] + shift).flatten(1), slots * places),
        "audio": masks_at(hidden(CASE["audio_visible"], patches), patches),
    }


def assert_checksums(actual: Tensor, expected: dict[str, Any]) -> None:
    assert list(actual.shape) == expected["shape"]
    flat = actual.double().flatten()
    tolerance = 1e-5 * expected["abs_sum"]
    n = torch.arange(flat.numel(), dtype=torch.float64)
    assert flat.sum().item() == pytest.approx(expected["sum"], abs=tolerance)
    assert flat.abs().sum().item() == pytest.approx(expected["abs_sum"], abs=tolerance)
    assert flat[:4].tolist() == pytest.approx(expected["first4"], abs=2e-5)
    assert (flat * torch.cos(0.37 * n + 0.2)).sum().item() == pytest.approx(
        expected["cos_dot"], abs=tolerance
    )


@torch.no_grad()
def test_predictions_and_contrast() -> None:
    method, given = pretraining(), batch()
    rebuilt = method.student(given["video"], given["spectrogram"], *given["masks"].values())
    assert_checksums(rebuilt.video, CASE["video_pred"])
    assert_checksums(rebuilt.audio, CASE["audio_pred"])
    wanted = zip(CASE["contrastive_logits_video_to_audio"], CASE["hcmcl_per_layer"], strict=True)
    for (video, audio), (scores, loss) in zip(rebuilt.pooled, wanted, strict=True):
        torch.testing.assert_close(paired_scores(video, audio), torch.tensor(scores), rtol=1e-4, atol=2e-5)
        assert paired_contrast(video, audio).item() == pytest.approx(loss, rel=1e-4)
    total = method.losses(given)["contrast"].item()
    assert total == pytest.approx(SIZES["lw"] * CASE["hcmcl_sum"], rel=1e-4)


@pytest.mark.parametrize("target", CASE["engine_total_loss"])
def test_total_loss_and_its_gradient(target: str) -> None:
    differences, normalise = (part.endswith("True") for part in target.split(","))
    method = pretraining(differences=differences, normalise=normalise)
    total = torch.stack(list(method.losses(batch()).values())).sum()
    expected = CASE["engine_total_loss"][target]
    assert total.item() == pytest.approx(expected["total_loss"], rel=1e-4)
    total.backward()
    gradients = [p.grad for p in method.student.parameters()]
    norm = torch.stack([g.norm() for g in gradients if g is not None]).norm()
    assert len([g for g in gradients if g is None]) == 0
    assert norm.item() == pytest.approx(expected["grad_total_norm"], rel=1e-4)


@torch.no_grad()
def test_finetuned_logits() -> None:
    network = AudioVisualClassifierNetwork(AudioVisualEncoder(**BACKBONE), SIZES["nc"])
    loaded(network, "finetune_names_shapes", SIZES["ko"] + 500)
    given = batch()
    logits = network.eval()(given["video"], given["spectrogram"])
    torch.testing.assert_close(logits, torch.tensor(CASE["finetune_logits"]), rtol=0, atol=2e-5)


def test_every_released_name_has_its_place() -> None:
    assert len(CASE["state_names_shapes"]) == CASE["num_state_entries"]
    method = pretraining()
    state = {f"module.{name}": tensor for name, tensor in filled(CASE["state_names_shapes"], 7).items()}
    report = load_pretrained(method.student, WeightFile("wrapped.pth", state), min_share=1.0, show=False)
    assert report.complete
    assert len(method.student.state_dict()) == CASE["num_state_entries"]
