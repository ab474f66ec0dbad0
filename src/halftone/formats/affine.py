"""The affine map between real numbers and a format's grid. This file *is* the definition every kernel is tested against.

``code = encode(round(x * (1 / scale)) + zero_point)`` and ``x_hat = scale * (decode(code) - zero_point)``, in float32. The
multiplication by the reciprocal (not a division) is deliberate: it is what fast kernels do, and the two differ at ties.
"""

from dataclasses import dataclass

import torch

from halftone.formats.contract import AbstractFormat


@dataclass(frozen=True)
class Affine:
    """``scale`` (float32, > 0) and ``zero_point`` (float32 holding a grid number), each broadcastable to the data."""

    scale: torch.Tensor
    zero_point: torch.Tensor

    def view(self, *shape: int) -> "Affine":
        """Return both tensors reshaped for broadcasting."""
        return Affine(self.scale.view(*shape), self.zero_point.view(*shape))


def grid(x: torch.Tensor, affine: Affine, format: AbstractFormat) -> torch.Tensor:
    """Return ``x`` in the unscaled domain; on an integral grid already rounded, but not yet clamped.

    Integers are rounded before the zero point is added: at a tie the parity of the zero point must not decide.
    """
    scaled = x * affine.scale.reciprocal()
    return (scaled.round() if format.integral else scaled) + affine.zero_point


def quantize(x: torch.Tensor, affine: Affine, format: AbstractFormat) -> torch.Tensor:
    """Return the uint8 codes of ``x``; same shape."""
    return format.encode(grid(x.float(), affine, format))


def dequantize(codes: torch.Tensor, affine: Affine, format: AbstractFormat) -> torch.Tensor:
    """Return the float32 numbers that ``codes`` stand for; same shape."""
    return (format.decode(codes) - affine.zero_point) * affine.scale


def fake_quantize(x: torch.Tensor, affine: Affine, format: AbstractFormat) -> torch.Tensor:
    """Return ``dequantize(quantize(x))`` without making codes; keeps ``x``'s dtype."""
    return ((format.round(grid(x.float(), affine, format)) - affine.zero_point) * affine.scale).to(x.dtype)
