"""What the C library does with memory that training has freed."""

from __future__ import annotations

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of ``mallopt``'s options in glibc's ``malloc.h``."""
KEPT = 2**30
#: The most that glibc itself raises the threshold to from which memory is mapped. Larger blocks go back at once: of a
#: heap that held them, too, three times the memory was needed for volumes, so many holes did it have.
MAPPED = 2**25


def keep_freed_memory() -> bool:
    """Have glibc keep up to a GiB that is free at the top of its heap, so that the next step finds its pages mapped.

    By default the top goes back to the system once 64 MiB of it are free: activations do so in every step, and their
    pages are cleared and mapped again in the next. A process then stays about as large as it once was. Settings in the
    environment (``MALLOC_*``, ``GLIBC_TUNABLES``) win.

    Returns:
        Whether it was done; elsewhere than in glibc it is not.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - others have another mallopt
        mallopt = library.mallopt
    except (AttributeError, OSError, TypeError):  # Windows has no library of the process
        return False
    return bool(mallopt(MMAP_THRESHOLD, MAPPED) and mallopt(TRIM_THRESHOLD, KEPT))
