"""w2v-BERT: span masks, distractors, quantiser, the identities of its losses, and its conformer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.test_nn_no_sync import assert_never_waits
from zoo.backbones.conformer import ConformerBackbone, quarter
from zoo.methods.audio.classifier import AudioClassifier
from zoo.methods.audio.w2v_bert import W2vBERT
from zoo.nn.gumbel import GumbelQuantiser, diversity_loss, mean_usage, one_hot_usage, perplexity
from zoo.nn.masking_spans import SpanMasking
from zoo.nn.span_contrast import draw_distractors, mean_over_steps, step_scores
from zoo.registry import create_backbone

SMALL: dict[str, Any] = {
    "embed_dim": 16, "num_heads": 2, "ffn_dim": 32, "conv_channels": (4, 4), "mels": 16, "frames": 96,
}  # fmt: skip
MASKED = torch.tensor([[1, 1, 0, 1, 0, 1], [0, 0, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0]]).bool()


def method(**options: Any) -> W2vBERT:
    torch.manual_seed(0)
    settings = {"contrastive_layers": 1, "prediction_layers": 1, "entries": 8, "distractors": 5, **options}
    return W2vBERT(
        "conformer_xl", {**SMALL, "norm": "group", **settings.pop("backbone_args", {})}, **settings
    )


def clips(frames: tuple[int, ...] = (96, 64)) -> dict[str, Any]:
    made = torch.randn(len(frames), 96, 16, generator=torch.Generator().manual_seed(1))
    return {"spectrogram": made, "frames": torch.tensor(frames)}


# -- masks ---------------------------------------------------------------------------------------------------------


def test_spans_mask_as_many_steps_as_their_rate_says() -> None:
    valid = torch.ones(64, 500, dtype=torch.bool)
    mask = SpanMasking(0.065, 10, least=0)(valid, torch.Generator().manual_seed(0))
    assert mask[:, 10:].float().mean().item() == pytest.approx(1 - (1 - 0.065) ** 10, abs=0.01)
    changes = mask[:, 1:] & ~mask[:, :-1]  # a span that has begun lasts ten steps
    for row, start in changes[:, :480].nonzero()[:50].tolist():
        assert mask[row, start + 1 : start + 11].all()


def test_padding_is_never_masked_and_every_item_has_a_span() -> None:
    valid = torch.arange(40) < torch.tensor([40, 25, 3, 1])[:, None]
    mask = SpanMasking(0.0, 5)(valid, torch.Generator().manual_seed(0))
    assert not (mask & ~valid).any()
    assert (mask.sum(1) > 0).all()
    assert (mask.sum(1) <= 5).all()
    assert not SpanMasking(0.0, 5, least=0)(valid).any()
    with pytest.raises(ValueError, match=r"mask probability=1\.5"):
        SpanMasking(1.5)


def test_distractors_are_other_masked_steps_of_the_same_item() -> None:
    drawn = draw_distractors(MASKED, 4000, torch.Generator().manual_seed(0))
    for row, step in MASKED[:2].nonzero().tolist():
        others = [s for s in MASKED[row].nonzero().flatten().tolist() if s != step]
        found, count = drawn[row, step].unique(return_counts=True)
        assert found.tolist() == others
        assert (count / 4000).tolist() == pytest.approx([1 / len(others)] * len(others), abs=0.04)


# -- the contrastive term ------------------------------------------------------------------------------------------


def scores(context: Tensor, codes: Tensor, chosen: Tensor) -> Any:
    return step_scores(context, codes, chosen, MASKED, draw_distractors(MASKED, 7), 0.1)


def test_a_perfect_match_and_a_lonely_step() -> None:
    torch.manual_seed(0)
    codes = torch.eye(6).expand(3, 6, 6)  # orthogonal: similarity 1 to the own code, 0 to all others
    found = scores(3 * codes, codes, torch.arange(6).expand(3, 6)[..., None])
    errors = found.logits.logsumexp(-1) - found.logits[..., 0]
    assert errors[found.counts].tolist() == pytest.approx([math.log(1 + 7 * math.exp(-10))] * 6, abs=3e-6)
    assert found.counts.tolist() == [*MASKED[:2].tolist(), [False] * 6]  # nobody to be told from


def test_distractors_of_the_same_code_do_not_compete() -> None:
    torch.manual_seed(0)
    codes = torch.randn(1, 1, 4).expand(3, 6, 4)
    found = scores(torch.randn(3, 6, 4), codes, torch.zeros(3, 6, 1, dtype=torch.long))
    assert (found.logits[found.counts][:, 1:] == -torch.inf).all()
    assert (found.logits.softmax(-1)[..., 0] == 1).all()
    two_groups = torch.stack((torch.zeros(3, 6), torch.arange(6.0).expand(3, 6)), -1).long()
    assert scores(torch.randn(3, 6, 4), codes, two_groups).logits[MASKED & found.counts].isfinite().all()


def test_means_over_steps_or_utterances() -> None:
    values = torch.arange(18.0).view(3, 6)
    assert mean_over_steps(values, MASKED).item() == pytest.approx(values[MASKED].mean().item())
    each = [row[mask].mean() for row, mask in zip(values, MASKED, strict=True)]
    assert mean_over_steps(values, MASKED, per_item=True).item() == pytest.approx(
        torch.stack(each).mean().item()
    )
    assert mean_over_steps(values, torch.zeros_like(MASKED)).item() == 0


# -- the quantiser -------------------------------------------------------------------------------------------------


def test_codes_are_entries_and_their_gradient_is_that_of_the_softmax() -> None:
    torch.manual_seed(0)
    quantiser, x = GumbelQuantiser(6, 8, groups=2, entries=5), torch.randn(3, 4, 6)
    codes = quantiser(x, 0.7, torch.Generator().manual_seed(3))
    entries = [quantiser.codebook[g][codes.chosen[..., g]] for g in range(2)]
    torch.testing.assert_close(codes.vectors, torch.cat(entries, -1))
    assert not torch.equal(codes.chosen, codes.ids)  # noise
    codes.vectors.sum().backward()
    straight = quantiser.logits.weight.grad.clone()

    quantiser.zero_grad()
    uniform = torch.rand(3, 4, 2, 5, generator=torch.Generator().manual_seed(3))
    logits = quantiser.logits(x).view(3, 4, 2, 5)
    soft = ((logits - (-uniform.log()).log()) / 0.7).softmax(-1)
    torch.einsum("bsgv,gvd->bsgd", soft, quantiser.codebook).sum().backward()
    torch.testing.assert_close(straight, quantiser.logits.weight.grad)

    quantiser.eval()
    assert torch.equal(quantiser(x).chosen, quantiser(x).ids)
    with pytest.raises(ValueError, match="groups=3 must divide the 8 channels"):
        GumbelQuantiser(6, 8, groups=3)


def test_the_first_logits_are_as_large_as_asked_for() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 64)
    for std in (1.0, 0.25):
        spread = GumbelQuantiser(64, 8, entries=100, logits_std=std).logits(x).std().item()
        assert spread == pytest.approx(8 * std, rel=0.05)
    learner = method(logits_std=1e-6)
    assert learner.student.quantiser.logits.weight.abs().max() < 1e-5
    with pytest.raises(ValueError, match=r"logits_std=0\.0 must be positive"):
        method(logits_std=0.0)


def test_diversity_counts_the_entries_in_use() -> None:
    weight = torch.ones(2, 4)
    even, single = torch.full((2, 4, 1, 8), 1 / 8), torch.eye(8)[0].expand(2, 4, 1, 8)
    assert diversity_loss(mean_usage(even, weight)).item() == pytest.approx(0, abs=1e-6)
    assert diversity_loss(mean_usage(single, weight)).item() == pytest.approx(7 / 8)
    ids = torch.tensor([[0, 0, 1, 1], [2, 2, 3, 9]])[..., None]
    weight[1, 3] = 0  # padding does not count
    used = one_hot_usage(ids, 10, weight)
    assert used[0].tolist() == pytest.approx([2 / 7, 2 / 7, 2 / 7, 1 / 7, *[0] * 6])
    assert 3 < perplexity(used).item() < 4


# -- the method ----------------------------------------------------------------------------------------------------


def test_prediction_does_not_move_the_quantiser_and_its_targets_are_of_unmasked_steps() -> None:
    learner = method()
    losses = learner.losses(clips())
    assert list(losses) == ["contrastive", "diversity", "prediction"]
    losses["prediction"].backward()
    assert all(parameter.grad is None for parameter in learner.student.quantiser.parameters())
    assert learner.student.backbone.projection.weight.grad is not None

    everything = method(mask_probability=1.0)  # the network sees nothing; codes are those of the whole clip
    first, second = clips(), clips()
    second["spectrogram"] = second["spectrogram"].flip(1)
    assert everything.losses(first)["prediction"] != everything.losses(second)["prediction"]


def test_weights_and_the_model_without_predictions() -> None:
    plain, weighted = (
        method(contrastive_weight=b, diversity_weight=a, prediction_weight=g).losses(clips())
        for b, a, g in ((1.0, 1.0, 1.0), (2.0, 0.1, 3.0))
    )
    for name, factor in (("contrastive", 2.0), ("diversity", 0.2), ("prediction", 3.0)):
        assert weighted[name].item() == pytest.approx(factor * plain[name].item(), rel=1e-6)
    alone = method(prediction_layers=0)
    assert alone.student.prediction is None
    assert alone.student.num_blocks == 1
    assert list(alone.losses(clips())) == ["contrastive", "diversity"]


def test_masks_codes_and_distractors_follow_the_place_alone() -> None:
    learner = method(mask_with="noise", average="utterances")
    assert learner.student.backbone.mask_token is None
    places = ["0/3/0", "0/3/0", "1/3/0", "0/4/0"]
    losses = [learner.losses({**clips(), "place": place})["contrastive"].item() for place in places]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_what_lies_behind_the_end_of_a_clip_changes_nothing() -> None:
    # Of 64 frames the last step looks at three beyond; depthwise kernels of one step look no further.
    learner = method(backbone_args={"kernel": 1, "norm": "batch"}).eval()
    one, other = clips(), clips()
    other["spectrogram"][1, 70:] = 9.0
    losses = [learner.losses(batch) for batch in (one, other)]
    for name in losses[0]:
        torch.testing.assert_close(losses[0][name], losses[1][name])


def test_a_step_waits_for_no_number_of_the_device() -> None:
    def build() -> Any:
        learner = method()
        learner.losses({**clips(), "place": "0/0/0"})

        def step(spectrogram: Tensor) -> list[Tensor]:
            frames = torch.full((2,), 96)
            return list(learner.losses({"spectrogram": spectrogram, "frames": frames}).values())

        return step

    assert_never_waits(build, (2, 96, 16))


def test_options_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="mask_with='zeros': expected one of learned, noise"):
        method(mask_with="zeros")
    with pytest.raises(ValueError, match=r"contrastive_layers=3 must be within \[1, 2\]"):
        method(contrastive_layers=3, prediction_layers=None, backbone_args={"depth": 2})
    with pytest.raises(ValueError, match="must be a conformer"):
        W2vBERT("ast_tiny", {"depth": 1})
    with pytest.raises(ValueError, match="kernel=4 must be odd"):
        ConformerBackbone(**{**SMALL, "kernel": 4})
    with pytest.raises(ValueError, match="conv_kernel=2 must be odd"):
        ConformerBackbone(**{**SMALL, "conv_kernel": 2})
    wide, narrow = (ConformerBackbone(**{**SMALL, "conv_kernel": side}) for side in (5, 3))
    assert (
        wide.encode(torch.rand(1, 1, wide.mels, 13)).shape
        == narrow.encode(torch.rand(1, 1, wide.mels, 13)).shape
    )
    with pytest.raises(ValueError, match="16 triangles, but mels=80"):
        ConformerBackbone(**{**SMALL, "mels": 80, "depth": 1}).encode(torch.zeros(1, 1, 16, 32))
    with pytest.raises(ValueError, match="conformer_xl has no weights to fetch"):
        create_backbone("conformer_xl", True)


# -- the backbone --------------------------------------------------------------------------------------------------


def test_steps_are_counted_as_the_convolutions_make_them() -> None:
    backbone = ConformerBackbone(**{**SMALL, "depth": 1}).eval()
    for frames in range(1, 20):
        steps = backbone.encode(torch.zeros(1, 1, 16, frames)).shape[1]
        assert (
            steps == quarter(frames) == quarter(torch.tensor(frames)).item() == backbone.grid(16, frames)[1]
        )


def test_a_conformer_is_a_backbone_of_the_audio_classifier() -> None:
    torch.manual_seed(0)
    for pooling in ("patches", "cls", "layers"):
        classifier = AudioClassifier("conformer_xl", 4, {**SMALL, "depth": 2}, pooling=pooling)  # type: ignore[arg-type]
        assert classifier.student(torch.randn(2, 1, 16, 40)).shape == (2, 4)
    assert classifier.student.block_of("backbone.blocks.1.ffn1.sequential.0.weight") == 2
    assert classifier.student.block_of("backbone.projection.weight") == 0


def test_positions_of_longer_clips_are_made_when_they_come() -> None:
    torch.manual_seed(0)
    long = ConformerBackbone(**{**SMALL, "depth": 1, "frames": 200}).eval()
    short = ConformerBackbone(**{**SMALL, "depth": 1, "frames": 40}).eval()
    short.load_state_dict(long.state_dict())
    image = torch.randn(1, 1, 16, 200)
    torch.testing.assert_close(short.forward_tokens(image), long.forward_tokens(image))
    without = ConformerBackbone(**{**SMALL, "depth": 1, "positions": False}).eval()
    without.load_state_dict(long.state_dict())
    assert not torch.equal(without.forward_tokens(image).patches, long.forward_tokens(image).patches)
