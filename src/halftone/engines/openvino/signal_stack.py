"""The stack that signal handlers of a thread run on, kept as it is while OpenVINO works in that thread.

OpenVINO 2026.4 gives the calling thread a stack of its own for signals, and frees it with the model, on whichever thread that
happens. The thread that still has it dies at the next signal: Ctrl-C after a model was let go was a segmentation fault.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """POSIX's ``stack_t``, as Linux lays it out."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Give the thread back the signal stack that it had, whatever happens inside; elsewhere than on Linux nothing is done."""
    if not sys.platform.startswith("linux"):
        yield
        return
    library, before = ctypes.CDLL(None), _Stack()
    known = library.sigaltstack(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if known:
            library.sigaltstack(ctypes.byref(before), None)
