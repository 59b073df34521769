"""Log-mel spectrograms and their augmentation, against torchaudio's per-clip form and written-out references."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchaudio.compliance.kaldi import fbank

from tests.test_nn_no_sync import assert_never_waits
from zoo.nn import AudioFeatures, LogMel
from zoo.nn.audio_augment import add_noise, draw_mixup, multi_hot, roll_in_time, spec_augment

FLOOR = -15.942385


def kaldi(waveform: Tensor, rate: int = 16_000, mels: int = 128, window: str = "hanning") -> Tensor:
    """torchaudio's filter bank, clip by clip."""
    options = {"sample_frequency": rate, "num_mel_bins": mels, "window_type": window, "htk_compat": True}
    return torch.stack([fbank(clip[None], dither=0.0, **options) for clip in waveform])


def noisy(clips: int = 2, samples: int = 16_000, seed: int = 0) -> Tensor:
    """A chirp over noise, as loud as speech."""
    rng = torch.Generator().manual_seed(seed)
    n = torch.arange(samples, dtype=torch.float64)
    chirp = 0.2 * torch.sin(0.05 * n + 3e-6 * n * n)
    return (chirp + 0.02 * torch.randn(clips, samples, generator=rng)).float()


def batch_of(waveform: Tensor, **more: Any) -> dict[str, Any]:
    return {"waveform": waveform, "length": torch.full((len(waveform),), waveform.shape[1]), **more}


# -- the filter bank -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize(
    ("rate", "mels", "window"),
    [(16_000, 128, "hanning"), (8_000, 40, "hanning"), (22_050, 80, "povey"), (16_000, 80, "povey")],
)
def test_filter_bank_is_kaldis(rate: int, mels: int, window: str, offset: float) -> None:
    wave = noisy() + offset
    ours, theirs = LogMel(rate, mels, window=window)(wave), kaldi(wave, rate, mels, window)
    assert ours.shape == theirs.shape
    difference = (ours - theirs).abs()
    assert difference.max() < 0.01
    assert (difference > 1e-4).float().mean() < 1e-3


def test_no_further_from_the_exact_value_than_kaldi_where_nothing_is_heard() -> None:
    """Beside a pure loud tone, most cells are rounding noise of either form."""
    wave = (0.3 * torch.sin(0.7 * torch.arange(16_000, dtype=torch.float64)))[None]
    exact = kaldi(wave).clamp(min=FLOOR)
    ours, theirs = ((f - exact).abs() for f in (LogMel()(wave.float()), kaldi(wave.float())))
    assert ours.mean() < 1.2 * theirs.mean()
    assert ours.max() < 0.02


def test_clips_of_a_batch_do_not_see_each_other() -> None:
    wave, bank = noisy(5, 8_000), LogMel()
    together = bank(wave)
    bank.cpu_samples = 20_000  # two clips at a time
    torch.testing.assert_close(bank(wave), together, rtol=0, atol=2e-5)
    torch.testing.assert_close(torch.cat([bank(clip[None]) for clip in wave]), together, rtol=0, atol=2e-5)


def test_silence_lies_at_the_floor() -> None:
    energies = LogMel()(torch.zeros(1, 4_000))
    assert energies.shape == (1, 23, 128)
    torch.testing.assert_close(energies, torch.full_like(energies, FLOOR))


def test_frames_and_samples() -> None:
    bank = LogMel()
    assert [bank.frames(n) for n in (0, 399, 400, 559, 560, 16_000, 160_000)] == [0, 0, 1, 1, 2, 98, 998]
    assert bank.frames(torch.tensor([0, 399, 400, 16_000])).tolist() == [0, 0, 1, 98]
    assert bank.samples(98) == 15_920
    assert bank.frames(bank.samples(98)) == 98


