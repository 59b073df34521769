"""What the C library does with memory that training has freed."""

from __future__ import annotations

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of ``mallopt``'s options in glibc's ``malloc.h``."""
LARGEST = 2**30
#: What older releases accept at most as the threshold from which memory is mapped.
ONCE_LARGEST = 2**25


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed for the next step, so that its pages need not be cleared and mapped once more.

    By default every tensor above a threshold of at most 32 MiB is mapped anew, and the top of the heap goes back to the
    system as soon as it is free: activations do so in every step. A process then stays as large as its largest moment,
    which is no larger than before. Settings in the environment (``MALLOC_*``, ``GLIBC_TUNABLES``) win.

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
    maps = mallopt(MMAP_THRESHOLD, LARGEST) or mallopt(MMAP_THRESHOLD, ONCE_LARGEST)
    return bool(maps and mallopt(TRIM_THRESHOLD, LARGEST))
