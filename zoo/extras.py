"""Libraries that only some parts need: imported when they do, with one clear error where they are missing."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, extra: str, user: str) -> Any:
    """Import ``module`` of an optional library.

    Args:
        module: dotted name, e.g. ``monai.losses``.
        extra: the extra of this package that installs it.
        user: who needs it, for the message.

    Raises:
        ImportError: the library is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise ImportError(f"{user} needs {library}: pip install 'selfzoo[{extra}]'") from error
