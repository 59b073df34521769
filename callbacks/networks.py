"""Which networks of a method a callback of the trainer's overlays works on, and whether the method bears it."""

from __future__ import annotations

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from zoo.method import Method
from zoo.teacher import Frozen, Teacher


def networks(method: Method) -> list[nn.Module]:
    """The trained networks, and those of teachers and frozen ones."""
    followers = [module.network for module in method.modules() if isinstance(module, Teacher | Frozen)]
    return [*method.trained_modules(), *followers]


def refuse(method: Method, family: str) -> None:
    """Raise where the method says that this kind of callback does not go with it.

    Raises:
        MisconfigurationException: with the method's reason.
    """
    if why := method.refuses.get(family):
        raise MisconfigurationException(
            f"{type(method).__name__} does not go with the overlay trainer/{family}: {why}"
        )
