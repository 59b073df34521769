"""What ``pretrained`` means when a network is built; light, since backbones import it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

Network = TypeVar("Network", bound=Any)

_restoring: ContextVar[bool] = ContextVar("restoring", default=False)


@contextmanager
def restoring() -> Iterator[None]:
    """Within this, ``pretrained`` loads nothing: a checkpoint is about to bring all weights."""
    token = _restoring.set(True)
    try:
        yield
    finally:
        _restoring.reset(token)


def started_from(pretrained: bool | str, build: Callable[[bool], Network]) -> Network:
    """Build a network that starts from its own pretrained weights, from those of a source, or from none.

    Args:
        pretrained: whether the weights that belong to the network are loaded; or a source of other ones, see
            :func:`zoo.checkpoints.load_pretrained`.
        build: makes the network, with the weights that belong to it or without.

    Raises:
        CheckpointError: the source cannot be read, or belongs to another network.
    """
    if _restoring.get():
        return build(False)
    if isinstance(pretrained, bool):
        return build(pretrained)
    from zoo.checkpoints import CheckpointError, load_pretrained

    network = build(False)
    try:
        load_pretrained(network, pretrained)
    except CheckpointError as error:
        raise CheckpointError(f"pretrained={pretrained!r}: {error}") from error
    return network
