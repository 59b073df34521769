"""Mixing of images, labels and weights: what the student sees in place of the plain unlabelled images.

Every mixer takes the labelled part (``image`` ``[B, 3, H, W]``, ``label`` ``[B, H, W]``) and the unlabelled
part (``image``, ``pseudo_label``, ``pseudo_weight``) of a batch and returns ``image``, ``label`` and
``weight``. All of it stays on the device, whatever classes the labels hold.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn

Part = dict[str, Any]
Mixed = dict[str, Tensor]
Partner = Literal["unlabelled", "labelled"]


class NoMix(nn.Module):
    """The unlabelled images with their pseudo-labels, as they are."""

    def forward(self, labelled: Part, unlabelled: Part) -> Mixed:
        """Return the unlabelled part under the keys of a mixed one."""
        return {
            "image": unlabelled["image"],
            "label": unlabelled["pseudo_label"],
            "weight": unlabelled["pseudo_weight"],
        }


class ClassMix(nn.Module):
    """Paste half of the labelled images' classes onto the unlabelled images.

    For each image ``ceil(n / 2)`` of the n classes are drawn without replacement; its pixels of these
    classes, their labels and a weight of 1 replace those of the unlabelled image. Olsson et al., "ClassMix"
    (WACV 2021), section 3.2, with labelled sources as in DACS (Tranheden et al., WACV 2021). The released
    code of DACS, DAFormer and FST draws from the classes of the whole batch, and its classes include the
    ignore index: both are the default here.

    Args:
        classes_from: draw from the classes of the whole ``batch`` (those absent from an image paste nothing)
            or of the ``image`` alone.
        ignore_index: label of ignored pixels, below 256.
        paste_ignored: whether ignored pixels count as a class that can be drawn.
    """

    def __init__(
        self,
        classes_from: Literal["batch", "image"] = "batch",
        ignore_index: int = 255,
        paste_ignored: bool = True,
    ) -> None:
        super().__init__()
        if classes_from not in ("batch", "image"):
            raise ValueError(f"classes_from must be 'batch' or 'image', got {classes_from!r}")
        self.classes_from, self.ignore_index, self.paste_ignored = classes_from, ignore_index, paste_ignored

    def forward(self, labelled: Part, unlabelled: Part) -> Mixed:
        """Mix the two parts.

        Raises:
            ValueError: they differ in batch size or image size.
        """
        plain = NoMix()(labelled, unlabelled)
        _require_one_shape(type(self).__name__, labelled, plain)
        label = labelled["label"].long()
        present = _present(label)
        if not self.paste_ignored:
            present[:, self.ignore_index] = False
        if self.classes_from == "batch":
            present = present.any(0, keepdim=True).expand_as(present)
        paste = _lookup(self.choose(present), label)
        return {
            "image": torch.where(paste[:, None], labelled["image"], plain["image"]),
            "label": torch.where(paste, label, plain["label"]),
            "weight": torch.where(paste, 1.0, plain["weight"]),
        }

    def choose(self, present: Tensor) -> Tensor:
        """Draw ``ceil(n / 2)`` of each row's n classes: bool ``[B, 256]`` → bool ``[B, 256]``."""
        return _draw(present, (present.sum(1) + 1) // 2)


class MaskMix(nn.Module, ABC):
    """Fill a part of each unlabelled image from another one, with probability ``p`` for the whole batch per call.

    Args:
        p: probability that a call mixes at all.
        partner: fill from the next ``unlabelled`` image of the batch (semi-supervised learning), or from the
            ``labelled`` image of the same position, whose pixels get weight 1 (domain adaptation, as DACS
            compares mixers).

    Raises:
        ValueError: ``p`` is no probability, or there is no such partner.
    """

    def __init__(self, p: float = 0.5, partner: Partner = "unlabelled") -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p must be a probability in [0, 1], got {p}")
        if partner not in ("unlabelled", "labelled"):
            raise ValueError(f"partner must be 'unlabelled' or 'labelled', got {partner!r}")
        self.p, self.partner = p, partner

    def forward(self, labelled: Part, unlabelled: Part) -> Mixed:
        """Mix the two parts; the labelled one is looked at only where it is the partner.

        Raises:
            ValueError: with the labelled partner, the two differ in batch size or image size.
        """
        plain = NoMix()(labelled, unlabelled)
        if not self.coin():
            return plain
        kept, other = self.kept(plain["label"]), self.other(labelled, plain)
        return {
            "image": torch.where(kept[:, None], plain["image"], other["image"]),
            "label": torch.where(kept, plain["label"], other["label"]),
            "weight": torch.where(kept, plain["weight"], other["weight"]),
        }

    def coin(self) -> bool:
        """Decide whether this call mixes, on the CPU, for the host acts on it."""
        return float(torch.rand(())) < self.p

    @abstractmethod
    def kept(self, label: Tensor) -> Tensor:
        """Return which pixels each image keeps: bool ``[B, H, W]``."""

    def other(self, labelled: Part, plain: Mixed) -> Mixed:
        """Return what fills the rest; of unlabelled images i + 1 for image i, the first for the last."""
        if self.partner == "unlabelled":
            return {key: value.roll(-1, 0) for key, value in plain.items()}
        _require_one_shape(type(self).__name__, labelled, plain)
        return {
            "image": labelled["image"],
            "label": labelled["label"].long(),
            "weight": torch.ones_like(plain["weight"]),
        }


class CutMix(MaskMix):
    """Fill a box of half the image's area with that of another image: pixels, labels and weights.

    Yun et al., "CutMix" (ICCV 2019), in the form of U2PL's and FST's semi-supervised code: the width is drawn
    from ``[W // 2 + 1, W)``, the height follows from the area, the position is uniform.

    Args:
        p: probability that a call mixes at all.
        partner: see :class:`MaskMix`; the semi-supervised code fills from unlabelled images.
    """

    def boxes(self, count: int, height: int, width: int) -> Tensor:
        """Draw boxes ``[count, 4]`` as (top, bottom, left, right), on the CPU."""
        if width < 3:
            raise ValueError(f"{type(self).__name__} needs images at least 3 pixels wide, got {width}")
        across = torch.randint(width // 2 + 1, width, (count,))
        down = (height * width / 2 / across).round().long()
        top = (torch.rand(count) * (height - down + 1)).long()
        left = (torch.rand(count) * (width - across + 1)).long()
        return torch.stack((top, top + down, left, left + across), 1)

    def kept(self, label: Tensor) -> Tensor:
        """Return the pixels outside the boxes."""
        boxes = torch.as_tensor(self.boxes(*label.shape)).to(label.device, non_blocking=True)
        top, bottom, left, right = boxes[:, :, None].unbind(1)
        y = torch.arange(label.shape[1], device=label.device)
        x = torch.arange(label.shape[2], device=label.device)
        rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
        return ~(rows[:, :, None] & columns[:, None, :])


class CutOut(CutMix):
    """Empty a box of half the image's area: pixels and weights become 0, labels ``ignore_index``.

    Args:
        p: probability that a call cuts at all.
        ignore_index: label of the emptied pixels.
    """

    def __init__(self, p: float = 0.5, ignore_index: int = 255) -> None:
        super().__init__(p)
        self.ignore_index = ignore_index

    def other(self, labelled: Part, plain: Mixed) -> Mixed:
        """Return empty images."""
        return {
            "image": torch.zeros_like(plain["image"]),
            "label": torch.full_like(plain["label"], self.ignore_index),
            "weight": torch.zeros_like(plain["weight"]),
        }


class UnlabelledClassMix(MaskMix):
    """Paste half of an image's pseudo-classes onto the next unlabelled image, as U2PL's code does.

    Args:
        p: probability that a call mixes at all.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)

    def kept(self, label: Tensor) -> Tensor:
        """Return the pixels of the drawn classes."""
        return _lookup(self.choose(_present(label)), label)

    def choose(self, present: Tensor) -> Tensor:
        """Draw ``floor(n / 2)`` of each row's n classes: bool ``[B, 256]`` → bool ``[B, 256]``."""
        return _draw(present, present.sum(1) // 2)


def _require_one_shape(mixer: str, labelled: Part, plain: Mixed) -> None:
    ours, theirs = tuple(labelled["image"].shape), tuple(plain["image"].shape)
    if ours != theirs:
        raise ValueError(
            f"{mixer} needs labelled and unlabelled images of one shape, got {ours} and {theirs}: give both "
            "loaders the same batch size, crop size and drop_last"
        )


def _present(label: Tensor) -> Tensor:
    """Return which labels, all within [0, 256), each image holds: bool ``[B, 256]``."""
    present = torch.zeros(len(label), 256, dtype=torch.bool, device=label.device)
    label = label.flatten(1)
    return present.scatter_(
        1, label, present.new_ones(()).expand_as(label)
    )  # twice as fast as a number on the CPU


def _draw(present: Tensor, count: Tensor) -> Tensor:
    """Draw ``count[b]`` of the classes present in row b, without replacement."""
    score = torch.rand(present.shape, device=present.device).masked_fill(~present, 2.0)
    drawn = torch.arange(present.shape[1], device=present.device) < count[:, None]
    return torch.zeros_like(present).scatter_(1, score.argsort(1), drawn)


def _lookup(chosen: Tensor, label: Tensor) -> Tensor:
    """Return where each image's label is one of its chosen classes: bool ``[B, H, W]``."""
    return chosen.gather(1, label.flatten(1)).view(label.shape)
