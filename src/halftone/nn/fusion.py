"""What the fused blocks share: whether they may fuse, and the product with what follows it."""

import torch
from torch import nn

from halftone.kernels import Fuses, TakesCodes
from halftone.nn.layers import QuantizedLayer


def hooked(module: nn.Module) -> bool:
    """Return whether somebody watches the module's calls, or has put another in their place."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def idle(*modules: nn.Module) -> bool:
    """Return whether nobody would miss the modules' own calls."""
    return not any(map(hooked, modules))


def coded(layer: nn.Module) -> TakesCodes | None:
    """Return the layer's call, if codes are all that it needs now."""
    return layer.prepared_for_codes() if isinstance(layer, QuantizedLayer) else None


def product(
    call: TakesCodes,
    codes: torch.Tensor,
    dtype: torch.dtype,
    added: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the call's output for ``codes`` plus ``added``, plus ``shift`` ``[N, out]`` of each sample, in few passes."""
    if isinstance(call, Fuses):
        return call.fused(codes, dtype, added, shift)
    out = call.from_codes(codes, dtype)
    if shift is not None:
        # In place: the call has just made it.
        out = out.add_(shift[:, :, None, None] if out.ndim == 4 else shift[:, None])
    return out if added is None else out.add_(added)
