"""PTQ4DM's selection: timesteps drawn from a normal distribution that leans to the clean side (arXiv:2211.15736)."""

from dataclasses import dataclass

import torch

from halftone.calibrate.select_contract import AbstractSelect
from halftone.foundation.bounds import at_least, between


@dataclass(frozen=True)
class Normal(AbstractSelect):
    """t ~ N(mean, deviation) in units of the whole trajectory, t = 1 being pure noise; values outside are clamped.

    The paper's text has mean <= 0.5 and deviation 0.5, its code 0.4 and 0.4; these are the code's.
    """

    mean: float = 0.4
    deviation: float = 0.4

    def __post_init__(self) -> None:
        between(self, 0, 1, "mean")
        at_least(self, 0, "deviation")

    def choose(self, calls: int, count: int, generator: torch.Generator) -> torch.Tensor:
        t = (self.mean + self.deviation * torch.randn(count, generator=generator)).clamp(0, 1)
        return ((1 - t) * (calls - 1)).round().long().sort().values
