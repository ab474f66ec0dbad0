"""Methods compute in float32, whatever the denoiser was loaded in: bfloat16 is as coarse as an 8-bit step."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

_NARROW = (torch.bfloat16, torch.float16)


def as_float(tree: Any, device: torch.device | None = None) -> Any:
    """Return the tree with 16-bit floats, as a walk's store may keep them, widened to float32; on ``device``, if one is given.

    What a store has spilled lies in files, which only a CPU can read.
    """

    def ready(leaf: torch.Tensor) -> torch.Tensor:
        return leaf.to(device, torch.float32 if leaf.dtype in _NARROW else leaf.dtype)

    return pytree.tree_map_only(torch.Tensor, ready, tree)


def widen(module: nn.Module) -> dict[str, torch.dtype]:
    """Turn the 16-bit parameters and buffers of ``module`` into float32, in place; return the dtypes they had, by name."""
    before = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.dtype in _NARROW:
            before[name] = tensor.dtype
            tensor.data = tensor.data.float()
    return before


def narrow(module: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Give the tensors named in ``dtypes`` their dtype back; those that hold codes by now, or have gone, are left alone."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name in dtypes and tensor.is_floating_point():
            tensor.data = tensor.data.to(dtypes[name])
