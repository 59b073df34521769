"""One DINO step as each library has it: module, batch, and the Lightning that the module is made for.

``python -m benchmarks.speed.dino_libraries OPTIONS`` is the process of one library for :mod:`benchmarks.speed.dino`.
All have ViT-Ti/16 of timm, head 2048-2048-256-K, AdamW, and crops that were made beforehand. solo-learn has no pip
release that can be installed: it is read from a checkout.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
import warnings
from itertools import pairwise
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.paired import Meter

CROPS = (96, 48)
#: Positions are interpolated, for the small crops and for the 224 pixels at which some library tries its backbone.
VIT = {"img_size": CROPS[0], "dynamic_img_size": True, "num_classes": 0}
Built = tuple[Any, Any, Any]


def views(options: dict[str, Any]) -> list[Tensor]:
    B, device = options["batch"], options["device"]
    sides = (CROPS[0],) * 2 + (CROPS[1],) * options["local"]
    return [torch.rand(B, 3, side, side, device=device) for side in sides]


def by_size(crops: list[Tensor]) -> dict[str, Tensor]:
    kinds = {"global": crops[:2], "local": crops[2:]}
    return {kind: torch.cat(several) for kind, several in kinds.items() if several}


def ours(options: dict[str, Any], fused: bool = True) -> Built:
    import lightning

    from zoo import DINO

    method = DINO(
        backbone=options["backbone"], backbone_args={"img_size": CROPS[0]}, prototypes=options["prototypes"]
    )
    method.optim.options["fused"] = fused
    return method, {"views": by_size(views(options))}, lightning


def hand_written(options: dict[str, Any]) -> Built:
    import lightning

    K, local = options["prototypes"], options["local"]

    class HandWritten(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            vit = timm.create_model(options["backbone"], **VIT)
            widths = [vit.num_features, 2048, 2048, 256]
            layers = [m for i, o in pairwise(widths) for m in (nn.Linear(i, o), nn.GELU())][:-1]
            self.student = nn.ModuleDict(
                {"vit": vit, "mlp": nn.Sequential(*layers), "last": nn.Linear(256, K, False)}
            )
            self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
            self.register_buffer("centre", torch.zeros(1, K))

        @staticmethod
        def logits(net: Any, *crops: Tensor) -> Tensor:
            z = F.normalize(net["mlp"](torch.cat([net["vit"](crop) for crop in crops])), dim=-1)
            return F.linear(z, F.normalize(net["last"].weight, dim=-1))

        def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
            with torch.no_grad():
                said = self.logits(self.teacher, batch["global"])
                first, second = ((said - self.centre) / 0.04).softmax(-1).chunk(2)
                self.centre.lerp_(said.mean(0, keepdim=True), 0.1)
            crops = (self.logits(self.student, *batch.values()) / 0.1).unflatten(0, (-1, len(first)))
            target = torch.stack((second, first, *[first + second] * local))
            weight = torch.tensor([1.0, 1.0, *[2.0] * local], device=self.device)[:, None]
            rows = weight * crops.logsumexp(-1) - torch.linalg.vecdot(target, crops)
            return rows.mean(1).sum() / (2 + 2 * local)

        def on_train_batch_end(self, *_: Any) -> None:
            with torch.no_grad():
                torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 0.004)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.student.parameters(), 1e-5, weight_decay=0.04, fused=True)

    return HandWritten(), by_size(views(options)), lightning


def lightly(options: dict[str, Any]) -> Built:
    """The modules of lightly, put together as its documentation does: crop by crop."""
    import lightning
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    class Lightly(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            vit = timm.create_model(options["backbone"], **VIT)
            self.student = vit
            self.head = DINOProjectionHead(
                vit.num_features, 2048, 256, options["prototypes"], freeze_last_layer=1
            )
            self.teacher, self.teacher_head = copy.deepcopy(vit), DINOProjectionHead(
                vit.num_features, 2048, 256, options["prototypes"]
            )  # fmt: skip
            deactivate_requires_grad(self.teacher)
            deactivate_requires_grad(self.teacher_head)
            self.loss = DINOLoss(options["prototypes"], warmup_teacher_temp_epochs=5)

        def training_step(self, crops: list[Tensor], _: int) -> Tensor:
            update_momentum(self.student, self.teacher, m=0.996)
            update_momentum(self.head, self.teacher_head, m=0.996)
            with torch.no_grad():
                said = [self.teacher_head(self.teacher(crop)) for crop in crops[:2]]
            return self.loss(
                said, [self.head(self.student(crop)) for crop in crops], epoch=self.current_epoch
            )

        def on_after_backward(self) -> None:
            self.head.cancel_last_layer_gradients(current_epoch=self.current_epoch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            trained = [*self.student.parameters(), *self.head.parameters()]
            return torch.optim.AdamW([p for p in trained if p.requires_grad], 1e-5, weight_decay=0.04)

    return Lightly(), views(options), lightning


def lightly_train(options: dict[str, Any]) -> Built:
    import pytorch_lightning
    from lightly_train._methods.dino.dino import DINO, DINOAdamWArgs, DINOArgs
    from lightly_train._models.embedding_model import EmbeddingModel
    from lightly_train._models.timm.timm import TIMMModelWrapper
    from lightly_train._scaling import ScalingInfo

    wrapped = TIMMModelWrapper(timm.create_model(options["backbone"], **VIT))
    arguments, optimizer = DINOArgs(output_dim=options["prototypes"]), DINOAdamWArgs()
    arguments.resolve_auto(ScalingInfo(dataset_size=1_280_000, epochs=100), optimizer, wrapped)
    method = DINO(arguments, optimizer, EmbeddingModel(wrapped), options["batch"], 3)
    method._log_example_views = lambda train_batch: None
    return method, {"views": views(options)}, pytorch_lightning


def stable_pretraining(options: dict[str, Any]) -> Built:
    import lightning
    from stable_pretraining.callbacks import TeacherStudentCallback
    from stable_pretraining.methods.dino import DINO

    class Trained(DINO):
        def forward(self, batch: dict[str, Any], stage: str) -> dict[str, Tensor]:
            found = super().forward(global_views=batch["global"], local_views=batch["local"])
            return {"loss": found.loss}

        def configure_callbacks(self) -> list[Any]:
            return [TeacherStudentCallback()]

    vit = timm.create_model(options["backbone"], **VIT)
    method = Trained(vit, n_prototypes=options["prototypes"])
    method.optim = {"optimizer": {"type": "AdamW", "lr": 1e-5, "weight_decay": 0.04}}
    crops = views(options)
    return method, {"global": crops[:2], "local": crops[2:]}, lightning


def solo_learn(options: dict[str, Any]) -> Built:
    """Two crops, each forwarded alone; its classifier beside the head is not to be had without."""
    import lightning

    sys.path.insert(0, options["solo_learn"])
    from omegaconf import OmegaConf
    from solo.methods.dino import DINO

    head = {"proj_hidden_dim": 2048, "proj_output_dim": 256, "num_prototypes": options["prototypes"]}
    settings = {
        "method": "dino", "max_epochs": 1,
        "backbone": {
            "name": "_".join(options["backbone"].split("_")[:2]), "kwargs": {"img_size": CROPS[0]},
        },
        "data": {"dataset": "random", "num_classes": 10, "num_large_crops": 2, "num_small_crops": 0},
        "optimizer": {
            "name": "adamw", "batch_size": options["batch"], "lr": 1e-5, "weight_decay": 0.04, "classifier_lr": 0.1,
        },
        "scheduler": {"name": "none"}, "momentum": {"base_tau": 0.996},
        "method_kwargs": {**head, "freeze_last_layer": 0},
    }  # fmt: skip
    method = DINO(OmegaConf.create(settings)).to(memory_format=torch.channels_last)  # as its script does
    index = torch.arange(options["batch"], device=options["device"])
    return method, [index, views(options), index % 10], lightning


BUILDS: dict[str, Any] = {
    "zoo": ours,
    "zoo, AdamW not fused": lambda options: ours(options, fused=False),
    "hand-written": hand_written,
    "lightly": lightly,
    "lightly-train": lightly_train,
    "stable-pretraining": stable_pretraining,
    "solo-learn": solo_learn,
}


def train(options: dict[str, Any]) -> None:
    """The process of one library."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    module, batch, library = BUILDS[options["worker"]](options)
    trainer = library.Trainer(
        max_epochs=1, accelerator="cpu" if options["device"] == "cpu" else "gpu", devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, Meter(batch, options["device"]))


if __name__ == "__main__":
    train(json.loads(sys.argv[1]))
