"""Mixers against per-pixel references, and the distributions they draw from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.nn import ClassMix, CowMix, CutMix, CutOut, NoMix, UnlabelledClassMix

B, H, W = 3, 8, 10


@pytest.fixture
def parts() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(0)
    label = (
        torch.randint(0, 7, (B, H, W)) * torch.tensor([1, 2, 3])[:, None, None]
    )  # classes differ per image
    label[0, 0] = 255
    labelled = {"image": torch.rand(B, 3, H, W), "label": label}
    unlabelled = {
        "image": torch.rand(B, 3, H, W),
        "pseudo_label": torch.randint(0, 5, (B, H, W)),
        "pseudo_weight": torch.rand(B, H, W),
    }
    return labelled, unlabelled


def classes(rows: Tensor) -> list[set[int]]:
    return [set(row.nonzero().flatten().tolist()) for row in rows]


class Recording:
    """Notes what ``choose`` was given and what it drew."""

    def choose(self, present: Tensor) -> Tensor:
        self.present = classes(present)
        drawn = super().choose(present)
        self.drawn = classes(drawn)
        return drawn


class RecordingClassMix(Recording, ClassMix):
    pass


class RecordingUnlabelledClassMix(Recording, UnlabelledClassMix):
    pass


def test_nomix_renames(parts) -> None:
    labelled, unlabelled = parts
    mixed = NoMix()(labelled, unlabelled)
    assert mixed["image"] is unlabelled["image"]
    assert mixed["label"] is unlabelled["pseudo_label"]
    assert mixed["weight"] is unlabelled["pseudo_weight"]


@pytest.mark.parametrize("classes_from", ["batch", "image"])
@pytest.mark.parametrize("paste_ignored", [True, False])
def test_classmix_pastes_half_of_the_classes(parts, classes_from, paste_ignored) -> None:
    labelled, unlabelled = parts
    before = {key: value.clone() for part in parts for key, value in part.items()}
    mixer = RecordingClassMix(classes_from, paste_ignored=paste_ignored)
    mixed = mixer(labelled, unlabelled)

    per_image = [
        set(image.unique().tolist()) - (set() if paste_ignored else {255}) for image in labelled["label"]
    ]
    candidates = [set.union(*per_image)] * B if classes_from == "batch" else per_image
    assert mixer.present == candidates
    for b in range(B):
        assert mixer.drawn[b] <= candidates[b]
        assert len(mixer.drawn[b]) == (len(candidates[b]) + 1) // 2
        for y in range(H):
            for x in range(W):
                pasted = int(labelled["label"][b, y, x]) in mixer.drawn[b]
                image = labelled["image"] if pasted else unlabelled["image"]
                label = labelled["label"] if pasted else unlabelled["pseudo_label"]
                weight = 1.0 if pasted else unlabelled["pseudo_weight"][b, y, x]
                assert torch.equal(mixed["image"][b, :, y, x], image[b, :, y, x])
                assert mixed["label"][b, y, x] == label[b, y, x]
                assert mixed["weight"][b, y, x] == weight
    for key, value in {**labelled, **unlabelled}.items():
        assert torch.equal(value, before[key])


def test_classmix_draws_every_class_equally_often() -> None:
    torch.manual_seed(0)
    present = torch.zeros(4000, 256, dtype=torch.bool)
    present[:, [0, 3, 7, 18, 255]] = True
    drawn = ClassMix().choose(present)
    assert torch.equal(drawn.sum(1), torch.full((4000,), 3))
    assert not (drawn & ~present).any()
    share = drawn[:, [0, 3, 7, 18, 255]].float().mean(0)
    torch.testing.assert_close(share, torch.full((5,), 3 / 5), rtol=0, atol=0.04)


def test_classmix_takes_uint8_labels(parts) -> None:
    labelled, unlabelled = parts
    torch.manual_seed(1)
    expected = ClassMix()(labelled, unlabelled)
    torch.manual_seed(1)
    mixed = ClassMix()({**labelled, "label": labelled["label"].byte()}, unlabelled)
    assert mixed["label"].dtype == torch.long
    assert all(torch.equal(mixed[key], expected[key]) for key in expected)


def test_classmix_errors(parts) -> None:
    labelled, unlabelled = parts
    with pytest.raises(ValueError, match=r"got \(2, 3, 8, 10\) and \(3, 3, 8, 10\): give both loaders"):
        ClassMix()({key: value[:2] for key, value in labelled.items()}, unlabelled)
    with pytest.raises(ValueError, match="classes_from must be 'batch' or 'image', got 'set'"):
        ClassMix("set")


@pytest.mark.parametrize("mixer", [CutMix, CutOut])
def test_boxes_cover_half_of_the_image(mixer) -> None:
    torch.manual_seed(0)
    height, width = 12, 10
    boxes = mixer().boxes(5000, height, width)
    top, bottom, left, right = boxes.unbind(1)
    across, down = right - left, bottom - top
    assert set(across.tolist()) == {6, 7, 8, 9}  # [W // 2 + 1, W)
    assert {(a, d) for a, d in zip(across.tolist(), down.tolist(), strict=True)} == {
        (6, 10),
        (7, 9),
        (8, 8),
        (9, 7),
    }
    assert top.min() == 0
    assert left.min() == 0
    assert bottom.max() == height
    assert right.max() == width
    assert set(top[across == 7].tolist()) == {0, 1, 2, 3}


def test_cutmix_fills_boxes_from_the_next_image(parts) -> None:
    labelled, unlabelled = parts
    boxes = [(0, 4, 1, 9), (2, 8, 0, 6), (1, 7, 2, 9)]

    class Boxed(CutMix):
        def boxes(self, count: int, height: int, width: int) -> Tensor:
            assert (count, height, width) == (B, H, W)
            return torch.tensor(boxes)

    mixed = Boxed(p=1.0)(labelled, unlabelled)
    emptied_kind = type("BoxedCutOut", (CutOut,), {"boxes": Boxed.boxes})
    emptied = emptied_kind(p=1.0, ignore_index=77)(labelled, unlabelled)
    keys = {"image": "image", "label": "pseudo_label", "weight": "pseudo_weight"}
    empty = {"image": 0, "label": 77, "weight": 0}
    for key, source in keys.items():
        expected, cut = unlabelled[source].clone(), unlabelled[source].clone()
        for i, (top, bottom, left, right) in enumerate(boxes):
            filling = unlabelled[source][(i + 1) % B]
            expected[i, ..., top:bottom, left:right] = filling[..., top:bottom, left:right]
            cut[i, ..., top:bottom, left:right] = empty[key]
        assert torch.equal(mixed[key], expected)
        assert torch.equal(emptied[key], cut)


@pytest.mark.parametrize("mixer", [CutMix, CutOut, CowMix, UnlabelledClassMix])
def test_the_coin_is_thrown_once_per_call(parts, mixer) -> None:
    torch.manual_seed(0)
    unlabelled = parts[1]
    touched = []
    for _ in range(200):
        changed = (mixer(p=0.3)({}, unlabelled)["image"] != unlabelled["image"]).flatten(1).any(1)
        assert changed.all() or not changed.any()
        touched.append(bool(changed.all()))
    assert 0.2 < sum(touched) / len(touched) < 0.4
    assert torch.equal(mixer(p=0.0)({}, unlabelled)["image"], unlabelled["image"])


def test_unlabelled_classmix_pastes_onto_the_next_image(parts) -> None:
    unlabelled = parts[1]
    mixer = RecordingUnlabelledClassMix(p=1.0)
    mixed = mixer({}, unlabelled)
    for b in range(B):
        assert mixer.present[b] == set(unlabelled["pseudo_label"][b].unique().tolist())
        assert len(mixer.drawn[b]) == len(mixer.present[b]) // 2
        for y in range(H):
            for x in range(W):
                origin = b if int(unlabelled["pseudo_label"][b, y, x]) in mixer.drawn[b] else (b + 1) % B
                assert torch.equal(mixed["image"][b, :, y, x], unlabelled["image"][origin, :, y, x])
                assert mixed["label"][b, y, x] == unlabelled["pseudo_label"][origin, y, x]
                assert mixed["weight"][b, y, x] == unlabelled["pseudo_weight"][origin, y, x]


def test_cutmix_needs_width() -> None:
    with pytest.raises(ValueError, match="CutMix needs images at least 3 pixels wide, got 2"):
        CutMix().boxes(1, 8, 2)


# -- masks across domains --------------------------------------------------------------------------------


@pytest.mark.parametrize("mixer", [CutMix, CowMix])
def test_the_labelled_partner_fills_with_full_weight(parts, mixer) -> None:
    labelled, unlabelled = parts
    labelled = {**labelled, "label": labelled["label"].byte()}
    mixed = mixer(p=1.0, partner="labelled")(labelled, unlabelled)
    filled = (mixed["image"] == labelled["image"]).all(1)
    assert 0 < filled.float().mean() < 1
    assert torch.equal(mixed["image"], torch.where(filled[:, None], labelled["image"], unlabelled["image"]))
    label = torch.where(filled, labelled["label"].long(), unlabelled["pseudo_label"])
    assert mixed["label"].dtype == torch.long
    assert torch.equal(mixed["label"], label)
    assert torch.equal(mixed["weight"], torch.where(filled, 1.0, unlabelled["pseudo_weight"]))


def test_mask_mixers_name_what_is_wrong(parts) -> None:
    labelled, unlabelled = parts
    with pytest.raises(ValueError, match=r"CowMix needs .* got \(2, 3, 8, 10\) and \(3, 3, 8, 10\)"):
        CowMix(p=1.0, partner="labelled")({key: value[:2] for key, value in labelled.items()}, unlabelled)
    with pytest.raises(ValueError, match="partner must be 'unlabelled' or 'labelled', got 'source'"):
        CutMix(partner="source")
    with pytest.raises(ValueError, match=r"p must be a probability in \[0, 1\], got 1.5"):
        CowMix(p=1.5)
    with pytest.raises(ValueError, match=r"sigma must be \(least, largest\), both positive, got \(8, 4\)"):
        CowMix(sigma=(8, 4))
    with pytest.raises(ValueError, match=r"share must be .* within \(0, 1\), got \(0.2, 1.0\)"):
        CowMix(share=(0.2, 1.0))


# -- CowMix ----------------------------------------------------------------------------------------------


def test_cowmix_keeps_where_its_noise_exceeds_the_quantile() -> None:
    class Given(CowMix):
        def noise(self, label: Tensor) -> Tensor:
            return torch.arange(label.numel(), dtype=torch.float32).view(label.shape).sin()

    torch.manual_seed(0)
    label = torch.zeros(2, 6, 5, dtype=torch.long)
    kept = Given(share=(0.3, 0.3)).kept(label)
    noise = Given().noise(label)
    for b in range(2):
        normal = torch.distributions.Normal(noise[b].mean(), noise[b].std())
        assert torch.equal(kept[b], noise[b] > normal.icdf(torch.tensor(0.3)))
    assert 0 < kept.float().mean() < 1


@pytest.mark.parametrize("share", [0.2, 0.5, 0.7])
def test_cowmix_fills_its_share(share: float) -> None:
    torch.manual_seed(0)
    kept = CowMix(sigma=(2.0, 2.0), share=(share, share)).kept(torch.zeros(64, 48, 40))
    torch.testing.assert_close(1 - kept.float().mean(), torch.tensor(share), rtol=0, atol=0.01)


def test_cowmix_smooths_by_each_images_sigma() -> None:
    """White noise smoothed by a Gaussian is correlated as ``exp(-d^2 / 4 sigma^2)`` over a distance d."""
    torch.manual_seed(0)
    for sigma in (1.5, 4.0):
        noise = CowMix(sigma=(sigma, sigma)).noise(torch.zeros(200, 64, 96))
        for axis in (1, 2):
            for distance in (1, 3, 6):
                shifted = noise.roll(distance, axis)  # the pattern wraps around
                found = (noise * shifted).mean() / noise.square().mean()
                expected = torch.tensor(-(distance**2) / (4 * sigma**2)).exp()
                torch.testing.assert_close(found, expected, rtol=0, atol=0.03)
    spread = CowMix(sigma=(1.0, 16.0)).noise(torch.zeros(64, 64, 64))
    rough = (spread.diff(dim=2).square().mean((1, 2)) / spread.square().mean((1, 2))).log()
    assert rough.max() - rough.min() > 3  # the images differ in scale


def test_cowmix_is_reproducible_on_odd_sizes() -> None:
    label = torch.zeros(2, 7, 9)
    torch.manual_seed(3)
    first = CowMix().kept(label)
    torch.manual_seed(3)
    assert torch.equal(CowMix().kept(label), first)
    assert first.shape == (2, 7, 9)
    assert first.dtype == torch.bool
