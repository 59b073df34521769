"""A teacher's update against one flat in-place lerp of the same bytes, and a look-ahead against one fused pass.

Beside the zoo's: the forms other libraries and the papers' code use, written here with their own functions where they
are installed (torch, timm). Every form is checked against the flat one before it is timed; the tolerance is printed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from benchmarks.speed.paired import dispatches, in_turns, keep, markdown, options, over, shown
from zoo.teacher import Teacher

NETWORKS = {
    "ResNet-50": "resnet50",
    "ViT-S/16": "vit_small_patch16_224",
    "ViT-B/16": "vit_base_patch16_224",
}
DECAY = 0.99
TOLERANCE = 2e-6
"""Largest difference of a parameter from the flat form's; parameters are of order 1 at most."""
OPTIMISERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 1e-2, "momentum": 0.9, "weight_decay": 1e-4},
    "AdamW": {"lr": 1e-3, "weight_decay": 1e-2},
}
Forms = dict[str, tuple[Callable[[], object], list[Tensor]]]


def network(name: str, device: str) -> nn.Module:
    """One of the networks with any numbers for weights."""
    torch.manual_seed(0)
    with torch.device("meta"):
        built = timm.create_model(NETWORKS[name])
    built.to_empty(device=device)
    with torch.no_grad():
        for tensor in (*built.parameters(), *built.buffers()):
            tensor.uniform_(-0.05, 0.05) if tensor.is_floating_point() else tensor.zero_()
    return built


def flat(tensors: list[Tensor]) -> Tensor:
    """One vector of all."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


@torch.no_grad()
def fill(teacher: list[Tensor], start: Tensor) -> None:
    """Put a vector of :func:`flat` into the tensors."""
    for tensor, piece in zip(teacher, start.split([t.numel() for t in teacher]), strict=True):
        tensor.copy_(piece.view_as(tensor))


# -- updates -----------------------------------------------------------------------------------------------


def update_forms(student: nn.Module) -> Iterator[tuple[str, Callable[[], object], list[Tensor]]]:
    """Each form: its name, one update, and the teacher's parameters."""
    own = Teacher(student)
    theirs, ours = list(student.parameters()), list(own.network.parameters())
    vector, other = flat(theirs), flat(theirs)
    yield "flat lerp", lambda: vector.lerp_(other, 1 - DECAY), [vector]
    yield "zoo", lambda: own.update(student, DECAY), ours

    def loop() -> None:
        for t, s in zip(ours, theirs, strict=True):
            t.lerp_(s, 1 - DECAY)

    def two_passes() -> None:
        torch._foreach_mul_(ours, DECAY)
        torch._foreach_add_(ours, theirs, alpha=1 - DECAY)

    def slices() -> None:
        for t, s in zip(ours, theirs, strict=True):
            t.data[:] = DECAY * t[:].data[:] + (1 - DECAY) * s[:].data[:]

    yield "loop of lerp_", loop, ours
    yield "foreach mul_, add_ (lightly)", two_passes, ours
    yield "slices assigned (papers' code)", slices, ours
    for name, arguments in {
        "torch AveragedModel, foreach": {"multi_avg_fn": get_ema_multi_avg_fn(DECAY)},
        "Lightning EMAWeightAveraging": {"avg_fn": get_ema_avg_fn(DECAY), "use_buffers": True},
    }.items():
        averaged = AveragedModel(student, **arguments)
        averaged.n_averaged.fill_(1)  # the first update would copy
        yield name, lambda a=averaged: a.update_parameters(student), list(averaged.module.parameters())
    timm_ema = ModelEmaV3(student, decay=DECAY)
    yield "timm ModelEmaV3", lambda: timm_ema.update(student), list(timm_ema.module.parameters())