@pytest.mark.parametrize(
    ("waveform", "complaint"),
    [
        (torch.zeros(16_000), r"must be float \[B, samples\].*waveform\[None\]"),
        (torch.zeros(1, 16_000, dtype=torch.int16), r"torch\.int16.*waveform / 32768"),
        (torch.zeros(2, 399), r"399 samples, fewer than one frame \(400 at 16000 Hz\)"),
        (torch.zeros(2, 0), "0 samples, fewer than one frame"),
    ],
)
def test_waveforms_that_make_no_frame(waveform: Tensor, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        LogMel()(waveform)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"mels": 3}, "at least 4 triangles"),
        ({"high": 9_000.0}, r"half the sampling rate \(8000 Hz\)"),
        ({"window": "hann"}, "expected one of hanning, povey"),
        ({"sample_rate": 50}, "less than two samples"),
    ],
)
def test_options_of_the_filter_bank(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        LogMel(**options)


# -- the pipeline --------------------------------------------------------------------------------------------------


def test_padded_clips_are_as_they_would_be_alone() -> None:
    features = AudioFeatures(60, mean=-4.0, std=4.5)
    wave = noisy(3, 12_000)
    length = torch.tensor([12_000, 5_000, 399])
    for clip, samples in zip(wave, length.tolist(), strict=True):
        clip[samples:] = 0
    made = features({"waveform": wave, "length": length, "label": torch.tensor([1, 2, 3]), "name": ["a"]})
    assert made["spectrogram"].shape == (3, 60, 128)
    assert made["frames"].tolist() == [60, 29, 0]
    assert made["label"].tolist() == [1, 2, 3]
    for row, samples in ((0, 12_000), (1, 5_000)):
        alone = features(batch_of(wave[row : row + 1, :samples]))["spectrogram"][0]
        torch.testing.assert_close(made["spectrogram"][row], alone, rtol=0, atol=2e-5)
    padding = torch.tensor(4.0 / 9.0)
    assert torch.equal(made["spectrogram"][1, 29:], padding.expand(31, 128))
    assert torch.equal(made["spectrogram"][2], padding.expand(60, 128))  # shorter than one frame
    by_hand = (kaldi((wave[0] - wave[0].mean())[None])[0, :60] + 4.0) / 9.0
    torch.testing.assert_close(made["spectrogram"][0], by_hand, rtol=0, atol=1e-3)


def test_superb_pads_after_normalisation() -> None:
    features = AudioFeatures(60, centre=False, pad_normalised=True)
    made = features(batch_of(noisy(1, 5_000)))["spectrogram"][0]
    assert made[29:].abs().max() == 0
    assert made[:29].abs().min(1).values.max() > 0


def test_a_silent_clip_is_finite_and_nan_stays_with_its_clip() -> None:
    wave = noisy(3, 4_000)
    wave[0], wave[1, 2_000] = 0, torch.nan
    made = AudioFeatures(20)(batch_of(wave))["spectrogram"]
    assert torch.allclose(made[0], (torch.tensor(FLOOR) + 4.2677393) / (2 * 4.5689974))
    assert made.isnan().flatten(1).any(1).tolist() == [False, True, False]


def test_nothing_is_augmented_in_evaluation() -> None:
    plain, rich = AudioFeatures(40), AudioFeatures(40, mixup=1.0, num_classes=2, freq_mask=20, noise=True)
    batch = batch_of(noisy(), label=torch.tensor([0, 1]))
    assert torch.equal(plain(batch)["spectrogram"], rich(batch)["spectrogram"])
    assert not torch.equal(plain(batch)["spectrogram"], rich(batch, True)["spectrogram"])
    assert set(batch) == {"waveform", "length", "label"}


def test_masks_are_one_band_and_one_span_of_padding() -> None:
    torch.manual_seed(0)
    features = AudioFeatures(90, mean=-4.0, std=4.5, freq_mask=48, time_mask=40)
    batch = batch_of(noisy(20))
    masked = features(batch, training=True)["spectrogram"] == torch.tensor(4.0 / 9.0)
    bands, spans = masked.all(1), masked.all(2)
    assert torch.equal(masked, bands[:, None] | spans[..., None])
    for runs, bound in ((bands, 48), (spans, 40)):
        edges = runs.int().diff(dim=1, prepend=torch.zeros(20, 1), append=torch.zeros(20, 1)).abs().sum(1)
        assert edges.max() == 2  # one run
        assert runs.sum(1).max() < bound
        assert runs.sum(1).float().mean() > bound / 4
    with pytest.raises(ValueError, match=r"freq_mask=200 must be within \[0, 128\]"):
        AudioFeatures(freq_mask=200)
    assert torch.equal(spec_augment(torch.ones(2, 5, 6), 0, 0), torch.ones(2, 5, 6))


def test_noise_and_roll() -> None:
    torch.manual_seed(0)
    noise = add_noise(torch.zeros(2_000, 4, 8)).flatten(1)
    assert noise.min() >= 0
    assert noise.max() < 0.1
    largest = noise.max(1).values  # nearly the clip's strength, uniform in [0, 0.1)
    assert largest.mean().item() == pytest.approx(0.05 * 32 / 33, abs=2e-3)
    ramp = torch.arange(50.0).repeat(3_000, 1)[..., None]
    rolled = roll_in_time(ramp, 10)
    shifts = (0 - rolled[:, 0, 0].long()) % 50
    assert set(shifts.tolist()) == {*range(10), *range(40, 50)}
    assert torch.equal(rolled[0, :, 0], torch.roll(ramp[0, :, 0], int(shifts[0])))


def test_mixup_draws_partners_and_shares() -> None:
    torch.manual_seed(0)
    partner, share = draw_mixup(20_000, 0.25, 10.0, torch.device("cpu"))
    mixed = share < 1
    assert mixed.float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert share[mixed].mean().item() == pytest.approx(0.5, abs=0.01)
    assert share[mixed].std().item() == pytest.approx((1 / 84) ** 0.5, abs=0.01)  # of Beta(10, 10)
    assert partner.float().mean().item() == pytest.approx(9_999.5, rel=0.02)


def test_mixed_labels_are_shares_of_both() -> None:
    torch.manual_seed(0)
    batch = batch_of(noisy(8), label=torch.arange(8))
    made = AudioFeatures(20, mixup=1.0, num_classes=8)(batch, training=True)["label"]
    torch.testing.assert_close(made.sum(1), torch.ones(8))
    assert ((made > 0).sum(1) <= 2).all()
    assert (made.diagonal() > 0).all()
    soft = {**batch, "label": multi_hot(batch["label"], 8)}
    assert AudioFeatures(20, mixup=1.0)(soft, training=True)["label"].shape == (8, 8)
    with pytest.raises(ValueError, match="class indices here: set num_classes"):
        AudioFeatures(20, mixup=1.0)(batch, training=True)
    unlabelled = {key: value for key, value in batch.items() if key != "label"}
    assert "label" not in AudioFeatures(20, mixup=1.0)(unlabelled, training=True)


def test_a_pipeline_comes_back_from_its_settings() -> None:
    one = AudioFeatures(30, LogMel(8_000, 40, low=50.0), mean=-3.0, std=2.0, centre=False, noise=True)
    two = AudioFeatures.of(one.settings)
    batch = batch_of(noisy())
    assert torch.equal(one(batch)["spectrogram"], two(batch)["spectrogram"])
    assert (two.sample_rate, two.samples, two.noise) == (8_000, one.bank.samples(30), False)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"target_length": 0}, "must be positive"),
        ({"std": 0.0}, "must be positive"),
        ({"mixup": 1.5}, r"mixup=1.5 must be within \[0, 1\]"),
        ({"time_mask": 2_000}, r"time_mask=2000 within \[0, 1024\]"),
    ],
)
def test_options_of_the_pipeline(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        AudioFeatures(**options)


@pytest.mark.parametrize("shape", [(2, 0), (0, 400), (400,)])
def test_a_batch_without_samples_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one sample; leave out empty clips"):
        AudioFeatures()({"waveform": torch.zeros(shape), "length": torch.zeros(2, dtype=torch.long)})


@pytest.mark.parametrize("pad_normalised", [False, True])
def test_the_host_never_waits(pad_normalised: bool) -> None:
    def build() -> Any:
        features = AudioFeatures(
            90,
            mixup=0.5,
            num_classes=4,
            freq_mask=48,
            time_mask=40,
            noise=True,
            pad_normalised=pad_normalised,
        )
        label = torch.zeros(3, dtype=torch.long)
        return lambda wave: features(batch_of(wave, label=label), training=True)["spectrogram"]

    assert_never_waits(build, (3, 16_000))
