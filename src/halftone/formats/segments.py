"""Segments: consecutive groups of input channels that have their own scales (a split shortcut has two)."""

import torch

from halftone.formats.affine import Affine


def along_input(affine: Affine, segments: tuple[int, ...], ndim: int, dim: int) -> Affine:
    """Return a per-tensor-per-segment affine ``[S]`` shaped to broadcast along axis ``dim`` of an activation of ``ndim`` axes."""
    if len(segments) == 1:
        return affine.view(*[1] * ndim)
    shape = [1] * ndim
    shape[dim] = -1
    return Affine(_spread(affine.scale, segments), _spread(affine.zero_point, segments)).view(*shape)


def along_weight(affine: Affine, segments: tuple[int, ...], ndim: int) -> Affine:
    """Return a per-segment-and-channel affine ``[S, out]`` shaped for a weight ``[out, in, ...]`` of ``ndim`` axes."""
    tail = [1] * (ndim - 2)
    if len(segments) == 1:
        return affine.view(-1, 1, *tail)
    counts = torch.tensor(segments, device=affine.scale.device)
    scale, zero_point = (v.repeat_interleave(counts, dim=0).t().contiguous() for v in (affine.scale, affine.zero_point))
    return Affine(scale, zero_point).view(*scale.shape, *tail)


def _spread(values: torch.Tensor, segments: tuple[int, ...]) -> torch.Tensor:
    # Not repeat_interleave: the size of its result is a matter of data, for which compiled graphs have no place.
    return torch.cat([value.expand(size) for value, size in zip(values.split(1), segments, strict=True)])
