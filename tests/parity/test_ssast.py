"""SSAST against the released model, loader and metric code: every number of its parity file that concerns a network."""

from __future__ import annotations

import re
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parity.formulas import load_cases
from tests.parity.ssast_networks import (
    finetuning,
    masks,
    pretraining,
    q,
    released,
    released_shapes,
    rich_wave,
    spectrograms,
    tone_wave,
)
from zoo.backbones import AST
from zoo.checkpoints import WeightFile, load_pretrained
from zoo.checkpoints.load import best_plan
from zoo.methods.audio.scores import ClipScores
from zoo.methods.audio.ssast import SSAST
from zoo.nn import AudioFeatures, ClusterMasking, LogMel, match_scores, matching_loss
from zoo.nn.audio_augment import centred, mix_labels, mixup, multi_hot
from zoo.nn.audio_features import STATISTICS
from zoo.optim import Optim, build_optimizer
from zoo.optim_schedule import lr_factor

CASES: dict[str, Any] = load_cases("ssast.json")
NORMS = {"audioset": "audioset", "esc50": "esc50", "speechcommands": "speech_commands"}


def assert_checksums(actual: Tensor, expected: dict[str, Any], atol: float, rel: float = 1e-6) -> None:
    """Shape, four sums (to ``rel`` of the sum of absolute values) and single entries (to ``atol``)."""
    assert list(actual.shape) == expected["shape"]
    flat = actual.detach().double().flatten()
    n = torch.arange(flat.numel(), dtype=torch.float64)
    sums = {
        "sum": flat.sum(), "abs_sum": flat.abs().sum(), "sq_sum": flat.square().sum(),
        "cos_dot": (flat * torch.cos(0.37 * n + 0.2)).sum(),
    }  # fmt: skip
    size = max(expected["abs_sum"], expected["sq_sum"])
    for name, value in sums.items():
        assert value.item() == pytest.approx(expected[name], rel=0, abs=rel * size), name
    for name, values in (("first4", flat[:4]), ("last4", flat[-4:])):
        assert values.tolist() == pytest.approx(expected[name], abs=atol), name
    for cell in (key for key in expected if key.startswith("[")):
        row, column = (int(part) for part in cell.strip("[]").split(","))
        assert actual[row, column].item() == pytest.approx(expected[cell], abs=atol), cell


def title(case: dict[str, Any]) -> str:
    return "-".join(str(case[key]) for key in ("size", "kind", "fill", "input_tdim") if key in case)


# -- features (card, section 2) ------------------------------------------------------------------------------------


def wave_of(case: dict[str, Any]) -> Tensor:
    return {"rich": rich_wave, "tone": tone_wave}[case["wave"]](case["samples"], case["k"])


@pytest.mark.parametrize("case", CASES["fbank"], ids=lambda c: f"{c['wave']}-{c['samples']}")
def test_log_mel_and_normalised_spectrograms(case: dict[str, Any]) -> None:
    wave, length = wave_of(case)[None], torch.tensor([case["samples"]])
    tolerance = (1e-4, 1e-6) if case["wave"] == "rich" else (1e-3, 1e-5)
    bank = LogMel()
    raw = bank(centred(wave, length))[0]
    assert len(raw) == case["frames"] == bank.frames(case["samples"]) == bank.frames(length).item()
    assert_checksums(raw, case["raw_fbank"], *tolerance)
    for name in (key for key in case if key.startswith("item_")):
        mean, std = STATISTICS[NORMS[name.removeprefix("item_")]]
        features = AudioFeatures(case[name]["target_length"], mean=mean, std=std)
        item = features({"waveform": wave, "length": length})
        assert item["frames"].item() == min(case["frames"], case[name]["target_length"])
        assert_checksums(item["spectrogram"][0], case[name]["x"], *tolerance)
    if "superb_feature" in case:
        expected = case["superb_feature"]
        features = AudioFeatures(expected["target_length"], centre=False, pad_normalised=True)
        made = features({"waveform": wave, "length": length})["spectrogram"][0]
        assert_checksums(made, expected, *tolerance)


