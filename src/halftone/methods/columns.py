"""The arithmetic of GPTQ: weights as rows of columns, and the second moment of what the columns are multiplied with."""

import torch
from torch import nn

from halftone.formats import AbstractFormat, Affine, fake_quantize, quantize

_PANEL = 128  # columns whose errors are carried to the rest of the row together


def in_blocks(rows: torch.Tensor, width: int, fill: float = 0.0) -> torch.Tensor:
    """Return ``rows`` ``[r, n]`` as ``[blocks, r, width]``; ``fill`` is in the columns that the last block has too many."""
    missing = -rows.shape[1] % width
    padded = nn.functional.pad(rows, (0, missing), value=fill) if missing else rows
    return padded.unflatten(1, (-1, width)).movedim(1, 0)


def compensated(weight: torch.Tensor, second: torch.Tensor, cross: torch.Tensor, damping: float) -> torch.Tensor:
    """Return the weight ``[..., out, n]`` whose output on the inputs there really are comes closest to ``weight``'s on float ones.

    ``argmin_V |V Xq - W Xf|^2 + damping * |V - W|^2`` with ``second = Xq Xq^T`` and ``cross = Xf Xq^T``, both ``[..., n, n]``;
    ``damping`` is relative to the mean of the diagonal.
    """
    h = second.double().clone()
    h.diagonal(dim1=-2, dim2=-1).add_(max(damping, 1e-6) * _level(h).clamp(min=1e-12))
    change = weight.double() @ (cross.double() - second.double())
    return weight + torch.linalg.solve(h, change.mT).mT.float()


def round_columns(
    weight: torch.Tensor,
    affine: Affine,
    grid: AbstractFormat,
    hessian: torch.Tensor,
    damping: float,
    by_activation: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``(codes, rounded)`` ``[..., out, n]`` of ``weight`` ``[..., out, n]`` for inputs with second moment ``hessian``.

    ``hessian`` is ``[..., n, n]``, and ``affine`` has a scale and zero point for each element. Columns whose input is always zero
    are rounded to nearest.
    """
    n = weight.shape[-1]
    h = hessian.double().clone()
    added, diagonal = damping * _level(h), h.diagonal(dim1=-2, dim2=-1)
    diagonal[diagonal == 0] = 1.0
    diagonal += added
    order = torch.arange(n, device=h.device).expand(diagonal.shape)
    if by_activation:
        order = diagonal.argsort(dim=-1, descending=True)
    h = h.take_along_dim(order.unsqueeze(-1), -2).take_along_dim(order.unsqueeze(-2), -1)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    upper = torch.linalg.cholesky(inverse, upper=True).float()
    w, scale, zero_point = (
        each.take_along_dim(order.unsqueeze(-2), -1) for each in (weight, affine.scale, affine.zero_point)
    )
    rounded = torch.empty_like(w)
    for start in range(0, n, _PANEL):
        stop = min(start + _PANEL, n)
        errors = torch.empty_like(w[..., start:stop])
        for i in range(start, stop):
            column = Affine(scale[..., i], zero_point[..., i])
            rounded[..., i] = fake_quantize(w[..., i], column, grid)
            error = (w[..., i] - rounded[..., i]) / upper[..., i, i, None]
            w[..., i:stop] -= error.unsqueeze(-1) * upper[..., None, i, i:stop]
            errors[..., i - start] = error
        w[..., stop:] -= errors @ upper[..., start:stop, stop:]
    rounded = rounded.take_along_dim(order.argsort(dim=-1).unsqueeze(-2), -1)
    return quantize(rounded, affine, grid), rounded


def _level(h: torch.Tensor) -> torch.Tensor:
    """Return the mean ``[..., 1]`` of the diagonal of ``h`` ``[..., n, n]`` over the columns that are not always zero."""
    diagonal = h.diagonal(dim1=-2, dim2=-1)
    return diagonal.sum(-1, keepdim=True) / diagonal.count_nonzero(-1).clamp(min=1).unsqueeze(-1)
