"""HiCMAE: masks, fusion, skips, targets, contrast over processes, mixing, scores, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from zoo.backbones.audio_visual import SIZES, AudioVisualEncoder, create_audio_visual
from zoo.methods.audio_visual.classifier import HiCMAEClassifier
from zoo.methods.audio_visual.hicmae import HiCMAE
from zoo.methods.audio_visual.scores import class_scores, value_scores
from zoo.nn import MultiScaleCrop, VideoAugment, masks_at, patches_of
from zoo.nn.audio_visual import AudioVisualClassifierNetwork, audio_targets, video_targets
from zoo.nn.masking_clusters import TubeMasking, seen_and_hidden
from zoo.nn.paired_contrast import paired_contrast
from zoo.nn.video_augment import crop_video
from zoo.optim import build_optimizer
from zoo.registry import UnknownNameError

SMALL: dict[str, Any] = {
    "embed_dim": 16, "num_heads": 2, "depth": 3, "image_size": 32, "frames": 4, "patch": [2, 8, 8],
    "audio_frames": 32, "mels": 16, "audio_patch": [8, 8],
}  # fmt: skip
METHOD: dict[str, Any] = {
    "backbone_args": SMALL,
    "decoder_args": {"embed_dim": 8, "num_heads": 2},
    "levels": [0, 2],
}


def batch(clips: int = 3, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "video": torch.rand(clips, 3, 4, 32, 32, generator=generator),
        "spectrogram": torch.randn(clips, 32, 16, generator=generator),
        "index": torch.arange(clips),
    }


# -- masks ------------------------------------------------------------------------------------------------


def test_tokens_and_masks_of_the_published_size() -> None:
    with torch.device("meta"):
        method = HiCMAE()
    backbone = method.student.backbone
    assert (backbone.video.grid, backbone.audio.grid) == ((8, 10, 10), (16, 8))
    assert (method.video_masking.count, method.audio_masking.count) == (90, 102)
    masks = method.video_masking(4, backbone.video.grid, generator=torch.Generator().manual_seed(0))
    assert masks.mask.sum(1).tolist() == [720] * 4
    by_slot = masks.mask.view(4, 8, 100)
    assert torch.equal(by_slot, by_slot[:, :1].expand_as(by_slot))  # the same places at all times
    assert len({tuple(row.tolist()) for row in by_slot[:, 0]}) == 4
    seen, hidden = seen_and_hidden(masks)
    assert (seen.shape, hidden.shape) == ((4, 80), (4, 720))
    assert torch.equal(torch.cat((seen, hidden), 1).sort(1).values, torch.arange(800).expand(4, -1))
    assert not masks.mask.gather(1, seen).any()
    assert torch.equal(hidden, hidden.sort(1).values)
    assert [
        method.student.video_decoder.head.out_features,
        method.student.audio_decoder.head.out_features,
    ] == [*(1536, 256)]


def test_sizes_have_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        counts = {
            name: sum(p.numel() for p in create_audio_visual(name).parameters()) / 1e6 for name in SIZES
        }
    assert counts["hicmae_base"] == pytest.approx(81, abs=1)
    assert counts["hicmae_small"] == pytest.approx(46, abs=1)


# -- networks ---------------------------------------------------------------------------------------------


def test_both_modalities_are_fused_from_the_layer_before() -> None:
    backbone = AudioVisualEncoder(**SMALL).eval()
    fusion = backbone.fusion
    video, audio = torch.randn(2, 5, 16), torch.randn(2, 3, 16)
    one_v = fusion.video_blocks[0](video, audio)
    one_a = fusion.audio_blocks[0](audio, video)  # not of what the video has become
    two = fusion.video_blocks[1](one_v, one_a), fusion.audio_blocks[1](one_a, one_v)
    wanted = fusion.video_norm(two[0]), fusion.audio_norm(two[1])
    for got, by_hand in zip(fusion(video, audio), wanted, strict=True):
        torch.testing.assert_close(got, by_hand)


def test_decoders_look_back_deepest_first() -> None:
    method = HiCMAE(**METHOD).eval()
    decoder = method.student.video_decoder
    contexts: list[Tensor] = []
    for block in list(decoder.blocks)[1:]:
        block.register_forward_pre_hook(lambda _, given: contexts.append(given[1]))
    visible, hidden = torch.tensor([[3, 9]]), torch.tensor([[0, 1, 2]])
    skips = [torch.full((1, 2, 16), float(value)) for value in (1, 2)]
    decoder(torch.zeros(1, 2, 16), skips, visible, hidden)
    where = decoder.positions[:, [3, 9]]
    for context, skip in zip(contexts, reversed(skips), strict=True):
        torch.testing.assert_close(context, decoder.projection(skip) + where)
    assert decoder.projection.bias is None


def test_hidden_patches_do_not_reach_the_encoders() -> None:
    method, given = HiCMAE(**METHOD).eval(), batch(2)
    masks = method.draw_masks(given, "x")
    changed = {key: value.clone() for key, value in given.items()}
    hidden = (
        masks["video"].mask.view(2, 2, 1, 4, 1, 4, 1).expand(-1, -1, 2, -1, 8, -1, 8).reshape(2, 1, 4, 32, 32)
    )
    changed["video"] = torch.where(hidden, 0.5, given["video"])
    with torch.no_grad():
        first, second = (
            method.student(g["video"], g["spectrogram"], masks["video"], masks["audio"])
            for g in (given, changed)
        )
    assert torch.equal(first.video, second.video)
    assert not torch.equal(given["video"], changed["video"])


def test_rates_shrink_towards_the_input() -> None:
    with torch.device("meta"):
        method = HiCMAEClassifier()
    student = method.student
    depth = {
        "backbone.video.patch_embed.proj.weight": 0,
        "backbone.audio.blocks.9.attn.qkv.weight": 10,
        "backbone.fusion.audio_blocks.1.cross_attn.q.weight": 12,
        "backbone.video.norm.weight": 13,
        "video_layer_weights": 13,
        "head.weight": 13,
    }
    assert {name: student.block_of(name) for name in depth} == depth
    groups = build_optimizer([student], method.optim).param_groups
    rates = sorted({group["lr"] for group in groups})
    assert rates[0] == pytest.approx(2.1875e-4 * 0.75**13)
    assert rates[-1] == pytest.approx(2.1875e-4)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert all((id(p) in decayed) == (p.ndim > 1) for p in student.parameters())


def test_one_modality_alone_trains_nothing_of_the_other() -> None:
    given = batch()
    for alone, other in (("video", "spectrogram"), ("audio", "video")):
        network = AudioVisualClassifierNetwork(AudioVisualEncoder(**SMALL), 4, alone).eval()  # type: ignore[arg-type]
        logits = network(given["video"], given["spectrogram"])
        blind = {**given, other: torch.zeros_like(given[other])}
        assert torch.equal(network(blind["video"], blind["spectrogram"]), logits)
        logits.sum().backward()
        assert all((p.grad is not None) == p.requires_grad for p in network.parameters())
    with pytest.raises(ValueError, match="expected both, video or audio"):
        AudioVisualClassifierNetwork(AudioVisualEncoder(**SMALL), 4, "sound")  # type: ignore[arg-type]


# -- objectives -------------------------------------------------------------------------------------------


def test_targets_by_hand() -> None:
    given = batch(1)
    masks = masks_at(torch.tensor([[5, 20]]), 32)
    targets = video_targets(given["video"], (2, 8, 8), masks)
    assert targets.shape == (1, 2, 384)
    patch = patches_of(given["video"], (2, 8, 8))[0, 5].view(3, 2, 64)
    z = (patch - patch.mean((1, 2), keepdim=True)) / (patch.std((1, 2), keepdim=True) + 1e-6)
    by_hand = torch.stack((z[:, 0], z[:, 1] - z[:, 0]), 1).flatten(1).T.flatten()
    torch.testing.assert_close(targets[0, 0], by_hand, rtol=1e-4, atol=1e-5)
    plain = video_targets(given["video"], (2, 8, 8), masks, normalise=False, differences=False)
    assert torch.equal(plain[0, 0], patch.flatten(1).T.flatten())
    cells = audio_targets(given["spectrogram"], (8, 8), masks_at(torch.tensor([[1]]), 8))
    wanted = given["spectrogram"][0, :8, 8:].flatten()  # bands are counted fastest
    torch.testing.assert_close(cells[0, 0], (wanted - wanted.mean()) / (wanted.std() + 1e-6))


def test_contrast_needs_the_sound_of_the_same_clip() -> None:
    video = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    assert (
        paired_contrast(video, video).item()
        < 0.1
        < math.log(6)
        < paired_contrast(video, video.roll(1, 0)).item()
    )


def of_two_ranks(rank: int, store: str, found: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    video, audio = two_modalities()
    for gather in (False, True):
        mine = video[2 * rank : 2 * rank + 2].clone().requires_grad_()
        loss = paired_contrast(mine, audio[2 * rank : 2 * rank + 2], gather=gather)
        loss.backward()
        found[gather, rank] = (loss.item(), mine.grad.tolist())
    torch.distributed.destroy_process_group()


def two_modalities() -> tuple[Tensor, ...]:
    return tuple(torch.randn(4, 8, generator=torch.Generator().manual_seed(k)) for k in (0, 1))


@pytest.mark.slow
def test_clips_of_other_processes_compete_only_if_asked_to(tmp_path: Path) -> None:
    video, audio = two_modalities()
    with mp.Manager() as manager:
        found = manager.dict()
        mp.spawn(of_two_ranks, (str(tmp_path / "store"), found), nprocs=2)  # type: ignore[attr-defined]
        losses, gradients = ({key: value[i] for key, value in found.items()} for i in (0, 1))
    for gather in (False, True):
        whole = video.clone().requires_grad_()
        parts = [paired_contrast(whole[k : k + 2], audio[k : k + 2]) for k in (0, 2)]
        total = paired_contrast(whole, audio) if gather else torch.stack(parts).mean()
        total.backward()
        assert sum(losses[gather, rank] for rank in (0, 1)) / 2 == pytest.approx(total.item(), rel=1e-5)
        # DDP takes the mean of the ranks' gradients
        mean = torch.tensor([gradients[gather, rank] for rank in (0, 1)]).flatten(0, 1) / 2
        torch.testing.assert_close(mean, whole.grad, rtol=1e-4, atol=1e-6)


def test_masks_come_from_seed_and_step_and_losses_are_pure() -> None:
    method, given = HiCMAE(**METHOD).eval(), batch()
    first, again, other = (method.draw_masks(given, place) for place in ("0/1/0", "0/1/0", "0/2/0"))
    assert torch.equal(first["video"].mask, again["video"].mask)
    assert not torch.equal(first["audio"].mask, other["audio"].mask)
    with torch.no_grad():
        one, two = (method.losses({**given, "masks": first}) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in ("video", "audio", "contrast"))


def test_nan_in_a_clip_shows_in_the_losses() -> None:
    method, given = HiCMAE(**METHOD), batch()
    given["video"][1, 0, 0, 0, 0] = torch.nan
    assert torch.isnan(torch.stack([*method.losses(given).values()])).any()


# -- augmentation -----------------------------------------------------------------------------------------


def test_mixing_leaves_the_sound_alone() -> None:
    given = {**batch(4), "label": torch.tensor([0, 1, 2, 0])}
    for options in ({"cutmix": 0.0}, {"mixup": 0.0}):
        augment = VideoAugment(3, operations=0, crop_scale=(1.0, 1.0), flip=0.0, erase=0.0, **options)
        torch.manual_seed(1)
        made = augment(given)
        assert torch.equal(made["spectrogram"], given["spectrogram"])
        assert made["label"].sum(1).tolist() == pytest.approx([1.0] * 4)
        share = made["label"][1, 1].item()
        assert 0 < share < 1
        if "cutmix" in options:
            wanted = share * given["video"] + (1 - share) * given["video"].flip(0)
            torch.testing.assert_close(made["video"], wanted, rtol=1e-3, atol=1e-5)
        else:  # a rectangle, the same in all frames
            kept = (made["video"][0] - given["video"][0]).abs().amax((0, 1)) < 1e-4
            assert kept.float().mean().item() == pytest.approx(share, abs=0.01)
    with pytest.raises(ValueError, match="mix labels: set num_classes"):
        VideoAugment()
    with pytest.raises(ValueError, match="need class labels in training batches"):
        VideoAugment(3)({**given, "label": torch.rand(4, 3)})


def test_crops_are_those_asked_for() -> None:
    video = torch.rand(2, 3, 2, 16, 16)
    whole = torch.tensor([[0, 0, 16, 16]] * 2)
    torch.testing.assert_close(crop_video(video, whole, torch.tensor([False, False])), video)
    torch.testing.assert_close(crop_video(video, whole, torch.tensor([True, True])), video.flip(-1))
    quarter = crop_video(video, torch.tensor([[8, 0, 8, 8]] * 2), torch.tensor([False] * 2))
    wanted = nn.functional.interpolate(video[:, :, 0, 8:, :8], size=16, mode="bilinear")
    torch.testing.assert_close(quarter[:, :, 0, 1:-1, 1:-1], wanted[:, :, 1:-1, 1:-1])
    torch.manual_seed(0)
    assert MultiScaleCrop((1.0,))({"video": video})["video"].sub(video).abs().max() < 1e-5
    made = VideoAugment(mixup=0, cutmix=0)({"video": video})["video"]
    assert made.shape == video.shape
    assert bool(made.isfinite().all())


# -- scores and input ---------------------------------------------------------------------------------------


def test_scores_by_hand() -> None:
    scores = class_scores(3)
    answers = torch.eye(3)[[0, 0, 1, 2, 2, 0]]
    scores.update(answers, torch.tensor([0, 0, 1, 1, 2, 2]))
    values = {name: value.item() for name, value in scores.compute().items()}
    assert values["UAR"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert values["WAR"] == pytest.approx(4 / 6)
    assert values["F1"] == pytest.approx((4 / 5 + 2 / 3 + 1 / 2) / 3)
    x, y = (torch.randn(50, 3, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    y = y + x
    agreement = value_scores(3)
    agreement.update(x[:20], y[:20])
    agreement.update(x[20:], y[20:])
    found = agreement.compute()
    covariance = ((x - x.mean(0)) * (y - y.mean(0))).mean(0)
    ccc = 2 * covariance / (x.var(0, False) + y.var(0, False) + (x.mean(0) - y.mean(0)) ** 2)
    torch.testing.assert_close(found["CCC"], ccc, rtol=0.05, atol=0.0)
    pcc = covariance / (x.std(0, False) * y.std(0, False))
    torch.testing.assert_close(found["PCC"], pcc, rtol=1e-3, atol=1e-4)


def test_views_of_a_clip_are_averaged() -> None:
    method = HiCMAEClassifier(num_classes=4, backbone_args=SMALL).eval()
    given = batch(6)
    scores = method(given["video"], given["spectrogram"])
    answers = method.answers({**given, "index": torch.arange(3)})
    torch.testing.assert_close(answers, (scores[::2] + scores[1::2]) / 2)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "hides everything": (lambda: HiCMAE(**METHOD, video_ratio=1.0), "video_ratio=1.0 hides 16 of 16 tokens"),
    "hides nothing": (lambda: HiCMAE(**METHOD, audio_ratio=0.01), "audio_ratio=0.01 hides 0 of 8 tokens"),
    "levels": (lambda: HiCMAE(**{**METHOD, "levels": [2, 7]}), r"levels=\[2, 7\] must be ascending numbers of the 3"),
    "patches": (lambda: AudioVisualEncoder(**{**SMALL, "image_size": 30}), "do not divide an input of 4 x 30 x 30"),
    "heads": (lambda: AudioVisualEncoder(**{**SMALL, "num_heads": 3}), "3 attention heads do not divide a width of 16"),
    "temperature": (lambda: HiCMAE(**METHOD, temperature=0.0), "temperature=0.0"),
    "size": (lambda: create_audio_visual("hicmae_bse"), "unknown backbone 'hicmae_bse': did you mean hicmae_base"),
    "weights": (lambda: create_audio_visual("hicmae_base", True), "has no weights of its own to fetch"),
    "task": (lambda: HiCMAEClassifier(task="ranking"), "task='ranking'"),  # type: ignore[arg-type]
    "smoothing": (lambda: HiCMAEClassifier(label_smoothing=1.0), "label_smoothing must lie in"),
    "video": (lambda: HiCMAE(**METHOD).losses({"spectrogram": torch.rand(1)}), "take an audio-visual benchmark"),
    "sound": (lambda: HiCMAE(**METHOD).losses({"video": torch.rand(1)}), "set data.features"),
    "input size": (
        lambda: HiCMAE(**METHOD).features(torch.rand(1, 3, 4, 16, 16), torch.rand(1, 32, 16)),
        r"built for inputs \[3, 4, 32, 32\], got \[3, 4, 16, 16\]",
    ),
    "clip": (lambda: HiCMAE(**METHOD).predict({"video": torch.rand(3, 4, 8, 8)}), "waveform is missing"),
    "range": (
        lambda: HiCMAE(**METHOD).predict({"video": 2 * torch.ones(3, 4, 8, 8), "waveform": torch.rand(9)}),
        r"outside \[0, 1\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_refused(what: str) -> None:
    make, complaint = REFUSED[what]
    with pytest.raises((ValueError, UnknownNameError), match=complaint):
        make()


def test_tube_masks_need_places() -> None:
    with pytest.raises(ValueError, match="of a grid of 2 x 2 = 4 tokens at most 4"):
        TubeMasking(5)(1, (3, 2, 2))


# -- learning -----------------------------------------------------------------------------------------------


def eight_clips() -> dict[str, Tensor]:
    """As bright as they are loud, each in a rhythm of its own; nothing else is shared."""
    generator = torch.Generator().manual_seed(0)
    rhythm = torch.rand(8, 4, generator=generator)
    place = torch.linspace(0, 1, 32)
    ramp = 0.5 * place[:, None] + 0.3 * place
    video = 0.1 + 0.4 * rhythm[:, None, :, None, None] + 0.3 * ramp
    bands = torch.sin(6 * torch.linspace(0, 1, 16)) / 4
    sound = 2 * rhythm.repeat_interleave(8, 1)[:, :, None] - 1 + bands
    noise = 0.02 * torch.randn(8, 32, 16, generator=generator)
    return {"video": video.expand(-1, 3, -1, -1, -1).contiguous(), "spectrogram": sound + noise}


@pytest.mark.slow
def test_rebuilding_and_pairing_are_learned_and_need_the_sound_of_the_clip() -> None:
    torch.manual_seed(0)
    method, clips = HiCMAE(**METHOD, video_ratio=0.5, audio_ratio=0.5, contrast_weight=0.1), eight_clips()
    optimizer = torch.optim.AdamW(method.student.parameters(), lr=5e-3)

    def average(batch: dict[str, Tensor]) -> dict[str, float]:
        with torch.no_grad():
            found = [
                method.losses({**batch, "masks": method.draw_masks(batch, f"look/{k}")}) for k in range(8)
            ]
        return {name: sum(float(each[name]) for each in found) / 8 for name in found[0]}

    before = average(clips)
    for step in range(200):
        losses = method.losses({**clips, "masks": method.draw_masks(clips, str(step))})
        optimizer.zero_grad()
        torch.stack([*losses.values()]).sum().backward()
        optimizer.step()
    after = average(clips)
    strangers = average({**clips, "spectrogram": clips["spectrogram"].roll(3, 0)})
    chance = 0.1 * 2 * math.log(8)  # of two levels
    assert after["video"] < 0.8 * before["video"]
    assert after["audio"] < 0.8 * before["audio"]
    assert after["contrast"] < 0.8 * chance < chance < strangers["contrast"]