@pytest.mark.parametrize("case", CASES["mixup"], ids=lambda c: f"lambda{c['lambda']}")
def test_mixup_of_waveforms_and_labels(case: dict[str, Any]) -> None:
    length = torch.tensor(case["samples"])
    wave = torch.zeros(2, max(case["samples"]))
    for i, samples in enumerate(case["samples"]):
        wave[i, :samples] = rich_wave(samples, case["k"][i], case["dc"][i])
    partner, share = torch.tensor([1, 0]), torch.tensor([case["lambda"], 1.0])
    mixed = mixup(centred(wave, length), length, partner, share)
    assert torch.equal(mixed[1], centred(wave, length)[1])
    mean, std = STATISTICS[NORMS[case["norm"]]]
    features = AudioFeatures(case["target_length"], mean=mean, std=std)
    item = features({"waveform": mixed, "length": length})
    assert_checksums(item["spectrogram"][0], case["x"], 1e-4)
    label = torch.stack([multi_hot(torch.tensor(c), case["num_classes"]).sum(0) for c in case["labels"]])
    assert mix_labels(label, partner, share)[0].tolist() == pytest.approx(case["y"], abs=1e-6)


# -- network and objectives (sections 3 and 5) -----------------------------------------------------------------------


@pytest.mark.parametrize("row", CASES["patch_grid_table"]["rows"], ids=str)
def test_grids(row: list[Any]) -> None:
    kind, rows, columns, frames, f, t, count = row
    with torch.device("meta"):
        backbone = AST(8, 1, 1, patch=(16, 16) if kind == "patch" else (128, 2), stride=(rows, columns))
    assert backbone.grid(128, frames) == (f, t)
    assert f * t == count


NAMES = {
    "mask_embed": "backbone.mask_token", "cpredlayer": "matching", "gpredlayer": "reconstruction", "v": "backbone"
}  # fmt: skip


def grad_norm(method: SSAST, name: str) -> float:
    """Norm of the gradient of a released parameter."""
    ours = re.sub(r"^(\w+)", lambda m: NAMES[m[1]], name)
    parameters = dict(method.student.named_parameters())
    parts = ["backbone.pos_prefix", "backbone.pos_grid"] if ours == "backbone.pos_embed" else [ours]
    return sum(parameters[part].grad.double().square().sum().item() for part in parts) ** 0.5


def slow_if_large(case: dict[str, Any]) -> Any:
    large = case["size"] == "base" or case["num_patches"] > 100
    return pytest.param(case, id=f"{title(case)}-{case['input']}", marks=[pytest.mark.slow] if large else [])


@pytest.mark.parametrize("case", [slow_if_large(case) for case in CASES["pretrain_losses"]])
def test_losses_and_gradients(case: dict[str, Any]) -> None:
    method = pretraining(case)
    both = {"discriminative": masks(case, 0), "generative": masks(case, 3)}
    batch = {"spectrogram": spectrograms(case), "masks": both}
    losses = method.losses(batch)
    relative = 2e-5
    assert losses["discriminative"].item() == pytest.approx(case["mpc_nce_maskA"], rel=relative)
    assert losses["generative"].item() == pytest.approx(10 * case["mpg_mse_maskB"], rel=relative)
    total = sum(losses.values())
    assert total.item() == pytest.approx(case["joint_nceA_plus_10_mseB"], rel=relative)
    if case["mpc_acc_maskA"] is not None:
        assert batch["masked_accuracy"].item() == pytest.approx(case["mpc_acc_maskA"], abs=1e-6)
    total.backward()
    assert all(p.grad is not None for p in method.student.parameters())
    for name, norm in case["grad_norms"].items():
        assert grad_norm(method, name) == pytest.approx(norm, rel=2e-3, abs=1e-7), name
    whole = torch.stack([p.grad.norm() for p in method.student.parameters()]).norm()
    assert whole.item() == pytest.approx(case["grad_total_norm"], rel=1e-4)
    if case["fill"] == "Q":  # analytically zero in the released form
        assert method.student.matching[2].bias.grad.norm() < 1e-4 * whole


