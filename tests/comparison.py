"""How tests compare tensors."""

from collections.abc import Mapping

import torch


def sqnr(wanted: torch.Tensor, found: torch.Tensor) -> float:
    """Return the power of ``wanted`` over that of the difference, in dB; very large for equal tensors."""
    noise = (wanted.double() - found.double()).square().mean()
    return float(10 * torch.log10(wanted.double().square().mean() / noise.clamp(min=1e-300)))


def identical(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    """Return whether two state dicts have the same names, dtypes and numbers."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)
