"""Where a walk keeps activations: in memory up to a bound, beyond it in memory-mapped files."""

import itertools
import os
from pathlib import Path

import torch


class Store:
    """Hands back a tensor's equal, held in memory or on disk.

    Args:
        memory: bytes kept in memory at most; None for no bound.
        folder: where spilled tensors go, needed where there is a bound; each is one file, removed when the last user lets go of
            the tensor (the file is unlinked at once, so a killed process leaves nothing behind).
        dtype: what activations (floats of three axes or more) are kept in; bfloat16 halves the space.
    """

    def __init__(self, memory: int | None, folder: Path | None, dtype: torch.dtype = torch.float32) -> None:
        self.memory, self.folder, self.dtype = memory, folder, dtype
        self.used = 0
        self.spilled = 0
        self._numbers = itertools.count()

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor with the values of ``tensor`` (rounded to the store's dtype); may live in a mapped file.

        Tensors without a spatial or token axis are not rounded: they are small, and among them are timesteps on their way into sine
        and cosine, of which bfloat16 would leave nothing.
        """
        value = tensor.detach()
        if value.ndim > 2 and value.is_floating_point() and value.dtype != self.dtype:
            value = value.to(self.dtype)
        size = value.numel() * value.element_size()
        if self.memory is None or self.used + size <= self.memory or size < 4096:
            self.used += size
            # Only what carries this mark counts against the bound: not spilled tensors, not inputs that were never kept.
            value._halftone_in_memory = True  # type: ignore[attr-defined]
            return value
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{next(self._numbers)}.bin"
        _reserve(path, size)
        flat = torch.from_file(str(path), shared=True, size=value.numel(), dtype=value.dtype)
        # The same memory layout as in memory: convolutions sum in another order for another layout.
        mapped = flat.as_strided(value.shape, torch.empty_like(value, device="meta").stride())
        mapped.copy_(value)
        path.unlink()
        self.spilled += size
        return mapped

    def release(self, tensor: torch.Tensor) -> None:
        """Tell the store that a tensor is no longer needed; one it never kept is none of its business."""
        if getattr(tensor, "_halftone_in_memory", False):
            tensor._halftone_in_memory = False  # type: ignore[attr-defined]
            self.used -= tensor.numel() * tensor.element_size()


def _reserve(path: Path, size: int) -> None:
    """Make a file of ``size`` bytes whose place on the disk is taken: a mapped hole on a full disk would kill the process.

    Raises:
        OSError: there is no room; nothing is left behind.
    """
    try:
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
    except OSError:
        path.unlink(missing_ok=True)
        raise
