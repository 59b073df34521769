"""How SePiCo prepares a batch: crops by pseudo-label, day-to-night labels, strong views of every image."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from callbacks import PseudoLabeler
from zoo.method import Batch, Method
from zoo.nn.crop import ClassBalancedCrop, cut
from zoo.nn.day_night import DayNightFusion


class SePiCoLabeler(PseudoLabeler):
    """The usual pseudo-labeller, for target images that are larger than the source crops or come with a day partner.

    Target images of another size than the source ones are labelled once as a whole, cut by ``crop`` to the
    source's size, and labelled again: those labels count. With ``fuse`` the labels are those of target ``image``
    and target ``day`` together; both are cut alike. Besides mixed images, source and target ones get a strongly
    augmented copy under ``strong``; one call augments them all, so that they share its coins, and ``image``
    stays clean for teacher and mixing.

    Args:
        crop: chooses the windows.
        fuse: joins the probabilities of day and night; ``None``: there are no day images.
        **kwargs: see :class:`callbacks.PseudoLabeler`.
    """

    def __init__(self, crop: ClassBalancedCrop, fuse: DayNightFusion | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts["crop"] = crop
        if fuse is not None:
            self.parts["fuse"] = fuse

    def annotate(self, method: Method, batch: Batch) -> Batch:
        """Cut the target images where they are larger than the source ones, then label them."""
        target, size = batch[self.unlabelled], tuple(batch[self.labelled]["image"].shape[-2:])
        if tuple(target["image"].shape[-2:]) != size:
            corner = self.parts["crop"](self.scores(method, target).argmax(1), size)
            batch = {**batch, self.unlabelled: cut(target, corner, size)}
        return super().annotate(method, batch)

    def scores(self, method: Method, part: Batch) -> Tensor:
        """Return the teacher's logits or, with day partners, fused probabilities.

        Raises:
            MisconfigurationException: the day partners are missing.
        """
        night = super().scores(method, part)
        if "fuse" not in self.parts:
            return night
        if "day" not in part:
            raise MisconfigurationException(
                f"day_night needs batch[{self.unlabelled!r}]['day'], the day images that belong to the night "
                f"images, and found only {sorted(part)}: use a benchmark with day-night pairs, or unset "
                "model.day_night"
            )
        day = super().scores(method, {"image": part["day"]})
        return self.parts["fuse"](day.softmax(1), night.softmax(1))

    @torch.no_grad()
    def augment(self, batch: Batch) -> Batch:
        """Write ``strong`` to source and (once labelled) target, and augment the mixed images, in one call."""
        if "augment" not in self.parts:
            return batch
        parts = {key: dict(batch[key]) for key in (self.labelled, self.unlabelled, "mixed") if key in batch}
        if "pseudo_label" not in parts[self.unlabelled]:
            del parts[self.unlabelled]
        clean = [part["image"] for part in parts.values()]
        strong = self.parts["augment"](torch.cat(clean)).split([len(image) for image in clean])
        for (key, part), image in zip(parts.items(), strong, strict=True):
            part["image" if key == "mixed" else "strong"] = image
        return {**batch, **parts}