@pytest.mark.parametrize("case", CASES["trajectory"], ids=lambda c: f"{c['kind']}-{c['optimizer'][:4]}")
def test_four_steps(case: dict[str, Any]) -> None:
    method = pretraining(case)
    adam = case["optimizer"].startswith("Adam")
    optim = (
        Optim("adam", lr=1e-3, weight_decay=5e-7, options={"betas": (0.95, 0.999), "eps": 1e-3})
        if adam
        else Optim("sgd", lr=0.01, weight_decay=0.0)
    )
    optimizer = build_optimizer(method.trained_modules(), optim)
    for step, (accuracy, nce, mse, joint) in enumerate(case["per_step"]):
        both = {"discriminative": masks(case, step), "generative": masks(case, step + 5)}
        batch = {"spectrogram": spectrograms(case), "masks": both}
        losses = method.losses(batch)
        total = sum(losses.values())
        got = (losses["discriminative"].item(), losses["generative"].item() / 10, total.item())
        assert got == pytest.approx((nce, mse, joint), rel=5e-5)
        assert batch["masked_accuracy"].item() == pytest.approx(accuracy, abs=1e-6)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()


def test_the_papers_contrast_normalises_over_targets() -> None:
    case = next(c for c in CASES["pretrain_losses"] if title(c) == "tiny-patch-Q-128" and c["input"] == "q")
    method = pretraining(case, contrast_over="targets", task="discriminative")
    losses = method.losses({"spectrogram": spectrograms(case), "masks": {"discriminative": masks(case, 0)}})
    # of the parity file's table of sensitivities
    assert losses["discriminative"].item() == pytest.approx(18.95076752, rel=2e-5)
    scores = match_scores(torch.rand(1, 3, 4), torch.rand(1, 3, 4))
    by_hand = -torch.stack([scores[0, i].log_softmax(0)[i] for i in range(3)]).mean()
    assert matching_loss(scores).item() == pytest.approx(by_hand.item(), rel=1e-6)


# -- fine-tuning (sections 3.4 and 3.5) ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES["finetune_forward"], ids=title)
@torch.no_grad()
def test_finetuned_logits(case: dict[str, Any]) -> None:
    image = spectrograms(case).transpose(1, 2)[:, None]
    for pooling, name in (("patches", "ft_avgtok"), ("cls", "ft_cls")):
        network = finetuning(case, pooling=pooling).student
        assert network(image).flatten().tolist() == pytest.approx([*chain(*case[name])], abs=5e-6)
        exact = network.double()(image.double())
        assert exact.flatten().tolist() == pytest.approx([*chain(*case[f"{name}_float64"])], abs=1e-7)
    backbone = network.backbone
    assert case["num_tokens"] == backbone.pos_grid[0, 0].numel() + 2
    heads = 2 * 1000 * (backbone.embed_dim + 1)  # of ImageNet, counted in the release
    assert case["params"] == sum(p.numel() for p in network.parameters()) + heads


