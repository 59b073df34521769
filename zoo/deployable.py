"""What every method can do once it is trained: be evaluated, saved, shared, brought back, and predict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import lightning as L
import torch
from torch import nn

from zoo.nn.deployed import BackboneFeatures
from zoo.teacher import Teacher


class Deployable(L.LightningModule):
    """What of :class:`zoo.Method` concerns its networks as results; files are the business of :mod:`zoo.export`.

    Attributes:
        benchmark: what the method must know of the benchmark to be used without it, plain values: ``name``,
            ``classes``, ``palette``, ``ignore_index``, ``preprocessing``. In every checkpoint; empty before training.
    """

    #: What the exported network takes: ``image`` (RGB in [0, 1]), ``spectrogram`` or ``volume``.
    input_name: ClassVar[str] = "image"
    #: Names of what it takes besides; then :meth:`example_input` gives a tuple.
    more_inputs: ClassVar[tuple[str, ...]] = ()
    benchmark: Mapping[str, Any]
    student: nn.Module

    # -- which network, and how it is called ------------------------------------------------------------

    def named_teachers(self) -> Iterator[tuple[str, Teacher]]:
        """The teachers among the submodules, by attribute path."""
        return ((name, module) for name, module in self.named_modules() if isinstance(module, Teacher))

    def evaluated(self) -> nn.Module:
        """What predicts: the student, where a paper does not say otherwise, or a :class:`~zoo.teacher.Teacher`."""
        return self.student

    def networks(self) -> dict[str, nn.Module]:
        """The whole networks in the method by name: ``student`` and its teachers (not those of a part of it)."""
        kind = type(self.student)
        teachers = {name: t.network for name, t in self.named_teachers() if type(t.network) is kind}
        return {"student": self.student, **teachers}

    def evaluated_name(self) -> str:
        """Which of :meth:`networks` predicts."""
        wanted = self.evaluated()
        wanted = wanted.network if isinstance(wanted, Teacher) else wanted
        return next(name for name, network in self.networks().items() if network is wanted)

    def deployed(self, network: nn.Module) -> nn.Module:
        """One of :meth:`networks` with plain tensors in and out, as it is exported; ``outputs`` names the latter."""
        return network

    def deployed_backbone(self, network: Any) -> nn.Module:
        """The same of its backbone alone: maps or tokens."""
        return BackboneFeatures(network.backbone)

    @classmethod
    def input_names(cls) -> tuple[str, ...]:
        """Names of all that the exported network takes."""
        return (cls.input_name, *cls.more_inputs)

    def example_input(self, size: tuple[int, ...] | None = None) -> Any:
        """A batch of two that :meth:`deployed` takes: images ``[2, C, H, W]``; what they show is noise.

        Args:
            size: height and width; by default those the backbone was built for, or 224 x 224.
        """
        backbone: Any = self.student.backbone
        embed = getattr(getattr(backbone, "model", None), "patch_embed", None)
        known: Any = getattr(backbone, "img_size", None) or getattr(embed, "img_size", None) or 224
        height, width = size or ((known, known) if isinstance(known, int) else known)
        generator = torch.Generator().manual_seed(0)
        return torch.rand(2, backbone.in_chans, height, width, generator=generator).to(self.device)

    # -- facts of the benchmark -------------------------------------------------------------------------

    def take_facts(self, datamodule: Any) -> None:
        """Remember what prediction needs to know of the benchmark."""
        facts = {
            "name": getattr(datamodule, "name", type(datamodule).__name__),
            "classes": list(getattr(datamodule, "classes", ())),
            "palette": [list(colour) for colour in getattr(datamodule, "palette", ())],
            "ignore_index": getattr(datamodule, "ignore_index", None),
            "preprocessing": dict(getattr(datamodule, "preprocessing", {})),
        }
        self.benchmark = {name: value for name, value in facts.items() if value not in ([], {}, None)}

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What the benchmark does to every image or volume before the network sees it; empty: nothing."""
        return dict(self.benchmark.get("preprocessing", {}))

    # -- saved, shared and brought back -----------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, network: str | None = None, part: str = "whole") -> Path:
        """Write ``model.safetensors``, ``config.json`` and a model card; :meth:`from_pretrained` reads them.

        Args:
            folder: is made if need be; files of these names are replaced.
            network: ``student``, ``teacher``, ...; by default the one that predicts.
            part: ``whole``, or the ``backbone`` alone.

        Returns:
            The file of weights.

        Raises:
            CheckpointError: no such network, or the folder cannot be written.
        """
        from zoo.export.weights import save_pretrained

        return save_pretrained(self, folder, network, part)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload what :meth:`save_pretrained` writes to ``owner/name`` of the Hugging Face hub; returns its address.

        Args:
            repository: is made if need be.
            **options: see :func:`zoo.export.hub.push_to_hub`.

        Raises:
            CheckpointError: downloads and uploads are switched off, or the hub refuses.
        """
        from zoo.export.hub import push_to_hub

        return push_to_hub(self, repository, **options)

    @classmethod
    def from_pretrained(cls, source: str | Path, map_location: Any = "cpu", **changes: Any) -> Self:
        """A trained method, ready to predict: without the callbacks that trained it, and nothing is downloaded twice.

        Args:
            source: a Lightning checkpoint, a file or folder of :meth:`save_pretrained` or ``zoo export``,
                ``hf-hub:owner/name[@revision][:file]``, or a URL with ``#sha256=...``.
            map_location: device of the weights.
            **changes: constructor arguments that differ from those of the file (``inference``, ...).

        Raises:
            CheckpointError: the file cannot be had or read safely, is of another method, or does not fit.
        """
        from zoo.export.restore import restore

        return restore(cls, source, map_location, changes)