@torch.no_grad()
def time_updates(of: str, device: str, rounds: int, wanted: tuple[str, ...]) -> dict[str, Any]:
    """Every form's time over the flat lerp, with its calls into ATen."""
    student = network(of, device)
    start = flat(list(student.parameters())).add_(0.01)
    expected = start.lerp(flat(list(student.parameters())), 1 - DECAY)
    pieces, calls, largest = {}, {}, 0.0
    for name, update, teacher in update_forms(student):
        if not name.startswith(("flat", *wanted)):
            continue
        fill(teacher, start)
        update()
        error = float((flat(teacher) - expected).abs().max())
        if error > TOLERANCE:
            raise AssertionError(f"{name} on {of}: parameters differ by {error:.1e} from the flat lerp")
        pieces[name], calls[name], largest = update, dispatches(update), max(largest, error)
    found = over(in_turns(pieces, rounds, device), "flat lerp")
    return {"error": largest, "forms": {name: {**found[name], "dispatches": calls[name]} for name in found}}


# -- look-aheads -------------------------------------------------------------------------------------------


class LookAhead:
    """Parameters with gradients, an optimiser that has state, a teacher; and the forms of one virtual step."""

    def __init__(self, name: str, device: str) -> None:
        self.student = network("ResNet-50", device)
        self.parameters = list(self.student.parameters())
        for parameter in self.parameters:
            parameter.grad = 0.01 * torch.randn_like(parameter)
        self.name, self.settings = name, OPTIMISERS[name]
        self.build: Any = getattr(torch.optim, name)
        self.optimizer = self.build(self.parameters, **self.settings)
        self.optimizer.step()
        self.fused = self.build(self.parameters, fused=True, **self.settings)
        self.fused.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        for group in self.fused.param_groups:
            group["fused"] = True
        self.teacher = Teacher(self.student)
        self.targets = list(self.teacher.network.parameters())
        from callbacks.future_teacher import copy_into, standing_in  # slow to import, and updates do without

        self.virtual: list[Tensor] = []
        self.copy_into, self.standing_in = copy_into, standing_in

    # The floor: one pass that reads all and writes the teacher alone.

    def single_pass(self) -> tuple[Callable[[], object], list[Tensor]]:
        states = [self.optimizer.state[parameter] for parameter in self.parameters]
        p, g = flat(self.parameters), flat([q.grad for q in self.parameters if q.grad is not None])
        t, o = flat(self.targets), self.settings
        if self.name == "SGD":
            m = flat([state["momentum_buffer"] for state in states])

            def look(p: Tensor, g: Tensor, t: Tensor, m: Tensor) -> None:
                stepped = p - o["lr"] * (o["momentum"] * m + g + o["weight_decay"] * p)
                t.copy_(DECAY * t + (1 - DECAY) * stepped)

            run = torch.compile(look)
            return lambda: run(p, g, t, m), [t]
        m, v = (flat([state[key] for state in states]) for key in ("exp_avg", "exp_avg_sq"))
        step = float(states[0]["step"]) + 1

        def look_adamw(p: Tensor, g: Tensor, t: Tensor, m: Tensor, v: Tensor) -> None:
            mean = (0.9 * m + 0.1 * g) / (1 - 0.9**step)
            root = ((0.999 * v + 0.001 * g * g) / (1 - 0.999**step)).sqrt()
            stepped = p * (1 - o["lr"] * o["weight_decay"]) - o["lr"] * mean / (root + 1e-8)
            t.copy_(DECAY * t + (1 - DECAY) * stepped)

        run = torch.compile(look_adamw)
        return lambda: run(p, g, t, m, v), [t]

    def zoo(self, optimizer: torch.optim.Optimizer) -> None:
        """As :class:`callbacks.FutureTeacher` does with ``rewind="parameters"``."""
        self.virtual = self.copy_into(self.virtual, self.parameters)
        with self.standing_in(self.parameters, self.virtual):
            optimizer.step()
            self.teacher.update(self.student, DECAY)

    @torch.no_grad()
    def snapshot(self) -> None:
        """Parameters and state kept, a real step, and everything put back."""
        state = self.optimizer.state
        kept = [parameter.clone() for parameter in self.parameters]
        moments = {p: {k: v.clone() for k, v in state[p].items()} for p in self.parameters}
        self.optimizer.step()
        torch._foreach_lerp_(self.targets, self.parameters, 1 - DECAY)
        torch._foreach_copy_(self.parameters, kept)
        for p in self.parameters:
            for key, value in moments[p].items():
                state[p][key].copy_(value)

    @torch.no_grad()
    def records(self) -> None:
        """Tensor by tensor in Python: record, step, average, put back; the state stays moved."""
        record = {name: p.data.clone() for name, p in self.student.named_parameters()}
        self.optimizer.step()
        for t, s in zip(self.targets, self.parameters, strict=True):
            t.data[:] = DECAY * t[:].data[:] + (1 - DECAY) * s[:].data[:]
        for name, p in self.student.named_parameters():
            p.data[:] = record[name]

    @torch.no_grad()
    def deep_copies(self) -> None:
        """A copy of student and optimiser takes the step."""
        student = copy.deepcopy(self.student)
        virtual = list(student.parameters())
        optimizer = self.build(virtual, **self.settings)
        optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        for p, q in zip(virtual, self.parameters, strict=True):
            p.grad = q.grad
        optimizer.step()
        torch._foreach_lerp_(self.targets, virtual, 1 - DECAY)

    def forms(self) -> Forms:
        return {
            "one fused pass": self.single_pass(),
            "zoo, fused optimiser": (lambda: self.zoo(self.fused), self.targets),
            "zoo": (lambda: self.zoo(self.optimizer), self.targets),
            "snapshot, step, restore": (self.snapshot, self.targets),
            "records in Python (papers' code)": (self.records, self.targets),
            "deepcopy of student and optimiser": (self.deep_copies, self.targets),
        }


