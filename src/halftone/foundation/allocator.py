"""Let the C library keep the memory that tensors leave behind.

glibc gives memory back to the system soon after it is freed, so the activations of each call are made of pages that the system
first has to clear. Kept memory costs none of that; ``python -m benchmarks.speedups`` measures what it is worth.
"""

import contextlib
import ctypes
import os
import sys

# Of malloc.h; the largest threshold that glibc takes.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_BLOCK = 32 * 2**20
_SETTINGS = ((_M_MMAP_THRESHOLD, _LARGEST_BLOCK), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 * 2**20))

_kept: bool | None = None


def keep_freed_memory() -> bool:
    """Keep freed blocks of up to 32 MiB for the rest of the process; return whether the C library agreed.

    For programs, not libraries: it concerns the whole process, whose memory then stays near its peak. Nothing is changed where the
    user has set glibc's own variables (``MALLOC_...``), and where the C library is another.
    """
    global _kept
    if _kept is None:
        _kept = not _decided_by_user() and sys.platform == "linux" and _set()
    return _kept


def keeps_freed_memory() -> bool:
    """Return whether :func:`keep_freed_memory` has been called and has worked."""
    return bool(_kept)


def give_back_freed_memory() -> None:
    """Return what is free to the system, where the C library can: after work whose scratch is larger than what runs later."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _decided_by_user() -> bool:
    named = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES", "LD_PRELOAD")
    return any(os.environ.get(name) for name in named)


def _set() -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False  # musl, for one, has none
    return all(mallopt(name, value) == 1 for name, value in _SETTINGS)
