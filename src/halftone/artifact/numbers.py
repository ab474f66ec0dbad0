"""The numbers of quantized layers while they are loaded: which of them no dtype may change, and which no quantizer writes."""

from typing import Any

import torch
from torch import nn

from halftone.foundation.errors import ArtifactError


def is_exact(owner: nn.Module, leaf: str) -> bool:
    """Return whether this tensor of ``owner`` is a code, scale or zero point, which no dtype may change."""
    from halftone.nn import AttentionOperands, QuantizedLayer

    if isinstance(owner, QuantizedLayer):
        return owner.scheme is not None and leaf != "bias"
    return isinstance(owner, AttentionOperands)


def check_numbers(model: nn.Module) -> None:
    """Refuse what no quantizer writes: scales that are not positive numbers, zero points off the grid.

    Raises:
        ArtifactError: naming the tensor.
    """
    for name, buffer in model.named_buffers():
        path, _, leaf = name.rpartition(".")
        owner: Any = model.get_submodule(path)
        if not is_exact(owner, leaf):
            continue
        if leaf.endswith("_scale") and not bool((torch.isfinite(buffer) & (buffer > 0)).all()):
            raise ArtifactError(f"tensor '{name}'", "finite positive scales", "others")
        if leaf.endswith("_zero_point"):
            site = leaf.removesuffix("_zero_point")
            bits = (owner.scheme.weight if site == "weight" else owner.site_specs[site]).bits
            if int(buffer.max()) >= 2**bits:
                raise ArtifactError(f"tensor '{name}'", f"zero points below {2**bits}", str(int(buffer.max())))
