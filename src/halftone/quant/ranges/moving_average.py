"""Running minimum and maximum with momentum."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from halftone.foundation.bounds import between
from halftone.quant.ranges_contract import AbstractRange
from halftone.quant.spec import QuantSpec


@dataclass(frozen=True)
class MovingAverage(AbstractRange):
    """Exponential moving average of each batch's minimum and maximum (Q-Diffusion's ``running_stat``, momentum 0.95).

    Feed batches in shuffled order: in step order the average forgets all but the last, clean steps.
    """

    momentum: float = 0.95

    def __post_init__(self) -> None:
        between(self, 0, 1, "momentum")

    def fit(self, batches: Iterable[torch.Tensor], spec: QuantSpec) -> tuple[torch.Tensor, torch.Tensor]:
        low: torch.Tensor | None = None
        high: torch.Tensor | None = None
        for batch in batches:
            smallest, largest = batch.float().amin(1), batch.float().amax(1)
            low = smallest if low is None else self.momentum * low + (1 - self.momentum) * smallest
            high = largest if high is None else self.momentum * high + (1 - self.momentum) * largest
        assert low is not None and high is not None, "no batches"
        return low, high
