"""The overlays of ``configs/trainer``: one step each by the command line, what they change, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from callbacks import ChannelsLast, Compile, FusedOptimizer, GradientCheckpointing, Mesa
from tests.test_configs import QUIET, miniature
from tests.toy import Record, ToyMethod, toy_loader, toy_trainer
from zoo.__main__ import main
from zoo.config_files import package_configs
from zoo.optim import Optim
from zoo.teacher import Teacher

OVERLAYS = sorted(path.stem for path in (package_configs() / "trainer").glob("*.yaml"))
PERFORMANCE = Path(__file__).parents[1] / "docs/performance.md"


class Block(nn.Module):
    """Two convolutions, what is random, and what counts."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.3
        self.first, self.norm, self.second = (
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + F.dropout(self.second(F.relu(self.norm(self.first(x)))), self.rate, self.training)


class Pictures(ToyMethod):
    """The toy method on the points as pictures, by a network with blocks."""

    def __init__(self, optim: Optim | None = None) -> None:
        super().__init__(optim=optim)
        self.student = nn.Sequential(
            nn.Unflatten(1, (3, 1, 1)), nn.Upsample(scale_factor=4), nn.Conv2d(3, 4, 3)
        )
        self.student += nn.Sequential(Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.teacher = Teacher(self.student)


def trained(*callbacks: Any, method: ToyMethod | None = None, **trainer: Any) -> ToyMethod:
    torch.manual_seed(0)
    method = method or Pictures()
    toy_trainer(max_steps=3, callbacks=[*callbacks], **trainer).fit(method, toy_loader())
    return method


def assert_alike(one: ToyMethod, other: ToyMethod, atol: float = 1e-6) -> None:
    assert list(one.state_dict()) == list(other.state_dict())
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], atol=atol, rtol=1e-5, msg=name)


def a_step(config: str, overlays: list[str], folder: Path) -> int:
    """The exit status of one step of a config with overlays."""
    chosen = [argument for overlay in overlays for argument in ("--config", f"trainer/{overlay}")]
    few = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "0", "--run_dir", str(folder / "run")]
    return main(["fit", "--config", config, *chosen, *miniature(config, folder), *QUIET, *few])


@pytest.mark.parametrize("overlay", [o for o in OVERLAYS if o != "compile"])
def test_a_step_through_the_command_line(overlay: str, tmp_path: Path) -> None:
    assert a_step("self_training/embedded", [overlay], tmp_path) == 0
    resolved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["trainer"]
    given = yaml.safe_load((package_configs() / f"trainer/{overlay}.yaml").read_text())["trainer"]
    if "precision" in given:
        assert resolved["precision"] == given["precision"]
    else:
        assert [c["class_path"] for c in resolved["callbacks"]] == [
            c["class_path"] for c in given["callbacks+"]
        ]


def test_overlays_leave_the_callbacks_of_a_config(tmp_path: Path) -> None:
    assert a_step("dino/embedded", ["fused", "checkpointing"], tmp_path) == 0
    resolved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["trainer"]["callbacks"]
    kinds = ["KNNProbe", "RawPixelProbe", "FusedOptimizer", "GradientCheckpointing"]
    assert [c["class_path"].rpartition(".")[2] for c in resolved] == kinds


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_are_documented(overlay: str) -> None:
    first = (package_configs() / f"trainer/{overlay}.yaml").read_text().splitlines()[0]
    assert first == f"# zoo fit --config fst/embedded --config trainer/{overlay}"
    assert f"| `trainer/{overlay}` |" in PERFORMANCE.read_text()


# Compile.


@pytest.mark.slow
def test_compiled_code_trains_alike() -> None:
    """Points alone: dropout of compiled code draws other random numbers."""
    torch.manual_seed(0)
    compiled = trained(Compile(), method=ToyMethod())
    torch.manual_seed(0)
    assert_alike(compiled, trained(method=ToyMethod()), atol=1e-5)


def test_compile_is_in_place() -> None:
    seen = []

    class Look(Record):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            networks = (pl_module.student, pl_module.teacher.network)
            seen.append([network._compiled_call_impl is not None for network in networks])

    compile_ = Compile(backend="eager")
    compiled = trained(compile_, Look())
    assert seen[0] == [True, True]
    assert compiled.student._compiled_call_impl is None  # nothing stays
    assert not compile_.compiled
    assert_alike(compiled, trained())


def test_parts_are_compiled_where_no_whole_network_is_called() -> None:
    class Parts(Pictures):
        def losses(self, batch: Any) -> dict[str, Tensor]:
            x, y = batch["source"]["image"], batch["source"]["label"]
            for layer in self.student:
                x = layer(x)
            return {"source": F.cross_entropy(x, y)}

    compiled = []

    class Look(Record):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            compiled.extend(type(m).__name__ for m in pl_module.student if m._compiled_call_impl is not None)

    trained(Compile(backend="eager"), Look(), method=Parts())
    assert compiled[:3] == ["Conv2d", "Block", "Block"]


def test_compile_refuses_what_has_nothing_to_compile() -> None:
    class Bare(ToyMethod):
        def losses(self, batch: Any) -> dict[str, Tensor]:
            return {"norm": sum((p**2).sum() for p in self.student.parameters())}  # type: ignore[dict-item]

    with pytest.raises(MisconfigurationException, match="a step of Bare calls none of its networks"):
        trained(Compile(backend="eager"), method=Bare())


