"""The affine map of a weight, per segment and output channel."""

from collections.abc import Mapping
from typing import Any

import torch

from halftone.formats import Affine
from halftone.foundation.registry import make
from halftone.quant.ranges_contract import AbstractRange
from halftone.quant.spec import QuantSpec

_PER_CANDIDATE = 20  # rounding onto the grid and back, the difference, its power (as dear as several) and the mean


def range_estimator(described: str | Mapping[str, Any]) -> AbstractRange:
    """Return the range estimator that a recipe describes: a name, or a mapping of ``name`` and fields.

    Raises:
        ConfigError: at ``range``, no such estimator, or a field it does not have.
    """
    return make("halftone.quant.ranges", described, "range")


def passes(described: str | Mapping[str, Any]) -> int:
    """Return about how many functions of the size of the values a range estimator calls."""
    return 3 + _PER_CANDIDATE * int(getattr(range_estimator(described), "candidates", 0))


def weight_affine(
    weight: torch.Tensor, segments: tuple[int, ...], spec: QuantSpec, described: str | Mapping[str, Any]
) -> Affine:
    """Return the affine ``[S, out]`` of ``weight`` ``[out, in, ...]``, one row per input segment.

    With ``granularity: tensor`` all output channels of a segment share one scale.
    """
    estimator, lows, highs = range_estimator(described), [], []
    for part in weight.detach().split(list(segments), dim=1):
        values = part.flatten(1) if spec.granularity == "channel" else part.reshape(1, -1)
        low, high = estimator.fit([values], spec)
        lows.append(low.expand(weight.shape[0]))
        highs.append(high.expand(weight.shape[0]))
    return spec.affine(torch.stack(lows), torch.stack(highs))