@pytest.mark.parametrize("case", CASES["pos_embed"] + CASES["pos_embed_1024"], ids=title)
@torch.no_grad()
def test_positions_of_another_grid(case: dict[str, Any]) -> None:
    patch = (16, 16) if case["kind"] == "patch" else (128, 2)
    backbone = AST(
        192, 12, 3, frames=case["input_tdim"], patch=patch, stride=(case["fstride"], case["tstride"])
    )
    file = WeightFile("ssast.pth", released(case, case["pretrain_tdim"]))
    report = load_pretrained(backbone, file, min_share=1.0, show=False)
    assert report.importer == "ssast"
    grid = backbone.pos_grid.flatten(2).transpose(1, 2)
    positions = torch.cat((backbone.pos_prefix, grid), 1)
    assert_checksums(positions, case["pos_embed"], 1e-6)
    rows = {"row2_first4": 2, "row_mid_first4": positions.shape[1] // 2, "last_row_first4": -1}
    for name, row in rows.items():
        if name in case:
            assert positions[0, row, :4].tolist() == pytest.approx(case[name], abs=1e-6), name
    assert backbone.pos_grid.requires_grad


@torch.no_grad()
def test_block_outputs_for_superb() -> None:
    case = CASES["superb_upstream"]
    method = finetuning(case, pooling="layers")
    backbone, image = method.student.backbone, spectrograms(case).transpose(1, 2)[:, None]
    outputs = backbone.forward_blocks(image)
    assert len(outputs) == case["num_layers"]
    for number, expected in case["block_outputs"].items():
        assert_checksums(outputs[int(number) - 1], expected, 2e-5)
    assert_checksums(backbone.norm(outputs[-1]), case["final_normed"], 2e-5)
    mixed = torch.stack(outputs).mean(0)  # weights are equal at first
    by_hand = method.student.head(method.student.projection(mixed).mean(1))
    torch.testing.assert_close(method.student(image), by_hand)


# -- masks, files, schedules, metrics (sections 4, 6, 8, 10) ---------------------------------------------------------


@pytest.mark.parametrize("case", CASES["mask_statistics"], ids=lambda c: str(c["mask_patch"]))
def test_cluster_masks_have_the_released_distribution(case: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = ClusterMasking(case["mask_patch"])(4000, (8, 64), generator=generator).mask
    assert not drawn[:, 0].any()
    assert drawn.float().mean().item() == pytest.approx(case["overall"], abs=1e-6)
    by_row = drawn.view(-1, 8, 64).float().mean((0, 2)).tolist()
    assert by_row == pytest.approx(case["mean_prob_by_frequency_row_low_to_high"], abs=0.012)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", CASES["checkpoint_inventory"])
def test_every_released_name_has_its_place(name: str, prefix: str) -> None:
    inventory, (size, kind, frames) = CASES["checkpoint_inventory"][name], name.split("_")
    shapes = released_shapes(size, kind, int(frames))
    assert len(shapes) == inventory["num_entries"]
    for entry, shape in inventory["entries"].items():
        assert shapes[entry.removeprefix("module.")] == shape
    with torch.device("meta"):
        backbone_args = {"patch": (16, 16) if kind == "patch" else (128, 2)}
        student = SSAST(f"ast_{size}", backbone_args).student
        state = {prefix + key: torch.empty(shape) for key, shape in shapes.items()}
    state[f"{prefix}p_input_fdim"], state[f"{prefix}p_input_tdim"] = torch.tensor(128), torch.tensor(1024)
    report = best_plan(WeightFile(f"{name}.pth", state), student).report
    assert report.importer == "ssast"
    assert report.complete
    assert not report.unexpected
    heads = 2 * 1000 * (student.backbone.embed_dim + 1)
    assert sum(p.numel() for p in student.parameters()) + heads == inventory["trainable"]


@pytest.mark.parametrize(
    ("name", "drops"),
    [
        ("audioset20k", (5e-5, 10, 5, 0.5)),
        ("esc50", (1e-4, 6, 1, 0.85)),
        ("speechcommands_v2", (2.5e-4, 5, 1, 0.85)),
    ],
)
def test_learning_rates(name: str, drops: tuple[float, int, int, float]) -> None:
    lr, start, every, factor = drops
    optim = Optim(lr=lr, schedule="drops", drop_start=start, drop_every=every, drop_factor=factor)
    rates = CASES["lr_schedules"]["per_epoch (after warm-up)"][name]
    of_step = lr_factor(optim, 1e9, steps_per_epoch=7)
    assert [lr * of_step(7 * e) for e in range(len(rates))] == pytest.approx(rates, rel=1e-8)
    assert [lr * of_step(7 * e + 6) for e in range(len(rates))] == pytest.approx(rates, rel=1e-8)


def test_warm_up_in_stairs() -> None:
    of_step = lr_factor(SSAST("ast_tiny").optim, float("inf"))
    for step, rate in CASES["lr_schedules"]["warmup_examples"].items():
        assert 1e-4 * of_step(int(step)) == pytest.approx(rate, rel=1e-8)


def test_metrics() -> None:
    case = CASES["metrics"]
    shape = (case["n"], case["c"])
    scores = (3 * q(shape, 11)).sigmoid().float()
    targets = q(shape, 12) + 0.5 * q(shape, 11) > 0.2
    metric = ClipScores()
    metric.update(scores[:25], targets[:25])
    metric.update(scores[25:], targets[25:])
    result = metric.compute()
    assert result["mAP"].item() == pytest.approx(100 * case["mAP"], abs=1e-3)
    assert result["dprime"].item() == pytest.approx(case["d_prime"], abs=1e-5)
    assert result["accuracy"].item() == pytest.approx(100 * case["accuracy_argmax"], abs=1e-4)