def test_compile_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callbacks.compiled._missing_compiler", lambda _: "there is no compiler")
    with pytest.raises(MisconfigurationException, match="Compile: there is no compiler"):
        trained(Compile())


# Channels last.


def test_channels_last_changes_strides_alone() -> None:

    def certain() -> Pictures:
        torch.manual_seed(0)
        method = Pictures()
        for block in method.modules():
            if isinstance(block, Block):
                block.rate = 0.0  # in another order of memory, other activations would be dropped
        return method

    converted = trained(ChannelsLast(), method=certain())
    assert_alike(converted, trained(method=certain()))
    for network in (converted.student, converted.teacher.network):
        weight: Any = network[3].first.weight
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()


def test_channels_last_needs_a_convolution_that_slides() -> None:
    method = ToyMethod()
    with pytest.raises(
        MisconfigurationException, match="ToyMethod have no 2-D or 3-D convolution that slides"
    ):
        trained(ChannelsLast(), method=method)


# Gradient checkpointing.


def test_checkpointing_computes_the_same_from_less() -> None:
    """Losses, gradients, running statistics, counters and random numbers."""
    kept: dict[str, int] = {}
    methods = {}
    for name, callbacks in (("all", []), ("less", [GradientCheckpointing()])):

        class Measured(Pictures):
            def losses(self, batch: Any, name: str = name) -> dict[str, Tensor]:
                def pack(tensor: Tensor) -> Tensor:
                    kept[name] = kept.get(name, 0) + tensor.numel()
                    return tensor

                with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                    return super().losses(batch)

        torch.manual_seed(0)
        methods[name] = trained(*callbacks, method=Measured())
    assert_alike(methods["less"], methods["all"], atol=0.0)
    assert int(methods["less"].student[3].norm.num_batches_tracked) == 6  # type: ignore[union-attr, arg-type]
    assert kept["less"] < 0.5 * kept["all"]
    assert type(methods["less"].student[3]) is Block  # nothing stays


def test_checkpointing_needs_blocks() -> None:
    with pytest.raises(MisconfigurationException, match="ToyMethod have no blocks"):
        trained(GradientCheckpointing(), method=ToyMethod())


def test_checkpointing_sees_that_blocks_are_called() -> None:
    class Inside(Pictures):
        def losses(self, batch: Any) -> dict[str, Tensor]:
            x: Any = self.student[2](self.student[1](self.student[0](batch["source"]["image"])))
            return {
                "source": F.cross_entropy(self.student[3].first(x).mean((2, 3)), batch["source"]["label"])
            }  # type: ignore[union-attr, operator]

    with pytest.raises(MisconfigurationException, match="calls none of the 2 blocks"):
        trained(GradientCheckpointing(), method=Inside())


# Fused optimisers.


def test_fused_leaves_the_other_options() -> None:
    options = {"name": "adamw", "lr": 1e-3, "schedule": "constant"}
    plain = trained(method=Pictures(optim=Optim(**options, options={"betas": [0.5, 0.6]})))
    torch.manual_seed(0)
    fused = trained(FusedOptimizer(), method=Pictures(optim=Optim(**options, options={"betas": [0.5, 0.6]})))
    assert fused.optim.options == {"betas": [0.5, 0.6], "fused": True}
    assert fused.trainer.optimizers[0].defaults["fused"]
    assert fused.trainer.optimizers[0].defaults["betas"] == (0.5, 0.6)
    assert fused.hparams["optim"]["options"] == {"betas": [0.5, 0.6]}
    assert list(plain.state_dict()) == list(fused.state_dict())


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        (Optim("rprop", lr=0.1), r"torch\.optim\.Rprop has no fused form, only .*adamw.* do"),
        (Optim("adam", options={"foreach": True}), "asks for foreach: true"),
        (Optim("adam", options={"fused": False}), "asks for fused: false"),
    ],
)
def test_fused_refuses(optim: Optim, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        trained(FusedOptimizer(), method=Pictures(optim=optim))


# What does not go together.


@pytest.mark.parametrize("callback", [Compile(), ChannelsLast(), GradientCheckpointing(), FusedOptimizer()])
def test_a_method_says_what_does_not_go_with_it(callback: Any) -> None:
    class Shy(Pictures):
        refuses = {callback.family: "it is shy"}  # noqa: RUF012

    with pytest.raises(MisconfigurationException, match=f"Shy .* trainer/{callback.family}: it is shy"):
        trained(callback, method=Shy())
    assert callback.family in OVERLAYS


@pytest.mark.parametrize(
    "callbacks",
    [
        (Compile(backend="eager"), GradientCheckpointing()),
        (Compile(backend="eager"), Mesa(exact=[])),
        (GradientCheckpointing(), Mesa(exact=[])),
    ],
)
def test_two_that_change_the_same_networks_are_refused(callbacks: tuple[Any, ...]) -> None:
    with pytest.raises(MisconfigurationException, match="both change"):
        trained(*callbacks)


def test_evaluation_knows_nothing_of_them() -> None:
    """Callbacks of a run's config are there when it is tested."""
    method = Pictures()
    method.validation_step = lambda batch, batch_idx: None  # type: ignore[method-assign,assignment]
    overlays = [Compile(backend="eager"), GradientCheckpointing(), FusedOptimizer()]
    toy_trainer(callbacks=overlays).validate(method, toy_loader(1), verbose=False)
