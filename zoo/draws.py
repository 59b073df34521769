"""Random numbers that depend on the run's seed and a place in the run alone, so that a resumed run draws them again."""

from __future__ import annotations

import os
from random import Random

import torch


def rng_at(place: str) -> Random:
    """Python's generator for a ``place``: any text that says where in the run something is drawn."""
    return Random(f"{os.environ.get('PL_GLOBAL_SEED', '0')}/{place}")


def generator_at(place: str, device: torch.device) -> torch.Generator:
    """The same of torch, on a device."""
    return torch.Generator(device).manual_seed(rng_at(place).getrandbits(62))
