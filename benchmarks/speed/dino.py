"""A DINO step of the zoo and of other libraries: same backbone, crops, batch and head, each in its own Trainer.

ViT-Ti/16 of timm, two crops of 96 and six of 48 pixels made beforehand, head 2048-2048-256-K, AdamW. Every library is
installed into an environment of its own, which sees the packages of this one and changes none of them; one that
cannot be installed is reported. ``hand-written`` is the step without any library, in a Trainer that logs nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import sysconfig
import venv
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.paired import Meter, Worker, markdown, shown, spread, take_turns
from datamodules.cache import cache_root

#: Distributions of the libraries, by name; what is measured is the newest version of these.
PEERS = {
    "lightly": "lightly==1.6.*",
    "lightly-train": "lightly-train==0.18.*",
    "stable-pretraining": "stable-pretraining==0.1.*",
    "solo-learn": "solo-learn==1.*",
}
OURS = ("zoo", "zoo, fused AdamW", "hand-written")
#: Installed here and the same for everybody.
SHARED = ("torch", "torchvision", "lightning", "pytorch-lightning", "timm", "torchmetrics", "numpy")
CROPS, LOCAL = (96, 48), 6
VIT = {"img_size": CROPS[0], "dynamic_img_size": True, "num_classes": 0}


def environment(folder: Path, requirement: str) -> Path:
    """Python of an environment with the library, on top of the packages of this one.

    Raises:
        RuntimeError: pip could not install it; its last lines are in the message.
    """
    python = folder / "bin" / "python"
    if (folder / "installed").exists():
        return python
    venv.create(folder, with_pip=False, symlinks=True, clear=True)
    here = sysconfig.get_path("purelib")
    site = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    (Path(site.strip()) / "parent.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version(name).partition('+')[0]}\n" for name in SHARED))
    command = [python, "-m", "pip", "install", "--quiet", "--constraint", constraints, requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            "\n".join(line for line in done.stderr.splitlines() if line.startswith("ERROR"))[-1000:]
        )
    (folder / "installed").touch()
    return python


def views(options: dict[str, Any]) -> list[torch.Tensor]:
    B, device = options["batch"], options["device"]
    return [torch.rand(B, 3, side, side, device=device) for side in (CROPS[0],) * 2 + (CROPS[1],) * LOCAL]


def by_size(crops: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"global": torch.cat(crops[:2]), "local": torch.cat(crops[2:])}


# Each gives the module, the batch, and the Lightning that the module is made for.


def zoo(options: dict[str, Any], fused: bool = False) -> tuple[Any, Any, Any]:
    import lightning

    from zoo import DINO

    method = DINO(
        backbone=options["backbone"], backbone_args={"img_size": CROPS[0]}, prototypes=options["prototypes"]
    )
    method.optim.options = {"fused": True} if fused else {}
    return method, {"views": by_size(views(options))}, lightning


def hand_written(options: dict[str, Any]) -> tuple[Any, Any, Any]:
    import copy

    import lightning
    import timm
    import torch.nn.functional as F
    from torch import nn

    K = options["prototypes"]

    class HandWritten(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            vit = timm.create_model(options["backbone"], **VIT)
            widths = [vit.num_features, 2048, 2048, 256]
            layers = [
                m for i, o in zip(widths, widths[1:], strict=False) for m in (nn.Linear(i, o), nn.GELU())
            ][:-1]
            self.student = nn.ModuleDict(
                {"vit": vit, "mlp": nn.Sequential(*layers), "last": nn.Linear(256, K, False)}
            )
            self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
            self.register_buffer("centre", torch.zeros(1, K))

        @staticmethod
        def logits(net: Any, *crops: torch.Tensor) -> torch.Tensor:
            z = F.normalize(net["mlp"](torch.cat([net["vit"](crop) for crop in crops])), dim=-1)
            return F.linear(z, F.normalize(net["last"].weight, dim=-1))

        def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
            with torch.no_grad():
                said = self.logits(self.teacher, batch["global"])
                first, second = ((said - self.centre) / 0.04).softmax(-1).chunk(2)
                self.centre.lerp_(said.mean(0, keepdim=True), 0.1)
            crops = (self.logits(self.student, batch["global"], batch["local"]) / 0.1).unflatten(
                0, (-1, len(first))
            )
            target = torch.stack((second, first, *[first + second] * LOCAL))
            weight = torch.tensor([1.0, 1.0, *[2.0] * LOCAL], device=self.device)[:, None]
            rows = weight * crops.logsumexp(-1) - torch.linalg.vecdot(target, crops)
            return rows.mean(1).sum() / (2 + 2 * LOCAL)

        def on_train_batch_end(self, *_: Any) -> None:
            with torch.no_grad():
                torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 0.004)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.student.parameters(), 1e-5, weight_decay=0.04, fused=True)

    return HandWritten(), by_size(views(options)), lightning


def lightly(options: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The modules of lightly, put together as its documentation does: crop by crop."""
    import copy

    import lightning
    import timm
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

        def training_step(self, crops: list[torch.Tensor], _: int) -> torch.Tensor:
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


def lightly_train(options: dict[str, Any]) -> tuple[Any, Any, Any]:
    import pytorch_lightning
    import timm
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


def stable_pretraining(options: dict[str, Any]) -> tuple[Any, Any, Any]:
    import lightning
    import stable_pretraining as spt
    import timm
    from stable_pretraining.callbacks import TeacherStudentCallback
    from stable_pretraining.methods.dino import DINO

    class Trained(DINO):
        def forward(self, batch: dict[str, Any], stage: str) -> dict[str, torch.Tensor]:
            found = super().forward(global_views=batch["global"], local_views=batch["local"])
            return {"loss": found.loss}

        def configure_callbacks(self) -> list[Any]:
            return [TeacherStudentCallback()]

    assert spt.__version__
    # It tries its backbone at 224 pixels, whatever the crops are: positions of any size are interpolated.
    vit = timm.create_model(options["backbone"], **VIT)
    method = Trained(vit, n_prototypes=options["prototypes"])
    method.optim = {"optimizer": {"type": "AdamW", "lr": 1e-5, "weight_decay": 0.04}}
    crops = views(options)
    return method, {"global": crops[:2], "local": crops[2:]}, lightning


BUILDS: dict[str, Any] = {
    "zoo": zoo,
    "zoo, fused AdamW": lambda options: zoo(options, fused=True),
    "hand-written": hand_written,
    "lightly": lightly,
    "lightly-train": lightly_train,
    "stable-pretraining": stable_pretraining,
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--prototypes", type=int, default=4096)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="of each library a round")
    parser.add_argument("--environments", type=Path, help="where to install; the zoo's cache by default")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return train(json.loads(arguments.worker))
    options = {key: getattr(arguments, key) for key in ("backbone", "batch", "prototypes", "device")}
    pythons: dict[str, str | Path] = dict.fromkeys(OURS, sys.executable)
    record: dict[str, Any] = {**options, "ratios": {}, "missing": {}}
    for name in arguments.peers:
        try:
            folder = (arguments.environments or cache_root() / "peers") / name
            pythons[name] = environment(folder, PEERS[name])
        except RuntimeError as error:
            record["missing"][name] = str(error)
