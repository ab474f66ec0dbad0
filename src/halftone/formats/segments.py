"""Segments: consecutive groups of input channels that have their own scales (a split shortcut has two)."""

import torch

from halftone.formats.affine import Affine


def along_input(affine: Affine, segments: tuple[int, ...], ndim: int, dim: int) -> Affine:
    """Return a per-tensor-per-segment affine ``[S]`` shaped to broadcast along axis ``dim`` of an activation of ``ndim`` axes."""
    if len(segments) == 1:
        return affine.view(*[1] * ndim)
    shape = [1] * ndim
    shape[dim] = -1
    counts = torch.tensor(segments, device=affine.scale.device)
    return Affine(affine.scale.repeat_interleave(counts), affine.zero_point.repeat_interleave(counts)).view(*shape)


def along_weight(affine: Affine, segments: tuple[int, ...], ndim: int) -> Affine:
    """Return a per-segment-and-channel affine ``[S, out]`` shaped for a weight ``[out, in, ...]`` of ``ndim`` axes."""
    tail = [1] * (ndim - 2)
    if len(segments) == 1:
        return affine.view(-1, 1, *tail)
    counts = torch.tensor(segments, device=affine.scale.device)
    scale, zero_point = (v.repeat_interleave(counts, dim=0).t().contiguous() for v in (affine.scale, affine.zero_point))
    return Affine(scale, zero_point).view(*scale.shape, *tail)
