"""What Lightning does without a word, said in one plain line each."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo.method import callback_kind


@rank_zero_only
def tell(notes: Iterable[str]) -> None:
    """Print each different note once, on the first process."""
    for note in dict.fromkeys(notes):
        print(f"zoo: note: {note}", file=sys.stderr)


def endless_training(trainer: Mapping[str, Any]) -> list[str]:
    """Lightning trains for 1000 epochs when nothing says when to stop."""
    if trainer["max_steps"] == -1 and trainer["max_epochs"] is None and trainer["max_time"] is None:
        return ["neither trainer.max_steps nor trainer.max_epochs is set: Lightning stops after 1000 epochs"]
    return []


def untrained(ckpt_path: str | None) -> list[str]:
    """Evaluation without a checkpoint."""
    if ckpt_path:
        return []
    return [
        "no --ckpt_path: the network is evaluated as it is built, untrained but for what model.pretrained brings"
    ]


def replaced_defaults(configured: Sequence[Callback], defaults: Sequence[Callback]) -> list[str]:
    """A method adds a default callback only where the config has none of its kind."""
    return [
        f"your {type(callback).__name__} takes the place of the method's {type(default).__name__}"
        for default in defaults
        for callback in configured
        if callback_kind(callback) == callback_kind(default)
    ]


def dropped_callbacks(configured: Sequence[Callback], running: Sequence[Callback]) -> list[str]:
    """Lightning drops a configured callback for one of its class that ``configure_callbacks`` returns."""
    return [
        f"the {type(callback).__name__} of your config was replaced by one of the method"
        for callback in configured
        if not any(callback is other for other in running)
    ]