def time_look_aheads(name: str, device: str, rounds: int, wanted: tuple[str, ...]) -> dict[str, Any]:
    """Every form's time over the fused pass; the first virtual step of each is compared."""
    rival = LookAhead(name, device)
    start = flat(rival.targets).add_(0.01)
    states = {id(o): copy.deepcopy(o.state_dict()) for o in (rival.optimizer, rival.fused)}
    expected, largest, pieces, calls = None, 0.0, {}, {}
    for form, (look, teacher) in rival.forms().items():
        if not form.startswith(("one", *wanted)):
            continue
        for optimizer in (rival.optimizer, rival.fused):
            fused = optimizer.param_groups[0]["fused"]
            optimizer.load_state_dict(copy.deepcopy(states[id(optimizer)]))
            optimizer.param_groups[0]["fused"] = fused
        fill(teacher, start)
        before = flat(rival.parameters)
        look()
        expected = flat(teacher) if expected is None else expected
        error = float((flat(teacher) - expected).abs().max())
        if error > TOLERANCE or not torch.equal(before, flat(rival.parameters)):
            raise AssertionError(f"{form}, {name}: the teacher is off by {error:.1e}, or the student moved")
        pieces[form], largest = look, max(largest, error)
        calls[form] = dispatches(look) if form != "one fused pass" else 1
    found = over(in_turns(pieces, rounds, device), "one fused pass")
    return {"error": largest, "forms": {form: {**found[form], "dispatches": calls[form]} for form in found}}


def main() -> None:
    parser = options(__doc__, rounds=11)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--optimisers", nargs="*", choices=OPTIMISERS, default=list(OPTIMISERS))
    parser.add_argument("--forms", nargs="*", default=[""], help="some, by the beginnings of their names")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    how = arguments.device, arguments.rounds, tuple(arguments.forms)
    updates = {name: time_updates(name, *how) for name in arguments.networks}
    looks = {name: time_look_aheads(name, *how) for name in arguments.optimisers}
    for title, found in (("update / flat lerp", updates), ("look-ahead / one fused pass", looks)):
        if found:
            print(f"{title}; largest difference {max(result['error'] for result in found.values()):.1e}")
            rows = [
                [
                    form,
                    *(f"{shown(r['forms'][form])}; {r['forms'][form]['dispatches']}" for r in found.values()),
                ]
                for form in next(iter(found.values()))["forms"]
            ]
            print(markdown(["form", *(f"{name}; calls" for name in found)], rows))
    keep(arguments.json, arguments.device, {"updates": updates, "look-aheads": looks})


if __name__ == "__main__":
    main()
