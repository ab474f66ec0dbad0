"""The plain range: smallest and largest value seen."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from halftone.quant.ranges_contract import AbstractRange
from halftone.quant.spec import QuantSpec


@dataclass(frozen=True)
class MinMax(AbstractRange):
    """Minimum and maximum over all batches."""

    def fit(self, batches: Iterable[torch.Tensor], spec: QuantSpec) -> tuple[torch.Tensor, torch.Tensor]:
        lows, highs = zip(*((b.float().amin(1), b.float().amax(1)) for b in batches), strict=True)
        return torch.stack(lows).amin(0), torch.stack(highs).amax(0)
